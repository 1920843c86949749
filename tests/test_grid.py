"""The grid of masks from one config to results, times and report, as small as it gets."""

import dataclasses
import json

import pytest

pytest.importorskip("skimage")

import jax
import jax.numpy as jnp
import numpy as np

from bjax import config as configs
from bjax import evaluate, experiment, report
from bjax.errors import UserError
from bjax.evaluate import bucket, conditions, speed
from bjax.runtime import sharding


def load(*overrides):
    return configs.load("configs/vit_mask.py:demo,grid=true", list(overrides))


def small(data_dir):
    options = {"depth": "2", "width": "32", "heads": "2"}
    c = load(
        ("data.data_dir", data_dir),
        ("speed_rounds", "1"),
        *((f"model.options.{k}", v) for k, v in options.items()),
    )
    names = ("all", "laplacian_below_50", "random_50", "evit_50", "tome_r2")
    some = {f"{name}_sigma1": c.eval[f"{name}_sigma1"] for name in names}
    plain = configs.load("configs/vit_mask.py:demo")
    some["bucket"] = plain.eval.blurred_drop_below
    some["bucket"].mask.mode, some["bucket"].mask.threshold = "bucket", 20.0
    some["attend"] = some["bucket"].copy_and_resolve_references()
    some["attend"].mask.mode = "attend"
    del c.eval
    c.eval = type(c)(some, sort_keys=False)
    for name in list(c.mask_quality.masks)[2:]:
        del c.mask_quality.masks[name]
    return c


def evaluated(config, workdir):
    """What `evaluate.run` does with the weights of a run, here random ones on one device: no training."""
    exp = experiment.build(config)
    exp = dataclasses.replace(exp, mesh=sharding.make_mesh(-1, 1, jax.devices()[:1]))
    shapes = jax.eval_shape(exp.model.init, jax.random.key(0), jnp.zeros((1, 96, 96, 3)))
    random = np.random.RandomState(0)
    variables = jax.tree.map(lambda leaf: jnp.float32(random.normal(0, 0.3, leaf.shape)), shapes)
    results = conditions.evaluate(exp, variables)
    evaluate.leave_results(exp, variables, results, workdir)
    return results


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_dir):
    config, workdir = small(data_dir), tmp_path_factory.mktemp("grid")
    (workdir / "config.json").write_text(configs.to_json(config))
    return config, workdir, evaluated(config, workdir)


@pytest.mark.slow
def test_every_condition_has_results_and_speed(run):
    config, workdir, results = run
    assert json.loads((workdir / "results.json").read_text()) == results
    assert all(r["n"] == 224 for r in results.values())
    kept = {name: r["kept"] for name, r in results.items()}
    assert kept["laplacian_below_50_sigma1"] == kept["random_50_sigma1"] == 0.5
    assert kept["all_sigma1"] == kept["evit_50_sigma1"] == kept["tome_r2_sigma1"] == 1
    assert results["evit_50_sigma1"]["loss"] != results["all_sigma1"]["loss"]
    assert results["tome_r2_sigma1"]["loss"] != results["all_sigma1"]["loss"]

    speed = json.loads((workdir / "speed.json").read_text())
    assert list(speed["conditions"]) == list(results)
    shares = {name: c.get("tokens") for name, c in speed["conditions"].items()}
    assert shares["random_50_sigma1"] == pytest.approx(19 / 37)
    assert 0.5 < shares["evit_50_sigma1"] < shares["tome_r2_sigma1"] < 1
    assert shares["bucket"] is None
    assert all(c["images_per_second"] > 0 for c in speed["conditions"].values())

    quality = json.loads((workdir / "mask_quality.json").read_text())
    assert list(quality) == ["1", "2", "4"]
    assert all(set(row) == set(config.mask_quality.masks) for row in quality.values())


