"""The blur ranking: which weights are evaluated on what, and what the report makes of the numbers."""

import csv
import json
import shlex
from pathlib import Path

import made_up
import numpy as np
import peers
import pytest

from bjax import config as configs
from bjax import models, published, report
from bjax.blur import imagenet_c
from bjax.data import loader
from bjax.errors import UserError
from bjax.launch import sweep
from bjax.main import main
from bjax.report import ranking, read, render
from bjax.weights import cache

ROOT = Path(__file__).parents[1]
RANKING = f"{ROOT}/configs/ranking.py"
# "Blur robustness that is published": sharp, blur mCE, top-1 under defocus, glass, motion and zoom, per cent; computed
# from RobustBench's table of single severities with Hendrycks' errors of AlexNet.
PUBLISHED = {
    "Tian2022Deeper_DeiT-B": (81.4, 53.1, 57.5, 56.4, 60.1, 54.6),
    "Tian2022Deeper_DeiT-S": (79.8, 58.8, 55.0, 50.0, 56.7, 48.4),
    "Erichson2022NoisyMix_new": (76.9, 64.6, 47.6, 39.3, 53.8, 50.3),
    "Hendrycks2020AugMix": (77.3, 66.0, 48.1, 35.1, 53.6, 49.5),
    "Hendrycks2020Many": (76.9, 68.2, 51.4, 40.1, 48.3, 39.8),
    "Geirhos2018_SIN_IN": (75.0, 74.8, 43.2, 32.7, 45.5, 36.9),
    "Standard_R50": (76.7, 80.4, 38.9, 26.8, 38.1, 36.3),
}
# Of torchvision's ResNet50, made up.
MEANS = {"defocus_blur": 0.4, "glass_blur": 0.3, "motion_blur": 0.4, "zoom_blur": 0.36, "gaussian_blur": 0.5}


# --- which weights, and on what


def planned(capsys, args, *more):
    """{flag: value} of every run that the sweep of these ARGS has."""
    config = f"configs/ranking.py{args}"
    assert sweep.main([f"--config={config}", "--out=nowhere", "--executor=print", *more]) == 0
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    return [{word.partition("=")[0]: word.partition("=")[2] for word in command[3:]} for command in commands]


