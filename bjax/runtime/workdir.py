"""A run's folder: how its files are written, what was done in it, and whose run it holds.

config.json, classes.json, run.json, metrics.jsonl, results.json, calibration.json (where the condition `sharp` was
evaluated), checkpoints/, .lock while it is worked on, what was asked for beside them (speed.json, mask_quality.json,
similarity.json, adapt.json, gallery.npz, tensorboard/) and what went wrong (nonfinite.json, NAME.damaged); sums.sha256
has the sums of all but the checkpoints, which have their own. Whoever writes says so: of several processes one does.
"""

import collections
import contextlib
import datetime
import errno
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import ml_collections
import numpy as np

from bjax import config as configs
from bjax import options, specs, sums
from bjax.errors import UserError

VERSIONS = ("bjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
FULL = (errno.ENOSPC, errno.EDQUOT)
FREE = options.affecting(specs.Run, "evaluation", "nothing")  # a run may go on with these changed
WEIGHTS = options.affecting(specs.Run, "weights")  # with others of these a run's weights would be misread


def write_text(path: Path, text: str) -> None:
    """Writes a file of a run, and its sum; see `bjax.sums`."""
    sums.write(path, text.encode())


def write(path: Path, content) -> None:
    """Writes what JSON can hold, or arrays by name where the file is an .npz, as `write_text` does.

    Raises ValueError for a NaN or an infinity: JSON has none.
    """
    if path.suffix == ".npz":
        stream = io.BytesIO()
        np.savez_compressed(stream, **content)
        sums.write(path, stream.getvalue())
    else:
        write_text(path, to_json(content))


def to_json(content) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def refused(error: BaseException, workdir: Path) -> str | None:
    """What the file system refused, in one line, where that is why a run in `workdir` ended; None otherwise.

    Of several errors it is the first: what fails on the way out fails for the same reason.
    """
    chain = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) and before not in chain:
        chain.append(before)
    texts = [" ".join(str(e).split()) for e in chain]
    inside = [str(workdir) in text or str(workdir.absolute()) in text for text in texts]
    # TensorStore, which writes checkpoints, has the number in its text.
    numbers = [next(map(int, re.findall(r"(?:OS error |os_error_code=')(\d+)", text)), None) for text in texts]
    for e, within, number in reversed(list(zip(chain, inside, numbers, strict=True))):
        number = e.errno if isinstance(e, OSError) else number
        if number in FULL or (number and within):
            file = getattr(e, "filename", None)
            break
    else:
        # Orbax finds its files gone in many ways.
        if not any(inside) or (workdir / "config.json").exists():
            return None
        number, file = errno.ENOENT, None
    way = "make room" if number in FULL else "see that it is a folder that may be written, or name another"
    return (
        f"--workdir={workdir}: {os.strerror(number)}{f' ({file})' if file else ''}; {way}; the same command goes on "
        "from its last checkpoint"
    )


def write_classes(workdir: Path, names: tuple[str, ...]) -> None:
    """Writes classes.json, the names of the model's classes in their order, for those who have no dataset."""
    write_text(workdir / "classes.json", json.dumps(names, indent=0, ensure_ascii=False) + "\n")


def check_same_run(workdir: Path, config, note) -> None:
    """Raises UserError where the workdir holds a run of another config. note: as in `config.read`."""
    path = workdir / "config.json"
    if path.exists():
        run = configs.read(path, note)
        for key in configs.REMOVED:
            if key in run:
                raise UserError(
                    f"--workdir={workdir}: its run has {key}={run[key]}, which is gone; evaluate it with "
                    "--mode=eval, or train in another"
                )
        changed = [d for d in configs.differences(run, config) if not _is_of(d, FREE)]
        if changed:
            raise UserError(f"--workdir={workdir}: holds a run with another config ({'; '.join(changed)}); use another")


def as_trained(workdir: Path, config, note) -> ml_collections.ConfigDict:
    """`config` with the optimiser of the run in `workdir`, which decides the shape of its checkpoints.

    Raises UserError where the run's model or inputs are others than the config's: its weights would be misread.
    """
    run = configs.read(workdir / "config.json", note)
    changed = [d for d in configs.differences(run, config) if _is_of(d, WEIGHTS)]
    if changed:
        raise UserError(
            f"--workdir={workdir}: holds a run with another config ({'; '.join(changed)}); leave that out, or name an "
            "empty --workdir to evaluate weights of your own"
        )
    config = configs.copied(config)
    config.optim = run.optim
    return config


