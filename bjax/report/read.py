"""Folders -> runs: what finished, and why the rest is left out."""

import base64
import io
import json
import types
import zipfile
from pathlib import Path

import numpy as np

from bjax import stats, sums
from bjax.config import fill
from bjax.errors import UserError
from bjax.report.runs import Row, Run

ADAPTED = "_bn_adapt"  # what --mode=bn_adapt adds to a condition's name
AGAIN = "evaluate the run again with --mode=eval"
GALLERY = ("image", "kept", "score", "label", "prediction", "confidence")
# What a run may have left beside its results, by the field of `Run` that it becomes.
EXTRAS = {"speed": "speed.json", "quality": "mask_quality.json", "sessions": "run.json"}
EXTRAS |= {"similarity": "similarity.json"}
EXTRAS |= {"classes": "classes.json", "gallery": "gallery.npz", "calibration": "calibration.json"}
EXTRAS |= {"adapt": "adapt.json"}


def load(folders: list[Path]) -> tuple[list[Run], list[str]]:
    """All runs in `folders` (workdirs and sweeps), and a line for everything that is left out, with the reason."""
    runs, notes, seen = [], [], set()

    def add(folder: Path, **more) -> None:
        if folder.resolve() in seen:
            return
        seen.add(folder.resolve())
        try:
            run, left_out = read_run(folder, **more)
        except UserError as error:
            notes.append(str(error))
        else:
            runs.append(run)
            notes.extend(left_out)

    for folder in folders:
        if not (folder / "sweep.json").exists():
            add(folder, name=folder.resolve().name)
            continue
        try:
            index = _json(folder / "sweep.json")
        except UserError as error:
            notes.append(str(error))
            continue
        points = {name: expand(overrides) for name, overrides in index["runs"].items()}
        varying = axes(list(points.values()))
        for name, point in points.items():
            reason = unfinished(folder / name)
            label = " ".join(f"{k}={point[k]}" for k in varying if k in point) or folder.resolve().name
            if reason:
                seed = index["runs"][name].get("seed")
                notes.append(f"{folder / name} ({label}{f' seed={seed}' if seed else ''}): {reason}")
            else:
                of = {"sweep": folder.resolve().name, "sweep_config": index.get("config", "")}
                add(folder / name, name=label, **of, point=tuple(point.items()))
    return runs, notes


def unfinished(workdir: Path) -> str | None:
    """Why a run of a sweep has no results yet; None where it has."""
    code = (workdir / "exit").read_text().strip() if (workdir / "exit").exists() else None
    if code == "0":
        return None if (workdir / "results.json").exists() else "holds no results.json"
    if code is None:
        return "not finished" if workdir.exists() else "not started"
    if code in ("75", "-15"):
        return "stopped; the same launch.sweep goes on with it"
    log = workdir / "log.txt"
    lines = [x for x in log.read_text(errors="replace").splitlines() if x.strip()] if log.exists() else []
    cause = next((line for line in reversed(lines) if line.startswith("bjax")), (lines or ["no output"])[-1])
    return f"failed with exit code {code}: {cause}"


def read_run(workdir: Path, **more) -> tuple[Run, list[str]]:
    """The run in `workdir`, and what of it is left out. Raises UserError for a folder that is no finished run."""
    config, results = _json(workdir / "config.json"), _json(workdir / "results.json")
    missing = [n for n, x in (("config.json", config), ("results.json", results)) if x is None]
    if missing:
        raise UserError(f"{workdir}: holds no {missing[0]}; finish the run, or evaluate it with --mode=eval")
    fill(config)  # so that an old run is told from a new one by what they did alone
    notes, files = [], {}
    for field, name in EXTRAS.items():
        try:
            files[field] = (_arrays if field == "gallery" else _json)(workdir / name)
        except UserError as error:
            notes.append(str(error))
        if sums.is_gone(workdir / name):
            notes.append(f"{workdir / name}: is missing; {AGAIN}")
    speeds = (files.get("speed") or {}).get("conditions", {})
    similar = files.pop("similarity", None) or {}
    rows = []
    for name, result in results.items():
        condition = config["eval"].get(name)
        if condition is None and name.endswith(ADAPTED) and name.removesuffix(ADAPTED) in config["eval"]:
            condition = {**config["eval"][name.removesuffix(ADAPTED)], "bn_adapt": True}
        if condition is None:
            lacking = f"results.json has {name}, config.json has not"
            notes.append(f"{workdir}: {lacking}; evaluate again with --mode=eval")
        elif wrong := misfit(condition, CONDITION) or misfit(result, RESULT) or _unfit(result):
            notes.append(f"{workdir}: {name}: {wrong} is missing or damaged; evaluate again with --mode=eval")
        else:
            for part in (part for bins in result.get("by_strength", {}).values() for part in bins):
                if part["top1"] is not None:
                    part["top1_95"] = stats.wilson(part["top1"] * part["n"], part["n"])
            alike = similar.get(name, similar.get(name.removesuffix(ADAPTED)))
            rows.append(Row(name, condition, result, speeds.get(name), {config["seed"]: result}, similarity=alike))
    if not rows:
        raise UserError("; ".join([*notes, f"{workdir}: no condition is left"]))
    sessions = tuple((files.pop("sessions", None) or {}).get("sessions", ()))
    classes = tuple(files.pop("classes", None) or ())
    given = config.get("init_from") and not (workdir / "metrics.jsonl").exists()
    trained = not given or any(session.get("mode") == "train" for session in sessions)
    what = {"workdirs": (workdir,), "seeds": (config["seed"],), "config": config, "rows": rows}
    return Run(**what, trained=trained, sessions=sessions, classes=classes, **files, **more), notes


