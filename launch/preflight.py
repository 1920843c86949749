"""Before a GPU or TPU is rented: does a run fit, and how fast can it be at best? Needs no such chip, only a CPU.

    python -m launch.preflight --config=configs/vit_mask.py --on=h200x8,h100x1,a100x8,v5e-16,v6e-8
    python -m launch.preflight --config=configs/vit.py:variant=L/16 --on=v5e-16 --fit --config.batch_size=4096

Compiles the run's own train step and its largest evaluation step for each target, with the compiler that would be used
there, and reads memory, traffic and collectives off the program. Times are bounds: what the published rates of the chip
allow at most (bjax/aot/bounds.py). Several --config make one table; overrides hold for all.

A target is a chip and how many: h200x8 are eight GPUs (a100, h100, h200, b200), v5e-16 sixteen TPU chips (v5e, v6e; v4
and v5p count two cores a chip, as the clouds do: v4-8 are four chips). --fit looks for the largest batch that fits, or
the mesh.fsdp, in at most two more programs a target. What was compiled once is remembered in ~/.cache/bjax/aot.

Needs the plugins that compile: pip install 'bjax[preflight-gpu]' (5 GB), 'bjax[preflight-tpu]' (1.5 GB).

Exit code: 0 all fit; 2 one does not, or a mistake in the command.
"""

import sys

import bjax
from bjax import aot

if __name__ == "__main__":
    aot.prepare()  # before JAX is there

import dataclasses
import json
import math
from pathlib import Path

import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from bjax import config as configs
from bjax import experiment
from bjax.aot import bounds, programs, targets
from bjax.aot.bounds import Bound
from bjax.aot.programs import Program
from bjax.aot.targets import Target
from bjax.config import check_devices
from bjax.data import imagenette, loader
from bjax.errors import Parser, UserError, as_command, new_file, positive
from bjax.runtime.console import columns
from bjax.runtime.workdir import commit
from bjax.sums import replace

# Data sets that need not be there: training images and classes.
KNOWN = {"imagenet2012": (1_281_167, 1000), "imagenette": (imagenette.COUNTS["train"], 10)}
GIGA = 1e9
NO_ROOM = 2  # exit code
MOST = 0.95  # of a GPU's memory that JAX can be told to take: the driver and the libraries need some


@dataclasses.dataclass(frozen=True)
class Run:
    """A config as asked for, and the numbers of its data set."""

    name: str
    config: ConfigDict
    images: int
    classes: int

    @property
    def steps(self) -> int:
        return self.config.steps or math.ceil(self.config.epochs * self.images / self.config.batch_size)


@dataclasses.dataclass(frozen=True)
class Row:
    """What preflight finds about a run on a target. Bytes are of one chip but for checkpoint, seconds of one step."""

    config: str
    target: str
    chips: int
    batch_size: int
    fsdp: int
    fits: bool
    state: int
    peak: int
    usable: float
    evaluation: str  # the condition that was compiled
    evaluation_peak: int
    flops: float = 0.0
    temporaries: int = 0
    traffic: int = 0
    collectives: dict = dataclasses.field(default_factory=dict)
    compute: float = 0.0
    memory: float = 0.0
    links: float = 0.0
    steps: int = 0
    checkpoint: int = 0
    advice: str = ""

    @property
    def bound(self) -> Bound:
        return Bound(self.compute, self.memory, self.links)

    @property
    def images_per_second(self) -> float:
        """At most."""
        return self.batch_size / self.bound.seconds


@as_command
def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    overrides, rest = configs.split_arguments(argv)
    args = _parser().parse_args(rest)
    on = [targets.target(text) for text in args.on.split(",") if text.strip()]
    if not on:
        raise UserError("--on: names no target, such as h200x8 or v5e-16")
    runs = [_run(spec, overrides, args) for spec in args.config]
    for run in runs:  # all mistakes before the first minute of compiling
        for target in on:
            targets.check_installed(target)
            _check(run, target)
    rows = []
    for run in runs:
        for target in on:
            rows.append(row(run, target, fit=args.fit))
            print(told(rows[-1], args.images_per_core), end="\n\n", flush=True)
            if args.json:
                replace(args.json, json.dumps([dataclasses.asdict(r) for r in rows], indent=1).encode())
    print(summary(rows))
    if args.out:
        replace(args.out, page(rows, argv).encode())
    return 0 if all(r.fits for r in rows) else NO_ROOM


