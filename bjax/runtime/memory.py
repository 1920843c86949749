"""Whether a run can fit into the memory that there is, asked before any of it is taken.

Counted are the arrays of a run's state, and the images of as many batches as may wait on the host. A run that is let
through may still lack memory for what its layers leave behind.
"""

import math
import os
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bjax.errors import UserError
from bjax.runtime import sharding

CGROUP = Path("/sys/fs/cgroup/memory.max")  # what a container or a cluster's job may take; "max": all

# Parts of a State that are on the devices at a time; gradients are as large as what they are of.
WEIGHTS = ("params", "batch_stats")
RESTORED = (*WEIGHTS, "opt_state", "ema")
TRAINING = (*RESTORED, "params")


def check_batches(config: ConfigDict, **numbers: int) -> None:
    """Raises UserError where the images of the batches that wait on the host are more than its memory.

    numbers: batch_size, eval_batch_size: how many images are read in batches of that size, one pass after the other.
    """
    limit, data, processes = of_host(), config.data, jax.process_count()
    image = 3 * data.image_size**2
    for key, number in numbers.items():
        waiting = min(data.prefetch, -(-number // config[key]))
        if (need := waiting * config[key] // processes * image) <= limit:
            continue
        step = jax.device_count() * (config.optim.accumulate if key == "batch_size" else 1)
        fits = limit * processes // (data.prefetch * image) // step * step  # of smaller batches as many may wait
        way = f"use at most {fits}, or a smaller config.data.prefetch"
        if not fits:
            largest = math.isqrt(limit * processes // (3 * data.prefetch * step))
            way = f"config.data.image_size={data.image_size} is too large: use at most {largest} with a batch of {step}"
        raise UserError(
            f"config.{key}={config[key]}: the {waiting} batches that are read ahead take {_amount(need)} of images on "
            f"the host, which has {_amount(limit)}; {way}"
        )


def check_state(config: ConfigDict, mesh: Mesh, shapes: object, parts: tuple[str, ...]) -> None:
    """Raises UserError where these parts of a State, placed by the config's rules, are more than a device's memory."""
    device = mesh.local_devices[0]
    limit = of_device(device)
    if limit is None or (need := _on_one_device(shapes, parts, mesh, config)) <= limit:
        return
    number, fsdp = mesh.devices.size, mesh.shape["fsdp"]
    for larger in (n for n in range(fsdp + 1, number + 1) if number % n == 0):
        wider = sharding.make_mesh(-1, larger, mesh.devices.ravel())
        if _on_one_device(shapes, parts, wider, config) <= limit:
            way = f"use --config.mesh.fsdp={larger}"
            break
    else:
        whole = sum(math.prod(x.shape) * x.dtype.itemsize for part in parts for x in _arrays(shapes, part))
        least = -(-whole // limit)
        way = f"use a smaller model (config.model.options), or at least {least} such devices with mesh.fsdp={least}"
    what = "parameters, gradients and optimiser" if parts == TRAINING else "weights"
    raise UserError(
        f"config.mesh.fsdp={fsdp}: {what} take {_amount(need)} on each device, which has {_amount(limit)} "
        f"({device.device_kind}); {way}"
    )


def of_host() -> int:
    """Bytes of memory that this machine has, or that this process's container may take."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    allowed = CGROUP.read_text().strip() if CGROUP.is_file() else "max"
    return min(physical, int(allowed)) if allowed.isdecimal() else physical


def of_device(device: jax.Device) -> int | None:
    """Bytes that arrays can take on a device, of a CPU's devices each its share; None where it does not say."""
    if device.platform == "cpu":
        return of_host() // jax.local_device_count()
    return (device.memory_stats() or {}).get("bytes_limit")


def _on_one_device(shapes: object, parts: tuple[str, ...], mesh: Mesh, config: ConfigDict) -> int:
    plan = sharding.plan(shapes, mesh, config.mesh.rules)
    return sum(sharding.held(getattr(shapes, part), getattr(plan, part)) for part in parts)


def _arrays(tree: object, part: str) -> list:
    return jax.tree.leaves(getattr(tree, part))


def _amount(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
