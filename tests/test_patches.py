"""The report's answer to whether it matters which patches stay, on made-up runs of configs/fair_test.py."""

import dataclasses

import numpy as np
import pytest
from scipy import stats as scipy_stats

from bjax import config as configs
from bjax.report import intervals, patches, read, seeds
from tests import made_up

PHOTOGRAPHS, CROPS = 12, 40
BLURRED = (("regions", 3), ("regions", 8), ("regions", 16), ("surround", 8), ("centre", 8))


def runs(tmp_path, worth, seeds_of=(0, 1, 2), training="sharp"):
    """Finished runs; worth: {choice: points more than random}; photographs, conditions and seeds differ besides."""
    for seed in seeds_of:

        def more(name, condition, seed=seed):
            mask, rng = condition["mask"], np.random.default_rng([seed, *name.encode()])
            choice = mask["selector"] if mask["mode"] != "none" else patches.ALL
            share = np.linspace(0.3, 0.6, PHOTOGRAPHS) + worth.get(choice, 0.0) + rng.normal(0, 0.01, PHOTOGRAPHS)
            return made_up.crops([round(CROPS * x) for x in share], CROPS)

        name = f"{training}{seed}"
        made_up.run(tmp_path / name, f"configs/fair_test.py:demo,train={training}", [("seed", f"{seed}")], more=more)
    single, _ = read.load(sorted(tmp_path.iterdir()))
    return seeds.merge(single)[0]


def test_every_condition_is_asked_for_once_and_there_are_at_most_sixty():
    config = configs.load("configs/fair_test.py:demo,train=partial")
    assert len(config.eval) <= 60
    assert config.blur.where == "regions"
    for where, sigma in (("regions", 3), ("surround", 8), ("centre", 8)):
        for selector in ("oracle", "sigma", "laplacian", "stratified", "random"):
            for keep in (50, 25):
                condition = config.eval[f"{where}_sigma{sigma}_{selector}_{keep}"]
                assert condition.blur.where == where and condition.blur.sigma == (sigma, sigma)
                assert condition.mask.selector == selector and condition.mask.keep_rate == keep / 100


@pytest.mark.parametrize(
    ("worth", "verdict"),
    [
        ({"sigma": 0.1, "laplacian": 0.1, "stratified": 0.1, "oracle": 0.2}, "Yes: of 3 choices"),
        ({"sigma": -0.1, "laplacian": 0.1, "stratified": 0.0}, "It depends: of 3 choices"),
        ({"sigma": -0.1, "laplacian": -0.1, "stratified": -0.1}, "No, chance chooses better: of 3 choices"),
        ({"sigma": -0.1}, "No: of 3 choices"),
        ({}, "Not that these images could tell: of 3 choices"),
    ],
)
def test_the_first_sentence_is_the_answer(tmp_path, worth, verdict):
    merged = runs(tmp_path, worth)
    text = patches.answer(merged)
    assert text.startswith(verdict)
    assert "averaged over 10 partly blurred conditions" in text
    first, against_all, beside, *_ = patches.section(merged)
    assert first.text == text
    assert "of 6 such choices, each averaged over 5 partly blurred conditions" in against_all.text
    assert "a random choice is right on 4" in beside.lines[0] and "(oracle) " in beside.lines[0]
    assert "differs from random most: " in beside.lines[-1] and "on the other 10 photographs" in beside.lines[-1]


def test_what_the_training_itself_gives_is_told_beside(tmp_path):
    runs(tmp_path, {"all patches": 0.1})
    merged = runs(tmp_path, {"all patches": 0.3}, training="partial")
    lines = patches.section(merged)[2].lines
    assert "all patches of this training" not in lines[0]
    assert "all patches of this training beside all patches of sharp +2" in lines[1]


def test_runs_of_the_same_training_are_told_apart_and_none_is_lost(tmp_path):
    merged = runs(tmp_path, {"laplacian": 0.1}, seeds_of=(0,))
    other = dataclasses.replace(merged[0], number=2, config={**merged[0].config, "batch_size": 7})
    text, _, beside, _, figure, _ = patches.section([merged[0], other])
    assert "trained on: sharp (run 1); sharp (run 2)" in text.text
    assert [line.partition(":")[0] for line in beside.lines[:2]] == [f"Trained on sharp (run {n})" for n in (1, 2)]
    assert "all patches of this training" not in beside.lines[1]  # of another recipe
    assert len([axis for axis in figure.drawing.axes if axis.get_visible()]) == 4


