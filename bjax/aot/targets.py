"""Chips by name: what their vendors publish of them, and the topologies that JAX compiles for without having them.

A name is a chip, then how many: `h200x8` eight GPUs, `v5e-16` sixteen TPU chips; of v2 to v5p the clouds count cores,
so that `v4-8` are four chips.

GPUs: NVIDIA's data sheets of the A100 80GB SXM, H100 SXM5, H200 SXM and of the HGX B200; NVLink and network of the DGX
of each, one way. TPUs: Google's pages of v4, v5e, v5p and v6e; the interconnect's bandwidth of a chip is one way, over
all of its links. Rates are dense and of the boost clock: nothing runs faster, and most things far slower.
"""

import dataclasses
import importlib.util
import math
import re

import jax
from jax.experimental import topologies

from bjax.errors import UserError, nearest

GIB = 2**30
HOST = 8  # GPUs of one host


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one chip. Bytes, bytes a second, operations a second."""

    kind: str  # gpu | tpu
    memory: int
    bandwidth: float  # of its memory
    bfloat16: float  # matrix products
    float32: float  # what JAX makes of float32 products by default: TF32 on GPUs, one pass of bfloat16 on TPUs
    link: float  # to the other chips of the host or slice, one way
    network: float = 0.0  # of a GPU to those of other hosts, one way
    about: tuple[int, ...] = ()  # GPUs: compute capability × 10, multiprocessors, L2 bytes, clock in MHz
    cores: int = 1  # that the clouds count a chip as
    axes: int = 2  # of the torus


CHIPS = {
    "a100": Chip("gpu", 80 * GIB, 2.039e12, 312e12, 156e12, 300e9, 25e9, (80, 108, 40 * 2**20, 1410)),
    "h100": Chip("gpu", 80 * GIB, 3.35e12, 989e12, 494e12, 450e9, 50e9, (90, 132, 50 * 2**20, 1980)),
    "h200": Chip("gpu", 141 * 10**9, 4.8e12, 989e12, 494e12, 450e9, 50e9, (90, 132, 50 * 2**20, 1980)),
    "b200": Chip("gpu", 180 * 10**9, 8e12, 2250e12, 1125e12, 900e9, 50e9, (100, 148, 126 * 2**20, 1965)),
    "v4": Chip("tpu", 32 * GIB, 1.2e12, 275e12, 275e12, 300e9, cores=2, axes=3),
    "v5e": Chip("tpu", 16 * GIB, 0.819e12, 197e12, 197e12, 200e9),
    "v5p": Chip("tpu", 95 * GIB, 2.765e12, 459e12, 459e12, 600e9, cores=2, axes=3),
    "v6e": Chip("tpu", 32 * GIB, 1.638e12, 918e12, 918e12, 400e9),
}
PLUGINS = {"gpu": ("jax_plugins.xla_cuda12", "preflight-gpu"), "tpu": ("libtpu", "preflight-tpu")}  # module, extra
PREALLOCATED = 0.75  # of a GPU's memory, by JAX; XLA_PYTHON_CLIENT_MEM_FRACTION=.95 takes more


@dataclasses.dataclass(frozen=True)
class Target:
    """Chips of one kind that work together."""

    name: str  # as it was asked for
    chip: Chip
    number: int  # of chips, each of which is one device

    @property
    def usable(self) -> float:
        """Bytes of a chip's memory that a program can have: of a GPU what JAX takes unless told otherwise."""
        return PREALLOCATED * self.chip.memory if self.chip.kind == "gpu" else self.chip.memory

    @property
    def link(self) -> float:
        """Bytes a second that a chip can send to the others, one way."""
        return self.chip.network if self.chip.kind == "gpu" and self.number > HOST else self.chip.link