def _is_of(difference: str, keys: tuple[str, ...]) -> bool:
    return any(difference.startswith((f"{key}:", f"{key}.")) for key in keys)


@contextlib.contextmanager
def session(workdir: Path, mode: str, *, writes: bool):
    """Adds to run.json, when it ends, how long this process worked on the run, with which versions and on what.

    {"sessions": [{started, seconds, mode, commit, versions, device, processes}]}: one per command that began to work,
    interrupted ones too; commit is None outside a git checkout. What is put into the dictionary that it yields comes
    with it. Only the process that `writes` writes. A damaged run.json is put aside as run.json.damaged.
    """
    started, since = datetime.datetime.now(datetime.UTC), time.perf_counter()
    more = {}
    try:
        yield more
    finally:
        if writes and workdir.is_dir():
            import jax  # on the devices of the run, which are known by now

            path = workdir / "run.json"
            sessions = _sessions(path)
            device = jax.devices()[0].device_kind
            sessions.append(
                {
                    "started": started.isoformat(timespec="seconds"),
                    "seconds": round(time.perf_counter() - since, 1),
                    "mode": mode,
                    "commit": commit(),
                    "versions": {"python": platform.python_version(), **_versions()},
                    "device": f"{jax.device_count()} × {device}",
                    "processes": jax.process_count(),
                    **more,
                }
            )
            write_text(path, json.dumps({"sessions": sessions}, indent=2) + "\n")


def _sessions(path: Path) -> list[dict]:
    content = _whole(path, lambda content: isinstance(content["sessions"], list))
    return content["sessions"] if content else []


def finish(workdir: Path, config, step: int) -> dict:
    """What tells in run.json that the training of `config` ended at `step` with what results.json holds now."""
    objective = hashlib.sha256(configs.to_json(config).encode()).hexdigest()
    return {"step": step, "config": objective, "results": hashlib.sha256(_bytes(workdir / "results.json")).hexdigest()}


def finished(workdir: Path, config, step: int) -> bool:
    """Whether results.json is of the training of `config` up to `step`; where it is damaged that is told.

    With anything changed in the config the answer is no: what an evaluation is asked for has changed, or may have.
    """
    if _bytes(workdir / "config.json") != configs.to_json(config).encode():
        return False
    try:
        for name in ("classes.json", "metrics.jsonl"):
            sums.check(workdir / name)
        sessions = json.loads(sums.read(workdir / "run.json"))["sessions"]
        ends = [session.get("finished") for session in sessions]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False  # the run is evaluated again, and what is wrong is told, or mended, when the file is written
    if not any(isinstance(end, dict) and end.get("step") == step for end in ends):
        return False
    results(workdir / "results.json")
    return finish(workdir, config, step) in ends


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def results(path: Path) -> dict[str, dict]:
    """The rows of results.json; none where it is missing or, as is then told, damaged."""

    def good(content) -> bool:
        return isinstance(content, dict) and all({"n", "top1"} <= set(row) for row in content.values())

    return _whole(path, good) or {}


def _whole(path: Path, good: Callable[[object], bool]):
    """What the JSON file holds; None where it is missing, or damaged: then it is put aside as NAME.damaged."""
    why = ""
    try:
        sums.check(path)
        if not path.exists():
            return None
        content = json.loads(path.read_text())
        if good(content):
            return content
    except (LookupError, TypeError):
        pass
    except ValueError as error:
        why = f" ({error})"
    aside, kept = path.with_name(f"{path.name}.damaged"), ""
    if path.exists():
        os.replace(path, aside)
        kept = f"kept as {aside.name}, and "
    print(f"bjax: {path}: damaged{why}; {kept}begun anew", file=sys.stderr, flush=True)
    return None


def _versions() -> dict[str, str]:
    """Of what decides the numbers, as far as it is installed: a clone may be run in place."""
    installed = {}
    for name in VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed


