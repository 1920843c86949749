"""Images blurred in parts, from the config to the results: training, evaluation, and what masks find of the blur."""

import csv
import io
import json
import re
import shutil

import jax
import made_up
import numpy as np
import pytest
from conftest import ROOT, TINY
from test_metrics import answers
from test_step import CLASSES, batch_of, inputs, one_device, run

from bjax import config as configs
from bjax import evaluate, models, predictor, stats
from bjax.blur.sample import BlurSpec
from bjax.configs import common
from bjax.errors import UserError
from bjax.evaluate.summary import summarise
from bjax.report import facts, masks, read, seeds, words
from bjax.runtime import sharding
from bjax.step.eval_step import look, prepare
from bjax.step.losses import Objective
from bjax.tokens import MaskSpec

DEMO = str(ROOT / "configs" / "vit_mask.py") + ":demo"
REGIONS = BlurSpec({"sharp": 0.2, "gaussian": 0.8}, where="regions")
HALF = MaskSpec("gather", keep_rate=0.5)
ORACLE = MaskSpec("gather", selector="oracle", keep_rate=0.5)


def by_hand(keep, truth, patch=8):
    """precision, recall and IoU of the patches kept of one image with those of which at most half is blurred."""
    size = len(truth) // patch
    grid = [truth[patch * y :, patch * x :][:patch, :patch] for y in range(size) for x in range(size)]
    sharp = {i for i, part in enumerate(grid) if (part > 0).sum() <= part.size / 2}
    kept = set(np.flatnonzero(keep))
    both, either = len(kept & sharp), len(kept | sharp)
    return [both / of if of else np.nan for of in (len(kept), len(sharp), either)]


