"""Which runs these are: data, seeds, commit, versions, device, time, configs; and results.csv."""

import csv
import io
import json

from bjax import stats
from bjax.report import intervals, words
from bjax.report.render import Details, Table
from bjax.report.runs import Row, Run


def overview(runs: list[Run]) -> list:
    """Every run with the number that the tables call it by."""
    body = []
    for run in runs:
        task, size = run.config["task"].replace("_", " "), str(run.config["data"]["image_size"])
        seeds = ", ".join(map(str, run.seeds))
        body.append([str(run.number), run.name, task, run.model, run.trained_on, size, seeds])
    header = ["", "run", "task", "model", "trained on", "px", "seed no."]
    caption = "px: side of the images that the model sees. Runs that differ in their seed alone are one."
    return [Table(header, body, caption, left=5)]


def photographs(runs: list[Run]) -> list:
    """The photographs' own values, of every condition whose interval is not to be trusted."""
    body = []
    for row in filter(intervals.doubtful, (row for run in runs for row in run.rows)):
        share = f"{100 * row.result['top1']:.1f}{intervals.brackets(row.result)}"
        body.append([row.name, intervals.values(row), f"{row.result['n']:,}", share, str(row.run)])
    caption = (
        "Top-1 in per cent, of conditions whose images are crops of too few photographs for an interval that holds the "
        "truth 9 times in 10 at so high or low a share (docs/intervals.md has the simulation), and on each photograph."
    )
    header = ["condition", "on each photograph, %", "images", "top-1 % (95 %)", "run"]
    return [Table(header, body, caption, left=2)] if body else []


def facts(runs: list[Run]) -> list:
    """Where each run was made, and its whole config."""
    body = [
        [str(run.number), str(seed), str(workdir)]
        for run in runs
        for seed, workdir in zip(run.seeds, run.workdirs, strict=True)
    ]
    blocks = [Table(["run", "seed", "folder"], body, left=3)]
    sessions = [(run, session) for run in runs for session in run.sessions]
    if sessions:
        rows = [[str(run.number), *_session(session)] for run, session in sessions]
        header = ["run", "started", "what", "minutes", "device", "commit"]
        caption = "Every time that a run was started: a run that was stopped and went on has several lines."
        blocks.append(Table(header, rows, caption, left=3))
        versions = {json.dumps(s.get("versions") or {}, sort_keys=True) for _, s in sessions} - {"{}"}
        for text in sorted(versions):
            blocks.append(Details("Versions", "\n".join(f"{k} {v}" for k, v in json.loads(text).items())))
    for run in runs:
        blocks.append(Details(f"Config of run {run.number}, {run.name}", _config(run)))
    return blocks


def _config(run: Run) -> str:
    """One line for every leaf, and one for every condition: what it comes to, in words."""
    plain = words.leaves({k: v for k, v in run.config.items() if k != "eval"})
    lines = [f"{k} = {v}" for k, v in plain.items()]
    tested = [row for row in run.rows if not row.adapted]
    lines += [f"eval.{row.name} = {row.condition['split']}: {row.label}" for row in tested]
    return "\n".join(lines)


def _session(session: dict) -> list[str]:
    seconds, processes = session.get("seconds"), session.get("processes") or 1
    started = str(session.get("started", ""))[:16].replace("T", " ")
    minutes = "" if seconds is None else f"{seconds / 60:.1f}"
    device = f"{session.get('device', '')}" + (f", {processes} processes" if processes > 1 else "")
    return [started, str(session.get("mode", "")), minutes, device, str(session.get("commit") or "")]


METRICS = ("top1", "top5", "loss", "ece", "kept", "precision", "recall", "iou")


def table(runs: list[Run]) -> str:
    """results.csv: a row for every run (seeds apart) and condition; shares in 0..1, intervals of 95 %, pixels.

    Intervals are over the photographs where n_photographs is given, else over the images.
    """
    records = [_record(run, row) for run in runs for row in run.rows]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, records[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return buffer.getvalue()


def _record(run: Run, row: Row) -> dict:
    """{column: value} of a line of results.csv; "" where there is none."""
    config, mask, result = run.config, row.mask, row.result
    low, high = row.drawn_sigma or ("", "")
    corruption, severity = row.corruption or ("", "")
    record = {"run": run.name, "workdir": run.workdirs[0], "task": config["task"]}
    record |= {
        "model": config["model"]["name"],
        "model_options": json.dumps(config["model"].get("options", {})),
        "data": config["data"]["name"],
        "train_split": config["data"]["train"],
        "train_blur": run.training,
        "init_from": config.get("init_from", ""),
        "trained": run.trained,
        "image_size": config["data"]["image_size"],
        "seed": run.seeds[0],
    }
    record |= {"condition": row.name, "bn_adapt": row.adapted, "split": row.condition["split"]}
    where = "" if row.corruption else words.where_of(row.condition["blur"])
    record |= {"blur": row.blur, "where": where, "sigma_low": low, "sigma_high": high}
    record |= {"corruption": corruption, "severity": severity, "mask_mode": mask["mode"]}
    for key in ("selector", "drop", "threshold", "keep_rate"):
        record[f"mask_{key}"] = mask[key] if mask["mode"] != "none" else ""
    record["options"] = json.dumps(row.condition.get("options", {}))
    record |= {key: result.get(key, "") for key in ("n", "n_photographs")}
    for metric in METRICS:
        record[metric] = result.get(metric, "")
        record[f"{metric}_low"], record[f"{metric}_high"] = stats.interval(result, metric) or ("", "")
    record |= {key: result.get(key, "") for key in ("empty", "skipped")}
    return record | {key: (row.speed or {}).get(key, "") for key in ("images_per_second", "tokens")}
