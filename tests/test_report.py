"""The report: tables and figures from the files of runs and sweeps, whatever they hold, and its mistakes."""

import ast
import csv
import dataclasses
import html.parser
import json
import subprocess
import sys
from pathlib import Path

import made_up
import numpy as np
import pytest
from scipy import integrate as scipy_integrate
from scipy import stats as scipy_stats

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from bjax import config as configs
from bjax import report, stats
from bjax.blur import imagenet_c
from bjax.report import figures, masks, overlay, paper1, read, render
from bjax.runtime import workdir as workdirs

ROOT = Path(__file__).parents[1]


def accuracy(name):
    """Made up, so that the table's marks are known: sharp patches beat random, blurry ones lose to it."""
    keep = next((int(part) / 100 for part in name.split("_") if part.isdecimal()), 1.0)
    gain = {"laplacian_below": 0.2, "laplacian_above": -0.2}.get("_".join(name.split("_")[:2]), 0.0)
    return 0.6 * (0.4 + 0.6 * keep) + gain, keep


def grid(workdir):
    """A finished run of the demo's grid, without the run."""
    config = configs.load("configs/vit_mask.py:demo,grid=true")
    workdir.mkdir()
    (workdir / "config.json").write_text(configs.to_json(config))
    results, speeds = {}, {}
    for name in config.eval:
        top1, keep = accuracy(name)
        results[name] = made_up.row(top1, kept=keep)
        speeds[name] = {"images_per_second": 400 / (0.1 + keep), "tokens": keep, "flops": keep}
    (workdir / "results.json").write_text(json.dumps(results))
    about = {"how": "made up", "device": "1 x cpu", "batch_size": 128, "rounds": 5}
    (workdir / "speed.json").write_text(json.dumps({**about, "conditions": speeds}))
    quality = {"precision": 0.75, "recall": 0.5, "dropped": 0.4, "blurred": 0.3, "patches": 8064}
    nothing = {**quality, "precision": None, "dropped": 0.0, "recall": 0.0}
    quality = {"1": {"laplacian": quality, "none": nothing}}
    (workdir / "mask_quality.json").write_text(json.dumps(quality))
    return workdir


@pytest.fixture
def run(tmp_path):
    return grid(tmp_path / "run")


@pytest.fixture
def small(tmp_path):
    """A finished run of the demo, which draws nothing."""
    return made_up.run(tmp_path / "run", "configs/vit_mask.py:demo", top1=0.5)


def written(*folders, out, code=0, **more):
    """The Markdown of a report on `folders`."""
    flags = [f"--{key}={value}" for key, value in more.items()]
    assert report.main([*map(str, folders), f"--out={out}", *flags]) == code
    return (out / "report.md").read_text()


def table(text, after):
    """Header and rows of the first Markdown table behind the line `after`."""
    lines = text[text.index(f"\n{after}\n") :].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    end = next((i for i in range(start, len(lines)) if not lines[i].startswith("|")), len(lines))
    rows = [[c.strip() for c in line.strip("|").split(" | ")] for line in lines[start:end]]
    return rows[0], rows[2:]


def cells(text, *start):
    """The row of a Markdown table that begins with `start`."""
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    (row,) = [row for row in rows if row[: len(start)] == list(start)]
    return row


# --- masks


def test_table_and_figures_of_the_grid(run, tmp_path, capsys):
    text = written(run, out=tmp_path / "out")
    title, *printed = capsys.readouterr().out.splitlines()
    assert text.startswith(f"# {title}\n\n- ") and len(printed) < 25 and not any("|" in line for line in printed)
    assert printed[0].removeprefix("- ") in text
    blurs = ["sharp", "σ = 1", "σ = 2"]
    names = [f"{what}: {blur}" for what in ("top-1 %", "minus random") for blur in blurs]
    assert cells(text, "kept") == ["kept", "patches that stay", *names]
    assert cells(text, "100 %")[1] == "all patches"
    # 0.6 · 0.7 = 0.42 → 94 of 224 → 42.0 %; the Wilson interval is 35.7 to 48.5 %
    assert cells(text, "50 %", "random")[2:] == ["42.0 (36–49)"] * 3 + [""] * 3
    # 45 images that only one of the two got right
    found = cells(text, "50 %", "laplacian, sharpest")
    assert found[2].startswith("62.1 (") and found[5] == "**+20.1 (p &lt; 0.001)**"
    assert cells(text, "50 %", "laplacian, blurriest")[6] == "_−20.1 (p &lt; 0.001)_"
    found = cells(text, "25 %", "tenengrad, sharpest")
    assert found[4].startswith("33.") and found[7] == "+0.0 (p = 1.000)"
    assert cells(text, "laplacian")[1] == "75 / 50 / 40"
    assert cells(text, "none")[1] == "– / 0 / 0"
    for name in ("kept", "speed"):
        file = tmp_path / f"out/run1_accuracy_{name}.png"
        assert f"({file.name})" in text
        assert file.read_bytes()[:4] == b"\x89PNG" and file.stat().st_size > 20_000


def test_what_runs_lack_is_left_out_and_named(run, tmp_path):
    (run / "speed.json").unlink()
    (run / "mask_quality.json").unlink()
    text = written(run, out=tmp_path / "out")
    left_out = text.splitlines()[-1]
    assert left_out.startswith("Sections left out, for want of data: Sweeps; Paper 1")
    assert "Accuracy against measured speed; Do masks drop what is blurred?" in left_out
    assert not (tmp_path / "out/run1_accuracy_speed.png").exists()
    assert "Accuracy against measured speed" not in text.replace(left_out, "")


# --- paper 1


def test_the_papers_numbers_are_those_of_its_text():
    """Against the tables as the paper prints them, typed a second time."""
    printed = {
        1: "76.13 63.16 72.38 54.12 69.78 55.03",
        2: "92.86 85.08 90.88 78.19 89.53 79.14",
        3: "58.69 61.24 46.33 48.19 48.97 51.62",
        4: "80.12 83.72 71.86 73.55 73.42 76.98",
        5: "58.04 51.75",
    }
    for number, text in printed.items():
        ours = [x for model in paper1.PAPER[number].values() for x in model.values()]
        assert ours == [float(x) for x in text.split()]
        if number < 5:
            assert list(paper1.PAPER[number]) == ["resnet50", "vgg19", "googlenet"]


