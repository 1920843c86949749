"""The least time that a program can take on a target.

A step does matrix products, moves bytes between a chip's memory and its units, and sends bytes to other chips. Each
has a published rate that nothing exceeds, so that the longest of the three is a bound: the chip would have to do all
three at full rate and all at once. Traffic is counted as if every array that a kernel reads or writes went through the
memory: where a cache holds it until the next kernel, a step can be faster than this.
"""

import dataclasses

from bjax.aot.programs import Program
from bjax.aot.targets import Target

# Of what one device sends of a result of one byte, among n of them, by the algorithm that sends least.
SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,  # its result is a part
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}


@dataclasses.dataclass(frozen=True)
class Bound:
    """Seconds that a program takes at least for each of three reasons, and which is the longest."""

    compute: float
    memory: float
    links: float

    @property
    def seconds(self) -> float:
        return max(self.compute, self.memory, self.links)

    @property
    def reason(self) -> str:
        """compute | memory | links"""
        return max(("compute", "memory", "links"), key=lambda name: getattr(self, name))


def bound(program: Program, target: Target, dtype: str, fsdp: int = 1) -> Bound:
    """dtype: of the computation, bfloat16 or float32. fsdp: over how many devices the weights are split."""
    rate = target.chip.bfloat16 if dtype == "bfloat16" else target.chip.float32
    n = target.number
    # Weights are gathered, and gradients scattered, among fsdp devices; what is left is summed over the others.
    among = dict.fromkeys(SENT, n) | dict.fromkeys(("all-gather", "reduce-scatter"), fsdp)
    among["all-reduce"] = n // fsdp if fsdp < n else n
    sent = sum(SENT[kind](among[kind]) * row["bytes"] for kind, row in program.collectives.items())
    return Bound(program.flops / (n * rate), program.traffic / target.chip.bandwidth, sent / target.link)
