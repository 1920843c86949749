"""Folders -> runs: what finished, what each condition of it means, and why the rest is left out."""

import dataclasses
import json
import math
import re
import zipfile
from pathlib import Path

import numpy as np

from bjax.errors import UserError
from bjax.report import stats

ADAPTED = "_bn_adapt"  # what --mode=bn_adapt adds to a condition's name
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
BLUR_TYPES = ("sharp", "gaussian", "motion", "defocus")  # in the order of labels and confusion matrices
GALLERY = ("image", "kept", "score", "label", "prediction", "confidence")
NEEDED = ("seed", "task", "data.name", "data.train", "data.image_size", "model.name", "blur", "eval")
TRAINING = {"sharp": {"sharp": 1.0}, "blurred": {"gaussian": 1.0}, "mix": {"sharp": 0.5, "gaussian": 0.5}}
CONTROLS = ("random", "centre", "inverse")  # selectors without sharp and blurry ends
PAPER_SIGMA = [1.0, 2.0]  # pixels, of paper 1's blur


@dataclasses.dataclass(frozen=True)
class Row:
    """One condition of a run: a row of results.json with its entry of config.json."""

    name: str
    condition: dict
    result: dict
    speed: dict | None = None
    seeds: int = 1

    @property
    def adapted(self) -> bool:
        """Whether BatchNorm statistics were taken anew, from images blurred like the condition's."""
        return bool(self.condition.get("bn_adapt"))

    @property
    def mask(self) -> dict:
        return self.condition["mask"]

    @property
    def corruption(self) -> tuple[str, int] | None:
        """Name and severity of ImageNet-C, where the condition has one."""
        name = self.condition.get("corruption")
        return (name, self.condition.get("severity", 1)) if name else None

    @property
    def sigma(self) -> tuple[float, float] | None:
        """Range of a Gaussian blur in pixels, (0, 0) where images stay sharp; None for any other blur."""
        kinds = kinds_of(self.condition["blur"])
        if self.corruption or list(kinds) not in (["sharp"], ["gaussian"]):
            return None
        return (0.0, 0.0) if list(kinds) == ["sharp"] else tuple(self.condition["blur"]["sigma"])

    @property
    def whole(self) -> bool:
        """Whether the model sees every patch and loses none on the way."""
        options = self.condition.get("options", {})
        return self.mask["mode"] == "none" and options.get("evit_keep", 1) >= 1 and not options.get("tome_r")

    @property
    def blur(self) -> str:
        if self.corruption:
            return "{} {}".format(*self.corruption).replace("_", " ")
        if self.sigma == (0.0, 0.0):
            return "sharp"
        return blur_text(self.condition["blur"])

    @property
    def method(self) -> str:
        """What decides which patches stay; "all patches" where all do."""
        options = self.condition.get("options", {})
        if options.get("evit_keep", 1) < 1:
            return "EViT"
        if options.get("tome_r"):
            return "ToMe"
        if self.mask["mode"] == "none":
            return "all patches"
        name = self.mask["selector"]
        if name not in CONTROLS:
            name += ", sharpest" if self.mask["drop"] == "below" else ", blurriest"
        return name if self.mask["mode"] == "gather" else f"{name} ({self.mask['mode']})"

    @property
    def keep_rate(self) -> float | None:
        """What a mask was asked to keep."""
        return self.mask["keep_rate"] if self.mask["mode"] != "none" else None

    @property
    def kept(self) -> float:
        """Share of the tokens computed: of the patches that a mask kept, or over the layers of EViT and ToMe."""
        inside = self.method.startswith(("EViT", "ToMe"))
        return self.speed["tokens"] if inside and self.speed else self.result.get("kept", 1.0)

    @property
    def label(self) -> str:
        """Blur and mask in words."""
        mask, parts = self.mask, [self.blur]
        if self.method in ("EViT", "ToMe"):
            parts.append(" ".join([self.method, *map(str, self.condition["options"].values())]))
        elif mask["mode"] != "none":
            parts.append(mask_text(mask))
        return ": ".join(parts)