def test_tables_1_to_4_put_every_run_into_its_cell(tmp_path):
    accuracies = {"sharp": 0.6, "blurred": 0.4, "mix": 0.5}
    for training, top1 in accuracies.items():
        made_up.run(
            tmp_path / f"any_{training}",
            f"configs/resnet50.py:train={training},fraction=20",
            top1=lambda name, condition, top1=top1: top1 - 0.1 * (name != "sharp"),
            n=50_000,
        )
    given = [("init_from", "weights/resnet50-0676ba61.pth")]
    made_up.run(tmp_path / "given", "configs/resnet50.py", given, top1=0.76, n=50_000, trained=False)
    made_up.run(tmp_path / "photos", "configs/googlenet.py:demo", top1=0.5)
    names = ("any_sharp", "any_blurred", "any_mix", "given", "photos")
    text = written(*(tmp_path / name for name in names), out=tmp_path / "out")

    header, rows = table(text, "### Table 1. Top-1, trained on sharp images")
    assert header[:2] == ["model", "trained on → tested on"]
    assert header[2] == "sharp test images: paper" and header[7] == "blurred test images: difference"
    imagenet = "→ imagenet2012 validation, 50,000"
    # Wilson of 30,000 and 25,000 in 50,000: ± 0.43 and ± 0.44 %
    ours = ["76.13", "60.00 (59.6–60.4)", "−16.13", "63.16", "50.00 (49.6–50.4)", "−13.16"]
    assert rows[0] == ["ResNet50", f"imagenet2012, 20 % {imagenet}", *ours, "1"]
    assert rows[1][:4] == ["ResNet50", f"resnet50-0676ba61.pth {imagenet}", "76.13", "76.00 (75.6–76.4)"]
    assert rows[1][4] == "−0.13" and rows[1][-1] == "4"
    assert rows[2] == ["VGG19", "", "72.38", "", "", "54.12", "", "", ""]  # no run: no guess
    # Other images: shown, but no difference.
    assert rows[3][:5] == ["GoogLeNet", "photos, all → photos test, 224", "69.78", "50.0 (43.5–56.5)", ""]
    assert len(rows) == 4

    header, rows = table(text, "### Table 2. Top-5, trained on sharp images")
    assert rows[0][2:5] == ["92.86", "80.00 (79.6–80.3)", "−12.86"]  # (1 + 0.6) / 2

    header, rows = table(text, "### Table 3. Top-1 on blurred test images")
    assert header[2] == "trained on blurred: paper"
    assert header[8] == "trained on sharp (control): ours (95 %)"
    ours = [
        "58.69",
        "30.00 (29.6–30.4)",
        "−28.69",
        "61.24",
        "40.00 (39.6–40.4)",
        "−21.24",
        "50.00 (49.6–50.4)",
    ]
    assert rows[0] == ["ResNet50", f"imagenet2012, 20 % {imagenet}", *ours, "2, 3, 1"]
    assert rows[1] == ["VGG19", "", "46.33", "", "", "48.19", "", "", "", ""]
    assert rows[2][2:8] == ["48.97", "", "", "51.62", "", ""] and rows[2][8] == "50.0 (43.5–56.5)"
    header, rows = table(text, "### Table 4. Top-5 on blurred test images")
    assert rows[0][2:5] == ["80.12", "65.00 (64.6–65.4)", "−15.12"]
    assert "No run here feeds Table 5. Top-1 of the ViT with patches removed." in text


def test_table_5_has_both_polarities_their_controls_and_what_is_kept(tmp_path):
    top1 = {"blurred_drop_below": 0.2, "blurred_drop_above": 0.4}
    made_up.run(
        tmp_path / "vit",
        "configs/vit.py:fraction=20",
        top1=lambda name, _: top1.get(name.removesuffix("_random"), 0.5) - 0.1 * name.endswith("_random"),
        n=50_000,
        more=lambda name, _: {"kept": 0.05 if "below" in name else 0.95} if "drop" in name else {},
    )
    text = written(tmp_path / "vit", out=tmp_path / "out")
    _, rows = table(text, "### Table 5. Top-1 of the ViT with patches removed")
    assert [row[:5] for row in rows] == [
        ["original", "100.0", "58.04", "50.00 (49.6–50.4)", "−8.04"],
        ["below 100 removed (blurry)", "5.0", "51.75", "20.00 (19.7–20.4)", "−31.75"],
        ["as many as below 100, at random", "5.0", "", "10.00 (9.7–10.3)", ""],
        ["above 100 removed (wording)", "95.0", "51.75", "40.00 (39.6–40.4)", "−11.75"],
        ["as many as above 100, at random", "95.0", "", "30.00 (29.6–30.4)", ""],
    ]
    alike = "model ViT-S/16; trained on sharp: imagenet2012, 20 %; tested on imagenet2012 validation, 50,000"
    assert f"In every row: {alike}. Paper 1, table 5" in text


def test_cells_go_by_content_not_by_name(tmp_path):
    """A condition called sharp is blurred, one called blurred has σ 1 to 3, and so has a run trained on blurred."""
    conditions = made_up.conditions()
    wrong = {
        "sharp": conditions["blurred"],
        "blurred": made_up.gaussian(conditions["sharp"], 1.0, 3.0),
        "corrupted": {**conditions["sharp"], "corruption": "defocus_blur", "severity": 1},
        "masked": conditions["blurred_drop_below"],
    }
    made_up.run(tmp_path / "one", "configs/resnet50.py", top1=0.6, n=50_000, eval_only=wrong)
    strong = [("blur.sigma", "1,3")]
    made_up.run(tmp_path / "two", "configs/resnet50.py:train=blurred", strong, top1=0.5, n=50_000)
    text = written(tmp_path / "one", tmp_path / "two", out=tmp_path / "out")
    _, rows = table(text, "### Table 1. Top-1, trained on sharp images")
    assert rows[0][2:8] == ["76.13", "", "", "63.16", "60.00 (59.6–60.4)", "−3.16"]
    _, rows = table(text, "### Table 3. Top-1 on blurred test images")
    # No difference to tell in any row: no columns of them.
    assert rows[0][2:6] == ["58.69", "", "61.24", ""] and rows[0][6] == "60.00 (59.6–60.4)"
    assert len(rows) == 3


def test_tables_take_the_papers_own_blur_alone(tmp_path):
    """Other noise or another kernel at σ 1 to 2 is another blur: of a condition and of a run's training."""
    conditions = made_up.conditions()
    own = made_up.gaussian(conditions["sharp"], 1.0, 2.0)
    del own["blur"]["kernel_size"], own["blur"]["noise"]  # absent: as by default
    noisy = made_up.gaussian(conditions["sharp"], 1.0, 2.0)
    noisy["blur"]["noise"] = [0.1, 0.1]
    short = made_up.gaussian(conditions["sharp"], 1.0, 2.0)
    short["blur"]["kernel_size"] = 5
    made_up.run(tmp_path / "own", "configs/resnet50.py", top1=0.6, eval_only={"blurred": own})
    made_up.run(tmp_path / "other", "configs/vgg19.py", top1=0.5, eval_only={"a": noisy, "b": short})
    trained = [("blur.noise", "0.1,0.1")]
    made_up.run(tmp_path / "noisy", "configs/googlenet.py:train=blurred", trained, eval_only={"blurred": own})
    text = written(*(tmp_path / name for name in ("own", "other", "noisy")), out=tmp_path / "out")
    _, rows = table(text, "### Table 1. Top-1, trained on sharp images")
    assert rows[0][5:7] == ["63.16", "59.8 (53.3–66.0)"]
    assert rows[1] == ["VGG19", "", "72.38", "", "", "54.12", "", "", ""]
    _, rows = table(text, "### Table 3. Top-1 on blurred test images")
    assert rows[2] == ["GoogLeNet", "", "48.97", "", "51.62", "", "", ""]
    header, rows = table(text, "## Model × training blur × test condition")
    columns = ["σ = 1–2, kernel_size 19", "σ = 1–2, noise 0.1", "σ = 1–2, kernel_size 5"]
    assert sorted(header[2:-1]) == sorted(columns) and "In every row: trained on imagenet2012, all." in text
    assert {row[1] for row in rows if row[0] == "GoogLeNet"} == {"σ = 1–2, noise 0.1"}


