"""What the compiled steps of the five models read and write, by kind of kernel, beside the least that they could.

    python -m benchmarks.compiled --out=docs/compiled.md [--on=h200x1,v5e-1] [--models=resnet50,vit] [--json=FILE]

Needs no GPU or TPU: the programs are those of bjax.aot, batch 256, bfloat16, 224 pixels; what was compiled once is
remembered. The least is what a step moves layer by layer, each convolution, dense layer and normalisation reading its
input and writing its output once forward and twice backward, as benchmarks/roofline.py counts it.
"""

import argparse
import functools
import sys

from bjax import aot

if __name__ == "__main__":
    aot.prepare()  # before JAX is there

import jax
import jaxlib

from benchmarks import roofline, save
from bjax import config as configs
from bjax import experiment
from bjax.aot import programs, targets
from bjax.errors import Parser, as_command, new_file, some_of
from bjax.experiment import Experiment
from bjax.runtime.workdir import commit
from bjax.step.inputs import Inputs, image_keys, see
from bjax.sums import replace

BATCH = 256
MODELS = {  # config, arguments
    "resnet50": "resnet50.py",
    "vgg19": "vgg19.py",
    "googlenet": "googlenet.py",
    "densenet121": "densenet121.py",
    "vit": "vit.py",
    "vit_mask": "vit_mask.py",
    "resnet50 blurred": "resnet50.py:train=blurred",
}
SHOWN = (
    "convolution",
    "matmul",
    "attention",
    "elementwise",
    "reduce",
    "pooling",
    "scatter",
    "transpose",
    "copy",
    "pad",
)
GIGA = 1e9


@as_command
def main(argv: list[str]) -> None:
    args = _parser().parse_args(argv)
    rows = []
    for on in args.on.split(","):
        target = targets.target(on)
        targets.check_installed(target)
        for model in args.models:
            rows += measured(model, target)
            print("\n".join(" | ".join(cells(r)) for r in rows[-2:]), flush=True)
            if args.json:
                save(args.json, rows)
    if args.out:
        replace(args.out, page(rows, argv).encode())


def measured(model: str, target: targets.Target) -> list[dict]:
    """A row of the train step and one of inference."""
    config = configs.load(
        MODELS[model], [("dtype", "bfloat16"), ("batch_size", f"{BATCH}"), ("eval_batch_size", f"{BATCH}")]
    )
    exp = programs.placed(config, 1000, targets.devices(target))
    whole = exp.conditions[programs.largest(exp)]
    rows = []
    for mode, program in (("train", programs.train(exp)), ("infer", programs.evaluation(exp, whole))):
        inputs = exp.train if mode == "train" else whole.inputs
        row = {"model": model, "target": target.name, "mode": mode, "least": least(exp, inputs, mode)}
        row |= {"peak": program.peak, "traffic": program.traffic, "kinds": program.kinds, "flops": program.flops}
        rows.append(row)
    return rows


def least(exp: Experiment, inputs: Inputs, mode: str) -> int:
    """Bytes that a step of what `inputs` makes of images moves layer by layer (`benchmarks.roofline`)."""
    rows = programs.batch(exp, BATCH)
    keys = jax.eval_shape(image_keys, jax.random.key(0), rows["id"])
    seen = jax.eval_shape(functools.partial(see, inputs=inputs), keys, rows["image"])
    _, _, shapes, _ = experiment.state_of(exp, programs.STEPS)
    return roofline.moved(exp.model, shapes, seen.images, train=mode == "train", kept=seen.kept)


HEADER = ("model", "chip", "step", "GB", "least", "ratio", "peak GB", *SHOWN, "other")


def cells(row: dict) -> tuple[str, ...]:
    """Of `HEADER`: GB of each kind; empty where it has none."""
    kinds = {kind: k["bytes"] for kind, k in row["kinds"].items()}
    more = sum(moved for kind, moved in kinds.items() if kind not in SHOWN)
    parts = [*(kinds.get(kind, 0) for kind in SHOWN), more]
    traffic, least = row["traffic"] / GIGA, row["least"] / GIGA
    first = row["model"], row["target"], row["mode"], f"{traffic:.1f}", f"{least:.1f}", f"{traffic / least:.2f}"
    return (*first, f"{row['peak'] / GIGA:.1f}", *(f"{x / GIGA:.1f}" if x >= GIGA / 20 else "" for x in parts))


def page(rows: list[dict], argv: list[str]) -> str:
    """The rows as a page in Markdown."""
    table = "\n".join("| " + " | ".join(line) + " |" for line in (HEADER, ["---"] * len(HEADER), *map(cells, rows)))
    calls = []
    for row in rows:
        numbers = ", ".join(f"{row['kinds'][kind]['kernels']} {kind}" for kind in SHOWN if kind in row["kinds"])
        calls.append(f"- {row['model']}, {row['mode']}, {row['target']}: {numbers}")
    versions = f"jax {jax.__version__}, jaxlib {jaxlib.__version__}"
    return f"""\
# What the compiled steps read and write

`python -m benchmarks.compiled {" ".join(argv)}` on commit {commit()}, {versions}, without any of these chips: GB
that the kernels of one step read from and write to a chip's memory, batch {BATCH}, bfloat16, 224 pixels, by what the
kernels are (a fusion's kind is that of the first operation that it holds of: convolution, product, scatter, pooling,
transpose, gather, reduction, padding, copy; the rest is elementwise). The least is what the step moves layer by layer:
convolutions, dense layers and normalisations read their input and write their output, once forward and twice backward
(`benchmarks/roofline.py`); a step that moves less keeps what is between layers out of that memory. Kernels are not
autotuned here, as they are on the GPU itself: what is counted is the program, and its time is at least these bytes by
the memory's rate.

{table}

Kernels:

{chr(10).join(calls)}
"""


def _parser() -> argparse.ArgumentParser:
    p = Parser("python -m benchmarks.compiled", __doc__.splitlines()[0])
    p.add_argument(
        "--on", default="h200x1,v5e-1", metavar="CHIP,…", help="as of launch.preflight (default: %(default)s)"
    )
    p.add_argument("--models", type=some_of(MODELS), default=",".join(MODELS), help=", ".join(MODELS))
    p.add_argument("--json", type=new_file, help="file for the numbers")
    p.add_argument("--out", type=new_file, help="file for the page")
    return p


if __name__ == "__main__":
    sys.exit(main())
