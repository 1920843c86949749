"""What the files of a run look like, as far as a report reads them, and the check that one does.

A shape is a type (or several), a function that says whether a value is right, a list [shape] of any length or
[shape, shape] of that length, or a dictionary {key: shape}: a key ending in ? may be absent, "*" stands for all others.
Keys that no shape names are free.
"""

import types


def share(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def count(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def positive(value) -> bool:
    return count(value) and value > 0


def share_or_none(value) -> bool:
    return value is None or share(value)


N = (int, float)
MAYBE = (int, float, types.NoneType)
PAIR = [N, N]
BLUR = {"kinds": {"*": N}, "sigma": PAIR, "length?": PAIR, "radius?": PAIR, "noise?": PAIR}
MASK = {"mode": str, "selector": str, "drop": str, "threshold": MAYBE, "keep_rate": MAYBE}
CONDITION = {"split": str, "blur": BLUR, "mask": MASK, "options?": {"*": object}}
CONDITION |= {"corruption?": str, "severity?": int, "bn_adapt?": bool}
CONFIG = {
    "seed": int,
    "task": str,
    "init_from?": str,
    "data": {"name": str, "train": str, "image_size": int},
    "model": {"name": str, "options?": {"*": object}},
    "blur": BLUR,
    "mask?": MASK,
    "eval": {"*": object},  # conditions, one by one
}
BIN = {"low": N, "high": N, "n": count, "top1": share_or_none}
BIN |= {"top1_95_photographs?": PAIR, "n_photographs?": positive}
RESULT = {
    "n": count,
    "top1": share,
    "top1_95": PAIR,
    "top5?": share,
    "top5_95?": PAIR,
    "loss?": N,
    "loss_95?": PAIR,
}
RESULT |= {"kept?": share, "kept_95?": PAIR, "empty?": count, "skipped?": count, "ece?": share}
PHOTOGRAPHS = {f"{name}_95_photographs?": PAIR for name in ("top1", "top5", "loss", "kept")}
RESULT |= PHOTOGRAPHS | {"n_photographs?": positive, "photographs?": {"*": {"hits": count, "n": positive}}}
RESULT |= {"images?": str, "hits?": str}
RESULT |= {
    "coverage?": {"share": [share], "confidence?": [share], "sharpness?": [share]},
    "confusion?": [[count] * 4] * 4,
    "by_strength?": {"*": [BIN]},
    "estimates?": {"*": {"mae": MAYBE, "n": count}},
}
TEXT = (str, types.NoneType)
SESSION = {
    "started?": str,
    "seconds?": N,
    "mode?": str,
    "commit?": TEXT,
}
SESSION |= {"versions?": {"*": str}, "device?": str, "processes?": int}
RATES = {
    "precision": share_or_none,
    "recall": share_or_none,
    "dropped": share,
    "blurred": share,
    "patches": count,
}
FILES = {
    "config.json": CONFIG,
    "results.json": {"*": object},  # rows, one by one
    "speed.json": {
        "device": str,
        "rounds": int,
        "batch_size": int,
        "how": str,
        "conditions": {"*": {"images_per_second": N, "tokens?": N, "flops?": N}},
    },
    "mask_quality.json": {"*": {"*": RATES}},
    "run.json": {"sessions": [SESSION]},
    "classes.json": [str],
    "sweep.json": {"runs": {"*": {"*": str}}},
}


def misfit(value, shape, path: str = "") -> str | None:
    """The first place of `value` that is not as `shape` says, as "data.name"; None where everything is."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return path or "all of it"
        named = {key.removesuffix("?"): inner for key, inner in shape.items() if key != "*"}
        for key in shape:
            if key != "*" and not key.endswith("?") and key not in value:
                return _join(path, key)
        inside = [(k, v, named.get(k, shape.get("*", object))) for k, v in value.items()]
    elif isinstance(shape, list):
        if not isinstance(value, list) or (len(shape) > 1 and len(value) != len(shape)):
            return path or "all of it"
        inside = [(i, v, shape[i if len(shape) > 1 else 0]) for i, v in enumerate(value)]
    elif isinstance(shape, types.FunctionType):
        return None if shape(value) else path or "all of it"
    else:
        boolean = isinstance(value, bool) and shape not in (bool, object)  # True is no number
        return (path or "all of it") if boolean or not isinstance(value, shape) else None
    return next((found for k, v, s in inside if (found := misfit(v, s, _join(path, str(k))))), None)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