def test_conditions_of_one_label_are_told_apart(tmp_path):
    """What the words for a condition leave out is added where rows would have the same words, in every table."""
    conditions = made_up.conditions("configs/vit_mask.py")
    removed, top1 = conditions["blurred_drop_below"], {"a": 0.1, "b": 0.5, "c": 0.9}
    changes = {"a": {}, "b": {"fill": "mean"}, "c": {"fill": "mean", "scope": "patch"}}
    masked = {name: {**removed, "mask": removed["mask"] | changes[name]} for name in changes}
    # Fields without an effect are no difference, nor are rows with the same effect.
    masked["again"] = {**removed, "options": {}, "severity": 3}
    whole = conditions["blurred"]
    whole["mask"]["fill"] = "mean"
    run = made_up.run(
        tmp_path / "run",
        "configs/vit_mask.py",
        top1=lambda name, _: top1.get(name, 0.1),
        n=1000,
        eval_only={**masked, "blurred": whole, "whole": conditions["blurred"]},
    )
    text = written(run, out=tmp_path / "out")
    header, (row,) = table(text, "## Model × training blur × test condition")
    label = "σ = 1–2: below 100 dropped"
    labels = [f"{label}, scope {s}, fill {f}" for s, f in (("image", "black"), ("image", "mean"), ("patch", "mean"))]
    assert header[1:-1] == [*labels, "σ = 1–2"]
    assert [cell[:4] for cell in row[1:5]] == ["10.0", "50.0", "90.0", "10.0"]
    _, rows = table(text, "### Table 5. Top-1 of the ViT with patches removed")
    what = [row[0] for row in rows if row[0] != "original"]
    assert what == [
        "below 100 removed (blurry), fill black",
        "below 100 removed (blurry), fill mean",
        "below 100 removed (blurry), own borders",
        "below 100 removed (blurry), fill black",
    ]


def test_a_mask_on_two_splits_has_two_columns(tmp_path):
    half = made_up.conditions("configs/vit_mask.py")["blurred_keep_half"]
    other = {**half, "split": "train"}
    zeroed = {**half, "mask": half["mask"] | {"mode": "zero_pixels"}}
    painted = {**half, "mask": zeroed["mask"] | {"fill": "mean"}}
    whole = {**half, "mask": half["mask"] | {"mode": "none"}}
    top1 = {"half": 0.1, "other": 0.9, "zeroed": 0.3, "painted": 0.5, "whole": 0.7, "whole_other": 0.8}
    found = {"half": half, "other": other, "zeroed": zeroed, "painted": painted, "whole": whole}
    found["whole_other"] = {**whole, "split": "train"}
    run = made_up.run(tmp_path / "run", "configs/vit_mask.py", top1=lambda name, _: top1[name], n=1000, eval_only=found)
    text = written(run, out=tmp_path / "out")
    header, rows = table(text, "## Selection or deletion: top-1 accuracy at matched keep rates")
    assert header == ["kept", "patches that stay", "σ = 1–2, split validation", "σ = 1–2, split train"]
    shown = {row[1]: [cell[:4] for cell in row[2:]] for row in rows}
    assert shown == {
        "all patches": ["70.0", "80.0"],
        "laplacian, sharpest": ["10.0", "90.0"],
        "laplacian, sharpest (zero_pixels), fill black": ["30.0", ""],
        "laplacian, sharpest (zero_pixels), fill mean": ["50.0", ""],
    }


def test_no_figure_or_curve_takes_one_of_several(tmp_path, monkeypatch):
    drawn = []
    lines = figures.lines
    monkeypatch.setattr(
        figures, "lines", lambda panels, *args, **more: drawn.append(panels) or lines(panels, *args, **more)
    )
    sharp = made_up.conditions()["sharp"]
    fixed = {"sharp": sharp} | {f"s{sigma}": made_up.gaussian(sharp, sigma, sigma) for sigma in (1.0, 2.0, 3.0)}
    short = made_up.gaussian(sharp, 3.0, 3.0)
    fixed["s3.0"]["blur"]["kernel_size"] = 33
    corrupted = {**sharp, "corruption": "glass_blur", "severity": 1}
    fixed = {"short": short, **fixed, "glass": corrupted, "glass_train": {**corrupted, "split": "train"}}
    for rate in ("0.1", "0.2"):
        for training in ("sharp", "mix"):
            made_up.run(
                tmp_path / f"{rate}_{training}",
                f"configs/resnet50.py:train={training}",
                [("optim.lr", rate)],
                top1=lambda name, _: 0.2 if name == "short" else 0.4,
                n=1000,
                eval_only=fixed,
            )
    folders = [tmp_path / f"{rate}_{training}" for rate in ("0.1", "0.2") for training in ("sharp", "mix")]
    text = written(*folders, out=tmp_path / "out")
    origin = "ResNet50 · imagenet2012, all"
    assert [f"{origin} (runs 1, 2)", f"{origin} (runs 3, 4)"] in [list(panels) for panels in drawn]
    _, rows = table(text, "## Accuracy and calibration against Gaussian σ")
    assert rows[0][:5] == ["sharp", *["40.0"] * 4]
    assert "Where kernels of several sizes have the same σ, the largest counts." in text
    _, rows = table(text, "## ImageNet-C: error against severity")
    assert [row[1] for row in rows[:2]] == ["imagenet2012 validation", "imagenet2012 train"]


def test_seeds_become_one_run_with_a_t_interval(tmp_path):
    hits = (0.5, 0.6, 0.55)
    for seed, top1 in enumerate(hits):
        made_up.run(tmp_path / f"r_{seed}", "configs/resnet50.py", [("seed", str(seed))], top1=top1, n=1000)
    made_up.run(tmp_path / "again", "configs/resnet50.py", [("seed", "0")], top1=0.9, n=1000)
    folders = [tmp_path / "r_0", tmp_path / "r_1", tmp_path / "r_2", tmp_path / "again"]
    text = written(*folders, out=tmp_path / "out")
    low, high = scipy_stats.t.interval(0.95, 2, np.mean(hits), scipy_stats.sem(hits))
    _, rows = table(text, "### Table 1. Top-1, trained on sharp images")
    assert rows[0][3] == f"55.0 ({100 * low:.1f}–{100 * high:.1f})" and rows[0][-1] == "1 ×3"
    assert cells(text, "1", "r")[-1] == "0, 1, 2"
    assert f"{tmp_path}/again: config and seed are those of {tmp_path}/r_0" in text
    header, rows = table(text, "## Model × training blur × test condition")
    assert header[:3] == ["training blur", "sharp", "σ = 1–2"]
    assert "In every row: model ResNet50; trained on imagenet2012, all." in text
    assert rows[0][1] == f"55.0 ({100 * low:.1f}–{100 * high:.1f})"


# --- sweeps


def points(**fixed):
    """vit_mask's own sweep with two seeds, as sweep.json has it."""
    for drop in ("below", "above"):
        for threshold in ("50.0", "100.0", "200.0"):
            point = {"mask.mode": "zero_pixels", "mask.drop": drop, "mask.threshold": threshold, **fixed}
            point |= {f"eval.blurred_drop_{drop}{c}.mask.threshold": threshold for c in ("", "_random")}
            for seed in ("0", "1"):
                yield {**point, "seed": seed}


