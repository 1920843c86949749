"""The scores of photographs, sharp and blurred, and the thresholds that they suggest.

    python -m bjax.thresholds PHOTO_OR_FOLDER … --out=scores.png

--measure names one of `bjax.sharpness.MEASURES`. A threshold is that of a keep rate among the sharp patches, or Otsu's
between all, sharp and blurred; beside each stands the share of patches that reach it.
"""

import argparse
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps

from bjax import blur
from bjax.data import decode
from bjax.errors import Parser, UserError, as_command, shown
from bjax.sharpness import MEASURES, threshold
from bjax.specs import LARGEST_SIDE, gaussian_size


@as_command
def main(argv: list[str]) -> int | None:
    """Runs the command; returns the exit code: 0; 1: a photograph could not be read; 2: a user's mistake."""
    flags = _parser().parse_args(argv)
    try:
        scores, broken = _score_photos(flags)
        _print_scores(scores, flags)
        if flags.out:
            _plot_scores(scores, flags)
    except ValueError as error:  # what the measures, thresholds and blurs refuse is a flag's value
        raise UserError(str(error)) from error
    return 1 if broken else 0


def _parser() -> Parser:
    parser = Parser("python -m bjax.thresholds", __doc__.splitlines()[0])
    parser.add_argument("photos", nargs="+", type=Path, help="photographs, or folders of them")
    parser.add_argument("--measure", default="laplacian", choices=MEASURES)
    parser.add_argument("--scope", default="image", choices=("image", "patch"))
    parser.add_argument("--patch_size", type=int, default=16)
    size = "photographs are cropped square and resized to this"
    parser.add_argument("--size", type=int, default=224, help=size)
    blurs = "Gaussian blurs to compare with"
    parser.add_argument("--sigma", type=float, nargs="+", default=[1.0, 2.0], help=blurs)
    parser.add_argument("--keep_rate", type=float, nargs="+", default=[0.75, 0.5, 0.25])
    parser.add_argument("--out", type=Path, help="draw the distributions into this file (needs matplotlib)")
    return parser


def _score_photos(flags: argparse.Namespace) -> tuple[dict[str, np.ndarray], int]:
    """`{"sharp": scores, "σ = 1": scores, …}` of all patches of all photographs, and how many could not be read."""
    if not 1 <= flags.size <= LARGEST_SIDE:
        raise UserError(f"--size={flags.size}: must be at least 1, and at most {LARGEST_SIDE:,}")
    conditions = {"sharp": None, **{f"σ = {sigma:g}": sigma for sigma in flags.sigma}}
    # Before photographs are read, so that a wrong σ is told at once.
    sizes = {sigma: gaussian_size(sigma) for sigma in flags.sigma}
    score, paths, broken = MEASURES[flags.measure], decode.find(flags.photos), 0
    scores = {name: [] for name in conditions}
    for path in paths:
        try:
            photo = decode.decode(decode.read(path))
        except (ValueError, OSError) as error:
            cause = f"{shown(path)}: cannot be read as a photograph ({error})"
            if len(paths) == 1:
                raise UserError(cause) from None
            print(f"bjax: {cause}", file=sys.stderr)
            broken += 1
            continue
        square = (flags.size, flags.size)
        photo = ImageOps.fit(Image.fromarray(photo), square, Image.Resampling.BICUBIC)
        image = np.asarray(photo, np.float32) / 255
        for name, sigma in conditions.items():
            batch = jnp.asarray(image[None])
            # Quantised, as a blurred photograph in a file would be: the measures see 8-bit levels.
            if sigma is not None:
                batch = blur.gaussian(batch, sigma, kernel_size=sizes[sigma], quantize=True)
            scores[name].append(np.asarray(score(batch, flags.patch_size, scope=flags.scope)).ravel())
    if broken == len(paths):
        raise UserError(f"none of the {broken} photographs can be read")
    return {name: np.concatenate(values) for name, values in scores.items()}, broken


def _print_scores(scores: dict[str, np.ndarray], flags: argparse.Namespace) -> None:
    patches = len(scores["sharp"])
    photos = patches // (flags.size // flags.patch_size) ** 2
    scored = f"{patches} patches of {flags.patch_size} px, {photos} photographs"
    print(f"{flags.measure} of {scored}, scope {flags.scope}")
    print(f"{'':12}" + "".join(f"{q:>10}%" for q in (5, 25, 50, 75, 95)) + f"{'below 100':>12}")
    for name, values in scores.items():
        quantiles = "".join(f"{value:11.4g}" for value in np.percentile(values, (5, 25, 50, 75, 95)))
        print(f"{name:12}{quantiles}{(values < 100).mean():12.1%}")
    print("thresholds, and the share of patches that reach them:")
    everything = np.concatenate(list(scores.values()))
    rows = {f"keep {rate:g} of sharp": threshold(scores["sharp"], keep_rate=rate) for rate in flags.keep_rate}
    rows["Otsu, sharp and blurred"] = threshold(everything)
    for row, value in rows.items():
        shares = "  ".join(f"{name} {(values >= value).mean():.1%}" for name, values in scores.items())
        print(f"{row:24}{value:11.4g}   {shares}")


def _plot_scores(scores: dict[str, np.ndarray], flags: argparse.Namespace) -> None:
    try:
        import matplotlib.figure
    except ModuleNotFoundError:
        raise UserError("--out: needs matplotlib, install it with `pip install matplotlib`") from None
    figure = matplotlib.figure.Figure(figsize=(7, 3.5), layout="constrained")
    label = f"{flags.measure} score of a patch"
    axes = figure.add_subplot(xscale="log", xlabel=label, ylabel="share of patches")
    everything = np.concatenate(list(scores.values()))
    low = 0.1  # scores below, of flat patches, go into the first bin
    bins = np.geomspace(low, max(everything.max(), 10 * low), 60)
    for name, values in scores.items():
        values, weights = np.maximum(values, low), np.full(len(values), 1 / len(values))
        axes.hist(values, bins, weights=weights, histtype="stepfilled", alpha=0.45, label=name)
    axes.axvline(threshold(everything), color="black", linestyle="--", label="Otsu")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(flags.out, dpi=150)
    print(f"wrote {flags.out}")


if __name__ == "__main__":
    sys.exit(main())
