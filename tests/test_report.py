"""The report: tables and figures from the files of a run, whatever they hold, and its mistakes."""

import ast
import json
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from bjax import config as configs
from bjax import metrics, report

ROOT = Path(__file__).parents[1]


def accuracy(name):
    """Made up, so that the table's marks are known: sharp patches beat random, blurry ones lose to it."""
    keep = next((int(part) / 100 for part in name.split("_") if part.isdecimal()), 1.0)
    gain = {"laplacian_below": 0.2, "laplacian_above": -0.2}.get("_".join(name.split("_")[:2]), 0.0)
    return 0.6 * (0.4 + 0.6 * keep) + gain, keep


@pytest.fixture
def run(tmp_path):
    """A finished run of the demo's grid, without the run."""
    config = configs.load("configs/vit_mask.py:demo,grid=true")
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "config.json").write_text(configs.to_json(config))
    results, speeds = {}, {}
    for name in config.eval:
        top1, keep = accuracy(name)
        hits = round(224 * top1)
        sums = {"n": 224, "top1": hits, "top5": 224, "loss": 1.0, "kept": 224 * keep, "empty": 0}
        sums |= {"loss_squared": 1.0, "kept_squared": 224 * keep**2}
        results[name] = metrics.summarise(sums)
        speeds[name] = {"images_per_second": 400 / (0.1 + keep), "tokens": keep, "flops": keep}
    (workdir / "results.json").write_text(json.dumps(results))
    about = {"how": "made up", "device": "1 x cpu", "batch_size": 128, "rounds": 5}
    (workdir / "speed.json").write_text(json.dumps({**about, "conditions": speeds}))
    quality = {"precision": 0.75, "recall": 0.5, "dropped": 0.4, "blurred": 0.3, "patches": 8064}
    nothing = {**quality, "precision": None, "dropped": 0.0, "recall": 0.0}
    quality = {"1": {"laplacian": quality, "none": nothing}}
    (workdir / "mask_quality.json").write_text(json.dumps(quality))
    return workdir


def cells(text, *start):
    """The row of a Markdown table that begins with `start`."""
    rows = [
        [c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    (row,) = [row for row in rows if row[: len(start)] == list(start)]
    return row


def test_table_and_figures_of_the_grid(run, tmp_path, capsys):
    assert report.main([str(run), f"--out={tmp_path}/out"]) == 0
    text = (tmp_path / "out/report.md").read_text()
    assert capsys.readouterr().out == text
    assert cells(text, "kept") == ["kept", "patches that stay", "sharp", "σ = 1", "σ = 2"]
    assert cells(text, "100 %")[1] == "all patches"
    # 0.6 · 0.7 = 0.42 → 94 of 224 → 42.0 %; the Wilson interval is 35.7 to 48.5 %
    assert cells(text, "50 %", "random")[2:] == ["42.0 (36–49)"] * 3
    assert cells(text, "50 %", "laplacian, sharpest")[2].startswith("**62.1**")
    assert cells(text, "50 %", "laplacian, blurriest")[3].startswith("_21.9_")
    assert cells(text, "25 %", "tenengrad, sharpest")[4].startswith("33.")
    assert cells(text, "laplacian")[1] == "75 / 50 / 40"
    assert cells(text, "none")[1] == "– / 0 / 0"
    for name in ("kept", "speed"):
        file = tmp_path / f"out/run_accuracy_{name}.png"
        assert f"({file.name})" in text
        assert file.read_bytes()[:4] == b"\x89PNG" and file.stat().st_size > 20_000
    assert "Left out" not in text


def test_what_a_run_lacks_is_left_out_and_named(run, tmp_path):
    (run / "speed.json").unlink()
    (run / "mask_quality.json").unlink()
    report.main([str(run), f"--out={tmp_path}/out"])
    text = (tmp_path / "out/report.md").read_text()
    assert text.endswith("Left out, for want of data: accuracy against speed, mask quality.\n")
    assert not (tmp_path / "out/run_accuracy_speed.png").exists()


def test_a_run_without_masks_at_a_keep_rate_still_has_a_report(run, tmp_path):
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps({"all_sigma0": results["all_sigma0"]}))
    for name in ("speed", "mask_quality"):
        (run / f"{name}.json").unlink()
    assert report.main([str(run), f"--out={tmp_path}/out"]) == 0
    assert "Left out, for want of data: matched rates" in (tmp_path / "out/report.md").read_text()


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda run: (run / "results.json").unlink(), "run: holds no results.json; finish the run"),
        (lambda run: (run / "config.json").unlink(), "run: holds no config.json"),
        (lambda run: (run / "speed.json").write_text("{"), "speed.json: is no JSON"),
        (
            lambda run: (run / "results.json").write_text('{"other": {}}'),
            "results.json has other, config.json has not",
        ),
    ],
)
def test_a_mistake_is_one_line(run, tmp_path, capsys, break_it, message):
    break_it(run)
    assert report.main([str(run), f"--out={tmp_path}/out"]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


def test_two_runs_of_one_name_are_refused(run, tmp_path, capsys):
    assert report.main([str(run), str(run), f"--out={tmp_path}/out"]) == 2
    assert "two runs of this name" in capsys.readouterr().err


def test_any_two_lines_differ_in_marker_or_dash():
    assert len({style[:2] for style in report.STYLES}) == len(report.STYLES)


def test_the_report_imports_nothing_of_jax():
    names = {
        getattr(node, "module", None) or node.names[0].name
        for file in (ROOT / "bjax/report").glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if hasattr(node, "names")
    }
    assert not any(name.split(".")[0] in ("jax", "flax") for name in names)