def test_a_sweep_of_two_axes_is_a_matrix(tmp_path):
    def top1(name, condition):
        return {50.0: 0.25, 100.0: 0.5, 200.0: 0.75}[condition["mask"]["threshold"] or 50.0]

    own = [{**p, "mask.keep_rate": "None"} for p in points()]
    sweep = made_up.sweep(tmp_path / "sweep", "configs/vit_mask.py:demo", own, top1=top1)
    text = written(sweep, out=tmp_path / "out")
    header, rows = table(text, "### sweep")
    assert header == ["condition", "mask.drop", "mask.threshold: 50.0", "100.0", "200.0"]
    means = {tuple(row[:2]): [cell.split()[0] for cell in row[2:]] for row in rows}
    assert means["blurred_drop_below", "below"] == ["25.0", "50.0", "75.0"]
    assert means["blurred_drop_below", "above"] == ["50.0", "50.0", "50.0"]
    assert "Points: 6; seeds of each: 2; mask.mode = zero_pixels, mask.keep_rate = None for all." in text
    assert "- blurred_drop_below: mask.threshold = 50.0, 100.0, 200.0" in text
    assert (tmp_path / "out/sweep1.png").read_bytes()[:4] == b"\x89PNG"


def test_a_condition_of_few_points_is_no_matrix(tmp_path):
    own = [
        {"config": f"configs/{model}.py:demo,train={train}{',curves=true' * (model == 'vit')}", "seed": "0"}
        for model in ("resnet50", "googlenet", "vit")
        for train in ("sharp", "mix")
    ]
    sweep = made_up.sweep(tmp_path / "sweep", "configs/papers.py:demo", own, top1=0.5)
    text = written(sweep, out=tmp_path / "out")
    _, rows = table(text, "### sweep")
    assert {row[0] for row in rows} >= {"blurred", "blurred_bn_adapt"}
    assert not any(row[0].startswith("sigma_") for row in rows)
    assert "Conditions of fewer than half of the points" in text


def test_unfinished_points_are_named_and_left_out(tmp_path):
    own = [{"optim.lr": lr} for lr in ("1e-3", "1e-4", "1e-2", "1", "2", "3")]
    sweep = made_up.sweep(tmp_path / "sweep", "configs/vit.py:demo", own, top1=0.5)
    paths = [sweep / f"{i:010x}" for i in range(6)]
    (paths[1] / "exit").write_text("1")
    (paths[1] / "log.txt").write_text("step 2\nbjax.main: the loss is nan at step 2\nmore\n")
    (paths[2] / "exit").unlink()
    (paths[3] / "exit").write_text("75")
    (paths[4] / "results.json").unlink()
    (paths[5] / "results.json").write_text('{"sharp": {"top1": 0.')
    text = written(sweep, out=tmp_path / "out")
    for line in (
        f"- {paths[1]} (optim.lr=1e-4): failed with exit code 1: bjax.main: the loss is nan at step 2",
        f"- {paths[2]} (optim.lr=1e-2): not finished",
        f"- {paths[3]} (optim.lr=1): stopped; the same launch.sweep goes on with it",
        f"- {paths[4]} (optim.lr=2): holds no results.json",
        f"- {paths[5]}/results.json: is no JSON",
    ):
        assert line in text
    header, rows = table(text, "### sweep")
    assert header[0] == "sharp" and len(rows) == 1  # one point: no axis is left


def test_a_sweep_over_configs_and_training_blurs(tmp_path):
    own = [
        {"config": f"configs/{model}.py:demo,train={train}", "seed": seed}
        for model in ("resnet50", "googlenet")
        for train in ("sharp", "mix")
        for seed in ("0", "1", "2")
    ]
    sweep = made_up.sweep(tmp_path / "matrix", "configs/resnet50.py:demo", own, top1=0.5)
    text = written(sweep, out=tmp_path / "out")
    header, rows = table(text, "### matrix")
    assert header == ["condition", "config", "train: sharp", "mix"]
    assert rows[0][:2] == ["sharp", "resnet50"] and rows[1][:2] == ["sharp", "googlenet"]
    assert "(tmp" not in text and (tmp_path / "out/matrix1.png").exists()


def test_axes_are_the_keys_that_tell_points_apart():
    found = read.axes([read.expand(p) for p in points()])
    assert found == ["mask.drop", "mask.threshold"]
    assert read.axes([{"a": "1"}]) == [] and read.axes([{"a": "1"}, {"a": "2", "b": "2"}]) == ["a"]
    assert read.expand({"config": "configs/vgg19.py:demo,train=mix", "seed": "3", "steps": "2"}) == {
        "config": "vgg19",
        "source": "demo",
        "train": "mix",
        "steps": "2",
    }


# --- curves


def fixed_sigmas(top1, sigmas=(0.0, 1.0, 2.0, 4.0)):
    """Conditions of a fixed σ each, and what `made_up.run` needs to give them `top1`."""
    sharp = made_up.conditions()["sharp"]
    own = {f"at_{s:g}": made_up.gaussian(sharp, s, s) if s else sharp for s in sigmas}
    values = dict(zip(own, top1, strict=True))
    return {"eval_only": own, "top1": lambda name, _: values[name], "n": 1000}


def test_curves_over_sigma_have_the_area_under_them(tmp_path):
    def ece(name, _):
        return {"ece": {"at_0": 0.02, "at_1": 0.04, "at_2": 0.08, "at_4": 0.1}[name]}

    made_up.run(tmp_path / "run", "configs/resnet50.py", **fixed_sigmas((0.8, 0.6, 0.4, 0.2)), more=ece)
    text = written(tmp_path / "run", out=tmp_path / "out")
    header, rows = table(text, "## Accuracy and calibration against Gaussian σ")
    assert header[1:] == ["top-1 accuracy in per cent at σ, pixels: 0", "1", "2", "4", "area", "run"]
    # (0.7 · 1 + 0.5 · 1 + 0.3 · 2) / 4
    assert rows == [["ResNet50", "80.0", "60.0", "40.0", "20.0", "45.0", "1"]]
    second = text[text.index("sigma1_top1_1.png") :]
    header, rows = table(second, second.splitlines()[2])
    # (0.03 + 0.06 + 0.18) / 4 = 0.0675
    assert rows[0][1:] == ["2.0", "4.0", "8.0", "10.0", "6.8", "1"]
    x, y = [0.0, 0.5, 3.0], [1.0, 0.25, 0.5]
    assert stats.area(x, y) == pytest.approx(scipy_integrate.trapezoid(y, x) / 3)


def test_two_fixed_sigmas_are_no_curve(tmp_path):
    made_up.run(tmp_path / "run", "configs/resnet50.py", **fixed_sigmas((0.8, 0.6), (0.0, 1.0)))
    assert "Accuracy and calibration" in written(tmp_path / "run", out=tmp_path / "out").splitlines()[-1]


BLURS = ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "gaussian_blur")


def corrupted(names=BLURS, severities=range(1, 6)):
    sharp = made_up.conditions()["sharp"]
    return {f"{c}_{s}": {**sharp, "corruption": c, "severity": s} for c in names for s in severities}


