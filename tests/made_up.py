"""Finished runs and sweeps whose numbers are made up, to look at what a report makes of them."""

import base64
import copy
import json

import numpy as np

from bjax import config as configs
from bjax import stats


def run(workdir, spec, overrides=(), *, top1=0.5, n=224, more=None, results=None, trained=True, eval_only=None):
    """A finished run of the config `spec` in `workdir`, without the run.

    top1: of every condition, a share or a function of its name and entry of the config. more: what a row of
    results.json gets beside the usual, as such a function. eval_only: {name: condition} instead of the config's own.
    """
    config = json.loads(configs.to_json(configs.load(spec, list(overrides))))
    config["eval"] = eval_only if eval_only is not None else config["eval"]
    workdir.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, condition in config["eval"].items():
        found[name] = row(top1(name, condition) if callable(top1) else top1, n)
        found[name] |= more(name, condition) if more else {}
    (workdir / "config.json").write_text(json.dumps(config))
    (workdir / "results.json").write_text(json.dumps(found if results is None else results))
    if trained:
        (workdir / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    return workdir


def row(top1, n=224, kept=1.0):
    """A row of results.json."""
    hits, also = round(n * top1), round(n * (1 + top1) / 2)
    found = {
        "top1": hits / n,
        "top1_95": stats.wilson(hits, n),
        "top5": also / n,
        "top5_95": stats.wilson(also, n),
    }
    return {
        **found,
        "loss": 1.0,
        "loss_95": [0.9, 1.1],
        "n": n,
        "kept": kept,
        "kept_95": [kept, kept],
        "empty": 0,
        "images": f"{n:08x}",
        "hits": base64.b64encode(np.packbits(np.arange(n) < hits)).decode(),
    }


def crops(hits, n, top1=None):
    """What a row has beside the usual where its images are n crops of each of the photographs a, b, …: hits on each."""
    photographs = {chr(ord("a") + i): {"hits": h, "n": n} for i, h in enumerate(hits)}
    alone = stats.wilson(sum(hits), n * len(hits))
    return {
        "top1": sum(hits) / (n * len(hits)),
        "top1_95": alone,
        "top1_95_photographs": stats.over_photographs(np.array(hits) / n, alone, within=(0.0, 1.0)),
        "n": n * len(hits),
        "n_photographs": len(hits),
        "photographs": photographs,
        "images": "crops",
        "hits": base64.b64encode(bytes(-(-n * len(hits) // 8))).decode(),  # of made-up rows of another n
    }


def conditions(spec="configs/resnet50.py"):
    """{name: condition} of a config, as config.json has them."""
    return copy.deepcopy(json.loads(configs.to_json(configs.load(spec)))["eval"])


def gaussian(condition, low, high):
    """The condition with that Gaussian blur."""
    made = copy.deepcopy(condition)
    made["blur"]["kinds"] = {"sharp": 0.0, "gaussian": 1.0, "motion": 0.0, "defocus": 0.0}
    made["blur"]["sigma"] = [low, high]
    return made


def sweep(out, spec, points, **options):
    """A sweep as launch.sweep leaves it; points: [{key: text}]. All are finished."""
    out.mkdir(parents=True, exist_ok=True)
    index = {"config": spec, "runs": {}}
    for number, point in enumerate(points):
        name = f"{number:010x}"
        index["runs"][name] = point
        own = point.get("config", spec)
        run(out / name, own, [(k, v) for k, v in point.items() if k != "config"], **options)
        (out / name / "exit").write_text("0")
        (out / name / "log.txt").write_text("written to results.json\n")
    (out / "sweep.json").write_text(json.dumps(index))
    return out
