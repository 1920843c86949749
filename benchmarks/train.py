"""Images a second that models train on, beside torchvision's and timm's on the same device.

    python -m benchmarks.train [--models=resnet50,vit] [--against=torch,timm] [--dtype=bfloat16] [--json=FILE]

What is timed is a run's own step (`bjax.step.train_step`, one device, the state in the memory of the last): uint8
images on the device, normalised there, loss, gradients, SGD with momentum (AdamW for the ViT) and the step's metrics.
PyTorch's does the same in channels last, under autocast where the type is bfloat16, with the fused optimiser on GPUs;
it is measured eager and, on GPUs or with --compile, through torch.compile, and the better of the two counts. The
weights of both are random; that they are those of the same model is checked by converting the peer's.

All run interleaved, A B A B, after a round that is not counted. Rates are medians of the rounds beside the lowest and
the highest; a ratio is the median of those within rounds, and above 1 where bjax is faster. The share of the roofline
is that of `benchmarks.roofline`, for chips whose figures are published. With --kernels one more round of bjax's step
runs under JAX's profiler, which tells the kinds of kernels that take its time (`benchmarks.kernels`).
"""

import sys

from benchmarks import rates
from bjax.errors import as_command


@as_command
def main(argv: list[str]) -> None:
    rates.main("train", __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