def test_imagenet_c_gives_the_corruption_errors_of_the_benchmark(tmp_path):
    errors = {
        "defocus_blur": 0.5,
        "glass_blur": 0.6,
        "motion_blur": 0.55,
        "zoom_blur": 0.4,
        "gaussian_blur": 0.3,
    }

    def top1(_, condition):
        return 1 - errors[condition["corruption"]] - 0.02 * (condition["severity"] - 3)

    options = {"eval_only": corrupted(), "top1": top1, "n": 50_000}
    made_up.run(tmp_path / "run", "configs/resnet50.py", **options)
    made_up.run(tmp_path / "other", "configs/resnet50.py:imagenette", **options)
    text = written(tmp_path / "run", tmp_path / "other", out=tmp_path / "out")
    _, rows = table(text, "## ImageNet-C: error against severity")
    found = {(row[0], row[1]): row[2:] for row in rows}
    # CE by hand: 100 · 0.5 / 0.81988 = 60.98
    assert found["imagenet2012", "defocus blur"] == [
        "46.0",
        "48.0",
        "50.0",
        "52.0",
        "54.0",
        "50.0",
        "61.0",
        "1",
    ]
    assert found["imagenet2012", "gaussian blur"][5:7] == ["30.0", ""]
    expected = imagenet_c.mean_corruption_error({c: [errors[c]] * 5 for c in stats.ALEXNET})
    assert found["imagenet2012", "blur mCE"][6] == f"{100 * expected:.1f}"
    assert found["imagenette", "defocus blur"][5:7] == ["50.0", ""]
    assert ("imagenette", "blur mCE") not in found
    assert "on other images there is no CE" in text


def test_a_corruption_that_lacks_a_severity_has_no_mean(tmp_path):
    made_up.run(tmp_path / "run", "configs/resnet50.py", eval_only=corrupted(BLURS[:1], (1, 2, 3, 5)), top1=0.5)
    _, rows = table(written(tmp_path / "run", out=tmp_path / "out"), "## ImageNet-C: error against severity")
    assert [row[1:] for row in rows] == [["50.0", "50.0", "50.0", "", "50.0", "", "", "1"]]


@pytest.mark.parametrize("by_mode", [True, False])
def test_bn_adapt_stands_beside_what_it_adapts(tmp_path, by_mode):
    """Written by --mode=bn_adapt (NAME_bn_adapt in results.json alone) or as a condition of the config."""
    options = fixed_sigmas((0.8, 0.6, 0.4), (0.0, 1.0, 2.0))
    run = made_up.run(tmp_path / "run", "configs/resnet50.py", **options)
    results, config = (json.loads((run / f"{name}.json").read_text()) for name in ("results", "config"))
    for name in list(results):
        results[f"{name}_bn_adapt"] = made_up.row(results[name]["top1"] + 0.1, 1000)
        if not by_mode:
            config["eval"][f"{name}_bn_adapt"] = {**config["eval"][name], "bn_adapt": True}
    damaged(run, "results.json", json.dumps(results))
    damaged(run, "config.json", json.dumps(config))
    text = written(run, out=tmp_path / "out")
    _, rows = table(text, "## Accuracy and calibration against Gaussian σ")
    assert [row[:4] for row in rows] == [
        ["sharp", "80.0", "60.0", "40.0"],
        ["sharp, bn_adapt", "90.0", "70.0", "50.0"],
    ]
    _, rows = table(text, "### Table 1. Top-1, trained on sharp images")
    assert rows[0][3].startswith("80.0")  # never the adapted one


def test_abstention_has_what_the_results_have(tmp_path):
    share = [i / 10 for i in range(1, 11)]

    def coverage(name, _):
        if name != "sharp":
            return {}
        values = [1 - s / 2 for s in share]
        return {"coverage": {"share": share, "confidence": values, "sharpness": [x - 0.1 for x in values]}}

    made_up.run(tmp_path / "run", "configs/resnet50.py", top1=0.5, n=1000, more=coverage)
    text = written(tmp_path / "run", out=tmp_path / "out")
    header, rows = table(text, "## Abstention: accuracy against coverage")
    assert header[2:8:3] == ["top-1 %, by confidence: 80 %", "top-1 %, by sharpness: 80 %"]
    expected = ["50.0 (46.9–53.1)", "60.0", "75.0", "90.0", "50.0", "65.0", "80.0", "1"]
    assert [row[1:] for row in rows] == [expected]
    assert "In every row: trained on sharp; test images sharp." in text


# --- blur types


CONFUSION = [[40, 5, 3, 2], [4, 30, 6, 10], [0, 0, 50, 0], [10, 20, 0, 20]]
BINS = [{"low": 1.0, "high": 2.0, "n": 40, "top1": 0.5}, {"low": 2.0, "high": 3.0, "n": 0, "top1": None}]


def of_blur_types(name, _):
    strengths = {
        "gaussian": BINS,
        "motion": [{"low": 7.0, "high": 17.0, "n": 10, "top1": 1.0}],
        "defocus": [],
    }
    found = {"confusion": CONFUSION, "by_strength": strengths}
    return {**found, "estimates": {"sigma": {"mae": 0.25, "n": 50}, "angle": {"mae": 12.5, "n": 40}}}


def test_blur_types(tmp_path):
    made_up.run(tmp_path / "run", "configs/densenet121.py:demo", top1=0.7, n=200, more=of_blur_types)
    text = written(tmp_path / "run", out=tmp_path / "out")
    _, rows = table(text, "## Paper 2: its accuracy beside ours")
    assert rows[0][-2] == "97.8" and rows[0][1] == "DenseNet-121"
    blurs = "σ 1–2, L 9–19, R 4–8, noise up to 0.01"
    assert rows[1] == [
        "unseen",
        "DenseNet-121",
        "photos unseen",
        blurs,
        "64 × 64",
        "200",
        "70.0 (63.3–75.9)",
        "1",
    ]

    after = text[text.index("run1_confusion.png") :]
    _, rows = table(after, after.splitlines()[2])
    by_hand = {  # precision 40 / 54, recall 40 / 50, F1 80 / 104; and so on
        "sharp": ["40", "5", "3", "2", "74.1", "80.0", "76.9"],
        "gaussian": ["4", "30", "6", "10", "54.5", "60.0", "57.1"],
        "motion": ["0", "0", "50", "0", "84.7", "100.0", "91.7"],
        "defocus": ["10", "20", "0", "20", "62.5", "40.0", "48.8"],
    }
    assert {row[1]: row[2:] for row in rows[:4]} == by_hand
    assert len(rows) == 4 and rows[0][0] == "unseen"

    after = text[text.index("run1_strength.png") :]
    _, rows = table(after, after.splitlines()[2])
    low, high = stats.wilson(20, 40)
    first = ["unseen", "gaussian", "σ", "1–2", "40", f"50.0 ({100 * low:.0f}–{100 * high:.0f})"]
    assert rows[0] == first and [row[1] for row in rows] == ["gaussian", "motion"]
    _, rows = table(text, "## Blur types: errors of the estimates")
    assert rows[:2] == [
        ["DenseNet-121", "unseen", "σ, pixels", "50", "0.25", "1"],
        ["DenseNet-121", "unseen", "angle, degrees", "40", "12.50", "1"],
    ]
    for name in ("confusion", "strength"):
        assert (tmp_path / f"out/run1_{name}.png").exists()


