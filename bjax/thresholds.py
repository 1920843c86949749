"""Which photographs are blurred, and a threshold that tells their sharp patches from blurred ones.

    python -m bjax.thresholds PHOTO_OR_FOLDER … [--size=224] [--out=scores.png] [--json]

A row for every photograph, the least sharp first: its sharpness, the variance of the Laplacian over the whole of it,
the shorter side scaled to --size (what `bjax.predict` prints of a run whose evaluation size that is), and whether it
seems blurred already, at that size: by blurring it again (`bjax.sharpness.own_blur`), so that it needs no other to
compare with. Those that seem blurred are left out of what follows: they would pass for sharp.

Then the scores of the patches in the middle --size × --size pixels, sharp and under Gaussians of --sigma; --measure
names one of `bjax.sharpness.MEASURES` (but sigma, whose limit is in pixels and needs no search). Thresholds are those
of keep rates among the sharp patches, Otsu's between all, and the recommended one, at which the share of sharp patches
that stay is furthest above that of blurred ones (Youden 1950). The last line is that one as it is given to `bjax.main`;
`--config.eval.NAME.mask.threshold` is that of a condition. --out draws it (needs matplotlib).
"""

import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from bjax import blur, sharpness
from bjax.data import decode, views
from bjax.errors import Parser, UserError, as_command, shown
from bjax.sharpness import MEASURES, threshold
from bjax.specs import LARGEST_SIDE, gaussian_size

SHARP = "sharp"
Scores = dict[str, np.ndarray]  # {"sharp": scores, "σ = 1": scores, …} of patches


@dataclasses.dataclass(frozen=True)
class Photo:
    path: Path
    sharpness: float
    own_blur: float  # σ, pixels; inf: no detail at all
    scores: Scores

    @property
    def blurred(self) -> bool:
        return self.own_blur >= sharpness.BLURRED


@as_command
def main(argv: list[str]) -> int | None:
    """Runs the command; returns the exit code: 0; 1: a photograph could not be read; 2: a user's mistake."""
    flags = _parser().parse_args(argv)
    if flags.measure == "sigma":
        way = "--config.mask.mode=zero_pixels --config.mask.selector=sigma --config.mask.threshold=1.5"
        raise UserError(f"--measure=sigma: is in pixels already; give a limit in pixels to bjax.main, such as {way}")
    try:
        photos, broken = _score_photos(flags)
        sharp = [photo for photo in photos if not photo.blurred]
        scores = {name: np.concatenate([photo.scores[name] for photo in sharp]) for name in photos[0].scores if sharp}
        best = recommended(scores) if sharp else None
        if flags.json:
            _print_json(photos, scores, best, flags)
        else:
            _print_photos(photos, flags)
            _print_scores(scores, best, flags)
        if flags.out and sharp:
            _plot_scores(scores, best, flags)
        if not flags.json:
            nothing = "no threshold is recommended: every photograph seems blurred already; give some that are sharp"
            print(nothing if best is None else _pasted(best, flags))
    except ValueError as error:  # what the measures, thresholds and blurs refuse is a flag's value
        raise UserError(str(error)) from error
    return 1 if broken else 0


def _parser() -> Parser:
    parser = Parser("python -m bjax.thresholds", __doc__.splitlines()[0])
    parser.add_argument("photos", nargs="+", type=Path, help="photographs, or folders of them")
    parser.add_argument("--measure", default="laplacian", choices=MEASURES)
    parser.add_argument("--scope", default="image", choices=("image", "patch"))
    parser.add_argument("--patch_size", type=int, default=16)
    size = "the run's evaluation size: to this the shorter side of photographs is scaled (default: %(default)s)"
    parser.add_argument("--size", type=int, default=224, help=size)
    blurs = "Gaussian blurs to compare with"
    parser.add_argument("--sigma", type=float, nargs="+", default=[1.0, 2.0], help=blurs)
    parser.add_argument("--keep_rate", type=float, nargs="+", default=[0.75, 0.5, 0.25])
    parser.add_argument("--out", type=Path, help="draw the distributions into this file (needs matplotlib)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line instead")
    return parser