def test_three_photographs_tell_nothing_from_chance(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PHOTOGRAPHS", 3)
    merged = runs(tmp_path, {"laplacian": 0.3}, seeds_of=(0,))
    assert patches.answer(merged).startswith("Not that these images could tell: of 3 choices")


def test_masks_that_leave_out_otherwise_are_not_mixed_in(tmp_path):
    (run,) = runs(tmp_path, {}, seeds_of=(0,))
    row = run.find("regions_sigma8_laplacian_50")
    other = {**row.condition, "mask": {**row.mask, "mode": "zero_pixels"}}
    run.rows.append(dataclasses.replace(row, name="painted", condition=other))
    assert patches._cells(run)["σ = 8, regions", 0.5]["laplacian"] is row


def test_few_photographs_that_carry_it_are_named(tmp_path):
    (run,) = runs(tmp_path, {}, seeds_of=(0,))
    for cell in patches._partly(run):
        cell["laplacian"].by_seed[0]["photographs"] = {
            name: {**part, "hits": part["hits"] + 10 * (name == "c")}
            for name, part in cell["random"].by_seed[0]["photographs"].items()
        }
    line = patches.section([run])[2].lines[-1]
    assert "laplacian after training on sharp" in line and ": c +25.0, " in line


def test_what_a_mask_is_worth_beside_all_patches(tmp_path):
    merged = runs(tmp_path, {"laplacian": 0.1, "stratified": -0.1})
    _, against_all, _, means, *_ = patches.section(merged)
    assert "2 are right more and 2 less often than with all patches" in against_all.text
    assert "the best of them, laplacian with " in against_all.text
    assert means.groups[1:3] == (("minus a random choice of as many", 5), ("minus all patches", 4))
    assert [row[1] for row in means.rows] == ["50 %", "25 %"]
    by_choice = dict(zip(means.header[7:11], means.rows[0][7:11], strict=True))
    assert by_choice["laplacian"].kind == "strong" and by_choice["stratified"].kind == "em"


def test_a_mean_difference_counts_a_photograph_once(tmp_path):
    """Student's t of scipy over the photographs, each averaged over the ten conditions first."""
    (run,) = runs(tmp_path, {"laplacian": 0.05}, seeds_of=(0,))
    cells = [(f"{w}_sigma{s}_laplacian_{k}", f"{w}_sigma{s}_random_{k}") for w, s in BLURRED for k in (50, 25)]
    pairs = [(run.find(a), run.find(b)) for a, b in cells]
    found = intervals.mean_difference(pairs)

    def shares(row):
        return np.array([p["hits"] / p["n"] for p in row.result["photographs"].values()])

    theirs = scipy_stats.ttest_1samp(np.mean([shares(a) - shares(b) for a, b in pairs], axis=0), 0)
    assert found.mean == pytest.approx(np.mean([shares(a).mean() - shares(b).mean() for a, b in pairs]))
    np.testing.assert_allclose(found.ends, theirs.confidence_interval(0.95), rtol=1e-6)
    assert patches._averages(run)["laplacian"] == found


def test_other_images_or_seeds_are_not_paired(tmp_path):
    (run,) = runs(tmp_path, {})
    ours, theirs = run.find("regions_sigma8_laplacian_50"), run.find("regions_sigma8_random_50")
    other = run.find("regions_sigma3_laplacian_50"), run.find("regions_sigma3_random_50")
    other[0].by_seed[1]["images"] = "others"
    assert intervals.mean_difference([(ours, theirs)]) is not None
    assert intervals.mean_difference([(ours, theirs), other]) is None


def test_runs_without_partly_blurred_images_are_not_asked(tmp_path):
    made_up.run(tmp_path / "run", "configs/vit_mask.py:demo")
    merged, _ = seeds.merge(read.load([tmp_path / "run"])[0])
    assert patches.section(merged) == [] and patches.answer(merged) is None
