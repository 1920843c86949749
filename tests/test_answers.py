"""The report's first screen: what was run, and sentences whose numbers are those of the results."""

import itertools
import json

import made_up
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from bjax import report
from bjax.report import answers, intervals, read, seeds


def told(*folders):
    """Title and sentences."""
    runs, _ = seeds.merge(read.load(list(folders))[0])
    return answers.title(runs), answers.answers(runs).lines


def hits_of(**by_name):
    """For `more` of made_up.run: hits on each of five photographs of 20 crops, by the condition's name."""
    return lambda name, _: made_up.crops(by_name[name], 20)


def some(spec, *names):
    return {name: made_up.conditions(spec)[name] for name in names}


def sharp_and_blurred(tmp_path, sharp, blurred, **more):
    own = some("configs/resnet50.py:demo", "sharp", "blurred")
    more |= {"more": hits_of(sharp=sharp, blurred=blurred), "eval_only": own}
    return made_up.run(tmp_path / "run", "configs/resnet50.py:demo", **more)


def test_what_blur_costs_is_paired_over_photographs_and_n_is_said(tmp_path):
    run = sharp_and_blurred(tmp_path, (16, 15, 17, 14, 16), (10, 9, 11, 9, 10))
    title, (cost, measured) = told(run)
    assert title == "ResNet50 trained on sharp images (photos)"
    # Differences of 30, 30, 30, 25 and 30 points: 29.0 ± 2.776 · 2.236 / √5
    assert "is right on 78.0 % (" in cost and "and on 49.0 % (" in cost
    assert cost.endswith("of the same blurred, −29.0 points (−31.8 to −26.2), more than chance explains.")
    assert measured.startswith("Measured on photos test, 100 crops of 5 photographs; 1 seed. In brackets: 95 %")


def test_what_blur_changes_in_several_runs_has_the_sign_of_the_change(tmp_path):
    own = some("configs/resnet50.py:demo", "sharp", "blurred")
    folders = []
    for name, sharp in (("resnet50", (16, 15, 17, 14, 16)), ("vgg19", (10, 9, 11, 9, 9))):
        more = hits_of(sharp=sharp, blurred=(13, 12, 14, 12, 13))
        folders.append(made_up.run(tmp_path / name, f"configs/{name}.py:demo", more=more, eval_only=own))
    change = told(*folders)[1][0]
    assert change.startswith("Blur (σ = 1–2) changes top-1, in points: ResNet50 −14.0 (")
    assert "; VGG19" in change and " +16.0 (" in change and change.endswith(" – beyond chance in all 2.")


@pytest.mark.parametrize(
    ("blurred", "verdict"),
    [
        ((16, 15, 17, 14, 4), "no difference beyond chance."),
        ((16, 15, 17, 14, 16), "+0.0 points (the same on each), no difference beyond chance."),
        ((15, 14, 16, 13, 15), "−5.0 points (the same on each), too alike on the photographs to tell it from chance."),
    ],
)
def test_what_chance_explains_is_no_difference(tmp_path, blurred, verdict):
    assert told(sharp_and_blurred(tmp_path, (16, 15, 17, 14, 16), blurred))[1][0].endswith(verdict)


def test_three_photographs_are_too_few_for_a_verdict(tmp_path):
    _, (cost, _) = told(sharp_and_blurred(tmp_path, (16, 15, 17), (4, 4, 5)))
    assert cost.endswith("too few photographs to tell it from chance.")


def test_results_without_answers_are_not_paired(tmp_path):
    run = sharp_and_blurred(tmp_path, (16, 15, 17, 14, 16), (10, 9, 11, 9, 10))
    results = json.loads((run / "results.json").read_text())
    del results["blurred"]["images"]
    (run / "results.json").write_text(json.dumps(results))
    assert told(run)[1][0].endswith("−29.0 points (not paired), not paired, so whether by chance is not told.")


def test_two_seeds_show_both_values_and_no_interval(tmp_path):
    folders = []
    for seed in (0, 1):
        own = some("configs/resnet50.py", "sharp", "blurred")
        seeded = [("seed", str(seed))]
        top1 = {"sharp": 0.75, "blurred": 0.5 - 0.05 * seed}
        values = {"top1": lambda name, _, top1=top1: top1[name], "n": 1000, "eval_only": own}
        folders.append(made_up.run(tmp_path / f"r{seed}", "configs/resnet50.py", seeded, **values))
    _, (cost, measured) = told(*folders)
    assert "75.0 % (75.0 and 75.0)" in cost and "47.5 % (50.0 and 45.0)" in cost
    assert "−27.5 points (−25.0 and −30.0), more than chance explains." in cost
    assert "2 seeds. In brackets: values of both seeds." in measured