def recommended(scores: Scores) -> float:
    """The threshold that the share of sharp patches reaches most above that of blurred ones, in three digits."""
    blurred = np.sort(np.concatenate([values for name, values in scores.items() if name != SHARP]))
    sharp = np.sort(scores[SHARP])
    lost, gone = (np.searchsorted(x, sharp) / len(x) for x in (sharp, blurred))
    return float(f"{sharp[np.argmax(gone - lost)]:.3g}")


def _score_photos(flags: argparse.Namespace) -> tuple[list[Photo], int]:
    """The photographs, least sharp first, and how many could not be read."""
    if not 1 <= flags.size <= LARGEST_SIDE:
        raise UserError(f"--size={flags.size}: must be at least 1, and at most {LARGEST_SIDE:,}")
    # Before photographs are read, so that a wrong σ is told at once.
    sizes = {sigma: gaussian_size(sigma) for sigma in flags.sigma}
    paths, photos = decode.find(flags.photos), []
    for path in paths:
        try:
            photo = views.with_side(decode.decode(decode.read(path), exif_rotate=True), flags.size)
            if photo is None:
                raise ValueError(f"more than {views.LARGEST:,} pixels at a shorter side of {flags.size} px")
        except (ValueError, OSError) as error:
            cause = f"{shown(path)}: cannot be read as a photograph ({error})"
            if len(paths) == 1:
                raise UserError(cause) from None
            print(f"bjax: {cause}", file=sys.stderr)
            continue
        scores = _score_patches(decode.center_crop(photo, flags.size), sizes, flags)
        photos.append(Photo(path, sharpness.whole(photo), sharpness.own_blur(photo), scores))
    if not photos:
        raise UserError(f"none of the {len(paths)} photographs can be read")
    return sorted(photos, key=lambda photo: photo.sharpness), len(paths) - len(photos)


def _score_patches(square: np.ndarray, sizes: dict[float, int], flags: argparse.Namespace) -> Scores:
    """square: uint8[size, size, 3]; sizes: of the kernels, by σ."""
    image, scores = jnp.asarray(square[None], jnp.float32) / 255, {}
    for sigma in (None, *sizes):
        # Quantised, as a blurred photograph in a file would be: the measures see 8-bit levels.
        batch = image if sigma is None else blur.gaussian(image, sigma, kernel_size=sizes[sigma], quantize=True)
        name = SHARP if sigma is None else f"σ = {sigma:g}"
        scores[name] = np.asarray(MEASURES[flags.measure](batch, flags.patch_size, scope=flags.scope)).ravel()
    return scores


def _pasted(best: float, flags: argparse.Namespace) -> str:
    """The threshold as flags of bjax.main."""
    fields = {"mode": "zero_pixels", "selector": flags.measure, "threshold": f"{best:g}"}
    fields |= {"scope": flags.scope} if flags.scope != "image" else {}
    return " ".join(f"--config.mask.{name}={value}" for name, value in fields.items())


def _print_json(photos: list[Photo], scores: Scores, best: float | None, flags: argparse.Namespace) -> None:
    for photo in photos:
        own_blur = photo.own_blur if math.isfinite(photo.own_blur) else None  # null: no detail at all
        row = {"photo": str(photo.path), "sharpness": photo.sharpness, "side": flags.size}
        print(json.dumps(row | {"own_blur": own_blur, "blurred": photo.blurred}))
    kept = {name: float((values >= best).mean()) for name, values in scores.items()}
    print(json.dumps({"threshold": best, "kept": kept, "flags": None if best is None else _pasted(best, flags)}))