@dataclasses.dataclass(frozen=True)
class Run:
    """One run, or what `merge` makes of several that differ in their seed alone."""

    name: str
    workdirs: tuple[Path, ...]
    seeds: tuple[int, ...]
    config: dict
    rows: list[Row]
    trained: bool  # False: given weights that were only evaluated
    speed: dict | None = None
    quality: dict | None = None
    sessions: tuple[dict, ...] = ()
    classes: tuple[str, ...] = ()  # names, where the run left them
    gallery: dict[str, dict[str, np.ndarray]] | None = None  # {condition: arrays}, see bjax/gallery.py
    sweep: str = ""  # the sweep it belongs to
    point: tuple[tuple[str, str], ...] = ()  # its overrides there, without the seed
    number: int = 0  # in the report

    @property
    def model(self) -> str:
        return model_text(self.config["model"])

    @property
    def training(self) -> str:
        """What blur the training images had: sharp | blurred | mix as in paper 1, other blurs in words."""
        if not self.trained:
            return "as given"
        blur = self.config["blur"]
        kinds = kinds_of(blur)
        for name, those in TRAINING.items():
            if kinds == those and (name == "sharp" or list(blur["sigma"]) == PAPER_SIGMA):
                return name
        return blur_text(blur)

    @property
    def regimen(self) -> str:
        """The blur of the training images, and the patches left out of them."""
        mask = self.config.get("mask") or {"mode": "none"}
        return self.training + (f", {mask_text(mask)}" if self.trained and mask["mode"] != "none" else "")

    @property
    def trained_on(self) -> str:
        return f"{self.regimen}: {self.origin}" if self.trained else self.origin

    @property
    def origin(self) -> str:
        """What made the weights: images, and the file they started from."""
        file = Path(self.config.get("init_from") or "").name
        return f"{self.data}, from {file}" if self.trained and file else file or self.data

    @property
    def data(self) -> str:
        """The images it learned from."""
        name, split = self.config["data"]["name"], self.config["data"]["train"]
        share = re.fullmatch(r"train\[:(\d+)%\]", split)
        if not self.trained:
            return "as given"
        if split == "train":
            return f"{name}, all"
        return f"{name}, {share[1]} %" if share else f"{name} {split}"

    def find(self, name: str) -> Row | None:
        return next((row for row in self.rows if row.name == name), None)


def in_order(runs: list[Run]) -> list[Run]:
    """By model, and by training blur as in paper 1: the same blur has the same style in every figure."""
    order = list(TRAINING)
    return sorted(
        runs, key=lambda r: (r.model, order.index(r.training) if r.training in order else len(order))
    )


def firsts(rows: list[Row], key) -> dict:
    """{key(row): row}: of rows that are alike in it the first."""
    found = {}
    for row in rows:
        found.setdefault(key(row), row)
    return found


def kinds_of(blur: dict) -> dict[str, float]:
    """The kinds of blur that occur, in the order of sharp, gaussian, motion, defocus."""
    return {k: blur["kinds"][k] for k in BLUR_TYPES if blur["kinds"].get(k)}


def blur_text(blur: dict) -> str:
    kinds = kinds_of(blur)
    if list(kinds) == ["sharp"]:
        return "sharp"
    if list(kinds) == ["gaussian"]:
        low, high = blur["sigma"]
        return f"σ = {low:g}" if low == high else f"σ = {low:g}–{high:g}"
    return " + ".join(kinds)


def mask_text(mask: dict) -> str:
    which, threshold = mask["selector"], mask["threshold"]
    end = "" if which in CONTROLS else {"below": "sharpest ", "above": "blurriest "}[mask["drop"]]
    rule = [f"{mask['drop']} {threshold:g} dropped"] if threshold is not None else []
    rule += [f"{end}{100 * mask['keep_rate']:g} % kept"] if mask["keep_rate"] is not None else []
    own = {"laplacian": ""}.get(which, f"{which}, as many as " if threshold is not None else f"{which}, ")
    return own + ", ".join(rule) + ("" if mask["mode"] == "zero_pixels" else f" ({mask['mode']})")


