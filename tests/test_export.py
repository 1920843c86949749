"""The exported program against the run it was made of, in a process that cannot import the project."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import numpy as np
import pytest
import skimage
from PIL import Image

from bjax import config as configs
from bjax import experiment, export, predict
from bjax.blur import sample
from bjax.tokens import MaskSpec

ROOT = Path(__file__).parents[1]
PHOTOS = Path(skimage.__file__).parent / "data"

CONSUMER = """
import importlib.abc, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in ("bjax", "flax", "orbax", "optax", "grain"):
            raise ModuleNotFoundError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
import jax, jax.export, numpy as np
program = jax.export.deserialize(open(sys.argv[1], "rb").read())
crops = np.load(sys.argv[2])
for number in (1, len(crops)):
    answers = program.call(crops[:number])
np.savez(sys.argv[3], *answers)
try:
    import bjax
except ModuleNotFoundError:
    sys.exit(0)
sys.exit("the blocker does not block")
"""


def test_the_artifact_runs_without_the_project(tiny_run, tmp_path, capsys):
    condition = "blurred_drop_below"
    out = tmp_path / "new" / "model.bin"
    assert export.main([str(tiny_run), f"--out={out}", f"--condition={condition}"]) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    predictor = predict.load(tiny_run, condition)
    photos = [predictor.look(PHOTOS / file).view.crops for file in ("chelsea.png", "coffee.png", "gravel.png")]
    expected = [predictor(crop) for crop in np.concatenate(photos)]
    assert {0.0, 1.0} != {p.kept for p in expected}
    expected = [p for p in expected if p.kept]
    np.save(tmp_path / "crops.npy", np.concatenate([p.crops for p in expected]))
    files = [str(out), str(tmp_path / "crops.npy"), str(tmp_path / "answers.npz")]
    # -I and another folder: neither the working directory nor PYTHONPATH leads to the project.
    done = subprocess.run(
        [sys.executable, "-I", "-c", CONSUMER, *files],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    probabilities, scores, keep = np.load(files[2]).values()
    np.testing.assert_allclose(probabilities, [p.probabilities for p in expected], atol=1e-5, rtol=0)
    np.testing.assert_allclose(scores, [p.scores[0] for p in expected], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(keep, [p.keep[0] for p in expected])

    facts = json.loads((tmp_path / "new" / "model.bin.json").read_text())
    assert tuple(facts["classes"]) == expected[0].classes
    assert facts["outputs"] == {
        "probabilities": "float32[b, 14]",
        "scores": "float32[b, 4, 4]",
        "keep": "bool[b, 4, 4]",
    }
    assert facts["mask"]["threshold"] == 100.0
    assert facts["platforms"] == ["cpu", "cuda", "tpu"]
    tiles = facts["preprocessing"].pop("photographs")
    assert tiles.endswith("bjax.data.views.tiled")
    assert facts["preprocessing"] == {"resize_shorter_side": None, "interpolation": None, "crop": 32}
    assert facts["temperature"] == json.loads((tiny_run / "calibration.json").read_text())["temperature"] != 1
    assert "calibrated on the run's condition sharp" in facts["calibration"]
    program = jax.export.deserialize(out.read_bytes())
    assert program.nr_devices == 1
    assert program.platforms == ("cpu", "cuda", "tpu")


# What differs in the program: every way of leaving out, every selector's kind, what decides inside the model.
VIT = {
    "zero_pixels": MaskSpec("zero_pixels", selector="centre", keep_rate=0.5, fill="mean"),
    "zero_tokens": MaskSpec("zero_tokens", threshold=100.0, drop="above", scope="patch"),
    "attend": MaskSpec("attend", selector="inverse", threshold=100.0),
    "gather": MaskSpec("gather", selector="high_frequency", keep_rate=0.5, threshold=1.0),
    "random": MaskSpec("gather", selector="random", keep_rate=0.5),
    "sigma": MaskSpec("attend", selector="sigma", threshold=0.5, keep_rate=0.5, scope="patch"),
    "evit": MaskSpec(),
    "tome": MaskSpec(),
    "highpass": MaskSpec(),
}
INSIDE = {
    "evit": {"evit_keep": 0.5, "evit_layers": (0,)},
    "tome": {"tome_r": 4},
    "highpass": {"highpass_keep": 0.5, "evit_layers": (0,)},
}


def run_of(config_file, options, size, mask) -> predict.Run:
    """A run that was never trained: its variables are random numbers."""
    config = configs.load(f"{ROOT}/configs/{config_file}.py:demo", [("data.image_size", str(size))])
    if config_file == "densenet121":
        config.task = "blur_type"
    config.model.options.update(options)
    exp = experiment.build(config, 14)
    shapes = jax.eval_shape(exp.model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, size, size, 3), "f4"))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)
    inputs = dataclasses.replace(exp.train, blur=sample.SHARP, mask=mask)
    classes = sample.KINDS if config.task == "blur_type" else tuple(map(str, range(14)))
    return predict.Run("no run", config, classes, exp.model, inputs, variables)


def exported(run, platforms=("cpu",)):
    data, _ = export.export(run, platforms)
    return jax.export.deserialize(data)


def crops(size, number=3):
    photo = Image.open(PHOTOS / "coffee.png")
    return np.stack([np.asarray(photo.crop((x, x, x + size, x + size))) for x in range(0, number * size, size)])


@pytest.mark.parametrize("name", VIT)
def test_every_mask_is_inside(name):
    tiny = {
        "variant": "Ti/16" if name == "sigma" else "Ti/8",
        "depth": 1,
        "width": 32,
        "heads": 2,
        **INSIDE.get(name, {}),
    }
    run = run_of("vit_mask", tiny, 32, VIT[name])
    images = crops(32)
    if name == "sigma":
        images[0, :, :16] = 90  # flat
    outputs, scores, keep = jax.jit(lambda images: predict.look(run, images, run.variables))(images)
    expected = predict.probabilities(run, outputs)
    data, facts = export.export(run, ("cpu",))
    answers = jax.export.deserialize(data).call(images)
    assert ("NaN" in facts["outputs"]["scores"]) == (name == "sigma") == np.isnan(scores).any()
    assert np.std(expected, axis=0).max() > 1e-3  # images differ in their answers: the comparison can fail
    np.testing.assert_allclose(answers[0], expected, atol=1e-5, rtol=0)
    np.testing.assert_allclose(answers[1], scores, rtol=1e-5)
    np.testing.assert_array_equal(answers[2], keep)
    assert keep.all() == (VIT[name].mode == "none")


CNNS = {
    "resnet50": {"stages": (1, 1, 1, 1)},
    "vgg19": {"stages": ((4,), (4,), (4,), (4,), (4,)), "hidden": 8},
    "googlenet": {},
    "densenet121": {"stages": (1, 1, 1, 1)},
}


@pytest.mark.parametrize("name", CNNS)
def test_every_family_has_a_batch_of_any_size(name):
    run = run_of(name, CNNS[name], 64, MaskSpec("zero_pixels", threshold=100.0))
    program = exported(run, ("cpu", "cuda", "tpu"))
    assert [str(x.shape[0]) for x in (*program.in_avals, *program.out_avals)] == ["b"] * 4
    assert [x.shape[1:] for x in program.out_avals] == [(len(run.classes),), (4, 4), (4, 4)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--platforms=cpu,gpu"], "--platforms=gpu: expected some of cpu,cuda,rocm,tpu"),
        (["--condition=blured"], "did you mean blurred?"),
        (["--out={folder}"], "is a folder; name a file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(flags, message, tiny_run, tmp_path, capsys):
    flags = [flag.format(folder=tmp_path) for flag in flags]
    assert export.main([str(tiny_run), f"--out={tmp_path}/model.bin", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())
