"""The gallery shows what evaluation saw: the same blur, the same patches, the same answers."""

import dataclasses
import json

import pytest

pytest.importorskip("skimage")

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bjax import config as configs
from bjax import experiment, sharpness
from bjax.data import loader
from bjax.evaluate import gallery
from bjax.runtime import sharding
from bjax.runtime.workdir import write
from bjax.step.eval_step import eval_step

NAMES = ("sharp", "blurred", "blurred_drop_below", "blurred_drop_above_random", "blurred_keep_half")


@pytest.fixture(scope="module")
def ready(data_dir):
    """config, experiment, mesh and random weights of a small ViT."""
    options = {"data.data_dir": data_dir, "gallery": "3", "eval_batch_size": "64", "model.options.depth": "1"}
    options |= {"model.options.width": "32", "model.options.heads": "2"}
    c = configs.load("configs/vit_mask.py:demo", list(options.items()))
    c.eval = type(c)({name: c.eval[name] for name in NAMES}, sort_keys=False)
    c.eval.bucket = c.eval.blurred_drop_below.copy_and_resolve_references()
    c.eval.bucket.mask.mode = "bucket"
    c.eval.gradient = c.eval.blurred_drop_below.copy_and_resolve_references()
    c.eval.gradient.mask.selector = "tenengrad"
    exp = experiment.build(c)
    exp = dataclasses.replace(exp, mesh=sharding.make_mesh(-1, 1, jax.devices()[:1]))
    shapes = jax.eval_shape(exp.model.init, jax.random.key(0), jnp.zeros((1, 96, 96, 3)))
    random = np.random.RandomState(0)
    variables = jax.tree.map(lambda leaf: jnp.float32(random.normal(0, 0.3, leaf.shape)), shapes)
    return c, exp, exp.mesh, variables


@pytest.fixture(scope="module")
def found(ready, tmp_path_factory):
    """gallery.npz as an evaluation leaves it, read back."""
    _, exp, _, variables = ready
    workdir = tmp_path_factory.mktemp("gallery")
    write(workdir / "gallery.npz", gallery.run(exp, variables)["gallery.npz"])
    assert sorted(path.name for path in workdir.iterdir()) == ["gallery.npz", "sums.sha256"]
    with np.load(workdir / "gallery.npz") as file:
        return dict(file)


def test_shapes_and_types(found):
    assert found["conditions"].tolist() == [*NAMES, "bucket", "gradient"]
    for name in found["conditions"]:
        own = {k: found[f"{name}/{k}"] for k in ("image", "kept", "score", "label", "prediction", "confidence")}
        assert [x.shape for x in own.values()] == [(3, 96, 96, 3), (3, 6, 6), (3, 6, 6), (3,), (3,), (3,)]
        assert [x.dtype.name for x in own.values()] == [
            "uint8",
            "bool",
            "float32",
            "int32",
            "int32",
            "float32",
        ]
        assert ((own["confidence"] > 1 / 14 - 1e-6) & (own["confidence"] <= 1)).all()


def test_images_are_those_of_the_split_blurred_as_in_evaluation(ready, found):
    config, exp, mesh, variables = ready
    source = loader.open_split("photos", "test", data_dir=config.data.data_dir)
    chosen = [0, 112, 223]  # of 224, evenly
    assert found["sharp/label"].tolist() == [source[i]["label"] for i in chosen]
    whole = {k: [] for k in ("image", "label", "prediction", "confidence", "kept")}
    condition = exp.conditions["blurred_drop_below"]
    sharp = []
    for batch in experiment.eval_batches(exp, source):
        sharp.append(batch["image"])
        placed = sharding.put(batch, mesh)
        answers = eval_step(
            jax.random.key(experiment.SEED),
            variables,
            placed,
            model=condition.model,
            inputs=condition.inputs,
            objective=exp.objective,
            mesh=mesh,
        )
        for k in ("label", "prediction", "confidence", "kept"):
            whole[k].append(np.asarray(answers[k]))
    np.testing.assert_array_equal(found["sharp/image"], np.concatenate(sharp)[chosen])
    name = "blurred_drop_below"
    for k in ("label", "prediction"):
        np.testing.assert_array_equal(found[f"{name}/{k}"], np.concatenate(whole[k])[chosen])
    np.testing.assert_allclose(found[f"{name}/confidence"], np.concatenate(whole["confidence"])[chosen], rtol=1e-5)
    kept = found[f"{name}/kept"].mean(axis=(1, 2))
    np.testing.assert_allclose(kept, np.concatenate(whole["kept"])[chosen], atol=1e-6)


def test_scores_decide_what_is_kept(found):
    np.testing.assert_array_equal(found["blurred_drop_below/kept"], found["blurred_drop_below/score"] >= 100)
    np.testing.assert_array_equal(found["bucket/kept"], found["blurred_drop_below/kept"])
    assert found["sharp/kept"].all() and (found["blurred_keep_half/kept"].sum(axis=(1, 2)) == 18).all()
    # The line of a threshold is drawn on the map of its own measure.
    np.testing.assert_array_equal(found["gradient/kept"], found["gradient/score"] >= 100)
    measures = {name: str(found[f"{name}/measure"]) for name in found["conditions"]}
    assert measures.pop("gradient") == "tenengrad" and set(measures.values()) == {"laplacian"}
    # The pixels are 8 bits, the scores' images were not; a level of rounding moves a variance little.
    again = sharpness.laplacian_variance(jnp.float32(found["blurred/image"]) / 255, 16)
    np.testing.assert_allclose(found["blurred/score"], again, rtol=0.02, atol=0.5)


class Mean(nn.Module):
    """A classifier that compiles at once."""

    @nn.compact
    def __call__(self, images, *, train=False):
        return nn.Dense(14)(images.mean(axis=(1, 2)))


def test_patches_that_do_not_tile_the_image(ready, data_dir):
    """A CNN's images may have any size where no condition masks them."""
    values = {"data.data_dir": data_dir, "gallery": "2", "data.image_size": "70", "eval_batch_size": "32"}
    c = configs.load("configs/resnet50.py:demo", [*values.items(), ("eval_only", "blurred")])
    exp = experiment.build(c)
    condition = dataclasses.replace(exp.conditions["blurred"], model=Mean())
    exp = dataclasses.replace(exp, conditions={"blurred": condition}, mesh=ready[2])
    variables = Mean().init(jax.random.key(0), jnp.zeros((1, 70, 70, 3)))
    found = gallery.run(exp, variables)["gallery.npz"]
    assert found["blurred/kept"].shape == found["blurred/score"].shape == (2, 1, 1)


def test_without_the_field_nothing_is_written(ready, tmp_path):
    config, exp, _, variables = ready
    config = config.copy_and_resolve_references()
    config.gallery = 0
    assert gallery.run(dataclasses.replace(exp, config=config), variables) == {}
    assert json.loads(configs.to_json(config))["gallery"] == 0
