"""The long part: everything that can happen to a run, as often as is asked for, and a page that says what came of it.

    python -m tests.faults --kills=100 --damages=300 --beside=100 --signals=20 --two=4 --full=6 --processes=5 \\
        --data=300 --photos=300 --seed=0 --out=docs/reliability.md

damages: of files below checkpoints/; beside: of the other files of a run. signals: SIGTERMs in each phase, and to every
fifth of them a SIGUSR1. full: needs to mount a small tmpfs, as root. processes: runs of two. data, photos: cases of
`tests.faults.data` and `tests.faults.photos`. Outcomes in capitals are failures. Exit code: 0, or 1 where there is one.
"""

import argparse
import collections
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from bjax.runtime.workdir import VERSIONS, commit
from tests.faults import data, drivers, photos
from tests.faults.tiny import Place, left

COUNTS = ("kills", "damages", "beside", "signals", "two", "full", "processes", "data", "photos")
DATA, PHOTOS = "Data sets", "Photographs"
SECTIONS = {
    DATA: "One file of a copy of the embedded photographs is damaged (a bit, a cut, zeros, empty, gone, lines of a\n"
    "text in another order); then a training that sees every image, or an evaluation. *old*: a copy without sums,\n"
    "as plain TFDS or an earlier version leaves it.",
    PHOTOS: "Photographs that are damaged, or made to do harm, are given to `bjax.predict` and `bjax.thresholds`.\n"
    "None may be run, hang, or take more than 5 GiB.",
}


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    counts = collections.defaultdict(collections.Counter)
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/compiled")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        place = Place(Path(folder), args.data_dir or f"{folder}/data")
        reference, seconds = _undisturbed(place)
        for kind, outcome, number in _outcomes(place, reference, seconds, args):
            counts[kind][outcome] += number
            print(f"{kind}: {outcome}", flush=True)
    page = _page(counts, args)
    print(page)
    if args.out:
        args.out.write_text(page)
    return int(any(word.isupper() and len(word) > 2 for c in counts.values() for o in c for word in o.split()))


def _undisturbed(place: Place) -> tuple[tuple, float]:
    for name in ("warm", "undisturbed"):  # the first compiles, and prepares the photographs
        since = time.perf_counter()
        code, err = place.finish(place.folder / name)
        assert code == 0, err
    return left(place.folder / "undisturbed"), time.perf_counter() - since


def _outcomes(place: Place, reference: tuple, seconds: float, args):
    """(kind, outcome, how many) of everything that was asked for."""
    rng, kills = random.Random(args.seed), 0
    while kills < args.kills:
        outcome, more = drivers.kill(place, reference, rng, seconds)
        kills += more
        yield "SIGKILL at random moments", outcome, more
    half = drivers.stopped_half_way(place) if args.damages or args.beside else None
    for _ in range(args.damages):
        yield "damage to a random file under checkpoints/", drivers.damage(place, reference, rng, half), 1
    for _ in range(args.beside):
        outcome = drivers.damage_beside(place, reference, rng, half, place.folder / "undisturbed")
        yield "damage to a random file beside checkpoints/, then a command that may read it", outcome, 1
    for i in range(args.signals):
        for number in (signal.SIGTERM, signal.SIGUSR1)[: 2 - (i % 5 > 0)]:
            for phase in drivers.PHASES:
                yield f"{number.name} in {phase}", drivers.stop(place, reference, rng, phase, number), 1
    for _ in range(args.two):
        yield "two processes on one workdir", drivers.two(place, reference, rng), 1
    if args.full:
        with _disk(place.folder / "disk") as disk:
            for i in range(args.full):
                if disk is None:
                    yield "full disk", "skipped: no tmpfs can be mounted here", args.full
                    break
                room = 200_000 + 1_500_000 * i // args.full
                yield "full disk", drivers.full(place, reference, rng, disk, room), 1
    yield from _several(place, args)
    if args.data:
        for outcome, number in data.datasets(args.data, args.seed, data_dir=place.data_dir).items():
            yield DATA, outcome, number
    if args.photos:
        large = 8 if args.photos >= 100 else 0
        run = place.folder / "undisturbed"
        for outcome, number in photos.photographs(args.photos, args.seed, run=run, large=large).items():
            yield PHOTOS, outcome, number


def _several(place: Place, args):
    if not args.processes:
        return
    rng, since, workdir = random.Random(args.seed), time.perf_counter(), place.folder / "of_two"
    said = drivers.ended(place.start_several(workdir), 600)
    assert said and not any(code for code, _ in said), said
    reference, seconds = left(workdir), time.perf_counter() - since
    for _ in range(args.processes):
        yield "SIGKILL to one or both of two processes", drivers.processes(place, reference, rng, seconds), 1


class _disk:
    """A tmpfs of 4 MB at `path`; None where it cannot be mounted."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> Path | None:
        self.path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(self.path)]
        self.mounted = bool(shutil.which("mount")) and not subprocess.run(command, capture_output=True).returncode
        return self.path if self.mounted else None

    def __exit__(self, *_) -> None:
        if self.mounted:
            subprocess.run(["umount", str(self.path)], check=True)


def _page(counts: dict, args) -> str:
    asked = " ".join(f"--{k}={getattr(args, k)}" for k in (*COUNTS, "seed") if getattr(args, k) or k == "seed")
    rows = [
        f"| {kind} | {outcome} | {number} |"
        for kind, c in counts.items()
        if kind not in SECTIONS
        for outcome, number in c.most_common()
    ]
    versions = ", ".join(f"{name} {version(name)}" for name in VERSIONS if name != "bjax")
    return "\n".join(
        [
            "# What was done to runs, and what came of it",
            "",
            f"`python -m tests.faults {asked}` on commit {commit()}, Python {platform.python_version()}, {versions}.",
            "A run is a ViT of one block on the embedded photographs, 12 steps, a checkpoint every 4; *the same bytes*",
            "are those of an undisturbed run's results, rows (columns of time aside) and arrays. Capitals are",
            "failures.",
            "",
            "| fault | outcome | times |",
            "|---|---|---|",
            *rows,
            *(line for kind, text in SECTIONS.items() if kind in counts for line in _section(kind, text, counts[kind])),
            "",
        ]
    )


def _section(kind: str, text: str, counts: collections.Counter) -> list[str]:
    rows = [f"| {outcome} | {number} |" for outcome, number in counts.most_common()]
    return ["", f"## {kind}", "", text, "", "| outcome | times |", "|---|---|", *rows]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.splitlines()[0])
    for name in (*COUNTS, "seed"):
        parser.add_argument(f"--{name}", type=int, default=0, metavar="N")
    parser.add_argument("--data_dir", default="", help="where the embedded photographs are prepared already")
    parser.add_argument("--out", type=Path, metavar="FILE.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
