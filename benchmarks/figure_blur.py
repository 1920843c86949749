"""The README's figures: `python -m benchmarks.figure_blur [--parts] [--photo=FILE] [--out=docs/blur.png]`.

One photograph under every blur, what the blur does to a point of light (or, where it varies, the map of σ),
and the Laplacian variance of every 16 × 16 patch. --parts: blurred in parts, as `blur.where` says, with the map of
that, and the half of its patches that the Laplacian variance keeps. Needs matplotlib; the photograph by default is
scikit-image's.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.colors
import matplotlib.figure
import numpy as np
from matplotlib.backend_bases import FigureCanvasBase
from PIL import Image, ImageOps

from bjax import blur, sharpness, tokens
from bjax.blur import imagenet_c, psf, sample, varying
from bjax.data import decode
from bjax.errors import Parser, UserError, as_command, new_file
from bjax.specs import gaussian_size

SIZE, PATCH = 224, 16
STRONG = 6.0  # σ of the blur of parts, pixels
PARTS = {
    "regions": "regions",
    "centre": "centre: a blurred object",
    "surround": "surround: a blurred background",
    "ramp": "ramp",
}


@as_command
def main(argv: list[str]) -> None:
    parser = Parser("python -m benchmarks.figure_blur", __doc__.split("\n")[0])
    parser.add_argument("--photo", type=Path, help="a photograph; default: scikit-image's cat")
    parser.add_argument("--parts", action="store_true", help="blurred in parts, instead of under every blur")
    parser.add_argument("--out", type=new_file, help="default: docs/blur.png, docs/partial_blur.png with --parts")
    flags = parser.parse_args(argv)
    flags.out = flags.out or Path("docs/partial_blur.png" if flags.parts else "docs/blur.png")
    if flags.out.suffix[1:] not in FigureCanvasBase.filetypes:
        raise UserError(f"--out={flags.out}: expected one of .{', .'.join(FigureCanvasBase.filetypes)}")
    photo = load(flags.photo)
    figure = draw_parts(parts(photo)) if flags.parts else draw(blurs(photo))
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(flags.out, dpi=110)
    print(f"wrote {flags.out}")


def load(path):
    """The photograph as float32 `[1, 224, 224, 3]`; UserError where it cannot be read."""
    if path is None:
        import skimage.data

        photo = Image.fromarray(skimage.data.chelsea()).crop((75, 0, 375, 300))
    else:
        try:
            photo = Image.fromarray(decode.decode(decode.read(path)))
        except (ValueError, OSError) as error:
            raise UserError(f"--photo={path}: {error}") from None
    photo = ImageOps.fit(photo, (SIZE, SIZE), Image.Resampling.LANCZOS)
    return jnp.asarray(np.asarray(photo, np.float32) / 255)[None]


def blurs(photo):
    """`(title, blurred photograph [H, W, 3], kind of the second panel, that panel)` for each column."""
    key = jax.random.split(jax.random.key(11), 1)
    angle = np.deg2rad(30)
    regions, regions_map = varying.regions(key, photo, 3.0, size=(0.3, 0.6))
    ramp, ramp_map = varying.ramp(key, photo, 0.0, 4.0, kernel_size=gaussian_size(4.0))
    columns = [
        ("sharp", photo, "psf", psf.gaussian(0.0, 21)),
        ("Gaussian, σ = 2", blur.gaussian(photo, 2.0), "psf", psf.gaussian(2.0, 21)),
        ("motion, L = 15, 30°", blur.motion(photo, 15.0, angle), "psf", psf.motion(15.0, angle)),
        ("defocus, R = 5", blur.defocus(photo, 5.0), "psf", psf.defocus(5.0)),
        ("regions, σ = 3", regions, "map", regions_map[0]),
        ("ramp, σ = 0 … 4", ramp, "map", ramp_map[0]),
    ]
    levels = np.asarray(jnp.round(photo[0] * 255), np.uint8)
    for name in ("motion_blur", "zoom_blur", "glass_blur"):
        point = np.zeros((SIZE, SIZE, 3), np.uint8)
        row, column = (112, 112) if name != "zoom_blur" else (72, 72)  # zoom leaves the centre where it is
        point[row, column] = 255
        trail = imagenet_c.corrupt(key[0], point, name, 3)[row - 20 : row + 21, column - 20 : column + 21, 0]
        title = f"ImageNet-C {name.removesuffix('_blur')}, 3"
        corrupted = imagenet_c.corrupt(key[0], levels, name, 3)[None] / jnp.float32(255)
        columns.append((title, corrupted, "psf", trail))
    return [(title, image.astype(jnp.float32), kind, np.asarray(x)) for title, image, kind, x in columns]


def draw(columns):
    figure = matplotlib.figure.Figure(figsize=(1.62 * len(columns), 5.4), layout="constrained")
    axes = figure.subplots(3, len(columns))
    scores = matplotlib.colors.LogNorm(1, 10_000)
    for column, (title, image, kind, panel) in zip(axes.T, columns, strict=True):
        column[0].imshow(np.clip(image[0], 0, 1))
        column[0].set_title(title, fontsize=9)
        if kind == "psf":
            column[1].imshow(panel / panel.max(), cmap="gray", vmin=0, vmax=1)
        else:
            sigma = column[1].imshow(panel, cmap="cividis", vmin=0, vmax=4)
        variance = np.asarray(sharpness.laplacian_variance(image, PATCH))[0]
        score = column[2].imshow(np.maximum(variance, 1), cmap="magma", norm=scores)
        column[2].set_xlabel(f"{(variance < 100).mean():.0%} below 100", fontsize=9)
        for axis in column:
            axis.set(xticks=[], yticks=[])
    labels = "photograph", "a point of light, or σ", "Laplacian variance"
    for axis, label in zip(axes[:, 0], labels, strict=True):
        axis.set_ylabel(label, fontsize=9)
    figure.colorbar(sigma, ax=axes[1], label="σ, pixels", aspect=10, pad=0.005)
    figure.colorbar(score, ax=axes[2], label="per patch", aspect=10, pad=0.005).ax.axhline(100, color="white")
    return figure


def parts(photo):
    """`(title, blurred photograph [H, W, 3], map of σ [H, W], patches kept [h, w], IoU)` for each column."""
    key = jax.random.split(jax.random.key(3), 1)
    mask = tokens.MaskSpec("attend", keep_rate=0.5)
    columns = []
    for where, title in PARTS.items():
        spec = sample.BlurSpec({"gaussian": 1}, sigma=STRONG, kernel_size=gaussian_size(STRONG), where=where)
        image, _, _, truth = sample.draw_with_truth(key, photo, spec)
        keep = tokens.select(key, image, mask, PATCH).keep
        sharp = ~varying.blurred_patches(truth, PATCH)
        found = tokens.overlap(keep, sharp.reshape(1, -1))
        columns.append((title, image[0], truth[0], keep.reshape(sharp.shape[1:]), float(found["iou"][0])))
    return columns


def draw_parts(columns):
    figure = matplotlib.figure.Figure(figsize=(2.3 * len(columns), 6.4), layout="constrained")
    axes = figure.subplots(3, len(columns))
    for column, (title, image, truth, keep, iou) in zip(axes.T, columns, strict=True):
        image = np.clip(image, 0, 1)
        column[0].imshow(image)
        column[0].set_title(title, fontsize=9)
        sigma = column[1].imshow(truth, cmap="cividis", vmin=0, vmax=STRONG)
        column[2].imshow(np.where(np.kron(keep, np.ones((PATCH, PATCH)))[..., None] > 0, image, 0.15 * image))
        column[2].set_xlabel(f"IoU with what is sharp: {iou:.2f}", fontsize=9)
        for axis in column:
            axis.set(xticks=[], yticks=[])
    labels = "photograph", "how blurred it is", "sharper half of patches"
    for axis, label in zip(axes[:, 0], labels, strict=True):
        axis.set_ylabel(label, fontsize=9)
    figure.colorbar(sigma, ax=axes, label="σ, pixels", shrink=0.4, pad=0.005)
    return figure


if __name__ == "__main__":
    sys.exit(main())