NAMES = {
    "resnet": "ResNet",
    "vgg": "VGG",
    "googlenet": "GoogLeNet",
    "densenet": "DenseNet-",
    "vit": "ViT",
}


def model_text(model: dict) -> str:
    family, size = re.fullmatch(r"([a-z]+)(.*)", model["name"]).groups()
    options = dict(model.get("options", {}))
    text = NAMES.get(family, family) + size.replace("_bn", " (BatchNorm)")
    if "variant" in options:
        text += f"-{options.pop('variant')}"
    return text + (f" ({', '.join(f'{k} {v}' for k, v in options.items())})" if options else "")


# --- reading


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
            index = read_index(folder)
        except UserError as error:
            notes.append(str(error))
            continue
        points = {name: expand(overrides) for name, overrides in index["runs"].items()}
        varying = axes(list(points.values()))
        for name, point in points.items():
            reason = unfinished(folder / name)
            label = " ".join(f"{k}={point[k]}" for k in varying if k in point) or folder.resolve().name
            if reason:
                seed = f" seed={index['runs'][name]['seed']}" if "seed" in index["runs"][name] else ""
                notes.append(f"{folder / name} ({label}{seed}): {reason}")
            else:
                add(folder / name, name=label, sweep=folder.resolve().name, point=tuple(point.items()))
    return runs, notes


def read_index(folder: Path) -> dict:
    """sweep.json of a sweep. Raises UserError."""
    index = _json(folder / "sweep.json")
    runs = index.get("runs") if isinstance(index, dict) else None
    if not isinstance(runs, dict) or not all(isinstance(point, dict) for point in runs.values()):
        raise UserError(f"{folder}/sweep.json: lists no runs; start the sweep again with launch.sweep")
    return index


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
    for key in NEEDED:
        if _leaf(config, key) is None:
            raise UserError(f"{workdir}/config.json: lacks {key}; it is none of this version's")
    if not isinstance(results, dict):
        raise UserError(f"{workdir}/results.json: holds no conditions; evaluate again with --mode=eval")

    notes, files = [], {}
    for name in ("speed.json", "mask_quality.json", "run.json", "classes.json", "gallery.npz"):
        try:
            files[name] = (_arrays if name == "gallery.npz" else _json)(workdir / name)
        except UserError as error:
            notes.append(str(error))
    speeds = (files.get("speed.json") or {}).get("conditions", {})
    rows = []
    for name, result in results.items():
        condition = config["eval"].get(name)
        if condition is None and name.endswith(ADAPTED) and name.removesuffix(ADAPTED) in config["eval"]:
            condition = {**config["eval"][name.removesuffix(ADAPTED)], "bn_adapt": True}
        if condition is None:
            notes.append(
                f"{workdir}: results.json has {name}, config.json has not; evaluate again with --mode=eval"
            )
        elif not _complete(condition, result):
            notes.append(f"{workdir}: {name} of results.json or config.json is incomplete; evaluate again")
        else:
            rows.append(Row(name, condition, result, speeds.get(name)))
    if not rows:
        raise UserError("; ".join([*notes, f"{workdir}: no condition is left"]))
    sessions = tuple((files.get("run.json") or {}).get("sessions", ()))
    trained = (
        not config.get("init_from")
        or (workdir / "metrics.jsonl").exists()
        or any(session.get("mode") == "train" for session in sessions)
    )
    run = Run(
        workdirs=(workdir,),
        seeds=(config["seed"],),
        config=config,
        rows=rows,
        trained=trained,
        speed=files.get("speed.json"),
        quality=files.get("mask_quality.json"),
        sessions=sessions,
        classes=tuple(files.get("classes.json") or ()),
        gallery=files.get("gallery.npz"),
        **more,
    )
    return run, notes


def _json(path: Path):
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is no JSON ({error}); evaluate the run again with --mode=eval") from None


