"""What a damaged data set does to training and evaluation, counted.

    python -m tests.faults.data --number=200 --seed=0

One file of a copy of the embedded photographs is damaged; then a training of one step that sees every image, or the
evaluation of a run that is finished, starts in this process. Outcomes in capitals are failures. The exit code is 0, or
1 where there is one. `old`: the copy is as plain TFDS, or bjax before there were sums of its files, would have left it.
"""

import argparse
import collections
import contextlib
import io
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bjax.data import loader
from bjax.main import main as bjax
from tests.faults.tiny import OPTIONS as TINY

ROOT = Path(__file__).parents[2]
KINDS = ("bit", "cut", "zeros", "empty", "delete")
OLD = ("sizes.json", "manifest.sha256")  # what an old one lacks
REFUSED, HARMLESS = "refused in a line that names the file", "harmless: the same results"
NAMES = "the same results under other names of classes, which nothing but sums could tell"
OPTIONS = TINY | {"batch_size": 672, "steps": 1, "optim.warmup": 0, "eval.sharp.split": "test", "eval_batch_size": 224}


def datasets(
    number: int,
    seed: int,
    *,
    data_dir: str = "",
    run: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> collections.Counter:
    """How often each outcome was met in `number` cases; `say` is told each of them.

    data_dir, run: where the embedded photographs are prepared already, and a finished run on them.
    """
    counts = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        good = Path(data_dir or folder / "good")
        loader.open_split("photos", "train", data_dir=good)
        if run is None:
            run = folder / "run"
            options = [f"--config.{k}={v}" for k, v in OPTIONS.items()]
            code, err = _command(run, good, f"--config={ROOT}/configs/vit_mask.py:demo", *options)
            assert code == 0, err
        for case in range(number):
            rng = random.Random(f"{seed}, {case}")
            what, outcome = _case(rng, folder, good, run)
            counts[outcome] += 1
            say(f"{case} {what}: {outcome}")
    return counts


def _case(rng: random.Random, folder: Path, good: Path, run: Path) -> tuple[str, str]:
    data, workdir = folder / "data", folder / "workdir"
    for place in (data, workdir):
        shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(good / "photos", data / "photos")
    home = next(data.glob("photos/*.*.*/"))
    old = rng.random() < 0.3
    for name in OLD if old else ():
        (home / name).unlink(missing_ok=True)
    file = rng.choice(sorted(home.iterdir()))
    kind = rng.choice((*KINDS, "reorder") if file.name.endswith(".txt") else KINDS)
    spoil(file, kind, rng)
    mode = rng.choice(("train", "eval"))
    if mode == "eval":
        shutil.copytree(run, workdir)
    else:
        workdir.mkdir()
        shutil.copy(run / "config.json", workdir)
    code, err = _command(workdir, data, f"--mode={mode}")
    what = f"{'old, ' if old else ''}{mode}, {file.name}, {kind}"
    return what, f"{'old: ' if old else ''}{_outcome(code, err, file, old, workdir, run)}"


def spoil(file: Path, kind: str, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    place = rng.randrange(len(data))
    if kind == "bit":
        data[place] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del data[place:]
    elif kind == "zeros":
        data[place : place + 4096] = bytes(len(data[place : place + 4096]))
    elif kind == "empty":
        data.clear()
    elif kind == "reorder":
        lines = data.splitlines(keepends=True)
        rng.shuffle(lines)
        data = b"".join(lines)
    if kind == "delete":
        file.unlink()
    else:
        file.write_bytes(data)


def _outcome(code: int, err: str, file: Path, old: bool, workdir: Path, run: Path) -> str:
    lines = err.splitlines()
    if "Traceback" in err:
        return f"TRACEBACK {lines[-1][:150]}"
    if code:
        if len(lines) != 1 or code != 2:
            return f"REFUSED with code {code} in {len(lines)} lines"
        return REFUSED if file.name in err else f"NOT NAMED: {lines[0][:250]}"
    same = {
        name: json.loads((workdir / name).read_text()) == json.loads((run / name).read_text())
        for name in ("results.json", "classes.json")
    }
    if same == {"results.json": True, "classes.json": False} and old and file.name == "label.labels.txt":
        return NAMES
    return HARMLESS if all(same.values()) else "SILENT: other results"


def _command(workdir: Path, data: Path, *more: str) -> tuple[int, str]:
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = bjax([f"--workdir={workdir}", f"--config.data.data_dir={data}", *more])
        except Exception as error:
            code = 1
            err.write(f"Traceback\n{type(error).__name__}: {error}".replace(str(data), "DATA"))
    return code, err.getvalue()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.data", description=__doc__.splitlines()[0])
    parser.add_argument("--number", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    counts = datasets(args.number, args.seed, say=lambda line: print(line, flush=True))
    for outcome, number in counts.most_common():
        print(f"{number:5} {outcome}")
    return int(any(word.isupper() and len(word) > 2 for outcome in counts for word in outcome.split()))


if __name__ == "__main__":
    sys.exit(main())