def row(run: Run, target: Target, *, fit: bool = False) -> Row:
    """Compiles the run's programs for a target. fit: looks for what fits, or for what more would, in two more."""
    devices = targets.devices(target)
    exp = programs.placed(run.config, run.classes, devices)
    train, name = programs.train(exp), programs.largest(exp)
    evaluation = programs.evaluation(exp, exp.conditions[name])
    state, checkpoint = programs.held(exp)
    least = bounds.bound(train, target, run.config.dtype, run.config.mesh.fsdp)
    found = Row(
        config=run.name,
        target=target.name,
        chips=target.number,
        batch_size=run.config.batch_size,
        fsdp=run.config.mesh.fsdp,
        fits=max(train.peak, evaluation.peak) <= target.usable and not (train.too_big or evaluation.too_big),
        state=state,
        peak=train.peak,
        usable=target.usable,
        evaluation=name,
        evaluation_peak=evaluation.peak,
        flops=train.flops,
        temporaries=train.temporaries,
        traffic=train.traffic,
        collectives=train.collectives,
        **dataclasses.asdict(least),
        steps=run.steps,
        checkpoint=checkpoint,
    )
    return dataclasses.replace(found, advice=advice(run, target, train, state)) if fit else found


def advice(run: Run, target: Target, train: Program, state: int) -> str:
    """The largest batch that fits or, where not even one image a chip does, the mesh.fsdp: from two more programs.

    Memory grows in a line with the batch; the second program gives its slope, the third shows what is advised to fit.
    """
    config, step = run.config, target.number * run.config.optim.accumulate
    batch = config.batch_size
    other = max(batch // 2 // step * step, step) if batch > step else 2 * step
    slope = max((train.peak - _peak(run, target, batch_size=other)) / (batch - other), 1.0)  # a pixel takes more
    fixed = train.peak - slope * batch
    if fixed + slope * step <= target.usable:
        most = math.floor((target.usable - fixed) / slope) // step * step
        return _shown(run, target, batch_size=most)
    for fsdp in (n for n in range(config.mesh.fsdp + 1, target.number + 1) if target.number % n == 0):
        if fixed - state * (1 - config.mesh.fsdp / fsdp) + slope * batch <= target.usable:
            return _shown(run, target, **{"mesh.fsdp": fsdp})
    return "no batch and no mesh.fsdp of these chips: take more of them, or a smaller model"


def _shown(run: Run, target: Target, **changes: int) -> str:
    peak = _peak(run, target, **changes)
    flags = " ".join(f"--config.{key}={value}" for key, value in changes.items())
    verdict = "fits" if peak <= target.usable else "does not fit quite"
    return f"{flags} {verdict}: {peak / GIGA:,.1f} of {target.usable / GIGA:,.1f} GB"


def _peak(run: Run, target: Target, **changes: int) -> int:
    config = configs.copied(run.config)
    for key, value in changes.items():
        configs.override(config, key, str(value))
    return programs.train(programs.placed(config, run.classes, targets.devices(target))).peak


def told(r: Row, images_per_core: int) -> str:
    """A row for people."""

    def gb(size: float) -> str:
        return f"{size / GIGA:,.1f} GB" if size >= GIGA / 10 else f"{size / 1e6:,.1f} MB"

    chips = f"{r.chips} chip{'s' * (r.chips > 1)}"
    verdict = "fits" if r.fits else "DOES NOT FIT"
    lines = [f"{r.config} on {r.target}: {verdict}"]
    lines += [f"  {chips}, {r.batch_size:,} images a step, {r.batch_size // r.chips:,} a chip; mesh.fsdp={r.fsdp}"]
    held = f"state {gb(r.state)}, with the step's {gb(r.peak)} of {gb(r.usable)}"
    lines += [f"  memory   {held}; evaluation {gb(r.evaluation_peak)}"]
    if r.traffic:
        sent = ", ".join(f"{c['calls']:,} {kind} ({gb(c['bytes'])})" for kind, c in r.collectives.items())
        lines += [f"  a step   {r.flops / 1e12:,.2f} TFLOP in all, {gb(r.traffic)} between a chip and its memory"]
        lines += [f"  sent     {sent or 'nothing'}"]
        parts = ", ".join(f"{name} {1e3 * getattr(r.bound, name):,.2f}" for name in ("compute", "memory", "links"))
        lines += [f"  at least {1e3 * r.bound.seconds:,.2f} ms by {r.bound.reason} ({parts})"]
        hours, cores = r.steps * r.bound.seconds / 3600, r.images_per_second / images_per_core
        lines += [
            f"           at most {r.images_per_second:,.0f} images/s, which {math.ceil(cores):,} cores read and decode"
        ]
        lasting = f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:,.1f} minutes"
        lines += [f"           {r.steps:,} steps in {lasting} at least; a checkpoint takes {gb(r.checkpoint)}"]
    most = max(r.peak, r.evaluation_peak)
    if not r.fits and r.traffic and most <= r.usable / targets.PREALLOCATED * MOST:
        lines += [f"  fits with the environment's XLA_PYTHON_CLIENT_MEM_FRACTION={MOST:g}: JAX takes 75 % of a GPU"]
    if not r.fits and not r.advice:
        lines += ["  --fit looks for the batch or the mesh.fsdp that fits"]
    if r.advice:
        lines += [f"  {r.advice}"]
    return "\n".join(lines)


