"""Blurs against their peers: `python -m benchmarks.blur [--against=cv2,torch,pix] [--json=FILE]`.

64 float images of 224 × 224 × 3, every image with its own parameter: Gaussian of 19 taps, motion and
defocus with kernels of 21 × 21. Each peer blurs the same images in the form that does it fastest with a
parameter per image:

- cv2: `GaussianBlur` and `filter2D` on each image.
- torch: two depthwise passes (Gaussian) or one `conv2d` (motion, defocus) on each image.
- pix: `dm_pix.gaussian_blur` under `jax.vmap`.

Each returns new memory, as JAX does: reusing one output (cv2's `dst=`) would spare cv2 half its time at
this batch, page faults for the most part.

All run interleaved, A B A B, on everything the machine has; times are medians, ratios are medians of the
ratios within a round. Results are compared too: a fast wrong blur is no peer. A first, unmeasured round
compiles.
"""

import statistics
import sys

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import installed, save
from bjax import blur
from bjax.blur import psf
from bjax.errors import Parser, as_command, new_file, positive, some_of
from bjax.runtime.timing import timed

PEERS = {"cv2": "cv2", "torch": "torch", "pix": "dm_pix"}  # and the module each needs


@as_command
def main(argv: list[str]) -> None:
    parser = Parser("python -m benchmarks.blur", __doc__.split("\n")[0])
    against = "peers, comma-separated, of " + ", ".join(PEERS)
    parser.add_argument("--against", type=some_of(PEERS), help=f"{against} (default: those that are installed)")
    parser.add_argument("--json", type=new_file, help="write the numbers here")
    parser.add_argument("--batch", type=positive, default=64)
    parser.add_argument("--size", type=positive, default=224)
    parser.add_argument("--rounds", type=positive, default=5)
    flags = parser.parse_args(argv)
    peers = installed(flags.against, PEERS)

    images = np.random.default_rng(0).random((flags.batch, flags.size, flags.size, 3), dtype=np.float32)
    share = np.linspace(0, 1, flags.batch, dtype=np.float32)
    sigma, length, angle, radius = 1 + share, 7 + 10 * share, np.pi * share, 2 + 4 * share
    kernels = {
        "gaussian": np.asarray(psf.gaussian(sigma, 19)),
        "motion": np.asarray(psf.motion(length, angle, 21)),
        "defocus": np.asarray(psf.defocus(radius, 21)),
    }
    device = jax.device_put(images)
    gaussian, motion, defocus = map(jax.jit, (blur.gaussian, blur.motion, blur.defocus))
    ours = {
        "gaussian": lambda: gaussian(device, sigma).block_until_ready(),
        "motion": lambda: motion(device, length, angle).block_until_ready(),
        "defocus": lambda: defocus(device, radius).block_until_ready(),
    }
    device_kind = jax.devices()[0].device_kind
    print(f"{device_kind}: {flags.batch} × {flags.size} × {flags.size} × 3, {flags.rounds} rounds")
    rows = []
    for name, run in ours.items():
        rivals = {peer: RIVALS[peer](name, images, sigma, kernels[name]) for peer in peers}
        runs = {"bjax": run} | {peer: rival for peer, rival in rivals.items() if rival}
        rows.append(measure(name, runs, flags.rounds, flags.batch))
    if flags.json:
        report = {"device": device_kind, "batch": flags.batch, "size": flags.size, "rows": rows}
        save(flags.json, report)


def measure(name, runs, rounds, batch):
    results = {peer: np.asarray(run()) for peer, run in runs.items()}
    # The last peer's threads may still be spinning, waiting for work.
    seconds = timed(runs, rounds, pause=0.3)
    ours = seconds.pop("bjax")
    median = statistics.median(ours)
    row = {"blur": name, "ms": 1e3 * median, "images_per_s": batch / median, "peers": {}}
    print(f"{name:9} bjax  {row['ms']:8.1f} ms  {row['images_per_s']:8.0f} images/s")
    for peer, times in seconds.items():
        ratio = statistics.median(t / o for t, o in zip(times, ours, strict=True))
        difference = float(np.abs(results[peer] - results["bjax"]).max())
        ms = 1e3 * statistics.median(times)
        row["peers"][peer] = {"ms": ms, "ratio": ratio, "difference": difference}
        print(f"{'':9} {peer:5} {ms:8.1f} ms  bjax is {ratio:5.2f}× as fast, off by {difference:.1e}")
    return row


def cv2_rival(name, images, sigma, kernels):
    import cv2

    def one(image, sigma, kernel):
        if name == "gaussian":
            return cv2.GaussianBlur(image, (19, 19), float(sigma))
        return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)

    return lambda: [one(*arguments) for arguments in zip(images, sigma, kernels, strict=True)]


def torch_rival(name, images, sigma, kernels):
    import torch
    from torch.nn.functional import conv2d, pad

    batch = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    kernels = torch.from_numpy(np.array(kernels))
    taps = torch.from_numpy(np.array(psf.gaussian_taps(sigma, 19)))
    radius = kernels.shape[-1] // 2

    def one(i):
        image = pad(batch[i : i + 1], [radius] * 4, mode="reflect")
        if name != "gaussian":
            return conv2d(image, kernels[i].expand(3, 1, -1, -1), groups=3)
        rows = conv2d(image, taps[i].view(1, 1, -1, 1).expand(3, 1, -1, 1), groups=3)
        return conv2d(rows, taps[i].view(1, 1, 1, -1).expand(3, 1, 1, -1), groups=3)

    return lambda: [one(i)[0].permute(1, 2, 0) for i in range(len(batch))]


def pix_rival(name, images, sigma, kernels):
    if name != "gaussian":
        return None  # dm-pix has no other blur
    device = jax.device_put(images)
    run = jax.jit(blur.gaussian, static_argnames="impl")
    return lambda: run(device, jnp.asarray(sigma), impl="pix").block_until_ready()


RIVALS = {"cv2": cv2_rival, "torch": torch_rival, "pix": pix_rival}


if __name__ == "__main__":
    sys.exit(main())
