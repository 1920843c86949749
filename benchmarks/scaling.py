"""What a training step holds and sends on every device, for several meshes, from the compiled program alone.

  python -m benchmarks.scaling [--on=h200x8,v5e-16] [--models=vit,vgg19] [--batch=256] [--accumulate=1] [--json=…]

Compiles the steps of the configs (ViT-L/16 and VGG19, bfloat16, 224 pixels) for chips that need not be there, as
`launch.preflight` does, with the parameters split over none, half and all of them, and runs nothing. State: bytes of
parameters and optimiser state on a device by the plan; peak: with the step's temporaries. Collectives are those of the
optimised program, those in a loop as often as it runs; one call may send many arrays, bytes are those of its results on
one device.
"""

import itertools
import sys

from bjax import aot

if __name__ == "__main__":
    aot.prepare()  # before JAX is there

import jax

from benchmarks import save
from bjax import config as configs
from bjax.aot import hlo, programs, targets
from bjax.errors import Parser, UserError, as_command, new_file, positive, some_of
from bjax.runtime.console import columns

MODELS = {"vit": ("vit.py", ("model.options.variant", "L/16")), "vgg19": ("vgg19.py",), "resnet50": ("resnet50.py",)}
CLASSES = 1000


def measure(model: str, devices: list[jax.Device], fsdp: int, overrides: dict[str, object]) -> dict:
    """What one device holds and sends in a step of a model of `MODELS` on a mesh of (all others, fsdp)."""
    spec, *more = MODELS[model]
    texts = [(key, str(value)) for key, value in overrides.items()]
    config = configs.load(spec, [*more, ("mesh.fsdp", str(fsdp)), *texts])
    exp = programs.placed(config, CLASSES, devices)
    program, (state, whole) = programs.train(exp), programs.held(exp)
    return {
        "model": model,
        "data": len(devices) // fsdp,
        "fsdp": fsdp,
        **overrides,
        "state": state,
        "checkpoint": whole,
        "arguments": program.arguments,
        "peak": program.peak,
        "collectives": program.collectives,
    }


@as_command
def main(argv: list[str]) -> None:
    p = Parser("python -m benchmarks.scaling", __doc__.splitlines()[0])
    p.add_argument("--on", default="h200x8", metavar="CHIPS,…", help="as of launch.preflight (default: %(default)s)")
    p.add_argument("--models", type=some_of(MODELS), default="vit,vgg19", help=", ".join(MODELS))
    p.add_argument("--batch", type=positive, default=256, help="images a step, over all devices")
    p.add_argument("--accumulate", type=positive, default=1, help="parts in which each batch is computed")
    p.add_argument("--json", type=new_file, help="file for the numbers")
    args = p.parse_args(argv)
    on = [targets.target(text) for text in args.on.split(",")]
    for target in on:
        if args.batch % (target.number * args.accumulate):
            raise UserError(f"--batch={args.batch}: expected a multiple of {target.number * args.accumulate}")
        targets.check_installed(target)
    rows, table = [], []
    for target, model in itertools.product(on, args.models):
        n = target.number
        for fsdp in sorted({1, max(n // 2, 1), n}):
            overrides = {"batch_size": args.batch, "optim.accumulate": args.accumulate, "dtype": "bfloat16"}
            rows.append({"on": target.name, **measure(model, targets.devices(target), fsdp, overrides)})
            print(rows[-1], flush=True)
            if args.json:
                save(args.json, rows)
    kinds = [k for k in hlo.COLLECTIVES if any(k in row["collectives"] for row in rows)]
    for row in rows:
        held = [f"{row[k] / 1e6:,.1f}" for k in ("state", "peak")]
        sent = [_calls(row["collectives"].get(kind)) for kind in kinds]
        table.append((row["model"], row["on"], f"{row['data']} × {row['fsdp']}", *held, *sent))
    print(columns(("model", "on", "data × fsdp", "state MB", "peak MB", *(f"{k} MB" for k in kinds)), table, left=3))


def _calls(sent: dict[str, int] | None) -> str:
    if not sent:
        return "none"
    return f"{sent['bytes'] / 1e6:,.1f} ({'at least ' * ('at_least' in sent)}{sent['calls']})"


if __name__ == "__main__":
    sys.exit(main())