def commit() -> str | None:
    """The commit of this code, with a + where files that git knows are changed."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=12", "--dirty=+"]
    try:
        described = subprocess.run([*command, "--exclude=*"], capture_output=True, text=True)
    except FileNotFoundError:  # git is not installed
        return None
    return described.stdout.strip() or None


def row_of(line: bytes) -> dict | None:
    """The row of metrics.jsonl that `line` holds, or None."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(row, dict) and isinstance(row.get("step"), int)
    return row if whole and all(isinstance(x, int | float) and math.isfinite(x) for x in row.values()) else None


def _summary_writer() -> type:
    """tensorboardX's, without torch: it would load that, which takes seconds, for tensors that it is never given."""
    loaded = "torch" in sys.modules
    sys.modules.setdefault("torch", None)  # which makes its import an ImportError
    try:
        from tensorboardX import SummaryWriter
    finally:
        if not loaded:
            del sys.modules["torch"]
    return SummaryWriter


class Log:
    """metrics.jsonl, one object a row, and TensorBoard files where the `tensorboard` extra is installed.

    start_step: rows of later steps, left by a run that was killed after its last checkpoint, are dropped.
    crcs: what `crcs` was when that checkpoint was saved; of these rows, those that are damaged or missing are left out
    and counted on stderr. None, of a run of before these were saved: lines that are no rows (half a line of a killed
    process, NULs after a power cut) are. Only the process that `writes` writes; the others do nothing.

    evaluated: {step: row} of evaluations; lost: how many rows were left out; crcs: of the rows so far, CRC-32.
    """

    def __init__(self, workdir: Path, start_step: int, *, writes: bool, crcs: list[int] | None = None):
        self.writes, self.lost = writes, 0
        self.board = None
        self.evaluated: dict[int, dict] = {}
        self.crcs: list[int] = []
        if not writes:
            return
        self.path = workdir / "metrics.jsonl"
        lines = self._whole(crcs, start_step)
        rows = [(line, row) for line in lines if (row := row_of(line)) and row["step"] <= start_step]
        if self.lost:
            what = "damaged lines are" if crcs is None else "rows are damaged or missing and"
            print(f"bjax: {self.path}: {self.lost} {what} left out", file=sys.stderr, flush=True)
        self.evaluated = {row["step"]: row for _, row in rows if any("/" in key for key in row)}
        self.crcs = [zlib.crc32(line) for line, _ in rows]
        kept = b"".join(line for line, _ in rows)
        sums.write(self.path, kept)
        self.sum = hashlib.sha256(kept)
        if importlib.util.find_spec("tensorboardX"):
            self.board = _summary_writer()(str(workdir / "tensorboard"), purge_step=start_step + 1)
        self.file = self.path.open("ab", buffering=0)

    def _whole(self, crcs: list[int] | None, start_step: int) -> list[bytes]:
        """The lines of the file that are what was written; counts the others in `lost`."""
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        if crcs is None:
            # A killed process leaves half a line at the end, which is nothing to speak of.
            self.lost = [row_of(line) for line in lines[:-1]].count(None)
            return lines
        accepted, sum_so_far, known = sums.listed(self.path), hashlib.sha256(), None  # so many are as they were noted
        for i, line in enumerate([b"", *lines]):
            sum_so_far.update(line)
            known = i if sum_so_far.hexdigest() in accepted else known
        saved = set(crcs)
        good = [i < (known or 0) or zlib.crc32(line) in saved for i, line in enumerate(lines)]
        self.lost = (collections.Counter(crcs) - collections.Counter(map(zlib.crc32, lines))).total()
        if accepted and known is None and not self.lost:  # then it is the row of an evaluation after the save
            rows = [row_of(line) for line, is_good in zip(lines, good, strict=True) if not is_good]
            # At least one: it may be missing, or its step be what was changed.
            self.lost = max(1, sum(row is None or row["step"] <= start_step for row in rows))
        return [line for line, is_good in zip(lines, good, strict=True) if is_good]

    def write(self, step: int, values: dict[str, float]) -> None:
        if self.writes:
            line = (json.dumps({"step": step, **values}, allow_nan=False) + "\n").encode()
            self.file.write(line)
            self.sum.update(line)
            self.crcs.append(zlib.crc32(line))
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def keep(self) -> None:
        """Sees to it that the rows so far are on the disk, and known if they change there."""
        if self.writes:
            os.fsync(self.file.fileno())
            sums.note(self.path, self.sum.hexdigest())

    def close(self) -> None:
        if self.writes:
            self.file.close()
        if self.board:
            self.board.close()