def test_each_image_has_the_overlap_of_kept_and_sharp():
    mesh, wanted = sharding.make_mesh(-1, 1), inputs(REGIONS, HALF)
    batch = sharding.put(batch_of(16), mesh)
    seen = look(jax.random.key(0), batch, inputs=wanted, mesh=mesh)
    *_, facts = prepare(jax.random.key(0), batch, inputs=wanted, objective=Objective("object", 4), mesh=mesh)
    found = np.stack([facts[name] for name in ("precision", "recall", "iou")], axis=1)
    expected = [by_hand(*one) for one in zip(*jax.device_get((seen.kept.keep, seen.blurred.truth)), strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert len(np.unique(found[:, 2])) > 2


def test_means_are_over_the_images_that_have_them():
    precision = np.linspace(0, 1, 32).astype(np.float32)
    precision[3] = np.nan
    names = np.repeat(list("abcd"), 8)
    row = summarise(answers(32, precision=precision, recall=np.full(32, np.nan, np.float32), photograph=names))
    there = np.isfinite(precision)
    own, values = names[there], precision[there].astype(float)
    assert row["precision"] == pytest.approx(values.mean()) and row["precision_n"] == 31 and row["n"] == 32
    assert row["precision_95"] == pytest.approx(stats.mean_interval(values))
    means = np.array([values[own == name].mean() for name in "abcd"])
    over = stats.over_photographs(means, stats.mean_interval(values), within=(0.0, 1.0))
    assert row["precision_95_photographs"] == pytest.approx(over)
    assert not {"recall", "recall_n", "iou"} & row.keys()
    json.dumps(row, allow_nan=False)


def test_training_is_the_same_on_any_number_of_devices_and_in_parts():
    batches = [batch_of(16, seed) for seed in range(2)]
    model = models.build("vit", num_classes=CLASSES, variant="Ti/8", depth=1, width=16, heads=1)
    options = {"blur": REGIONS, "mask": ORACLE, "model": model}
    first, *_ = run(one_device(), batches, **options)
    second, *_ = run(sharding.make_mesh(-1, 1), batches, accumulate=2, **options)
    np.testing.assert_allclose(first, second, rtol=1e-5)


def partial_config(data_dir):
    """The tiny run's, evaluated on images blurred in parts."""
    flags = TINY | {"data.data_dir": data_dir, "eval_only": "", "eval_batch_size": 56, "speed_rounds": 1, "gallery": 0}
    c = configs.load(DEMO, [(key, str(value)) for key, value in flags.items()])
    blurred = common.GAUSSIAN(where="centre", sigma=(4, 4), kernel_size=25)
    c.eval = common.ConfigDict()
    for selector in ("oracle", "random"):
        masked = common.mask("gather", selector=selector, keep_rate=0.25)
        c.eval[selector] = common.condition("test[:56]", blurred, masked)
    return c


def test_a_run_is_evaluated_on_images_blurred_in_parts(tiny_run, data_dir, tmp_path, capsys):
    workdir = shutil.copytree(tiny_run, tmp_path / "run")
    evaluate.run(partial_config(data_dir), workdir)
    assert "IoU %" in capsys.readouterr().out
    rows = json.loads((workdir / "results.json").read_text())
    assert all(rows[name]["precision_n"] == 56 and len(rows[name]["iou_95"]) == 2 for name in ("oracle", "random"))
    # A quarter of the patches is fewer than those that stay sharp around the middle.
    assert rows["oracle"]["precision"] == 1 > rows["random"]["precision"] > 0
    assert rows["random"]["iou"] < rows["oracle"]["iou"] == pytest.approx(rows["oracle"]["recall"])
    assert set(json.loads((workdir / "speed.json").read_text())["conditions"]) == {"random"}
    with pytest.raises(UserError, match=r"^--condition=oracle: its mask \(selector=oracle\) knows which patches were"):
        predictor.read(workdir, "oracle")
    assert predictor.read(workdir, "random").inputs.mask.selector == "random"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"mask.selector": "oracle"},
            "config.mask.selector=oracle: all patches are blurred alike; set config.blur.where",
        ),
        (
            {"mask.selector": "oracle", "blur.where": "regions", "loss.cutmix": 0.2},
            "of mixed images it does not know what is blurred; set config.loss.mixup and config.loss.cutmix to 0",
        ),
        (
            {"eval.blurred_keep_half.mask.selector": "oracle"},
            "config.eval.blurred_keep_half.mask.selector=oracle: all patches are blurred alike; set config.eval.",
        ),
        (
            {"eval.sharp.mask.selector": "oracle", "eval.sharp.mask.mode": "attend", "eval.sharp.mask.keep_rate": 0.5},
            "nothing is blurred; set a blur and",
        ),
        (
            {
                "eval.sharp.mask.selector": "oracle",
                "eval.sharp.mask.mode": "attend",
                "eval.sharp.mask.keep_rate": 0.5,
                "eval.sharp.corruption": "glass_blur",
            },
            "corruption=glass_blur has no map of what it blurs; use blur in its place, with",
        ),
        (
            {"blur.where": "middle"},
            "config.blur.where=middle: expected one of whole, regions, ramp, centre, ",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(overrides, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        configs.load(DEMO, [(key, str(value)) for key, value in overrides.items()])
    assert "\n" not in str(error.value)


def test_the_training_blur_of_that_name():
    blur = configs.load(f"{DEMO},train=partial").blur
    assert (blur.where, blur.kinds.gaussian, blur.sigma) == ("regions", 1.0, (1.0, 2.0))
    assert configs.load(f"{DEMO},train=blurred").blur.where == "whole"
    with pytest.raises(UserError, match="train=part: expected one of sharp, blurred, mix, partial"):
        configs.load(f"{DEMO},train=part")


def test_a_report_tells_blurred_parts_from_blurred_images(tmp_path):
    spec = "configs/resnet50.py:train=partial"
    whole = made_up.conditions()["blurred"]
    evaluated = {"whole": whole, "regions": {**whole, "blur": {**whole["blur"], "where": "regions"}}}
    shares = (0.25, 0.5, 0.3)
    for seed, iou in enumerate(shares):
        more = {"iou": iou, "iou_95": [iou - 0.1, iou + 0.1], "iou_n": 224}
        found = {name: made_up.row(0.5) | (more if name == "regions" else {}) for name in evaluated}
        made_up.run(tmp_path / f"r{seed}", spec, [("seed", str(seed))], eval_only=evaluated, results=found)
    runs, notes = seeds.merge(read.load([tmp_path / f"r{seed}" for seed in range(3)])[0])
    assert [run.training for run in runs] == ["σ = 1–2, regions"] and not notes
    rows = {row.name: row for row in runs[0].rows}
    assert [row.blur for row in rows.values()] == ["σ = 1–2", "σ = 1–2, regions"]
    assert (rows["whole"].sigma, rows["regions"].sigma) == ((1.0, 2.0), None)
    assert words.is_papers(rows["whole"].condition["blur"]) and not words.is_papers(rows["regions"].condition["blur"])
    (table,) = masks.mask_quality(runs[0])
    assert [row[:3] for row in table.rows] == [["σ = 1–2, regions", "100 %", "all patches"]]
    low, high = stats.t_interval(shares)
    assert table.rows[0][5] == f"35.0 ({100 * max(low, 0):.1f}–{100 * high:.1f})"
    line = list(csv.DictReader(io.StringIO(facts.table(runs))))[1]
    assert (line["where"], line["sigma_low"], float(line["iou"])) == ("regions", "1.0", pytest.approx(0.35))
    assert float(line["iou_low"]) < 0.25 < 0.45 < float(line["iou_high"])
