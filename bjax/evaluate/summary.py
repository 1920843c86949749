"""Answers per image -> a row of results.json with its intervals, and the table of all rows."""

import base64
import itertools
import math
import zlib

import numpy as np

from bjax import stats
from bjax.runtime.console import columns
from bjax.specs import KINDS, PARAMETERS

SHARES = tuple(i / 10 for i in range(1, 11))  # of the images, in coverage
RANKINGS = ("confidence", "sharpness")  # what decides which images are answered first
STRENGTHS = {"gaussian": "sigma", "motion": "length", "defocus": "radius"}
LISTED = 200  # photographs whose own hits are kept: enough for any data set whose crops are cut from few
MEANS = {"top1": 1.0, "top5": 1.0, "loss": math.inf, "kept": 1.0}  # and the most that they can be
OVERLAP = ("precision", "recall", "iou")  # of the patches that a mask keeps with those that are not blurred


def summarise(answers: dict[str, np.ndarray], blur=None) -> dict[str, object]:
    """Rows of `eval_step` over a split -> one row of results.json.

    Means with 95 % intervals; n and empty are counts; ece and coverage as their functions say. blur: of a condition
    whose labels are kinds of blur; adds confusion, by_strength and, where the model estimates parameters, estimates.
    Where parts of images are blurred and a mask leaves out patches, the means of precision, recall and iou of the
    patches kept (`tokens.overlap`): over the images that have them, NAME_n of the n.

    The intervals NAME_95 are over the images, as if these were independent. Where several are of one photograph,
    answers["photograph"], str[n], names each image's: adds n_photographs, the intervals NAME_95_photographs over these
    (`stats.over_photographs`) and, where they are few, photographs: {name: {hits, n}}. answers["id"], uint32[n], adds
    what a comparison with another condition on the same images needs: images, a checksum of which they are, and, where
    each is a photograph of its own, hits: a bit for each, 1 where it was right, in the order of the ids, as base64.
    """
    answers = {k: np.float64(v) if np.asarray(v).dtype.kind == "f" else v for k, v in answers.items()}
    n, row, photographs = len(answers["label"]), {}, answers.get("photograph")
    for name, most in MEANS.items():
        row |= _mean(name, answers[name], photographs, most)
    for name in OVERLAP:
        there = np.isfinite(answers.get(name, np.array([])))
        if there.any():
            row |= _mean(name, answers[name][there], None if photographs is None else photographs[there], 1.0)
            row[f"{name}_n"] = int(there.sum())
    row["n"] = n
    if photographs is not None:
        names, numbers = np.unique(photographs, return_counts=True)
        row["n_photographs"] = len(names)
        if len(names) <= LISTED:
            hits = numbers * _of_each(answers["top1"], photographs)
            each = zip(names.tolist(), hits.tolist(), numbers.tolist(), strict=True)
            row["photographs"] = {name: {"hits": round(h), "n": images} for name, h, images in each}
    if "id" in answers:
        order = np.argsort(answers["id"], kind="stable")
        row["images"] = f"{zlib.crc32(answers['id'][order].tobytes()):08x}"
        if photographs is None:
            row["hits"] = base64.b64encode(np.packbits(answers["top1"][order] > 0)).decode()
    row["empty"] = int((answers["kept"] == 0).sum())
    row["ece"] = calibration_error(answers["confidence"], answers["top1"])
    rankings = {by: accuracy_at(answers["top1"], answers[by]) for by in RANKINGS if by in answers}
    row["coverage"] = {"share": list(SHARES), **rankings}
    if blur is not None:
        row["confusion"] = confusion(answers["label"], answers["prediction"], len(KINDS))
        row["by_strength"] = by_strength(answers, blur)
        if "estimates" in answers:
            row["estimates"] = estimate_errors(answers)
    return row


def _mean(name: str, values: np.ndarray, photographs: np.ndarray | None, most: float) -> dict[str, object]:
    """{name, name_95, name_95_photographs}: the mean of values [n] from 0 to `most`, and its intervals."""
    counted = name in ("top1", "top5")
    alone = stats.wilson(values.sum(), len(values)) if counted else stats.mean_interval(values)
    row = {name: float(values.mean()), f"{name}_95": list(alone)}
    if photographs is not None:
        over = stats.over_photographs(_of_each(values, photographs), alone, within=(0.0, most))
        if math.isfinite(over[1]):  # one photograph says nothing of the loss on others
            row[f"{name}_95_photographs"] = list(over)
    return row


