"""Intervals from the images to what is printed: over photographs, over seeds, and paired differences."""

import json

import made_up
import numpy as np
import pytest
from scipy import stats as scipy_stats

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from bjax import report, stats
from bjax.data import photos
from bjax.evaluate import summary
from bjax.report import intervals, render
from bjax.report.runs import Row

SEEDED = "configs/resnet50.py"


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Figures are drawn, but not to pixels: these tests read the text."""
    monkeypatch.setattr(render.Figure, "png", b"")


def written(*folders, out):
    """The Markdown of a report on `folders`."""
    assert report.main([*map(str, folders), f"--out={out}"]) == 0
    return (out / "report.md").read_text()


def rows_of(text, *start):
    """The rows of Markdown tables that begin with `start`."""
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return [row for row in rows if row[: len(start)] == list(start)]


def rewrite(run, change):
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(change(results)))


# --- over photographs


def test_a_run_on_crops_counts_its_photographs(tiny_run, tmp_path):
    row = json.loads((tiny_run / "results.json").read_text())["sharp"]
    assert (row["n"], row["n_photographs"]) == (224, 14)
    assert list(row["photographs"]) == [file.rpartition(".")[0] for file in photos.TRAIN]
    hits = [p["hits"] for p in row["photographs"].values()]
    assert {p["n"] for p in row["photographs"].values()} == {16} and sum(hits) == round(224 * row["top1"])
    over = stats.over_photographs(np.array(hits) / 16, row["top1_95"], within=(0, 1))
    assert row["top1_95_photographs"] == pytest.approx(over)
    shown = "{:.1f}–{:.1f}".format(*(100 * x for x in over))
    assert shown in summary.table({"sharp": row}, classes=14)
    text = written(tiny_run, out=tmp_path / "out")
    assert f"({shown})" in text and "Student's t over the 14 photographs" in text


def of_crops(workdir, *hits, spec="configs/densenet121.py:demo", n=48, **more):
    """A finished run whose conditions are of n crops of each of a few photographs."""
    return made_up.run(workdir, spec, more=lambda *_: made_up.crops(hits, n) | more)


def test_few_photographs_are_named_with_their_values(tmp_path):
    run = of_crops(tmp_path / "run", 31, 36, 40, 42)
    low, high = json.loads((run / "results.json").read_text())["unseen"]["top1_95_photographs"]
    text = written(run, out=tmp_path / "out")
    assert f"77.6 ({100 * low:.1f}–{100 * high:.1f})" in text
    assert high - low > 2 * np.subtract(*stats.wilson(149, 192)[::-1])
    assert "may miss the truth more often than 1 time in 10 (docs/intervals.md)" in text
    assert "unseen (run 1): a 64.6, b 75.0, c 83.3, d 87.5." in text
    assert "## Photographs" in text


def test_enough_photographs_are_trusted(tmp_path):
    text = written(of_crops(tmp_path / "run", *range(30, 44)), out=tmp_path / "out")
    assert "Student's t over the 14 photographs" in text and "may miss" not in text


def test_bins_of_strengths_are_over_photographs_too(tmp_path):
    part = {"low": 1.0, "high": 3.0, "n": 12, "top1": 0.75}
    part |= {"top1_95_photographs": [0.25, 1.0], "n_photographs": 3}
    run = of_crops(tmp_path / "run", 31, 36, 40, 42, by_strength={"gaussian": [part]})
    text = written(run, out=tmp_path / "out")
    assert rows_of(text, "unseen", "gaussian")[0][4:] == ["12", "75.0 (25–100)"]
    (caption,) = [line for line in text.splitlines() if line.startswith("Share of the images of a kind")]
    assert "bars are 95 % intervals: Student's t over the 3 photographs" in caption
    assert "1 of them is over too few photographs" in caption
    assert caption.endswith("unseen: a 64.6, b 75.0, c 83.3, d 87.5.")


def test_results_written_before_are_over_images_and_say_so(tmp_path):
    def old(results):
        return {
            name: {k: v for k, v in row.items() if "photographs" not in k and k not in ("images", "hits")}
            for name, row in results.items()
        }

    run = of_crops(tmp_path / "run", 31, 36, 40, 42, spec="configs/vit_mask.py:demo")
    rewrite(run, old)
    text = written(run, out=tmp_path / "out")
    low, high = stats.wilson(149, 192)
    assert f"77.6 ({100 * low:.1f}–{100 * high:.1f})" in text
    assert "95 % interval in brackets: Wilson's, over the images." in text and "Student's t over the" not in text
    assert "No difference from a random choice is told" in text


@pytest.mark.parametrize("name", ["hits", "photographs", "images", "n_photographs", "top1_95_photographs"])
@pytest.mark.parametrize("value", [3, "no base64", [], {"a": {"hits": 1, "n": 0}}, {"a": {"hits": 1, "n": 2}}, None])
def test_damaged_answers_cost_their_row_alone(tmp_path, name, value):
    run = of_crops(tmp_path / "run", 31, 36, 40, 42, spec="configs/vit_mask.py:demo")
    rewrite(run, lambda results: {**results, "sharp": {**results["sharp"], name: value}})
    assert "blurred" in written(run, out=tmp_path / "out")


# --- over seeds


def of_seeds(tmp_path, values, spec=SEEDED, n=1000, **more):
    runs = []
    for seed, top1 in enumerate(values):
        overrides = [("seed", str(seed))]
        runs.append(made_up.run(tmp_path / f"r_{seed}", spec, overrides, top1=top1, n=n, **more))
    return runs


def test_equal_seeds_are_no_narrower_than_one(tmp_path):
    low, high = stats.wilson(500, 1000)
    one = f"50.0 ({100 * low:.1f}–{100 * high:.1f})"
    for number in (1, 3, 5):
        runs = of_seeds(tmp_path / str(number), [0.5] * number)
        text = written(*runs, out=tmp_path / "out")
        assert rows_of(text, "ResNet50")[0][3] == one, number
    assert "of several seeds Student's t over the seeds, nowhere narrower than one seed's" in text


def test_seeds_that_differ_have_students_t(tmp_path):
    values = (0.3, 0.6, 0.5)
    text = written(*of_seeds(tmp_path, values), out=tmp_path / "out")
    t = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert rows_of(text, "ResNet50")[0][3] == f"46.7 ({100 * t.low:.1f}–{100 * t.high:.1f})"


@pytest.mark.parametrize("values", [(0.5, 0.6), (0.5, 0.5)])
def test_two_seeds_show_both_values(tmp_path, values):
    text = written(*of_seeds(tmp_path, values), out=tmp_path / "out")
    first, second = (100 * x for x in values)
    assert rows_of(text, "ResNet50")[0][3] == f"{(first + second) / 2:.1f} ({first:.1f} and {second:.1f})"
    assert "In brackets the values of both seeds." in text


def test_bins_of_strengths_do_not_count_images_once_per_seed(tmp_path):
    def bins(*_):
        return {"by_strength": {"gaussian": [{"low": 1.0, "high": 3.0, "n": 48, "top1": 0.75}]}}

    for number in (1, 3, 5):
        runs = of_seeds(tmp_path / str(number), [0.7] * number, "configs/densenet121.py:demo", more=bins)
        text = written(*runs, out=tmp_path / "out")
        low, high = stats.wilson(36, 48)
        assert rows_of(text, "unseen", "gaussian")[0][4:] == [
            "48",
            f"75.0 ({100 * low:.0f}–{100 * high:.0f})",
        ]


def test_what_only_some_seeds_have_is_not_shown_as_of_all(tmp_path):
    runs = of_seeds(tmp_path, [0.5, 0.5, 0.5])
    rewrite(runs[2], lambda results: {k: v for k, v in results.items() if k == "sharp"})
    text = written(*runs, out=tmp_path / "out")
    assert "- r: blurred was not evaluated with seed 2" in text
    assert rows_of(text, "ResNet50")[0][-1] == "1 ×2–3 of 3"


# --- differences


def row(result, seeds=(0,), **more):
    return Row("a", {}, result, by_seed={seed: {**result, **more} for seed in seeds})


def test_a_difference_is_paired_by_photograph():
    hits, control = np.array([31, 36, 40, 42]), np.array([28, 34, 37, 40])
    ours, theirs = row(made_up.crops(hits, 48)), row(made_up.crops(control, 48))
    found = intervals.difference(ours, theirs)
    expected = scipy_stats.ttest_rel(hits / 48, control / 48).confidence_interval(0.95)
    assert found.ends == pytest.approx((expected.low, expected.high)) and found.p is None
    # Each interval alone is 30 points wide; all four photographs gained.
    assert found.sign == 1 and intervals.difference(theirs, ours).sign == -1
    assert found.text == f"+5.2 (+{100 * expected.low:.1f} to +{100 * expected.high:.1f})"


def test_a_difference_of_independent_images_is_mcnemars():
    found = intervals.difference(row(made_up.row(0.5, 200)), row(made_up.row(0.47, 200)))
    # 6 images that only the first got right, none that only the second did
    assert found.p == pytest.approx(scipy_stats.binomtest(0, 6).pvalue) and found.sign == 1
    assert found.text == "+3.0 (p = 0.031)"
    assert intervals.difference(row(made_up.row(0.5, 200)), row(made_up.row(0.475, 200))).sign == 0
    assert intervals.difference(row(made_up.row(0.9, 200)), row(made_up.row(0.1, 200))).text == "+80.0 (p < 0.001)"


def test_equal_photographs_get_no_interval_without_a_width():
    found = intervals.difference(row(made_up.crops((9, 5), 10)), row(made_up.crops((8, 4), 10)))
    assert found.text == "+10.0 (the same on each)" and found.sign == 0


def test_other_images_or_old_results_are_not_compared():
    ours = row(made_up.row(0.5, 200))
    assert intervals.difference(ours, None) is None
    assert intervals.difference(ours, row(made_up.row(0.5, 100))) is None
    assert intervals.difference(ours, row(made_up.row(0.5, 200), images="others")) is None
    assert intervals.difference(ours, row(made_up.row(0.5, 200), seeds=(1,))) is None
    old = {k: v for k, v in made_up.row(0.5, 200).items() if k not in ("hits", "images")}
    assert intervals.difference(row(old), row(old)) is None


def test_differences_over_seeds_are_nowhere_narrower_than_one_seeds():
    ours, theirs = made_up.crops((31, 36, 40, 42), 48), made_up.crops((30, 34, 39, 36), 48)
    one = intervals.difference(row(ours), row(theirs))
    three = intervals.difference(row(ours, seeds=(0, 1, 2)), row(theirs, seeds=(0, 1, 2, 3)))
    assert three.ends == pytest.approx(one.ends) and three.sign == one.sign == 0
    two = intervals.difference(row(ours, seeds=(0, 1)), row(theirs, seeds=(0, 1)))
    assert two.ends is None and two.text == "+5.2 (+5.2 and +5.2)" and two.sign == 0


def test_table_5_tells_the_difference_from_its_control(tmp_path):
    def more(name, _):
        return made_up.crops((20, 30, 40, 25) if "random" in name else (25, 36, 44, 31), 48)

    run = made_up.run(tmp_path / "run", "configs/vit.py", more=more)
    text = written(run, out=tmp_path / "out")
    t = scipy_stats.ttest_1samp(np.array([5, 6, 4, 6]) / 48, 0).confidence_interval(0.95)
    (found,) = [r for r in rows_of(text) if "below 100 removed (blurry)" in r]
    assert found[-2] == f"+10.9 (+{100 * t.low:.1f} to +{100 * t.high:.1f})"
    (control,) = [r for r in rows_of(text) if "as many as below 100, at random" in r]
    assert control[-2] == ""
