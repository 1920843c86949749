"""A run's folder: how its files are written, what was done in it, and whose run it holds.

config.json, classes.json, run.json, metrics.jsonl, results.json, checkpoints/, .lock while it is worked on, what was
asked for beside them (speed.json, mask_quality.json, gallery.npz, tensorboard/) and what went wrong (nonfinite.json,
NAME.damaged). Whoever writes says so: of several processes one does.
"""

import contextlib
import datetime
import errno
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import ml_collections
import numpy as np

from bjax import config as configs
from bjax import options, specs
from bjax.errors import UserError

VERSIONS = ("bjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
FULL = (errno.ENOSPC, errno.EDQUOT)
FREE = options.affecting(specs.Run, "evaluation", "nothing")  # a run may go on with these changed
WEIGHTS = options.affecting(specs.Run, "weights")  # with others of these a run's weights would be misread


def write_text(path: Path, text: str) -> None:
    """Writes the file whole or not at all, onto the disk: a reader never sees half of it, a power cut leaves none."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()  # on a full disk it takes the room of what comes next
        raise


def write(path: Path, content) -> None:
    """Writes what JSON can hold, or arrays by name where the file is an .npz, whole or not at all.

    Raises ValueError for a NaN or an infinity: JSON has none.
    """
    if path.suffix == ".npz":
        temporary = path.with_suffix(".tmp.npz")
        np.savez_compressed(temporary, **content)
        os.replace(temporary, path)
    else:
        write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


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
    interrupted ones too; commit is None outside a git checkout. Only the process that `writes` writes. A damaged
    run.json is put aside as run.json.damaged.
    """
    started, since = datetime.datetime.now(datetime.UTC), time.perf_counter()
    try:
        yield
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
                }
            )
            write_text(path, json.dumps({"sessions": sessions}, indent=2) + "\n")


def _sessions(path: Path) -> list[dict]:
    content = _whole(path, lambda content: isinstance(content["sessions"], list))
    return content["sessions"] if content else []


def results(path: Path) -> dict[str, dict]:
    """The rows of results.json; none where it is missing or, as is then told, damaged."""

    def good(content) -> bool:
        return isinstance(content, dict) and all({"n", "top1"} <= set(row) for row in content.values())

    return _whole(path, good) or {}


def _whole(path: Path, good: Callable[[object], bool]):
    """What the JSON file holds; None where it is missing, or damaged: then it is put aside as NAME.damaged."""
    try:
        content = json.loads(path.read_text())
        if good(content):
            return content
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError):
        pass
    aside = path.with_name(f"{path.name}.damaged")
    os.replace(path, aside)
    print(f"bjax: {path}: damaged; kept as {aside.name}, and begun anew", file=sys.stderr, flush=True)
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


def _row(line: bytes) -> dict | None:
    """The row of metrics.jsonl that `line` holds, or None."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(row, dict) and isinstance(row.get("step"), int)
    return row if whole and all(isinstance(x, int | float) and math.isfinite(x) for x in row.values()) else None


class Log:
    """metrics.jsonl, one object a row, and TensorBoard files where the `tensorboard` extra is installed.

    `start_step`: rows of later steps, left by a run that was killed after its last checkpoint, are dropped; so are
    lines that are no rows (half a line of a killed process, NULs after a power cut), which are counted on stderr. Only
    the process that `writes` writes; the others do nothing. evaluated: {step: row} of evaluations.
    """

    def __init__(self, workdir: Path, start_step: int, *, writes: bool):
        self.writes = writes
        self.board = None
        self.evaluated: dict[int, dict] = {}
        if not writes:
            return
        path = workdir / "metrics.jsonl"
        lines = path.read_bytes().splitlines() if path.exists() else []
        rows = [_row(line) for line in lines]
        # A killed process leaves half a line at the end, which is nothing to speak of.
        damaged = rows[:-1].count(None)
        if damaged:
            print(f"bjax: {path}: {damaged} damaged lines are left out", file=sys.stderr, flush=True)
        rows = [row for row in rows if row is not None and row["step"] <= start_step]
        self.evaluated = {row["step"]: row for row in rows if any("/" in key for key in row)}
        write_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
        if importlib.util.find_spec("tensorboardX"):
            from tensorboardX import SummaryWriter

            self.board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1)
        self.file = path.open("a", buffering=1)

    def write(self, step: int, values: dict[str, float]) -> None:
        if self.writes:
            self.file.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def close(self) -> None:
        if self.writes:
            self.file.close()
        if self.board:
            self.board.close()