def test_blur_types_over_seeds(tmp_path):
    for seed in (0, 1):
        made_up.run(
            tmp_path / f"r{seed}",
            "configs/densenet121.py:demo",
            [("seed", str(seed))],
            top1=0.6 + 0.1 * seed,
            n=200,
            more=lambda name, c, seed=seed: {
                "confusion": [[seed + 1] * 4] * 4,
                "by_strength": {"gaussian": [{"low": 1.0, "high": 3.0, "n": 10, "top1": 0.2 + 0.4 * seed}]},
                "estimates": {"sigma": {"mae": 1.0 + seed, "n": 10}},
            },
        )
    text = written(tmp_path / "r0", tmp_path / "r1", out=tmp_path / "out")
    after = text[text.index("run1_confusion.png") :]
    assert table(after, after.splitlines()[2])[1][0][2:6] == ["3"] * 4
    assert "unseen: 48 answers of 2 seeds to the same images" in text
    after = text[text.index("run1_strength.png") :]
    assert table(after, after.splitlines()[2])[1][0][4:] == ["10", "40.0 (20 and 60)"]
    assert table(text, "## Blur types: errors of the estimates")[1][0][3:5] == ["10", "1.50"]


def test_rates_of_a_class_that_never_occurs():
    rates = stats.per_class([[0, 0], [0, 3]])
    assert rates[0] == {"precision": None, "recall": None, "f1": None, "n": 0}
    assert rates[1] == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "n": 3}


# --- facts


def test_facts_tell_where_a_run_was_made(tmp_path):
    run = made_up.run(tmp_path / "run", "configs/resnet50.py:demo", top1=0.5)
    session = {
        "started": "2026-11-20T13:53:39+00:00",
        "seconds": 90.0,
        "mode": "train",
        "commit": "51a10b6aa012+",
    }
    session |= {"versions": {"python": "3.11.2", "jax": "0.10.2"}, "device": "8 × H200", "processes": 2}
    damaged(run, "run.json", json.dumps({"sessions": [session, {**session, "mode": "eval", "commit": None}]}))
    text = written(run, out=tmp_path / "out")
    _, rows = table(text, "## Facts")
    assert rows == [["1", "0", str(run)]]
    assert cells(text, "run", "started")[2:] == ["what", "minutes", "device", "commit"]
    assert cells(text, "1", "2026-11-20 13:53", "train")[3:] == [
        "1.5",
        "8 × H200, 2 processes",
        "51a10b6aa012+",
    ]
    assert "python 3.11.2\njax 0.10.2" in text.replace("jax 0.10.2\npython 3.11.2", "python 3.11.2\njax 0.10.2")
    assert "optim.lr = 0.001\n" in text and "eval.blurred = test: σ = 1–2\n" in text


def test_every_column_of_the_sessions_is_filled_by_what_a_run_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr(workdirs, "commit", lambda: "51a10b6aa012")
    run = made_up.run(tmp_path / "run", "configs/resnet50.py:demo", top1=0.5)
    with workdirs.session(run, "train", writes=True):
        pass
    (session,) = json.loads((run / "run.json").read_text())["sessions"]
    started = session["started"][:16].replace("T", " ")
    assert "" not in cells(written(run, out=tmp_path / "out"), "1", started)


# --- files