def test_training_on_blur_is_compared_with_the_same_run_on_sharp_images(tmp_path):
    own = some("configs/resnet50.py", "sharp", "blurred")
    hits = {"sharp": ((16, 15, 17, 14, 16), (8, 7, 9, 6, 7)), "mix": ((15, 16, 17, 13, 17), (14, 13, 15, 12, 14))}
    for training, (sharp, blurred) in hits.items():
        spec = f"configs/resnet50.py:demo,train={training}"
        made_up.run(tmp_path / training, spec, more=hits_of(sharp=sharp, blurred=blurred), eval_only=own)
    # Another learning rate is another run: no comparison.
    other = [("optim.lr", "1")]
    made_up.run(tmp_path / "other", "configs/resnet50.py:demo,train=blurred", other, top1=0.9, eval_only=own)
    title, lines = told(tmp_path / "sharp", tmp_path / "mix", tmp_path / "other")
    assert title == "ResNet50 on photos, trained on sharp, blurred and mix images"
    (line,) = [line for line in lines if line.startswith("Training")]
    assert line.startswith("Training ResNet50 on sharp and blurred instead of sharp images: on blurred ones 68.0 % (")
    assert "+31.0 points (" in line and "more than chance explains; on sharp ones +0.0 (" in line
    assert line.endswith("no difference beyond chance.")


def masked(tmp_path, kept):
    names = ("sharp", "blurred", "blurred_drop_below", "blurred_drop_below_random")
    names += ("blurred_keep_half", "blurred_keep_half_random")
    own = some("configs/vit_mask.py:demo", *names)
    hits = dict(zip(names, ([15] * 5, [14, 13, 12, 14, 15], [1] * 5, [6] * 5, [9, 8, 7, 9, 9], [12] * 5), strict=True))

    def more(name, condition):
        share = kept if "drop" in name else 0.5 if "half" in name else 1.0
        return made_up.crops(hits[name], 20) | {"kept": share}

    return made_up.run(tmp_path / "run", "configs/vit_mask.py:demo", more=more, eval_only=own)


@pytest.mark.parametrize("kept", [0.0, 0.085, 0.95])
def test_a_mask_that_leaves_nothing_out_or_in_is_no_headline(tmp_path, kept):
    _, lines = told(masked(tmp_path, kept))
    (line,) = [line for line in lines if "sharpest" in line]
    assert line.startswith("With the sharpest 50 % of the patches of blurred images alone")
    assert "is right on 42.0 % (" in line and "with as many at random on 60.0 % (" in line
    assert "−18.0 points (" in line and "with all patches on 68.0 % (" in line
    assert f"Left aside: too many or too few patches stay with blurred_drop_below {100 * kept:.1f} %." in line


def test_every_telling_mask_is_counted(tmp_path):
    _, lines = told(masked(tmp_path, 0.4))
    (line,) = [line for line in lines if "sharpest" in line]
    assert "Of 2 such comparisons 0 are better and 1 worse than random beyond chance" in line


def test_the_best_of_a_sweep_is_said_to_be_chosen(tmp_path):
    own = some("configs/vit.py:demo", "sharp", "blurred")
    points = [{"optim.lr": lr} for lr in ("1e-4", "1e-3", "1e-2")]
    sweep = tmp_path / "rates"
    made_up.sweep(sweep, "configs/vit.py:demo", points, top1=0.5, n=1000, eval_only=own)
    results = json.loads((sweep / f"{1:010x}/results.json").read_text())
    results["blurred"] = made_up.row(0.56, 1000)
    (sweep / f"{1:010x}/results.json").write_text(json.dumps(results))
    title, lines = told(sweep)
    assert title == "ViT-Ti/16 (depth 6) on photos: sweep rates, 3 points over optim.lr"
    (line,) = [line for line in lines if line.startswith("Of the")]
    assert "optim.lr=1e-3 is right most often on blurred images (σ = 1–2), on 56.0 % (" in line
    assert "+6.0 points (p < 0.001), more than chance explains. Chosen on the images it is measured on" in line