@pytest.mark.slow
def test_a_bucket_has_the_results_of_attend(run):
    _, _, results = run
    bucket, attend = results["bucket"], results["attend"]
    assert 0.05 < bucket["kept"] < 0.95
    for key in ("top1", "top5", "n", "empty"):
        assert bucket[key] == attend[key], key
    assert bucket["kept"] == pytest.approx(attend["kept"], rel=1e-6)
    assert bucket["loss"] == pytest.approx(attend["loss"], rel=1e-5)


@pytest.mark.slow
def test_results_repeat_bit_for_bit_and_make_a_report(run, tmp_path):
    pytest.importorskip("matplotlib")
    config, workdir, results = run
    before = (workdir / "results.json").read_bytes(), (workdir / "mask_quality.json").read_bytes()
    config.speed_rounds = 0
    assert evaluated(config, workdir) == results
    assert before == ((workdir / "results.json").read_bytes(), (workdir / "mask_quality.json").read_bytes())
    assert report.main([str(workdir), f"--out={tmp_path}"]) == 0
    assert "laplacian, sharpest" in (tmp_path / "report.md").read_text()
    assert len(list(tmp_path.glob("*_accuracy_*.png"))) == 2


def test_a_bucket_needs_one_process(data_dir, monkeypatch):
    exp = experiment.build(small(data_dir), 14)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    condition = exp.conditions["bucket"]
    with pytest.raises(UserError, match=r"mask\.mode=bucket: evaluates in one process"):
        bucket.stream(
            jax.random.key(0),
            {},
            batch_size=8,
            patches=36,
            model=condition.model,
            inputs=condition.inputs,
            objective=exp.objective,
            mesh=sharding.make_mesh(-1, 1),
        )


def test_several_processes_are_refused_a_bucket_before_training(data_dir, monkeypatch):
    config = small(data_dir)
    experiment.build(config)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match=r"config\.eval\.bucket\.mask\.mode=bucket: evaluates in one process"):
        experiment.build(config)


def test_a_corruption_is_no_part_of_what_is_timed(data_dir, monkeypatch):
    overrides = {"data.data_dir": data_dir, "speed_rounds": "1", "eval_only": "sharp,sigma_2,glass_blur_3"}
    config = configs.load("configs/vit.py:demo,curves=true", list(overrides.items()))
    exp = experiment.build(config)
    timed = []
    monkeypatch.setattr(speed, "eval_step", lambda *_, inputs, **__: timed.append(inputs))
    found = speed.run(exp, {})["speed.json"]
    assert set(timed) == {exp.conditions["sharp"].inputs}  # one program for all three
    assert len({c["images_per_second"] for c in found["conditions"].values()}) == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"mask.mode": "bucket", "mask.threshold": "1"}, "config.mask.mode=bucket: for evaluation only"),
        (
            {"eval.all_sigma0.mask.mode": "bucket"},
            "config.eval.all_sigma0.mask.mode=bucket: needs a threshold",
        ),
        (
            {"eval.all_sigma0.options.depth": "3"},
            "config.eval.all_sigma0.options.depth: the weights are the run's",
        ),
        ({"eval.all_sigma0.options.tome_r": "-1"}, "config.eval.all_sigma0.options.tome_r=-1"),
        (
            {"model.options.evit_layers": "1,9"},
            r"config.model.options.evit_layers=\(1, 9\): expected layers from 0 to 5",
        ),
        (
            {"model.options.tome_r": "2", "mask.mode": "attend"},
            "config.mask.mode=attend: evit_keep, tome_r and highpass_keep need tokens that all count",
        ),
        (
            {"mask_quality.masks.random_75.selector": "rnd"},
            "config.mask_quality.masks.random_75.selector=rnd",
        ),
        ({"mask_quality.sigma": "1,2,-4"}, "config.mask_quality.sigma=1,2,-4: expected standard deviations"),
        ({"speed_rounds": "-1"}, "config.speed_rounds=-1: expected at least 0"),
    ],
)
def test_mistakes_name_their_key(overrides, message):
    with pytest.raises(UserError, match=message):
        experiment.build(load(*overrides.items()), num_classes=14)
