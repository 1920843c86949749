"""Where arrays live: one mesh with axes ("data", "fsdp"), a plan for the state, batches split over both axes."""

import math
import os
import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bjax.errors import UserError

BATCH = P(("data", "fsdp"))
STRATEGIES = ("fsdp", "replicate")
SMALL = 2**14  # elements; splitting smaller arrays costs more messages than it saves memory


def make_mesh(data: int, fsdp: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices` (default: all). data=-1 takes what fsdp leaves. Linen's Dropout needs Auto axes."""
    devices = jax.devices() if devices is None else devices
    data = len(devices) // fsdp if data == -1 else data
    return jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices)


def plan(tree, mesh: Mesh, rules) -> object:
    """A NamedSharding for every array of `tree` (arrays or shapes).

    rules: ((pattern, strategy), …); the first pattern found in an array's path ("params/head/kernel") decides:
    "replicate", or "fsdp": the largest axis that the mesh's fsdp divides is split, small arrays stay whole.
    Raises UserError for an array that no pattern matches, and for a pattern that matches no array.
    """
    unused = {pattern for pattern, _ in rules}
    for pattern, strategy in rules:
        if strategy not in STRATEGIES:
            raise UserError(
                f"config.mesh.rules: {pattern!r} names {strategy!r}; expected one of {', '.join(STRATEGIES)}"
            )

    def place(path, x):
        name = "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
        matching = [(pattern, strategy) for pattern, strategy in rules if re.search(pattern, name)]
        unused.difference_update(pattern for pattern, _ in matching)
        if not matching:
            raise UserError(f"config.mesh.rules: no pattern matches {name}; end the rules with ('.*', 'replicate')")
        return NamedSharding(mesh, _split(x.shape, mesh.shape["fsdp"]) if matching[0][1] == "fsdp" else P())

    shardings = jax.tree_util.tree_map_with_path(place, tree)
    if unused:
        raise UserError(f"config.mesh.rules: no parameter matches {', '.join(map(repr, sorted(unused)))}")
    return shardings


def held(shapes: object, plan: object) -> int:
    """Bytes of a tree of arrays or shapes that one device holds under its `plan`."""
    arrays = zip(jax.tree.leaves(shapes), jax.tree.leaves(plan), strict=True)
    return sum(math.prod(place.shard_shape(x.shape)) * x.dtype.itemsize for x, place in arrays)


def put(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch -> global arrays, split over every device."""
    sharding = NamedSharding(mesh, BATCH)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def _split(shape: tuple[int, ...], parts: int) -> P:
    candidates = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or math.prod(shape) < SMALL or not candidates:
        return P()
    axis = max(candidates, key=lambda a: shape[a])
    return P(*[None] * axis, "fsdp")


def make_deterministic() -> None:
    """Lets XLA choose only what gives the same bits again; to be called before a device is used.

    On GPUs it leaves out atomics in scatter and in cuDNN's gradients. What may still differ is said: another kind or
    number of devices adds in another order, another version of XLA fuses otherwise.
    """
    flags = "--xla_gpu_deterministic_ops=true --xla_gpu_exclude_nondeterministic_ops=true"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    print(
        "deterministic: the same bits on devices of the same kind and number, by the same versions; others, and "
        "columns of time, may differ",
        flush=True,
    )
