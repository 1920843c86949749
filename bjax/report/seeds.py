"""Runs that differ in their seed alone -> one, with means and intervals over the seeds."""

import dataclasses
import json
import math
import os.path
from collections.abc import Sequence
from statistics import fmean

import numpy as np

from bjax import stats
from bjax.options import affecting
from bjax.report.runs import Row, Run, grouped
from bjax.specs import Run as Options

# Of a config: what decides neither weights nor results. Runs that differ in this and the seed alone are shown as one.
IRRELEVANT = ("seed", *affecting(Options, "nothing"))

# What was measured beside the results: the first seed's that has it.
EXTRAS = ("speed", "quality", "gallery", "calibration", "adapt")
OF_ROWS = ("speed", "similarity")


def merge(runs: list[Run]) -> tuple[list[Run], list[str]]:
    """Runs that differ in their seed alone become one, with means and intervals over the seeds; numbered from 1.

    All seeds answer the same images: an interval over them is never narrower than one seed's over these (`_over`). A
    run that repeats another's config and seed is left out: it would make the interval too narrow.
    """
    groups, notes = {}, []
    for run in runs:
        by_seed = groups.setdefault((run.trained, identity(run.config)), {})
        same = by_seed.setdefault(run.seeds, run)
        if same is not run:
            shown = f"config and seed are those of {same.workdirs[0]}, which is shown"
            notes.append(f"{run.workdirs[0]}: {shown}")
    merged, names = [], set()
    for number, by_seed in enumerate(groups.values(), 1):
        group = list(by_seed.values())
        name = _common([run.name for run in group])
        if name in names:
            name = f"{name} ({number})"
        names.add(name)
        rows = []
        for condition in dict.fromkeys(row.name for run in group for row in run.rows):
            tested = {run.seeds[0]: row for run in group if (row := run.find(condition))}
            rows.append(dataclasses.replace(_merge_rows(tested), run=number))
            if len(tested) < len(group):
                lacking = ", ".join(str(run.seeds[0]) for run in group if run.seeds[0] not in tested)
                notes.append(f"{name}: {condition} was not evaluated with seed {lacking}")
        first = next((run for run in group if run.sweep), group[0])
        files = {k: next(filter(None, (getattr(run, k) for run in group)), None) for k in EXTRAS}
        merged.append(
            dataclasses.replace(
                group[0],
                name=name,
                workdirs=tuple(run.workdirs[0] for run in group),
                seeds=tuple(run.seeds[0] for run in group),
                rows=rows,
                sessions=tuple(session for run in group for session in run.sessions),
                sweep=first.sweep,
                sweep_config=first.sweep_config,
                point=first.point,
                number=number,
                **files,
            )
        )
    return merged, notes


def _common(names: list[str]) -> str:
    """What the names begin with, without what separates the seed from it."""
    if len(names) == 1:
        return names[0]
    return os.path.commonprefix(names).rstrip("_-. ") or names[0]  # noqa: RUF071 (letters)


def identity(config: dict, *but: str) -> str:
    """What of a config decides results, as text; `but`: keys that are left out as well."""

    def without(node, prefix):
        if not isinstance(node, dict):
            return node
        left_out = (*IRRELEVANT, *but)
        return {k: without(v, f"{prefix}{k}.") for k, v in node.items() if f"{prefix}{k}" not in left_out}

    return json.dumps(without(config, ""), sort_keys=True)


def _merge_rows(rows: dict[int, Row]) -> Row:
    """One row of every seed's."""
    first = next(iter(rows.values()))
    by_seed = {seed: row.result for seed, row in rows.items()}
    results = list(by_seed.values())
    if len(results) == 1:
        return dataclasses.replace(first, by_seed=by_seed)
    merged = {"n": min(r["n"] for r in results)}
    for key in ("top1", "top5", "loss", "ece", "kept", "precision", "recall", "iou"):
        known = [r for r in results if key in r]
        if known:
            merged |= _over(key, known, within=(0, math.inf if key == "loss" else 1))
    if all("n_photographs" in r for r in results):
        merged["n_photographs"] = min(r["n_photographs"] for r in results)
    photographs = [r.get("photographs") for r in results]
    if all(photographs) and len({tuple((k, p["n"]) for k, p in x.items()) for x in photographs}) == 1:
        merged["photographs"] = {
            name: {"hits": fmean(x[name]["hits"] for x in photographs), "n": part["n"]}
            for name, part in photographs[0].items()
        }
    curves = [r.get("coverage") for r in results]
    if all(curves) and len({(*c, *c["share"]) for c in curves}) == 1:
        merged["coverage"] = {k: [fmean(x) for x in zip(*(c[k] for c in curves), strict=True)] for k in curves[0]}
    if all("confusion" in r for r in results):
        merged["confusion"] = np.sum([r["confusion"] for r in results], axis=0).tolist()
    for kind in dict.fromkeys(kind for r in results for kind in r.get("by_strength", {})):
        parts = [part for r in results for part in r.get("by_strength", {}).get(kind, ())]
        bins = grouped(parts, lambda part: (part["low"], part["high"]))
        merged.setdefault("by_strength", {})[kind] = [_pool(alike, "top1") for alike in bins.values()]
    for name in dict.fromkeys(name for r in results for name in r.get("estimates", {})):
        parts = [r["estimates"][name] for r in results if name in r.get("estimates", {})]
        merged.setdefault("estimates", {})[name] = _pool(parts, "mae")
    extras = {name: next(filter(None, (getattr(row, name) for row in rows.values())), None) for name in OF_ROWS}
    return dataclasses.replace(first, result=merged, by_seed=by_seed, **extras)


def _over(key: str, results: list[dict], *, within: stats.Interval) -> dict:
    """The mean of `key` over the seeds with its 95 % interval, or, of two seeds, with both values."""
    values = [r[key] for r in results]
    merged = {key: fmean(values)}
    if len(values) == 2:  # Student's t of two is 13 times as wide as what they differ by
        merged[f"{key}_seeds"] = values
    elif len(values) > 2:
        ends = [interval for r in results if (interval := stats.interval(r, key))]
        whole = ends if len(ends) == len(values) else []
        merged[f"{key}_95"] = stats.over_seeds(values, whole, within=within)
    return merged


def _pool(parts: Sequence[dict], key: str) -> dict:
    """A part of a row, such as a bin, of every seed: the mean, and the number of images, which all seeds share."""
    known = [part for part in parts if part["n"] and part[key] is not None]
    merged = {k: parts[0][k] for k in ("low", "high") if k in parts[0]}
    if not known:
        return {**merged, key: None, "n": 0}
    merged |= {"n": min(part["n"] for part in known)}
    if key == "mae":
        return merged | {key: fmean(part[key] for part in known)}
    if all("n_photographs" in part for part in known):
        merged["n_photographs"] = min(part["n_photographs"] for part in known)
    return merged | _over(key, known, within=(0, 1))