def target(text: str) -> Target:
    """The target of a name such as h200x8 or v5e-16. Raises UserError for what is none, with the names there are."""
    match = re.fullmatch(r"([a-z][a-z0-9]*?)(?:(x|-)(\d+))?", text.strip().lower())
    name, sign, number = match.groups() if match else (text, "", None)
    if name not in CHIPS:
        known = ", ".join(f"{chip}{'x8' if c.kind == 'gpu' else '-8'}" for chip, c in CHIPS.items())
        raise UserError(f"--on={text}: no such chip{nearest(name, CHIPS)}; there are {known}, with other numbers too")
    chip = CHIPS[name]
    if sign != ("x" if chip.kind == "gpu" else "-"):
        example = f"{name}x{number or 1}" if chip.kind == "gpu" else f"{name}-{number or 8}"
        raise UserError(f"--on={text}: how many is said as in {example}")
    sizes = _sizes(chip)
    if int(number) not in sizes:
        some = ", ".join(map(str, sizes[:9]))
        raise UserError(f"--on={text}: there are {name}{sign}N of N = {some}, … up to {sizes[-1]}")
    return Target(f"{name}{sign}{number}", chip, int(number) // chip.cores)


def _sizes(chip: Chip) -> list[int]:
    """The numbers that the clouds' names of a chip may end with."""
    if chip.kind == "gpu":
        return [*range(1, HOST + 1), *(2**n for n in range(4, 11))]
    smallest = (1, 4, 8) if chip.axes == 2 else (4, 8)
    larger = (2**n for n in range(4, 9 if chip.axes == 2 else 13))
    return [n * chip.cores for n in (*smallest, *larger)]


def check_installed(target: Target) -> None:
    """Raises UserError where the plugin that compiles for the target is not installed."""
    module, extra = PLUGINS[target.chip.kind]
    if not _installed(module):
        raise UserError(f"--on={target.name}: needs what compiles for it: pip install 'bjax[{extra}]'")


def devices(target: Target) -> list[jax.Device]:
    """The target's devices, to compile for: nothing runs on them."""
    if target.chip.kind == "gpu":
        hosts = max(target.number // HOST, 1)
        topology = f"1x{hosts}x{target.number // hosts}"
        return topologies.get_topology_desc(
            platform="cuda", topology=topology, target_config=_gpu(target), topology_name=target.name
        ).devices
    chip = target.name.partition("-")[0]
    more = {"chips_per_host_bounds": (1, 1, 1)} if target.number == 1 else {}
    if target.chip.cores == 2:
        more["chip_config_name"] = "megacore"  # one device a chip
    return topologies.get_topology_desc(f"{chip}:{'x'.join(map(str, slice_of(target)))}", "tpu", **more).devices


def slice_of(target: Target) -> tuple[int, ...]:
    """The shape of a slice of TPUs: as near to a square or a cube as powers of two come."""
    shape = [1] * target.chip.axes
    while math.prod(shape) < target.number:
        at = max(i for i, side in enumerate(shape) if side == min(shape))
        shape[at] *= 2
    flat = target.chip.axes == 3 and target.number == 4  # the smallest: 2x2x1
    return tuple(sorted(shape, reverse=flat))


def _gpu(target: Target) -> str:
    """XLA's GpuTargetConfigProto: what its compiler asks a GPU for, where there is one."""
    capability, cores, cache, clock = target.chip.about
    threads = 2048
    shared = 163 if capability == 80 else 227  # KiB that one block may have
    return f"""
        gpu_device_info {{
          threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: {threads} core_count: {cores}
          shared_memory_per_block: 49152 shared_memory_per_block_optin: {shared * 1024}
          shared_memory_per_core: {(shared + 1) * 1024} registers_per_core_limit: 65536
          registers_per_block_limit: 65536 fpus_per_core: {64 if capability == 80 else 128}
          block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
          memory_bandwidth: {target.chip.bandwidth:.0f} l2_cache_size: {cache} clock_rate_ghz: {clock / 1000}
          device_memory_size: {target.chip.memory}
          cuda_compute_capability {{ major: {capability // 10} minor: {capability % 10} }}
        }}
        platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
        device_description_str: "NVIDIA {target.name.partition("x")[0].upper()}" """


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its package
        return False
