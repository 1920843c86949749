"""Runs that differ in their seed alone -> one, with means and intervals over the seeds."""

import dataclasses
import json
import math

from bjax import stats
from bjax.report.runs import Row, Run

# Of a config: what decides neither weights nor results. Runs that differ in this and the seed alone are shown as one.
IRRELEVANT = (
    "seed",
    "data.data_dir",
    "data.threads",
    "data.prefetch",
    "eval_batch_size",
    "eval_every",
    "eval_only",
    "gallery",
    "log_every",
    "checkpoint_every",
    "checkpoint_keep",
    "mask_quality",
    "mesh",
    "speed_rounds",
)


def merge(runs: list[Run]) -> tuple[list[Run], list[str]]:
    """Runs that differ in their seed alone become one, with means and t intervals over the seeds; numbered from 1.

    A run that repeats another's config and seed is left out: it would make the interval too narrow.
    """
    groups, notes = {}, []
    for run in runs:
        group = groups.setdefault((run.trained, identity(run.config)), [])
        same = next((other for other in group if other.seeds == run.seeds), None)
        if same:
            notes.append(
                f"{run.workdirs[0]}: config and seed are those of {same.workdirs[0]}, which is shown"
            )
        else:
            group.append(run)
    merged, names = [], set()
    for number, group in enumerate(groups.values(), 1):
        name = _common([run.name for run in group])
        if name in names:
            name = f"{name} ({number})"
        names.add(name)
        rows = [
            _merge_rows([row for row in (run.find(first.name) for run in group) if row])
            for first in {row.name: row for run in group for row in run.rows}.values()
        ]
        first = next((run for run in group if run.sweep), group[0])
        merged.append(
            dataclasses.replace(
                group[0],
                name=name,
                workdirs=tuple(run.workdirs[0] for run in group),
                seeds=tuple(run.seeds[0] for run in group),
                rows=rows,
                speed=next((run.speed for run in group if run.speed), None),
                quality=next((run.quality for run in group if run.quality), None),
                gallery=next((run.gallery for run in group if run.gallery), None),
                sessions=tuple(session for run in group for session in run.sessions),
                sweep=first.sweep,
                point=first.point,
                number=number,
            )
        )
    return merged, notes


def _common(names: list[str]) -> str:
    """What the names begin with, without what separates the seed from it."""
    alike = next(
        (i for i, x in enumerate(zip(*names, strict=False)) if len(set(x)) > 1), len(min(names, key=len))
    )
    return names[0] if len(names) == 1 else names[0][:alike].rstrip("_-. ") or names[0]


def identity(config: dict, *but: str) -> str:
    """What of a config decides results, as text; `but`: keys that are left out as well."""

    def without(node, prefix):
        if not isinstance(node, dict):
            return node
        left_out = (*IRRELEVANT, *but)
        return {k: without(v, f"{prefix}{k}.") for k, v in node.items() if f"{prefix}{k}" not in left_out}

    return json.dumps(without(config, ""), sort_keys=True)


def _merge_rows(rows: list[Row]) -> Row:
    if len(rows) == 1:
        return rows[0]
    results = [row.result for row in rows]
    merged = {"n": min(r["n"] for r in results)}
    for key in ("top1", "top5", "loss", "ece", "kept"):
        values = [r[key] for r in results if key in r]
        if values:
            merged[key] = math.fsum(values) / len(values)
            if len(values) > 1:
                merged[f"{key}_95"] = stats.t_interval(values, within=(0, math.inf if key == "loss" else 1))
    curves = [r.get("coverage") for r in results]
    if all(curves) and len({(*c, *c["share"]) for c in curves}) == 1:
        merged["coverage"] = {
            key: [math.fsum(x) / len(x) for x in zip(*(c[key] for c in curves), strict=True)]
            for key in curves[0]
        }
    if all("confusion" in r for r in results):
        merged["confusion"] = [
            [sum(cells) for cells in zip(*lines, strict=True)]
            for lines in zip(*(r["confusion"] for r in results), strict=True)
        ]
    for row in results:
        for kind, bins in row.get("by_strength", {}).items():
            own = merged.setdefault("by_strength", {}).setdefault(kind, {})
            for part in bins:
                own.setdefault((part["low"], part["high"]), []).append(part)
        for name, part in row.get("estimates", {}).items():
            merged.setdefault("estimates", {}).setdefault(name, []).append(part)
    for kind, bins in merged.get("by_strength", {}).items():
        merged["by_strength"][kind] = [_pool(parts, "top1") for parts in bins.values()]
    for name, parts in merged.get("estimates", {}).items():
        merged["estimates"][name] = _pool(parts, "mae")
    speed = next((row.speed for row in rows if row.speed), None)
    return dataclasses.replace(rows[0], result=merged, speed=speed, seeds=len(rows))


def _pool(parts, key: str) -> dict:
    """One of several means with their numbers: weighted by them."""
    known = [part for part in parts if part["n"] and part[key] is not None]
    n = sum(part["n"] for part in known)
    mean = math.fsum(part[key] * part["n"] for part in known) / n if n else None
    return {**parts[0], key: mean, "n": n}
