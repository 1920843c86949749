"""What a training step holds and sends on every device, for several meshes, from the compiled program alone.

  python -m benchmarks.scaling [--models=vit,vgg19] [--batch=256] [--size=224] [--depth=24] [--accumulate=1] [--json=…]

Compiles `bjax.step.train_step` for eight virtual CPU devices and runs nothing. State: bytes of parameters and optimiser
state (AdamW) on a device by the plan; arguments: what the compiled program takes, the state and the batch. Temporaries
are those of the CPU backend and tell the trend only. Collectives are counted in the optimised HLO, those in a loop as
often as it runs; one call may send many arrays, bytes are those of its results on one device.
"""

import functools
import itertools
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from benchmarks import save
from bjax import models
from bjax.aot import hlo
from bjax.blur.sample import BlurSpec
from bjax.configs import common
from bjax.errors import Parser, UserError, as_command, new_file, positive, some_of
from bjax.runtime import sharding
from bjax.runtime.console import columns
from bjax.step import optim, state
from bjax.step.inputs import Inputs
from bjax.step.losses import Objective
from bjax.step.train_step import compiled
from bjax.tokens import MaskSpec

DEVICES = 8
MODELS = {"vit": {"variant": "L/16"}, "vgg19": {}}
MESHES = ((8, 1), (2, 4), (1, 8))


def compiled_step(
    name: str, options: dict, mesh_shape, *, batch: int, size: int, accumulate=1, rules=((".*", "fsdp"),)
):
    """The compiled train step of a model on a mesh, and the shapes and shardings of its state."""
    config = common.default()
    model = models.build(name, num_classes=1000, dtype=jnp.float32, **options)
    tx = optim.build(config.optim, 100)
    mesh = sharding.make_mesh(*mesh_shape, devices=jax.devices()[: int(np.prod(mesh_shape))])
    init = functools.partial(state.init, model=model, tx=tx, image_size=size, ema=False)
    shapes = jax.eval_shape(init, jax.random.key(0))
    plan = sharding.plan(shapes, mesh, rules)
    blur, normalize = BlurSpec(**common.blur().to_dict()), config.normalize
    inputs = Inputs(blur, MaskSpec(), 16, tuple(normalize.mean), tuple(normalize.std))
    objective = Objective(task="object", num_classes=1000, accumulate=accumulate)
    update = compiled(plan, model=model, tx=tx, inputs=inputs, objective=objective, mesh=mesh)
    placed = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, plan)
    rows = {"image": (np.uint8, (size, size, 3)), "label": (np.int32, ())}
    rows |= {"id": (np.uint32, ()), "mask": (np.bool_, ())}
    split = NamedSharding(mesh, sharding.BATCH)
    batch = {k: jax.ShapeDtypeStruct((batch, *row), t, sharding=split) for k, (t, row) in rows.items()}
    return update.lower(jax.random.key(0), placed, batch).compile(), shapes, plan


def measure(name: str, options: dict, mesh_shape, **sizes) -> dict:
    compiled, shapes, plan = compiled_step(name, options, mesh_shape, **sizes)
    memory = compiled.memory_analysis()
    return {
        "model": name,
        **options,
        "data": mesh_shape[0],
        "fsdp": mesh_shape[1],
        **sizes,
        "parameters": sum(x.size for x in jax.tree.leaves(shapes.params)),
        "state": sharding.held(shapes, plan),
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "collectives": hlo.collectives(hlo.parse(compiled.as_text())),
    }


@as_command
def main(argv: list[str]) -> None:
    p = Parser("python -m benchmarks.scaling", __doc__.splitlines()[0])
    p.add_argument("--models", type=some_of(MODELS), default=",".join(MODELS), help=", ".join(MODELS))
    p.add_argument("--batch", type=positive, default=256, help="images a step, over all devices")
    p.add_argument("--size", type=positive, default=224, help="side of the images, pixels")
    p.add_argument("--depth", type=positive, default=24, help="blocks of the ViT")
    p.add_argument("--accumulate", type=positive, default=1, help="parts in which each batch is computed")
    p.add_argument("--json", type=new_file, help="file for the numbers")
    args = p.parse_args(argv)
    if args.batch % (DEVICES * args.accumulate):
        raise UserError(f"--batch={args.batch}: expected a multiple of {DEVICES * args.accumulate}")
    if args.size % 16 or args.size < 32:
        raise UserError(f"--size={args.size}: expected a multiple of 16 from 32 on")
    # JAX looks at both when it is first used, which is below.
    devices = f"--xla_force_host_platform_device_count={DEVICES}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {devices}"
    jax.config.update("jax_platforms", "cpu")
    rows = []
    sizes = {"batch": args.batch, "size": args.size, "accumulate": args.accumulate}
    for name, mesh in itertools.product(args.models, MESHES):
        options = MODELS[name] | ({"depth": args.depth} if name == "vit" else {})
        rows.append(measure(name, options, mesh, **sizes))
        print(rows[-1], flush=True)
    kinds = [k for k in hlo.COLLECTIVES if any(k in row["collectives"] for row in rows)]

    def calls(row, kind):
        sent = row["collectives"].get(kind)
        more = "at least " if sent and "at_least" in sent else ""
        return f"{more}{sent['calls']} ({sent['bytes'] / 1e6:,.1f} MB)" if sent else "0"

    table = []
    for row in rows:
        held = [f"{row[k] / 1e6:,.1f}" for k in ("state", "arguments", "temporaries")]
        table.append((row["model"], f"{row['data']} × {row['fsdp']}", *held, *(calls(row, k) for k in kinds)))
    print(columns(("model", "data × fsdp", "state MB", "arguments MB", "temporaries MB", *kinds), table))
    if args.json:
        save(args.json, rows)


if __name__ == "__main__":
    sys.exit(main())