def test_kinds_of_blur(tmp_path):
    confusion = [[40, 5, 3, 2], [4, 30, 6, 10], [0, 0, 50, 0], [10, 20, 0, 20]]
    more = {"confusion": confusion}
    run = made_up.run(tmp_path / "run", "configs/densenet121.py:demo", top1=0.7, n=200, more=lambda *_: more)
    title, (line, _) = told(run)
    assert answers.answers(seeds.merge(read.load([run])[0])[0]).figure.alt.startswith("What each kind of blur is taken")
    assert line.startswith("DenseNet-121 names the kind of blur of 70.0 % (63.3–75.9) of the images")
    assert "most often defocus is taken for gaussian, 20 of 50 times" in line
    assert line.endswith("Of each kind it names rightly: sharp 80 %, gaussian 60 %, motion 100 %, defocus 40 %.")
    assert title == "DenseNet-121 telling kinds of blur apart (photos)"


def test_a_run_with_nothing_to_compare_has_its_accuracy(tmp_path):
    given = [("init_from", "weights/resnet50-0676ba61.pth")]
    own = some("configs/resnet50.py", "sharp")
    run = made_up.run(tmp_path / "run", "configs/resnet50.py", given, top1=0.76, n=50_000, trained=False, eval_only=own)
    title, (line, _) = told(run)
    assert title == "ResNet50 with given weights, tested on imagenet2012"
    assert line == "ResNet50 (resnet50-0676ba61.pth) is right on 76.00 % (75.6–76.4) of the images (sharp)."


def test_at_most_five_sentences_and_the_figure_has_what_they_compare(tmp_path):
    points = [
        {"config": f"configs/{model}.py:demo,train={train}"}
        for model, train in itertools.product(("resnet50", "googlenet", "vit"), ("sharp", "blurred", "mix"))
    ]
    sweep = made_up.sweep(tmp_path / "sweep", "configs/papers.py:demo", points, top1=0.5)
    title, lines = told(sweep)
    assert title.endswith("on photos: sweep sweep, 9 points over model and training blur")
    assert 3 <= len(lines) <= 5 and not any(line.startswith("Of the") for line in lines)
    assert lines[1].startswith("Training on blurred") and lines[2].startswith("Training on sharp and blurred")
    assert report.main([str(sweep), f"--out={tmp_path}/out"]) == 0
    assert (tmp_path / "out/answers.png").read_bytes()[:4] == b"\x89PNG"
    page = (tmp_path / "out/report.html").read_text()
    assert page.index('class="answers"') < page.index("<nav") < page.index("Paper 1: its tables")
    text = (tmp_path / "out/report.md").read_text()
    assert text.index("## Sweeps") < text.index("## Runs") < text.index("## Paper 1")


def test_the_papers_tables_are_for_its_images_and_its_sweep(tmp_path):
    made_up.run(tmp_path / "photos", "configs/resnet50.py:demo")
    assert report.main([str(tmp_path / "photos"), f"--out={tmp_path}/out"]) == 0
    assert "## Paper 1" not in (tmp_path / "out/report.md").read_text()
    made_up.sweep(tmp_path / "own", "configs/resnet50.py:demo", [{"optim.lr": "1"}, {"optim.lr": "2"}])
    assert report.main([str(tmp_path / "own"), f"--out={tmp_path}/out"]) == 0
    assert "## Paper 1" not in (tmp_path / "out/report.md").read_text()


def test_a_sweep_that_does_not_tell_its_config_is_shown(tmp_path):
    sweep = made_up.sweep(tmp_path / "own", "configs/resnet50.py:demo", [{"optim.lr": "1"}, {"optim.lr": "2"}])
    index = json.loads((sweep / "sweep.json").read_text())
    del index["config"]
    (sweep / "sweep.json").write_text(json.dumps(index))
    assert told(sweep)[0].endswith("sweep own, 2 points over optim.lr")


def test_an_interval_over_seeds_is_never_narrower_than_one_seeds():
    """Three seeds that agree on the images say nothing of other images."""
    one = made_up.row(0.5, 224)
    over = intervals.stats.over_seeds([0.5] * 3, [one["top1_95"]] * 3, within=(0, 1))
    assert over == pytest.approx(one["top1_95"])