HEADER = ("config", "on", "GB", "of", "fits", "moved", "sent", "ms", "by", "images/s")
MEANS = """\
GB: the most that a step takes on a chip, of what a program can have there
moved: GB between a chip's memory and its units; sent: MB that its calls leave
ms: a step at least, images/s: at most, by the chip's published rates, where
    every array goes through the memory (what a cache holds comes faster)"""


def cells(r: Row) -> tuple[str, ...]:
    """Of `HEADER`; what a compiler does not say of a program that is too big stays empty."""
    first = r.config, r.target, f"{r.peak / GIGA:,.1f}", f"{r.usable / GIGA:,.0f}", "yes" if r.fits else "no"
    if not r.traffic:
        return (*first, *[""] * 5)
    sent = sum(c["bytes"] for c in r.collectives.values()) / 1e6
    work = f"{r.traffic / GIGA:,.1f}", f"{sent:,.0f}", f"{1e3 * r.bound.seconds:,.1f}"
    return (*first, *work, r.bound.reason, f"{r.images_per_second:,.0f}")


def summary(rows: list[Row]) -> str:
    """The rows as a table for the terminal."""
    return f"{columns(HEADER, [cells(r) for r in rows], left=2)}\n{MEANS}"


def page(rows: list[Row], argv: list[str]) -> str:
    """The rows as a page in Markdown."""
    table = "\n".join("| " + " | ".join(line) + " |" for line in (HEADER, ["---"] * len(HEADER), *map(cells, rows)))
    means = MEANS.replace("\n    ", " ").replace("\n", "\n- ")
    return f"""\
# What the configs take on GPUs and TPUs

Made without any of these chips, by bjax {commit() or bjax.__version__}:

    python -m launch.preflight {f" {chr(92)}{chr(10)}        ".join(argv)}

These are the train steps that the chips' compilers make of the configs, and what the chips' published rates allow at
most (`bjax/aot/bounds.py`). Bounds, no measurements: nothing here was run on a GPU or a TPU. Of a GPU a program has the
three quarters that JAX takes by default.

{table}

- {means}.
"""


def _run(spec: str, overrides: list[tuple[str, str]], args) -> Run:
    config = configs.load(spec, overrides)
    if config.recipe == "small":
        raise UserError(f"--config={spec}: small chooses by the device that it runs on; name the sizes instead")
    name, split = config.data.name, config.data.train
    if args.images:
        images, classes = args.images, args.classes or 1000
    elif name in KNOWN:
        number, classes = KNOWN[name]
        images = _number_of(split, number)
    else:
        try:
            source = loader.open_split(name, split, data_dir=config.data.data_dir)
        except UserError as error:
            raise UserError(f"{error}; without it, say its numbers: --images=N --classes=N") from None
        images, classes = source.num_examples, source.num_classes
    experiment.build(config, classes)
    path, colon, arguments = spec.partition(":")  # which may have a slash of their own, as variant=L/16
    return Run(f"{Path(path).name}{colon}{arguments}", config, images, args.classes or classes)


def _number_of(split: str, images: int) -> int:
    """How many images a split of the training images names."""
    whole = {"train": tfds.core.SplitInfo(name="train", shard_lengths=[images], num_bytes=0)}
    try:
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(whole)
    except (ValueError, KeyError, AssertionError):
        raise UserError(f"config.data.train={split}: names no part of train; expected such as train[:20%]") from None
    return sum((images if part.to is None else part.to) - (part.from_ or 0) for part in parts)


def _check(run: Run, target: Target) -> None:
    try:
        check_devices(run.config, target.number)
    except UserError as error:
        raise UserError(f"{run.name} on {target.name}: {error}") from None


def _parser() -> Parser:
    p = Parser("python -m launch.preflight", __doc__.splitlines()[0])
    p.add_argument(
        "--config", action="append", required=True, metavar="FILE.py[:ARGS]", help="experiment; several make one table"
    )
    p.add_argument(
        "--on", required=True, metavar="CHIPS,…", help=f"such as h200x8,v5e-16; chips: {', '.join(targets.CHIPS)}"
    )
    p.add_argument("--fit", action="store_true", help="look for the largest batch, or the mesh.fsdp, that fits")
    p.add_argument("--images", type=positive, help="training images, where the data set is not there")
    p.add_argument("--classes", type=positive, help="its classes (default: 1000)")
    p.add_argument(
        "--images_per_core",
        type=positive,
        default=700,
        help="that a core reads and decodes a second (default: %(default)s; python -m benchmarks.input measures it)",
    )
    p.add_argument("--json", type=new_file, metavar="FILE", help="all numbers, written after each row")
    p.add_argument("--out", type=new_file, metavar="FILE.md", help="the table as a page")
    return p


if __name__ == "__main__":
    sys.exit(main())
