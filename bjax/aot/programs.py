"""A run's own train and evaluation steps, compiled for a target's devices, and the facts read off them.

Compiled programs are kept in `~/.cache/bjax/aot`, by their text before, the target and the versions: asked again,
nothing is compiled.
"""

import dataclasses
import gzip
import hashlib
import json
import os
import re
from pathlib import Path

import jax
import jax.errors
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from bjax import experiment
from bjax.aot import flops, hlo
from bjax.experiment import Condition, Experiment
from bjax.runtime import sharding
from bjax.step import eval_step
from bjax.step.train_step import compiled

KEPT = Path.home() / ".cache" / "bjax" / "aot"
STEPS = 100  # of the schedule, which decides no shape


@dataclasses.dataclass(frozen=True)
class Program:
    """Facts of one compiled program. Bytes are of one device.

    too_big: what the compiler says where the program needs more memory than there is; flops and peak alone are known.
    """

    flops: float  # of all devices, matrix products and convolutions
    arguments: int = 0
    temporaries: int = 0
    peak: int = 0
    traffic: int = 0  # read and written by the kernels
    kinds: dict = dataclasses.field(default_factory=dict)  # {kind of kernel: {kernels, bytes}}
    collectives: dict = dataclasses.field(default_factory=dict)  # {kind: {calls, arrays, bytes}}
    too_big: str = ""


def held(exp: Experiment) -> tuple[int, int]:
    """Bytes of the run's state that a device holds, and of the whole, as a checkpoint has it."""
    _, _, shapes, plan = experiment.state_of(exp, STEPS)
    return sharding.held(shapes, plan), sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))


def placed(config: ConfigDict, num_classes: int, devices: list[jax.Device]) -> Experiment:
    """The experiment of a config on these devices, without data."""
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, devices)
    return dataclasses.replace(experiment.build(config, num_classes), mesh=mesh)


def train(exp: Experiment) -> Program:
    """The run's train step."""
    tx, _, shapes, plan = experiment.state_of(exp, STEPS)
    step = compiled(plan, model=exp.model, tx=tx, inputs=exp.train, objective=exp.objective, mesh=exp.mesh)
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, plan)
    return measured(step, _key(exp.mesh), state, batch(exp, exp.config.batch_size), mesh=exp.mesh)


def evaluation(exp: Experiment, condition: Condition) -> Program:
    """The program of a condition that applies the model to a batch; what blurs and masks it before is another."""
    _, _, shapes, plan = experiment.state_of(exp, STEPS)
    options = {"objective": exp.objective, "mesh": exp.mesh}
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, plan)
    rows = _key(exp.mesh), batch(exp, exp.config.eval_batch_size)
    split = NamedSharding(exp.mesh, sharding.BATCH)
    seen = jax.eval_shape(lambda *args: eval_step.prepare(*args, inputs=condition.inputs, **options), *rows)
    seen = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split), seen)
    answer = jax.jit(lambda *args: eval_step.assess(*args, model=condition.model, **options))
    return measured(answer, state.variables, seen, mesh=exp.mesh)


def largest(exp: Experiment) -> str:
    """The name of a condition that leaves no token out, where there is one: no other takes more."""
    return min(exp.conditions, key=lambda name: _leaves_out(exp.conditions[name]))


def _leaves_out(condition: Condition) -> bool:
    return condition.inputs.mask.mode in ("gather", "bucket") or getattr(condition.model, "reduces", False)


def batch(exp: Experiment, number: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of so many images, as the loader gives them, split over the devices."""
    size, split = exp.config.data.image_size, NamedSharding(exp.mesh, sharding.BATCH)
    rows = {"image": (np.uint8, (size, size, 3)), "label": (np.int32, ())}
    rows |= {"id": (np.uint32, ()), "mask": (np.bool_, ())}
    return {k: jax.ShapeDtypeStruct((number, *shape), dtype, sharding=split) for k, (dtype, shape) in rows.items()}


def measured(step, *args, mesh: Mesh) -> Program:
    """The facts of a jitted function compiled for the mesh's devices."""
    lowered = step.lower(*args)
    device = mesh.devices.flat[0]
    asked = lowered.as_text(), device.device_kind, mesh.devices.shape, jax.__version__, device.client.platform_version
    name = hashlib.sha256(repr((*asked, os.environ.get("XLA_FLAGS"))).encode()).hexdigest()[:32]
    operations, (text, *memory) = flops.of(step, *args, device=device), _compiled(lowered, KEPT / f"{name}.json.gz")
    if not memory:
        return too_big(operations, text)
    module = hlo.parse(text)
    found = hlo.kernels(module)
    traffic = sum(k.times * (k.read + k.written) for k in found)
    return Program(operations, *memory, traffic, hlo.by_kind(found), hlo.collectives(module))


def _compiled(lowered: jax.stages.Lowered, kept: Path) -> list:
    """[Its text, bytes of arguments, of temporaries, at most], or [what the compiler says of too big a program]."""
    if kept.is_file():
        return json.loads(gzip.decompress(kept.read_bytes()))
    try:
        program = lowered.compile()
        memory = program.memory_analysis()
        sizes = memory.argument_size_in_bytes, memory.temp_size_in_bytes, memory.peak_memory_in_bytes
        found = [program.as_text(), *sizes]
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        found = [str(error)]
    kept.parent.mkdir(parents=True, exist_ok=True)
    part = kept.with_suffix(f".{os.getpid()}")
    part.write_bytes(gzip.compress(json.dumps(found).encode()))
    part.rename(kept)
    return found


def too_big(operations: float, told: str) -> Program:
    """Of a compiler's complaint: how much it would take. Raises ValueError where it does not say so."""
    used = re.search(r"Used ([\d.]+)([KMGT]?) of|\(([\d.]+)([KMGT]?)\) exceeds available HBM", told)
    if not used:
        raise ValueError(f"cannot be read: {told}")
    number, unit = filter(None, used.groups(default=""))
    return Program(operations, peak=round(float(number) * 1024 ** " KMGT".index(unit)), too_big=used[0])


def _key(mesh: Mesh) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=NamedSharding(mesh, P()))
