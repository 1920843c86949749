"""Images a second that models classify, beside torchvision's and timm's on the same device.

    python -m benchmarks.infer [--models=resnet50,vit] [--against=torch,timm] [--dtype=bfloat16] [--json=FILE]

What is timed begins with uint8 images on the device and ends with their logits there: what evaluation does before it
counts. PyTorch's, with the same weights, does the same in channels last, under autocast where the type is bfloat16,
eager and, on GPUs or with --compile, through torch.compile; the better of the two counts. Rounds, ratios and roofline
are as in `benchmarks.train`.

A fast wrong model is no peer: `off by` is the root mean square of the differences between bjax's logits and the peer's
in float32, by that of the peer's, beside what is tolerated: 1 % and twice what the peer's own type changes.
"""

import sys

from benchmarks import rates
from bjax.errors import as_command


@as_command
def main(argv: list[str]) -> None:
    rates.main("infer", __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