def _print_photos(photos: list[Photo], flags: argparse.Namespace) -> None:
    width = max(len("photo"), *(len(shown(photo.path)) for photo in photos))
    print(f"{'photo':{width}}  {'sharpness':>9}  {'own blur':>9}")
    for photo in photos:
        sigma = f"{photo.own_blur:.1f} px" if math.isfinite(photo.own_blur) else "no detail"
        row = f"{shown(photo.path):{width}}  {photo.sharpness:9.1f}  {sigma:>9}"
        print(row + ("  blurred" if photo.blurred else ""))
    blurred = sum(photo.blurred for photo in photos)
    print(
        f"\nsharpness: variance of the Laplacian (0..255), shorter side at {flags.size} px\n"
        f"own blur: σ at that size, found by blurring again; from {sharpness.BLURRED} px on it counts as blurred"
    )
    if blurred:
        print(f"{blurred} of {len(photos)} seem blurred already: they are left out of what follows")
    print()


def _print_scores(scores: Scores, best: float | None, flags: argparse.Namespace) -> None:
    if best is None:
        return
    patches = len(scores[SHARP])
    photos = patches // (flags.size // flags.patch_size) ** 2
    scored = f"{patches} patches of {flags.patch_size} px, {photos} photographs"
    print(f"{flags.measure} of {scored}, scope {flags.scope}")
    print(f"{'':12}" + "".join(f"{q:>10}%" for q in (5, 25, 50, 75, 95)))
    for name, values in scores.items():
        print(f"{name:12}" + "".join(f"{value:11.4g}" for value in np.percentile(values, (5, 25, 50, 75, 95))))
    print("\nthresholds, and the share of patches that reach them, which stay:")
    rows = {f"keep {rate:g} of sharp": threshold(scores[SHARP], keep_rate=rate) for rate in flags.keep_rate}
    rows |= {"Otsu, sharp and blurred": threshold(np.concatenate(list(scores.values()))), "recommended": best}
    for row, value in rows.items():
        shares = "  ".join(f"{name} {(values >= value).mean():.1%}" for name, values in scores.items())
        print(f"{row:24}{value:11.4g}   {shares}")
    print()


def _plot_scores(scores: Scores, best: float, flags: argparse.Namespace) -> None:
    """A histogram for each blur below the one before, so that none hides another; what a threshold drops is pale."""
    try:
        import matplotlib.figure
    except ModuleNotFoundError:
        raise UserError("--out: needs matplotlib, install it with `pip install matplotlib`") from None
    figure = matplotlib.figure.Figure(figsize=(7, 1.2 + 1.1 * len(scores)), layout="constrained")
    rows = np.atleast_1d(figure.subplots(len(scores), 1, sharex=True))
    low = 0.1  # scores below, of flat patches, go into the first bin
    bins = np.geomspace(low, max(*(values.max() for values in scores.values()), best * 10, 10 * low), 61)
    for axes, (name, values) in zip(rows, scores.items(), strict=True):
        stays = values >= best
        for part, colour in ((values[~stays], "#c6c9cf"), (values[stays], "#2f6f9f")):
            weights = np.full(len(part), 100 / len(values))
            axes.hist(np.maximum(part, low), bins, weights=weights, color=colour)
        axes.axvline(best, color="#d62728", linewidth=1.2)
        axes.set_xscale("log")
        said = f"blurred, {name} px" if name != SHARP else "as they are"
        axes.text(0.005, 0.95, said, transform=axes.transAxes, va="top", weight="bold")
        axes.text(0.995, 0.95, f"{stays.mean():.0%} stay", transform=axes.transAxes, va="top", ha="right")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_yticks([])
        axes.margins(y=0.25)
    rows[0].set_title(f"Patches that a threshold of {best:g} keeps", loc="left", fontsize=11)
    rows[0].text(best, 1.0, f" {best:g}", transform=rows[0].get_xaxis_transform(), color="#d62728", va="top")
    rows[-1].set_xlabel(f"{flags.measure} score of a patch of {flags.patch_size} px, at {flags.size} px")
    figure.supylabel("share of patches", fontsize=9)
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(flags.out, dpi=150)
    print(f"wrote {flags.out}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