def _arrays(path: Path) -> dict[str, dict[str, np.ndarray]] | None:
    """gallery.npz by condition."""
    try:
        with path.open("rb") as stream, np.load(stream) as file:
            names = file["conditions"].tolist()
            return {name: {k: file[f"{name}/{k}"] for k in GALLERY} for name in names}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (zipfile.BadZipFile, OSError, ValueError, KeyError, EOFError) as error:
        raise UserError(f"{path}: is damaged ({error}); evaluate the run again with --mode=eval") from None


def _leaf(config, key: str):
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config


def leaves(node: dict, prefix: str = "") -> dict:
    """{dotted key: value} of a nested dictionary."""
    flat = {}
    for key, value in node.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _complete(condition, result) -> bool:
    present = all(
        _leaf(condition, key) is not None for key in ("split", "blur.kinds", "blur.sigma", "mask.mode")
    )
    mask = {"selector", "drop", "threshold", "keep_rate"} <= set(_leaf(condition, "mask") or ())
    counted = all(isinstance(_leaf(result, key), int | float) for key in ("top1", "n"))
    return present and mask and counted and isinstance(_leaf(result, "top1_95"), list)


# --- points of a sweep


def expand(overrides: dict[str, str]) -> dict[str, str]:
    """A point without its seed; a config of its own, "configs/resnet50.py:demo,train=mix", becomes keys as well."""
    point = {k: v for k, v in overrides.items() if k not in ("seed", "config")}
    if "config" in overrides:
        path, _, words = overrides["config"].partition(":")
        own = {"config": Path(path).stem}
        for word in filter(None, words.split(",")):
            key, equals, value = word.partition("=")
            own[key if equals else "source"] = value if equals else key
        point = own | point
    return point


def axes(points: list[dict[str, str]]) -> list[str]:
    """The keys that tell the points apart; a key whose value follows from those before it is none."""
    found = []
    keys = dict.fromkeys(key for point in points for key in point)
    # Keys that every point has come first: the others exist only under some of their values.
    for key in sorted(keys, key=lambda k: not all(k in point for point in points)):
        follows = {}
        for point in points:
            follows.setdefault(tuple(point.get(k) for k in found), set()).add(point.get(key))
        if any(len(values) > 1 for values in follows.values()):
            found.append(key)
    return found


# --- one run of several seeds


def merge(runs: list[Run]) -> tuple[list[Run], list[str]]:
    """Runs that differ in their seed alone become one, with means and t intervals over the seeds; numbered from 1.

    A run that repeats another's config and seed is left out: it would make the interval too narrow.
    """
    groups, notes = {}, []
    for run in runs:
        group = groups.setdefault((run.trained, _identity(run.config)), [])
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


def _identity(config: dict) -> str:
    def without(node, prefix):
        if not isinstance(node, dict):
            return node
        return {k: without(v, f"{prefix}{k}.") for k, v in node.items() if f"{prefix}{k}" not in IRRELEVANT}

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
    if all("coverage" in r for r in results):
        curves = [r["coverage"] for r in results]
        merged["coverage"] = {
            key: [math.fsum(x) / len(x) for x in zip(*(c[key] for c in curves), strict=True)]
            for key in curves[0]
        }
    if all("confusion" in r for r in results):
        merged["confusion"] = [
            [sum(cells) for cells in zip(*lines, strict=True)]
            for lines in zip(*(r["confusion"] for r in results), strict=True)
        ]
    if all("by_strength" in r for r in results):
        merged["by_strength"] = {
            kind: [
                _pool(bins, "top1") for bins in zip(*(r["by_strength"][kind] for r in results), strict=True)
            ]
            for kind in results[0]["by_strength"]
        }
    if all("estimates" in r for r in results):
        merged["estimates"] = {
            name: _pool([r["estimates"][name] for r in results], "mae") for name in results[0]["estimates"]
        }
    speed = next((row.speed for row in rows if row.speed), None)
    return dataclasses.replace(rows[0], result=merged, speed=speed, seeds=len(rows))


def _pool(parts, key: str) -> dict:
    """One of several means with their numbers: weighted by them."""
    n = sum(part["n"] for part in parts)
    known = [part for part in parts if part["n"]]
    mean = math.fsum(part[key] * part["n"] for part in known) / n if n else None
    return {**parts[0], key: mean, "n": n}