def test_the_usual_sweep_has_every_architecture(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    runs = planned(capsys, "")
    assert {run["--mode"] for run in runs} == {"eval"}
    named = [run["--config"].rpartition("weights=")[2] for run in runs]
    assert {published.PUBLISHED[name].model for name in named} == set(models.MODELS)
    assert all(published.PUBLISHED[name].image_size == 224 for name in named)
    assert {"torchvision:resnet50", "torchvision:resnet50-v2", "torchvision:vit_b_16"} < set(named)
    some = planned(capsys, ":imagenette,eval_split=train,weights=torchvision:vgg19+timm:resnet50.am_in1k")
    assert [run["--config"] for run in some] == [
        f"configs/ranking.py:imagenette,eval_split=train,weights={name}"
        for name in ("torchvision:vgg19", "timm:resnet50.am_in1k")
    ]
    trained = planned(capsys, ":demo")
    assert [run["--config"].rpartition("=")[2] for run in trained] == ["sharp", "blurred", "mix", "partial"]
    assert not any("--mode" in run for run in trained)


def test_files_are_told_by_their_names(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    names = ["resnet50-11ad3fa6.pth", "vit_small_patch16_224.augreg_in1k-mine.npz", "vit_b_32-blurred.safetensors"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "README.md").touch()
    runs = planned(capsys, f":weights={tmp_path}")
    assert [run["--config"].rpartition("/")[2] for run in runs] == sorted(names)
    half = configs.load(runs[2]["--config"])
    assert (half.model.name, half.model.options.variant) == ("vit", "S/16")
    assert half.normalize.mean == (0.5, 0.5, 0.5) and half.init_from == str(tmp_path / names[1])
    assert configs.load(runs[0]["--config"]).model.name == "resnet50"
    (tmp_path / "mine.npz").touch()
    with pytest.raises(UserError, match=r"mine\.npz: the file's name does not tell the model; begin it with"):
        published.several(str(tmp_path))


def test_weights_of_any_resolution_see_the_benchmarks_images():
    for name in ("torchvision:resnet50-v2", "timm:vit_base_patch16_384.augreg_in1k"):
        config = configs.load(f"{RANKING}:weights={name}")
        assert (config.data.image_size, config.data.resize, config.data.interpolation) == (224, 256, "bilinear")
        assert published.named(config).name == name
    corruptions = {(c.corruption, c.severity) for c in config.eval.values() if c.corruption}
    assert corruptions == {(name, severity) for name in MEANS for severity in range(1, 6)}
    parts = {c.blur.sigma for c in config.eval.values() if c.blur.where == "regions"}
    whole = {c.blur.sigma[0] for name, c in config.eval.items() if name.startswith("sigma_")}
    assert parts == {(s, s) for s in (2, 4, 8)} and len(whole) == 6 and "sharp" in config.eval


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("weights=nowhere", "nowhere: no such file or folder, and not the name of weights"),
        ("weights=resnet50", "did you mean torchvision:resnet50"),
        ("weights=torchvision:resnet51", "torchvision:resnet51: no such weights (did you mean torchvision:resnet50"),
        ("weights=docs", "docs: holds no .safetensors, .npz, .pth, .pt, .bin file"),
        ("train=mix", "train=mix: weights are evaluated as they are, only the demo without weights trains"),
        ("small", "small: chooses how to train; name the data set instead"),
        ("weight=x", "unknown argument 'weight=x' (did you mean weights?)"),
    ],
)
def test_a_mistake_is_one_line(args, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert sweep.main([f"--config=configs/ranking.py:{args}", "--out=nowhere", "--executor=print"]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


def test_a_run_has_one_set_of_weights(capsys):
    spec = f"{RANKING}:weights=torchvision:vgg19+torchvision:resnet18"
    with pytest.raises(UserError, match=r"2 of them, a run has one; launch\.sweep runs them all"):
        configs.load(spec)


@pytest.mark.slow
def test_a_file_is_evaluated_under_every_kind_of_condition(tmp_path, data_dir, capsys):
    """In torchvision's layout, with a head for the photographs' 14 classes; two images."""
    import safetensors.numpy
    from test_published import TINY, tiny_tensors

    file = tmp_path / "resnet50-tiny.safetensors"
    head = {"fc.weight": (14, 256), "fc.bias": (14,)}
    safetensors.numpy.save_file(tiny_tensors() | peers.random_tensors(head), file)
    wanted = ["defocus_blur_3", "regions_8"]
    overrides = {"data.image_size": 32, "eval_batch_size": 8, "gallery": 0, "data.data_dir": data_dir, **TINY}
    flags = [f"--config.{key}={value}" for key, value in overrides.items()]
    spec = f"--config={RANKING}:demo,eval_split=test[:2],weights={file}"
    only = f"--config.eval_only={','.join(wanted)}"
    assert main([spec, only, "--mode=eval", f"--workdir={tmp_path / 'run'}", *flags]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(results) == wanted and {row["n"] for row in results.values()} == {2}
    run, _ = read.read_run(tmp_path / "run", name="tiny")
    (entry,) = ranking.entries([run])
    assert (entry.source, list(entry.corrupted), list(entry.parts)) == (file.name, [("defocus_blur", 3)], [8.0])


# --- the report


def test_the_published_table_comes_out_of_its_accuracies():
    for key, (sharp, mce, *means) in PUBLISHED.items():
        _, stored, theirs = ranking.THEIRS[key]
        assert (stored, theirs) == (sharp, tuple(means))
        value, cells, _ = ranking._theirs(key)
        assert str(cells[10]) == f"_{mce:.1f}_" and 100 * value == pytest.approx(mce, abs=0.06)
    assert list(ranking.THEIRS) == sorted(ranking.THEIRS, key=lambda key: ranking._theirs(key)[0])


def evaluated(workdir, weights, *, shift=0.0, n=50_000, args="", only=lambda name, condition: True):
    """A finished evaluation whose mean accuracies are those of `MEANS`, and `shift` more."""

    def top1(name, condition):
        mean = MEANS.get(condition["corruption"], 0.7) + shift
        return mean + 0.02 * (3 - condition["severity"]) if condition["corruption"] else mean

    config = json.loads(configs.to_json(configs.load(f"{RANKING}:{args}weights={weights}")))
    eval_only = {k: c for k, c in config["eval"].items() if only(k, c)}
    options = {"top1": top1, "n": n, "trained": False, "eval_only": eval_only}
    return made_up.run(workdir, f"{RANKING}:{args}weights={weights}", **options)


@pytest.fixture
def undrawn(monkeypatch):
    monkeypatch.setattr(render.Figure, "png", b"")


def cells(text, start):
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")]
    return [row for row in rows if row[0].startswith(start)]


def section(*folders, out):
    report.write(list(folders), out)
    text = (out / "report.md").read_text()
    assert "\n## Blur ranking\n" in text
    return text.partition("\n## Blur ranking\n")[2].partition("\n## ")[0]


def test_ours_stand_beside_theirs_by_blur_mce(tmp_path, undrawn):
    first = evaluated(tmp_path / "a", "torchvision:resnet50", n=5000)
    second = evaluated(tmp_path / "b", "torchvision:vit_b_16", shift=0.2, n=5000)
    text = section(first, second, out=tmp_path / "out")
    lines = [row for row in cells(text, "") if len(row) == 13][1:]
    mces = [float(row[10].strip("_").split(" ")[0]) for row in lines]
    assert mces == sorted(mces) and len(lines) == 2 + len(PUBLISHED)
    # 100 / 4 · (0.6 / 0.819880 + 0.7 / 0.826268 + 0.6 / 0.785948 + 0.64 / 0.798360), without the third 100 / 3
    errors = {name: [1 - MEANS[name]] * 5 for name in MEANS if name != "gaussian_blur"}
    expected = f"{100 * imagenet_c.mean_corruption_error(errors):.1f}"
    (ours,) = (row for row in lines if row[1] == "torchvision:resnet50")
    assert ours[3:11] == ["40.0", "30.0", "36.0", "40.0", "50.0", "79.4", "76.3", f"{expected} (76.9–80.2)"]
    assert expected == "78.6" and ours[11:] == ["5,000", "1"]
    (theirs,) = (row for row in lines if "Standard_R50" in row[1])
    assert theirs[3:7] == ["_38.9_", "_26.8_", "_36.3_", "_38.1_"] and theirs[11:] == ["_5,000 JPEG_", "_theirs_"]
    assert all(cell.startswith("_") for row in lines if "RobustBench" in row[1] for cell in row if cell)
    assert "ours, computed from the crop as it is, is not ImageMagick's" in text
    (parts,) = [row for row in cells(text, "ViT-B/16") if row[1] == "torchvision:vit_b_16" and len(row) == 7]
    assert [cell.split(" ")[0] for cell in parts[2:]] == ["90.0"] * 4 + ["2"]


def test_elsewhere_the_mean_accuracy_ranks_without_theirs(tmp_path, undrawn):
    """On other images, also on ImageNet's where they are cut otherwise."""
    worse = evaluated(tmp_path / "a", "torchvision:resnet50", args="imagenette,", n=3925)
    better = evaluated(tmp_path / "b", "torchvision:vgg19", args="imagenette,", n=3925, shift=0.1)
    other = evaluated(tmp_path / "c", "torchvision:resnet50-v2", n=3925)
    config = json.loads((other / "config.json").read_text())
    config["data"]["resize"] = 232
    (other / "config.json").write_text(json.dumps(config))
    text = section(worse, better, other, out=tmp_path / "out")
    assert "RobustBench:" not in text and "neither is comparable, there is no blur mCE" in text
    assert "### imagenet2012 validation, 224 of 232 px" in text
    ranked = [row for row in cells(text, "") if len(row) == 11][1:]
    assert [row[0] for row in ranked] == ["VGG19", "ResNet50"]
    # (0.4 + 0.3 + 0.4 + 0.36) / 4 = 0.365
    assert ranked[1][3:9] == ["40.0", "30.0", "36.0", "40.0", "50.0", "36.5 (35.0–38.0)"]


def test_the_file_has_robustbenchs_layout(tmp_path, undrawn):
    runs = [evaluated(tmp_path / "a", "torchvision:resnet50"), evaluated(tmp_path / "b", "torchvision:resnet50-v2")]
    some = evaluated(tmp_path / "c", "torchvision:vgg19", only=lambda name, c: c["corruption"] == "zoom_blur")
    text = section(*runs, some, out=tmp_path / "out")
    (file,) = (tmp_path / "out").glob("unaggregated_results*.csv")
    assert file.name == "unaggregated_results_imagenet2012_validation_224_of_256_px.csv" and file.name in text
    lines = list(csv.reader(file.read_text().splitlines()))
    # Its first lines are ",shot_noise,shot_noise,…" and ",1,2,3,4,5,1,…", then a model and its shares.
    order = ("motion_blur", "defocus_blur", "zoom_blur", "glass_blur", "gaussian_blur")
    assert lines[0] == ["", *np.repeat(order, 5)] and lines[1] == ["", *"12345" * 5]
    assert [line[0] for line in lines[2:]] == ["torchvision:resnet50", "torchvision:resnet50-v2", "torchvision:vgg19"]
    at = {(name, severity): x for name, severity, x in zip(*(line[1:] for line in lines[:3]), strict=True)}
    assert float(at["glass_blur", "1"]) == 0.34 and float(at["motion_blur", "5"]) == 0.36
    assert lines[4][1:11] == [""] * 10 and float(lines[4][11]) == 0.4 and lines[4][16:] == [""] * 10
    assert "Not ranked, for want of some severities of the four blurs: run 3." in text


def test_two_seeds_show_both_values_and_several_an_interval(tmp_path, undrawn):
    def trained(number, seeds):
        for seed in range(seeds):
            spec = f"{RANKING}:demo,train={'mix' if number else 'sharp'}"
            made_up.run(tmp_path / f"{number}_{seed}", spec, [("seed", str(seed))], top1=0.3 + 0.1 * seed)
        return [tmp_path / f"{number}_{seed}" for seed in range(seeds)]

    text = section(*trained(0, 2), *trained(1, 3), out=tmp_path / "out")
    means = {row[-1]: row[-3] for row in cells(text, "") if " ×" in row[-1] and len(row) > 8}
    assert means["1 ×2"] == "35.0 (29.9 and 40.2)"
    assert means["2 ×3"] == "40.0 (15.1–65.0)" and len(means) == 2


# --- with ImageNet and the weights


@pytest.mark.slow
def test_torchvisions_resnet50_is_where_robustbench_has_it(tmp_path):
    """Blur mCE within 1.5 of 80.4, on ImageNet's validation images; on a CPU on a tenth of them, for its time."""
    import jax

    weights = published.PUBLISHED["torchvision:resnet50"]
    if not cache.place(weights).is_file():
        pytest.skip(f"{weights.name} is not in {cache.folder()}")
    split = "validation[:10%]" if jax.default_backend() == "cpu" else "validation"
    try:
        loader.open_split("imagenet2012", split)
    except UserError as error:
        pytest.skip(f"ImageNet is not there: {error}")
    spec = f"{RANKING}:eval_split={split},weights={weights.name}"
    only = ",".join(f"{name}_{severity}" for name in ranking.BLURS for severity in range(1, 6))
    flags = [f"--config={spec}", f"--config.eval_only={only}", "--config.data.train=validation"]
    assert main([*flags, "--mode=eval", f"--workdir={tmp_path}"]) == 0
    run, _ = read.read_run(tmp_path, name="resnet50")
    (entry,) = ranking.entries([run])
    assert 100 * ranking.over_severities(entry, ranking.mce, *ranking.BLURS)["value"] == pytest.approx(80.4, abs=1.5)
