"""AugMix on the device beside Pillow's: `python -m benchmarks.augmix [--json=FILE]`.

Photographs as crops of 224 × 224. Two comparisons, each in interleaved rounds:

- the mix alone, beside the published one: Pillow's operations in one process on one core, and NumPy's sum of what they
  give. Both do what bjax draws, image by image, so that the work is the same and the results can be compared; bjax has
  everything that the machine has.
- a train step of ResNet50 with and without it: the share of the step that it takes.

Times are medians, ratios are medians of the ratios within a round. A first, unmeasured round compiles.
"""

import dataclasses
import functools
import statistics
import sys

import jax
import numpy as np
from PIL import Image, ImageOps

from benchmarks import peers, rates, save
from bjax import models
from bjax.errors import Parser, as_command, new_file, positive
from bjax.runtime.timing import timed
from bjax.specs import AugMix
from bjax.step import augmix


@as_command
def main(argv: list[str]) -> None:
    parser = Parser("python -m benchmarks.augmix", __doc__.split("\n")[0])
    parser.add_argument("--json", type=new_file, help="write the numbers here")
    parser.add_argument("--batch", type=positive, default=16, help="images at once (default: %(default)s)")
    parser.add_argument("--size", type=positive, default=224, help="side of the images (default: %(default)s)")
    parser.add_argument("--model", default="resnet50", choices=rates.MODELS, help="whose step (default: %(default)s)")
    parser.add_argument("--rounds", type=positive, default=7, help="default: %(default)s")
    flags = parser.parse_args(argv)
    found = {k: v for k, v in vars(flags).items() if k != "json"}
    found |= {"device": jax.devices()[0].device_kind, "versions": rates.versions()}
    print(f"{found['device']}: {flags.batch} × {flags.size} × {flags.size} × 3, {flags.rounds} rounds", flush=True)
    spec = AugMix(width=3)
    for name, part in {"mix": mixes, "step": steps}.items():
        print(f"{name} …", file=sys.stderr, flush=True)
        found[name] = part(spec, flags)
        if flags.json:
            save(flags.json, found)


def mixes(spec: AugMix, flags) -> dict:
    """Images a second of bjax's and of Pillow's, how many times as fast it is, and by how many levels they differ."""
    images = peers.photos(flags.batch, flags.size)
    keys = jax.random.split(jax.random.key(0), flags.batch)
    place, mix = jax.device_put(images), jax.jit(functools.partial(augmix.mix, spec=spec))
    drawn = jax.device_get(augmix.draw(keys, spec, flags.size, flags.size))
    each = [augmix.Drawn(*one) for one in zip(*drawn, strict=True)]
    runs = {
        "bjax": lambda: mix(keys, place).block_until_ready(),
        "pillow": lambda: np.stack([pillow_mix(*one) for one in zip(images, each, strict=True)]),
    }
    results = {name: np.asarray(run()) for name, run in runs.items()}
    seconds = timed(runs, flags.rounds, pause=rates.PAUSE["cpu"])
    found = {name: rates.spread(times, flags.batch) for name, times in seconds.items()}
    found["ratio"] = rates.ratio(seconds["bjax"], seconds["pillow"])
    found["off_by"] = 255 * float(np.abs(results["bjax"] - results["pillow"]).max())
    own, theirs = (found[name]["images_per_s"] for name in runs)
    print(f"mix:  bjax {own:.1f} images/s, Pillow on one core {theirs:.1f}: {found['ratio']:.2f}× as fast, ", end="")
    print(f"off by {found['off_by']:.2g} levels", flush=True)
    return found


def steps(spec: AugMix, flags) -> dict:
    """Seconds of a train step without and with it, and its share of the latter."""
    sizes = rates.Sizes(flags.batch, flags.size, "float32", flags.rounds, 1, False)
    batch, model = rates.batch_of(sizes), models.build(flags.model, **rates.MODELS[flags.model])
    inputs = {"plain": rates.INPUTS, "augmix": dataclasses.replace(rates.INPUTS, augmix=spec)}
    runs = {name: rates.training(model, flags.model, batch, sizes, more).run for name, more in inputs.items()}
    seconds = timed(runs, flags.rounds, pause=rates.PAUSE["cpu"])
    share = statistics.median(1 - p / a for p, a in zip(*seconds.values(), strict=True))
    plain, mixed = (1e3 * statistics.median(times) for times in seconds.values())
    print(f"step: {flags.model} {plain:.0f} ms, with AugMix {mixed:.0f} ms: {100 * share:.1f} % of it", flush=True)
    return {"seconds": seconds, "share": share}


def pillow_mix(image: np.ndarray, drawn: augmix.Drawn) -> np.ndarray:
    """The published AugMix of a uint8 image [H, W, 3], of what was drawn for it: float32, 0 to 1."""
    scaled = np.float32(1 / 255) * image
    mixed = drawn.own * scaled
    for weight, operations, amounts in zip(*drawn[1:], strict=True):
        changed = Image.fromarray(image)
        for operation, amount in zip(operations, amounts, strict=True):
            changed = pillow(changed, int(operation), int(amount))
        mixed += weight * (np.float32(1 / 255) * np.asarray(changed))
    return mixed


def pillow(image: Image.Image, operation: int, amount: int) -> Image.Image:
    """What `augmix.operate` does to one image, by Pillow."""
    if operation == augmix.NONE:
        return image
    name, part = augmix.OPERATIONS[operation], amount / augmix.ONE
    maps = {
        "shear_x": (1, part, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, part, 1, 0),
        "translate_x": (1, 0, amount, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, amount),
    }
    if name in maps:
        return image.transform(image.size, Image.Transform.AFFINE, maps[name], Image.Resampling.BILINEAR)
    if name == "rotate":
        return image.rotate(amount, Image.Resampling.BILINEAR)
    more = (amount,) if name in ("posterize", "solarize") else ()
    return getattr(ImageOps, name)(image, *more)


if __name__ == "__main__":
    sys.exit(main())