class Checker(html.parser.HTMLParser):
    """Every tag that opens closes, ids are unique, links stay inside, nothing is loaded from elsewhere."""

    VOID = ("meta", "img", "br", "hr", "link")

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.images = [], [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        assert tag not in ("script", "link", "iframe", "object"), tag
        if tag not in self.VOID:
            self.open.append(tag)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs["href"]] if "href" in attrs else []
        if tag == "img":
            assert attrs["alt"]
            self.images.append(attrs["src"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check(path):
    text = path.read_text()
    checker = Checker()
    checker.feed(text)
    assert checker.open == [] and len(set(checker.ids)) == len(checker.ids)
    assert checker.links and all(link[1:] in checker.ids for link in checker.links)
    assert all(src.startswith("data:image/png;base64,") for src in checker.images)
    assert "http:" not in text and "https:" not in text and "url(" not in text
    return checker


def test_the_page_is_one_file_and_holds_every_figure(run, tmp_path):
    text = written(run, out=tmp_path / "out", title="A <b>bold</b> & | title")
    checker = check(tmp_path / "out/report.html")
    assert len(checker.images) == text.count("![") == len(list((tmp_path / "out").glob("*.png"))) == 4
    page = (tmp_path / "out/report.html").read_text()
    assert "<h1>A &lt;b&gt;bold&lt;/b&gt; &amp; | title</h1>" in page
    assert text.startswith("# A &lt;b>bold&lt;/b> &amp; \\| title\n")
    assert "prefers-color-scheme: dark" in page and "@media print" in page


def test_names_are_escaped(tmp_path):
    made_up.run(tmp_path / "<img src=x>|&", "configs/resnet50.py:demo", top1=0.5)
    text = written(tmp_path / "<img src=x>|&", out=tmp_path / "out")
    assert len(check(tmp_path / "out/report.html").images) == 1
    _, rows = table(text.replace("\\|", "/"), "## Runs")
    assert "<img" not in text and rows[0][1] == "&lt;img src=x>/&amp;"


def test_the_same_runs_give_the_same_files(run, tmp_path):
    (run / "speed.json").unlink()
    for out in ("a", "b"):
        written(run, out=tmp_path / out)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_results_csv_has_a_row_for_every_run_and_condition(tmp_path):
    for seed in (0, 1):
        made_up.run(
            tmp_path / f"v{seed}",
            "configs/vit.py:demo,train=mix",
            [("seed", str(seed))],
            top1=0.5,
            more=lambda name, _: {"ece": 0.125},
        )
    written(tmp_path / "v0", tmp_path / "v1", out=tmp_path / "out")
    with (tmp_path / "out/results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 and {row["seed"] for row in rows} == {"0", "1"}
    row = next(r for r in rows if r["condition"] == "blurred_drop_above" and r["seed"] == "1")
    expected = {
        "model": "vit",
        "task": "object",
        "data": "photos",
        "train_blur": "mix",
        "split": "test",
        "n": "224",
    }
    expected |= {
        "sigma_low": "1.0",
        "sigma_high": "2.0",
        "mask_mode": "zero_pixels",
        "mask_selector": "laplacian",
    }
    expected |= {
        "mask_drop": "above",
        "mask_threshold": "100.0",
        "mask_keep_rate": "",
        "top1": "0.5",
        "ece": "0.125",
    }
    assert {key: row[key] for key in expected} == expected
    low, high = stats.wilson(112, 224)
    assert (float(row["top1_low"]), float(row["top1_high"])) == (low, high)
    assert row["workdir"] == str(tmp_path / "v1") and row["bn_adapt"] == "False"


# --- the gallery


def add_gallery(run, number=3):
    """A gallery.npz as bjax.evaluate.gallery makes it, of made-up photographs."""
    rng = np.random.default_rng(0)
    names = ("sharp", "blurred_drop_below", "blurred_drop_above")
    content = {"conditions": np.array(names)}
    for name in names:
        score = np.float32(10 ** rng.uniform(0, 3.5, (number, 4, 4)))
        kept = {"sharp": score > 0, "blurred_drop_below": score >= 100, "blurred_drop_above": score <= 100}[name]
        content |= {
            f"{name}/image": rng.integers(0, 255, (number, 64, 64, 3), np.uint8),
            f"{name}/kept": kept,
        }
        content |= {f"{name}/score": score, f"{name}/label": np.arange(number, dtype=np.int32)}
        content |= {
            f"{name}/prediction": np.int32([0] * number),
            f"{name}/confidence": np.float32([0.5] * number),
        }
    np.savez_compressed(run / "gallery.npz", **content)
    return run


def test_the_gallery_shows_what_masks_drop(small, tmp_path):
    (add_gallery(small) / "classes.json").write_text(json.dumps(["cat", "a dog of a very long name"]))
    text = written(small, out=tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").glob("run1_gallery*"))
    assert names == ["run1_gallery_blurred_drop_above.png", "run1_gallery_blurred_drop_below.png"]
    assert "blurred_drop_below, σ = 1–2: below 100 dropped: 3 images spread evenly over photos test." in text
    (one,), _ = read.load([small])
    shown = one.gallery["blurred_drop_below"]
    kept = [f"{100 * x.mean():.0f} % kept" for x in shown["kept"]]
    assert masks.title(one, shown, 0, True) == f"cat\nright, 50 %\n{kept[0]}"
    assert masks.title(one, shown, 1, True) == f"a dog of a very l…\nnot cat, 50 %\n{kept[1]}"
    assert masks.title(one, shown, 2, False) == "class 2\nnot cat, 50 %"


@pytest.mark.parametrize("stored", [True, False])
def test_the_line_of_a_threshold_is_on_the_map_of_its_own_measure(tmp_path, monkeypatch, stored):
    """A run of before the measure was stored has the Laplacian's scores, whatever its masks went by."""
    drawn = {}
    gallery = figures.gallery
    monkeypatch.setattr(figures, "gallery", lambda *args: drawn.setdefault(len(drawn), args[4:]) and gallery(*args))
    own = {k: made_up.conditions("configs/vit_mask.py")[k] for k in ("blurred_drop_below", "blurred_drop_above")}
    own["blurred_drop_below"]["mask"] |= {"selector": "tenengrad", "threshold": 2000.0}
    run = add_gallery(made_up.run(tmp_path / "run", "configs/vit_mask.py:demo", eval_only=own))
    if stored:
        with np.load(run / "gallery.npz") as file:
            content = dict(file) | {f"{name}/measure": np.array("laplacian") for name in own}
        np.savez(run / "gallery.npz", **content | {"blurred_drop_below/measure": np.array("tenengrad")})
    text = written(run, out=tmp_path / "out")
    assert [threshold for threshold, *_ in drawn.values()] == [2000.0 if stored else None, 100.0]
    assert text.count("red on the scale: the threshold, 2000") == stored
    assert text.count("mean squared Sobel gradient (tenengrad), yellow") == stored


def test_hatching_and_shadows_are_on_the_patches_that_are_dropped():
    image = np.full((1, 32, 32, 3), 200, np.uint8)
    kept = np.array([[[True, False], [False, True]]])
    drawn = figures.gallery(image, kept, np.full((1, 2, 2), 50.0), ["a"], 100.0, "score")
    shown = drawn.axes[0].images[0].get_array()
    assert shown.shape == (288, 288, 3)
    assert (shown[:144, :144] == 200).all() and (shown[144:, 144:] == 200).all()
    for dropped in (shown[:144, 144:], shown[144:, :144]):
        strokes = (dropped == 128).all(axis=-1)
        assert (dropped[~strokes] == 50).all() and strokes.mean() == pytest.approx(1 / overlay.HATCH, rel=0.05)


def test_the_gallerys_colours_and_scale_are_those_of_predicts_overlay():
    image, kept = np.zeros((1, 32, 32, 3), np.uint8), np.ones((1, 2, 2), bool)
    scores = np.array([[[0.5, 10.0], [1000.0, 20_000.0]]])
    drawn = figures.gallery(image, kept, scores, ["a"], 100.0, "score")
    shown = drawn.axes[1].images[0].get_array()
    expected = overlay.colours(np.array([[0, 1 / 5], [3 / 5, np.log10(20_000) / 5]]))
    np.testing.assert_array_equal(shown, np.uint8(np.round(expected)))
    bar = drawn.axes[-1]
    assert [label.get_text() for label in bar.get_yticklabels()] == [
        "0 to 1",
        "10",
        "100",
        "1,000",
        "10,000",
        "100,000",
    ]
    assert [line.get_ydata()[0] for line in bar.lines if line.get_color() == overlay.RED] == [2 / 5]


def test_the_gallery_begins_with_masks_that_keep_some_and_has_no_random_ones(tmp_path):
    kept = {"blurred_drop_below": 0.085, "blurred_drop_above": 0.915, "blurred_keep_half": 0.5}
    kept["blurred_keep_half_random"] = 0.5
    own = {name: made_up.conditions("configs/vit_mask.py")[name] for name in kept}
    spec, of_all = "configs/vit_mask.py:demo", {"more": lambda name, _: {"kept": kept[name]}}
    run = add_gallery(made_up.run(tmp_path / "run", spec, eval_only=own, **of_all))
    with np.load(run / "gallery.npz") as file:
        one = {k.removeprefix("sharp/"): file[k] for k in file if k.startswith("sharp/")}
    content = {f"{name}/{k}": x for name in kept for k, x in one.items()}
    np.savez(run / "gallery.npz", conditions=np.array(list(kept)), **content)
    text = written(run, out=tmp_path / "out")
    shown = [line.split(",")[0] for line in text.splitlines() if "images spread evenly" in line]
    assert shown == ["blurred_keep_half", "blurred_drop_below", "blurred_drop_above"]


def test_a_damaged_gallery_is_named(small, tmp_path):
    (small / "gallery.npz").write_bytes(b"PK\x03\x04 and no more")
    text = written(small, out=tmp_path / "out")
    assert f"{small}/gallery.npz: is damaged" in text
    np.savez(small / "gallery.npz", conditions=np.array(["sharp"]))
    assert "gallery.npz: is damaged" in written(small, out=tmp_path / "out")


def test_many_galleries_are_shown_in_part(tmp_path):
    runs = []
    for i in range(6):
        runs.append(
            made_up.run(tmp_path / f"r{i}", "configs/vit_mask.py:demo", [("optim.lr", f"{i + 1}e-4")], top1=0.5)
        )
        add_gallery(runs[-1], 1)
    text = written(*runs, out=tmp_path / "out")
    assert len(list((tmp_path / "out").glob("run*_gallery*"))) == 8
    assert "Those of runs 5, 6 are in gallery.npz of their folders." in text


# --- mistakes


def damaged(run, name, text):
    (run / name).write_text(text)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda run: (run / "results.json").unlink(), "run: holds no results.json; finish the run"),
        (lambda run: (run / "config.json").unlink(), "run: holds no config.json"),
        (lambda run: damaged(run, "results.json", '{"sharp": '), "results.json: is no JSON"),
        (lambda run: damaged(run, "results.json", "[1]"), "results.json: all of it is missing or damaged"),
        (lambda run: damaged(run, "results.json", "\x00"), "results.json: is no JSON"),
        (lambda run: damaged(run, "config.json", "[]"), "config.json: all of it is missing or damaged"),
        (
            lambda run: damaged(run, "config.json", '{"seed": 0, "task": "object"}'),
            "config.json: data is missing or damaged",
        ),
        (
            lambda run: damaged(run, "results.json", '{"other": {}}'),
            "results.json has other, config.json has not",
        ),
        (
            lambda run: damaged(run, "results.json", '{"sharp": {}}'),
            "run: sharp: n is missing or damaged",
        ),
    ],
)
def test_a_useless_run_is_named_and_the_others_shown(small, tmp_path, capsys, break_it, message):
    made_up.run(tmp_path / "other", "configs/resnet50.py:demo", top1=0.5)
    break_it(small)
    assert message in written(small, tmp_path / "other", out=tmp_path / "out")
    capsys.readouterr()
    # With nothing left it is a mistake, told in one line.
    assert report.main([str(small), f"--out={tmp_path}/nothing"]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("name", ["speed.json", "mask_quality.json", "similarity.json", "run.json", "classes.json"])
def test_a_damaged_extra_costs_its_section_alone(small, tmp_path, name):
    (small / name).write_text("{")
    text = written(small, out=tmp_path / "out")
    assert f"{small / name}: is no JSON" in text
    assert "Selection or deletion" in text


def test_a_damaged_row_costs_that_row_alone(small, tmp_path):
    results = json.loads((small / "results.json").read_text())
    results["sharp"] = {"top1": None}
    results["later"] = results["blurred"]
    (small / "results.json").write_text(json.dumps(results))
    text = written(small, out=tmp_path / "out")
    assert ": sharp: n is missing or damaged; evaluate again" in text
    assert "results.json has later, config.json has not" in text
    header, rows = table(text, "## Model × training blur × test condition")
    assert header[1] == "σ = 1–2" and rows[0][1] == "50.0 (43.5–56.5)"


def places(node, path=()):
    """The path of everything inside `node`."""
    inside = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in inside:
        yield (*path, key)
        yield from places(value, (*path, key))


@pytest.mark.parametrize("name", ["config", "results", "run", "speed", "mask_quality", "classes"])
def test_nothing_in_a_file_makes_it_crash(tmp_path, capsys, monkeypatch, name):
    """Any value replaced by one of another kind: the report is written, or ends in one line."""
    monkeypatch.setattr(render.Figure, "png", b"")  # drawn, but not to pixels
    run = grid(tmp_path / "run")
    config, results = (json.loads((run / f"{n}.json").read_text()) for n in ("config", "results"))
    some = {n: config["eval"][n] for n in list(config["eval"])[:4]}
    of_types = made_up.run(tmp_path / "types", "configs/densenet121.py:demo", top1=0.5, more=of_blur_types)
    types = [json.loads((of_types / f"{n}.json").read_text()) for n in ("config", "results")]
    config["eval"] = some | types[0]["eval"]
    config["task"] = "blur_type" if name == "results" else "object"
    content = {n: results[n] for n in some} | types[1]
    content["unseen"]["coverage"] = {"share": [0.5, 1.0], "confidence": [0.75, 0.5]}
    session = {
        "started": "2026",
        "seconds": 1.0,
        "mode": "train",
        "versions": {"jax": "1"},
        "device": "1",
        "processes": 1,
    }
    texts = {"config": config, "results": content, "run": {"sessions": [session]}, "classes": ["cat"]}
    for n in ("speed", "mask_quality"):
        texts[n] = json.loads((run / f"{n}.json").read_text())
    for n, text in texts.items():
        damaged(run, f"{n}.json", json.dumps(text))
    rng = np.random.default_rng(0)
    spots = list(places(texts[name]))
    for number in rng.permutation(len(spots))[:25]:
        *parents, last = spots[number]
        changed = json.loads(json.dumps(texts[name]))
        node = changed
        for key in parents:
            node = node[key]
        node[last] = (None, "x", -1.5, [], {}, [1], {"a": 1}, True)[rng.integers(8)]
        damaged(run, f"{name}.json", json.dumps(changed))
        code = report.main([str(run), f"--out={tmp_path}/out"])
        error = capsys.readouterr().err
        assert code == 0 or (code == 2 and len(error.splitlines()) == 1), (spots[number], error)


def test_misfit_names_the_first_place():
    shape = {"a": int, "b?": [float], "c?": [str, str], "*": {"*": (int, type(None))}}
    for value, place in (
        ({"a": 1}, None),
        ({"a": 1, "b": [], "c": ["x", "y"], "d": {"e": None}}, None),
        ({}, "a"),
        ([], "all of it"),
        ({"a": True}, "a"),
        ({"a": 1, "b": [1.0, "x"]}, "b.1"),
        ({"a": 1, "c": ["x"]}, "c"),
        ({"a": 1, "d": {"e": 1, "f": "x"}}, "d.f"),
    ):
        assert read.misfit(value, shape) == place


def test_no_such_folder_and_a_damaged_sweep(tmp_path, capsys):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep/sweep.json").write_text('{"config": "x"}')
    assert report.main([str(tmp_path / "none"), str(tmp_path / "sweep"), f"--out={tmp_path}/out"]) == 2
    error = capsys.readouterr().err
    assert "none: holds no config.json" in error and "sweep/sweep.json: runs is missing or damaged" in error
    assert len(error.splitlines()) == 1


def test_a_run_named_twice_is_shown_once(small, tmp_path):
    text = written(small, small / ".." / "run", out=tmp_path / "out")
    assert text.count("### run (run 1)\n") == 1 and "Left out:" not in text


def test_a_missing_library_is_told_in_one_line(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert report.main([str(small), f"--out={tmp_path}/out"]) == 2
    error = capsys.readouterr().err
    assert 'jinja2, which is missing; pip install "bjax[report]"' in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_any_two_lines_differ_in_marker_or_dash():
    assert len({style[:2] for style in figures.STYLES}) == len(figures.STYLES)


def test_the_report_imports_nothing_of_jax():
    names = {
        getattr(node, "module", None) or node.names[0].name
        for file in (ROOT / "bjax/report").glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if hasattr(node, "names")
    }
    assert not any(name.split(".")[0] in ("jax", "flax") for name in names)
    code = "import sys, bjax.report; sys.exit(any(m.split('.')[0] in ('jax', 'flax') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_columns_that_say_the_same_in_every_row_are_in_the_caption():
    rows = [["a", "x", "", "1", ""], ["a", "y", "", "1", ""]]
    given = render.Table(["model", "on", "from", "n", "gap"], rows, "Said.", 3, (("", 3), ("numbers", 2)))
    expected = render.Table(["on", "n", "gap"], [["x", "1", ""], ["y", "1", ""]], "In every row: model a. Said.", 1)
    expected = dataclasses.replace(expected, groups=(("", 1), ("numbers", 2)))
    assert render.condensed(given) == expected
    assert render.without_empty(expected, "gap").groups == (("", 1), ("numbers", 1))
    assert render.without_empty(expected, "n") == expected
    one = render.condensed(render.Table(["model", "on", "n"], [["a", "x", "1"]], left=2))
    assert (one.header, one.rows, one.caption, one.left) == (["model", "n"], [["a", "1"]], "In every row: on x.", 1)


def test_a_slug_is_a_file_name():
    assert render.slug("a b/c: <d>_") == "a_b_c_d"