def _of_each(values: np.ndarray, photographs: np.ndarray) -> np.ndarray:
    """The mean of the values on each of the photographs, which names every value's, in the order of the names."""
    _, of = np.unique(photographs, return_inverse=True)
    return np.bincount(of, values) / np.bincount(of)


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017): |accuracy − confidence| over equal bins, weighted by images."""
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # (0, 1/15], (1/15, 2/15], …
    gaps = np.bincount(bin_of, correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(correct))


def accuracy_at(correct: np.ndarray, ranking: np.ndarray) -> list[float]:
    """Accuracy on the shares `SHARES` of the images that rank highest, ties in the order of the images: what remains
    where a classifier abstains on the others."""
    ordered = correct[np.argsort(-ranking, kind="stable")]
    return [float(ordered[: math.ceil(share * len(ordered))].mean()) for share in SHARES]


def confusion(labels: np.ndarray, predictions: np.ndarray, classes: int) -> list[list[int]]:
    """Counts: a row per true class, a column per predicted one."""
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (labels, predictions), 1)
    return counts.tolist()


def by_strength(answers: dict[str, np.ndarray], blur, bins: int = 4) -> dict[str, list[dict]]:
    """Accuracy per kind of blur in equal bins of the strength drawn: {kind: [{low, high, n, top1}]}, in pixels.

    A bin without images has top1 None. blur: has the ranges (low, high) of sigma, length and radius. Where
    answers["photograph"] names each image's, adds top1_95_photographs and n_photographs.
    """
    accuracies = {}
    for kind, name in STRENGTHS.items():
        of_kind = answers["label"] == KINDS.index(kind)
        if not of_kind.any():
            continue
        low, high = getattr(blur, name)
        edges = np.linspace(low, high, bins + 1) if high > low else np.array([low, high])
        bin_of = np.clip(np.searchsorted(edges, answers[name], side="right") - 1, 0, len(edges) - 2)
        accuracies[kind] = []
        for i, (low, high) in enumerate(itertools.pairwise(edges.tolist())):
            within = of_kind & (bin_of == i)
            right = answers["top1"][within]
            part = {"low": low, "high": high, "n": len(right)}
            part["top1"] = float(right.mean()) if len(right) else None
            if "photograph" in answers and len(right):
                means = _of_each(right, answers["photograph"][within])
                alone = stats.wilson(right.sum(), len(right))
                interval = stats.over_photographs(means, alone, within=(0.0, 1.0))
                part |= {"top1_95_photographs": list(interval), "n_photographs": len(means)}
            accuracies[kind].append(part)
    return accuracies


def estimate_errors(answers: dict[str, np.ndarray]) -> dict[str, dict]:
    """Mean absolute error of each estimated parameter over the images whose blur has it: {name: {mae, n}}.

    Pixels; the angle in degrees, modulo 180: at most 90.
    """
    errors = {}
    for i, (name, kind) in enumerate(PARAMETERS.items()):
        of_kind = answers["label"] == KINDS.index(kind)
        if not of_kind.any():
            continue
        error = np.abs(answers["estimates"][of_kind, i] - answers[name][of_kind])
        if name == "angle":
            error = np.rad2deg(np.minimum(error % np.pi, np.pi - error % np.pi))
        errors[name] = {"mae": float(error.mean()), "n": int(of_kind.sum())}
    return errors


def table(results: dict[str, dict], *, classes: int) -> str:
    """The results as text: a row per condition, accuracies in per cent with a 95 % interval, and what these are.

    It fits 80 columns: what all rows have in common stands below it. Of up to five classes top-5 is no news.
    """
    found = any("iou" in r for r in results.values())
    header = ("condition", "top-1 %", "95 %", *(["top-5 %"] if classes > 5 else []), "loss", "kept %")
    header += ("IoU %",) if found else ()
    numbers = {(r["n"], r.get("n_photographs")) for r in results.values()}
    alike = len(numbers) == 1
    of_few = {name: r for name, r in results.items() if "n_photographs" in r}

    rows = []
    for name, r in results.items():
        low, high = stats.interval(r, "top1")
        row = (name, f"{100 * r['top1']:.2f}", f"{100 * low:.1f}–{100 * high:.1f}")
        row += (f"{100 * r['top5']:.2f}",) if classes > 5 else ()
        row += (f"{r['loss']:.4f}", f"{100 * r['kept']:.1f}")
        row += (f"{100 * r['iou']:.1f}" if "iou" in r else "",) if found else ()
        rows.append(row if alike else (*row, str(r["n"]), *([str(r.get("n_photographs", ""))] if of_few else [])))
    if not alike:
        header += ("n", "photographs") if of_few else ("n",)
    lines = [columns(header, rows)]
    if alike:
        ((n, photographs),) = numbers
        lines.append(f"each of {n:,} images" + (f", crops of {photographs:,} photographs" if photographs else ""))
    if of_few:
        lines.append(
            "95 %: Student's t over the photographs that the images are crops of, never narrower than Wilson's over "
            "the images" + ("" if len(of_few) == len(results) else ", which stands where none are named")
        )
    if found:
        lines.append("IoU: of the patches kept with those not blurred; more of this in results.json")
    for name, r in of_few.items():
        if not stats.covered(r["n_photographs"], r["top1"]):
            lines.append(
                f"{name}: too few photographs to trust that interval (docs/intervals.md)"
                + (f"; top-1 on each: {on_each(r['photographs'])}" if "photographs" in r else "")
            )
    return "\n".join(lines)


def on_each(photographs: dict[str, dict]) -> str:
    """{photograph: {hits, n}} in words: "cat 64.6, gravel 75.0", in per cent."""
    return ", ".join(f"{name} {100 * p['hits'] / p['n']:.1f}" for name, p in photographs.items())