def _unfit(result: dict) -> str | None:
    """What of a row does not fit the rest of it."""
    if len({len(x) for x in result.get("coverage", {}).values()}) > 1:
        return "coverage"
    try:
        hits = base64.b64decode(result.get("hits", ""), validate=True)
    except ValueError:
        return "hits"
    return "hits" if "hits" in result and len(hits) != -(-result["n"] // 8) else None


def _json(path: Path):
    """What the file holds; None where there is none. Raises UserError for a damaged one."""
    try:
        content = sums.read(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); {AGAIN}") from None
    try:
        content = json.loads(content)
    except ValueError as error:
        raise UserError(f"{path}: is no JSON ({error}); {AGAIN}") from None
    if wrong := misfit(content, FILES[path.name]):
        raise UserError(f"{path}: {wrong} is missing or damaged; {AGAIN}")
    return content


def _arrays(path: Path) -> dict[str, dict[str, np.ndarray]] | None:
    """gallery.npz by condition."""
    try:
        with np.load(io.BytesIO(sums.read(path))) as file:
            arrays = {name: {k: file[f"{name}/{k}"] for k in GALLERY} for name in file["conditions"].tolist()}
            for name, shown in arrays.items():  # runs of before it was stored have the Laplacian's scores
                shown["measure"] = str(file.get(f"{name}/measure", "laplacian"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (zipfile.BadZipFile, OSError, ValueError, KeyError, EOFError) as error:
        raise UserError(f"{path}: is damaged ({error}); {AGAIN}") from None
    for name, shown in arrays.items():
        images, grid = shown["image"].shape, shown["kept"].shape
        per_image = [shown[k].shape for k in ("label", "prediction", "confidence")]
        tiles = len(images) == 4 and len(grid) == 3 and 0 not in grid
        tiles = tiles and images[1] % grid[1] == images[2] % grid[2] == 0
        if not tiles or shown["score"].shape != grid or {*per_image, images[:1]} != {grid[:1]}:
            raise UserError(f"{path}: {name} does not fit together; {AGAIN}")
    return arrays


# --- points of a sweep


def expand(overrides: dict[str, str]) -> dict[str, str]:
    """A point without its seed; a config of its own, "configs/resnet50.py:demo,train=mix", becomes keys as well."""
    point = {k: v for k, v in overrides.items() if k not in ("seed", "config")}
    if "config" in overrides:
        path, _, words = overrides["config"].partition(":")
        named = {"config": Path(path).stem}
        for word in filter(None, words.split(",")):
            key, equals, value = word.partition("=")
            named[key if equals else "source"] = value if equals else key
        point = named | point
    return point


def axes(points: list[dict[str, str]]) -> list[str]:
    """The keys that tell the points apart; a key whose value follows from those before it is none."""
    telling = []
    keys = dict.fromkeys(key for point in points for key in point)
    # Keys that every point has come first: the others exist only under some of their values.
    for key in sorted(keys, key=lambda k: not all(k in point for point in points)):
        follows = {}
        for point in points:
            follows.setdefault(tuple(point.get(k) for k in telling), set()).add(point.get(key))
        if any(len(values) > 1 for values in follows.values()):
            telling.append(key)
    return telling


# --- what the files look like, as far as a report reads them

# A shape is a type (or several), a function that says whether a value is right, a list [shape] of any length or
# [shape, shape] of that length, or a dictionary {key: shape}: a key ending in ? may be absent, "*" stands for all
# others. Keys that no shape names are free.


def share(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def share_or_none(value) -> bool:
    return value is None or share(value)


def calibrated_or_none(value) -> bool:
    return value is None or misfit(value, CALIBRATION) is None


def count(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def positive(value) -> bool:
    return count(value) and value > 0


NUMBER, NUMBER_OR_NONE = (int, float), (int, float, types.NoneType)
PAIR = [NUMBER, NUMBER]
ANY = {"*": object}
BLUR = {"kinds": {"*": NUMBER}, "sigma": PAIR, "length?": PAIR, "radius?": PAIR, "noise?": PAIR}
BLUR |= {"where?": str, "impl?": str}
MASK = {"mode": str, "selector": str, "drop": str, "threshold": NUMBER_OR_NONE, "keep_rate": NUMBER_OR_NONE}
CONDITION = {"split": str, "blur": BLUR, "mask": MASK, "options?": ANY}
CONDITION |= {"corruption?": str, "severity?": int, "bn_adapt?": bool}
BIN = {"low": NUMBER, "high": NUMBER, "n": count, "top1": share_or_none}
BIN |= {"top1_95_photographs?": PAIR, "n_photographs?": positive}
RESULT = {"n": count, "top1": share, "top1_95": PAIR, "top5?": share, "loss?": NUMBER, "kept?": share}
OVERLAP = ("precision", "recall", "iou")
RESULT |= {f"{name}_95?": PAIR for name in ("top5", "loss", "kept", *OVERLAP)}
RESULT |= {f"{name}_95_photographs?": PAIR for name in ("top1", "top5", "loss", "kept", *OVERLAP)}
RESULT |= {f"{name}?": share for name in OVERLAP} | {f"{name}_n?": positive for name in OVERLAP}
RESULT |= {"n_photographs?": positive, "photographs?": {"*": {"hits": count, "n": positive}}}
RESULT |= {"ece?": share, "empty?": count, "skipped?": count, "images?": str, "hits?": str}
RESULT |= {
    "coverage?": {"share": [share], "confidence?": [share], "sharpness?": [share]},
    "confusion?": [[count] * 4] * 4,
    "by_strength?": {"*": [BIN]},
    "estimates?": {"*": {"mae": NUMBER_OR_NONE, "n": count}},
}
SESSION = {"started?": str, "seconds?": NUMBER, "mode?": str, "commit?": (str, types.NoneType)}
SESSION |= {"versions?": {"*": str}, "device?": str, "processes?": int}
SPEED = {"images_per_second": NUMBER, "tokens?": NUMBER, "flops?": NUMBER}
RATES = {"precision": share_or_none, "recall": share_or_none}
RATES |= {"dropped": share, "blurred": share, "patches": count}
CALIBRATION = {"nll": NUMBER, "ece": share}
STREAM_ROW = {"n": positive, "n_photographs?": positive, "top1": share, "top1_95": PAIR, "ece": share, "ms": NUMBER}
STREAM_ROW |= {"top1_95_photographs?": PAIR}
BESIDE = STREAM_ROW | {"difference": NUMBER, "difference_95": PAIR, "verdict": str}
ADAPT = {"condition": str, "what": CONDITION, "data": str, "n": positive, "device": str, "bn_train_images": count}
ADAPT |= {"lr": NUMBER, "prior": NUMBER}
ADAPT |= {"left_out": {"*": str}}
ADAPT |= {"streams": {"*": {"about": str, "last": count, "methods": {"none": STREAM_ROW, "*": BESIDE}}}}
FILES = {
    "config.json": {
        "seed": int,
        "task": str,
        "init_from?": str,
        "data": {"name": str, "train": str, "image_size": int, "resize?": int, "interpolation?": str},
        "model": {"name": str, "options?": ANY},
        "augmix?": {"width": count},
        "loss?": {"jsd?": NUMBER},
        "blur": BLUR,
        "mask?": MASK,
        "eval": ANY,  # conditions, one by one
    },
    "results.json": ANY,  # rows, one by one
    "speed.json": {"device": str, "rounds": int, "batch_size": int, "how": str, "conditions": {"*": SPEED}},
    "mask_quality.json": {"*": {"*": RATES}},
    "similarity.json": {"*": {"mean": NUMBER, "std": NUMBER, "n": positive}},
    "calibration.json": {
        "temperature": NUMBER_OR_NONE,
        "n": positive,
        "n_photographs?": positive,
        "folds": positive,
        "before": CALIBRATION,
        "after": calibrated_or_none,
    },
    "adapt.json": ADAPT,
    "run.json": {"sessions": [SESSION]},
    "classes.json": [str],
    "sweep.json": {"config?": str, "runs": {"*": {"*": str}}},
}


def misfit(value, shape, path: str = "") -> str | None:
    """The first place of `value` that is not as `shape` says, as "data.name"; None where everything is."""
    here = path or "all of it"
    if isinstance(shape, types.FunctionType):
        return None if shape(value) else here
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return here
        named = {key.removesuffix("?"): inner for key, inner in shape.items() if key != "*"}
        absent = [key for key in named if key in shape and key not in value]
        if absent:
            return _join(path, absent[0])
        inside = [(k, v, named.get(k, shape.get("*", object))) for k, v in value.items()]
    elif isinstance(shape, list):
        if not isinstance(value, list) or (len(shape) > 1 and len(value) != len(shape)):
            return here
        inside = [(i, v, shape[i if len(shape) > 1 else 0]) for i, v in enumerate(value)]
    else:
        boolean = isinstance(value, bool) and shape not in (bool, object)  # True is no number
        return here if boolean or not isinstance(value, shape) else None
    wrong = (misfit(v, s, _join(path, str(k))) for k, v, s in inside)
    return next(filter(None, wrong), None)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
