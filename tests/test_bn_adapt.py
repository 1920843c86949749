"""Adapted statistics are those of the images, layer after layer; what cannot be adapted is refused."""

import dataclasses
import inspect
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bjax import config, experiment, models
from bjax.data import loader
from bjax.errors import UserError
from bjax.evaluate import bn_adapt
from bjax.models.layers import MOMENTUM, BatchNorm
from bjax.specs import Data

DEMO = str(Path(__file__).parents[1] / "configs" / "resnet50.py") + ":demo"


class Two(nn.Module):
    """Two norms, so that the second shows what the first was fed with."""

    @nn.compact
    def __call__(self, images, *, train=False):
        norm = nn.BatchNorm(use_running_average=not train, momentum=MOMENTUM, name="first")
        x = nn.relu(norm(images * jnp.array([1.0, 2.0, 3.0]) + 5))
        x = nn.BatchNorm(use_running_average=not train, momentum=MOMENTUM, name="second")(x)
        return x.mean(axis=(1, 2))


def prepared(data_dir, **overrides):
    values = {"data.data_dir": data_dir, "eval_batch_size": 32, "bn_adapt_batches": 2, **overrides}
    c = config.load(DEMO, [(k, str(v)) for k, v in values.items()])
    source = loader.open_split("photos", "train", data_dir=data_dir)
    return c, experiment.build(c), source


def test_statistics_are_those_of_the_training_images(data_dir):
    _, exp, source = prepared(data_dir)
    model = Two()
    exp = dataclasses.replace(exp, model=model)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    inputs = exp.conditions["sharp"].inputs
    found = bn_adapt.statistics(exp, variables, inputs)

    batches = loader.eval_batches(source, Data(image_size=64, resize=0), batch_size=32)
    expected = {"first": [], "second": []}
    for _, batch in zip(range(2), batches, strict=False):
        x = (batch["image"] / 255 - np.array(inputs.mean)) / np.array(inputs.std) * [1, 2, 3] + 5
        for name in expected:
            mean, var = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
            expected[name].append((mean, var))
            x = np.maximum((x - mean) / np.sqrt(var + 1e-5), 0)
    for name, values in expected.items():
        mean, var = np.mean(values, axis=0)
        np.testing.assert_allclose(found[name]["mean"], mean, rtol=1e-4)
        np.testing.assert_allclose(found[name]["var"], var, rtol=1e-4)


def test_another_image_stands_in_for_one_that_cannot_be_decoded(data_dir, monkeypatch):
    _, exp, source = prepared(data_dir, **{"data.on_corrupt": "skip", "bn_adapt_batches": 1})
    victims = [source[i]["file_name"] for i in (3, 4)]
    intact = loader.Source.__getitem__

    def damaged(source, index):
        example = intact(source, index)
        return {**example, "image": b"no image"} if example["file_name"] in victims else example

    model = Two()
    exp = dataclasses.replace(exp, model=model)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    inputs = exp.conditions["sharp"].inputs
    (images, *_) = (b["image"] for b in loader.eval_batches(source, Data(image_size=64, resize=0), batch_size=32))
    monkeypatch.setattr(loader.Source, "__getitem__", damaged)
    found = bn_adapt.statistics(exp, variables, inputs)
    images = images.copy()
    images[[3, 4]] = images[[5, 6]]  # good rows in turn, from where the damaged ones are
    x = (images / 255 - np.array(inputs.mean)) / np.array(inputs.std) * [1, 2, 3] + 5
    np.testing.assert_allclose(found["first"]["mean"], x.mean(axis=(0, 1, 2)), rtol=1e-4)

    victims += [source[i]["file_name"] for i in range(32)]
    with pytest.raises(UserError, match="photos train: none of the 32 images of a batch"):
        bn_adapt.statistics(exp, variables, inputs)


def test_blurred_images_give_statistics_of_their_own(data_dir):
    _, exp, _ = prepared(data_dir)
    model = Two()
    exp = dataclasses.replace(exp, model=model)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    sharp, blurred = (bn_adapt.statistics(exp, variables, exp.conditions[name].inputs) for name in ("sharp", "blurred"))
    assert (blurred["first"]["var"] < sharp["first"]["var"]).all()
    np.testing.assert_allclose(blurred["first"]["mean"], sharp["first"]["mean"], rtol=0.01)


def test_every_family_takes_the_shared_momentum():
    for name, constructor in models.MODELS.items():
        if name == "vit":
            continue
        module = models.build(name)
        source = Path(inspect.getfile(type(module))).read_text()
        assert "nn.BatchNorm" not in source, constructor  # layers.BatchNorm has it
        assert "momentum" not in source, constructor
    assert BatchNorm().momentum == MOMENTUM


def test_statistics_of_groups_are_their_mean(data_dir):
    c, exp, _ = prepared(data_dir, **{"norm.group": 8, "bn_adapt_batches": 1, "model.options.stages": "(1,)"})
    assert exp.model.norm_group == 8
    inputs = exp.conditions["sharp"].inputs
    found = {}
    for group, model in {8: exp.model, 32: exp.model.clone(norm_group=32), 0: exp.model.clone(norm_group=0)}.items():
        variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
        found[group] = bn_adapt.statistics(dataclasses.replace(exp, model=model), variables, inputs)["bn1"]
    np.testing.assert_allclose(found[32]["var"], found[0]["var"], rtol=1e-4)
    np.testing.assert_allclose(found[8]["mean"], found[0]["mean"], rtol=1e-3, atol=1e-4)
    assert (found[8]["var"] < found[0]["var"]).all()  # without what lies between the groups
    c.eval_batch_size = 36
    with pytest.raises(UserError, match=r"eval_batch_size=36: .* use a multiple of config.norm.group=8"):
        bn_adapt.check(exp, {"x": 0})


def test_a_model_without_batch_norm_and_a_split_smaller_than_a_batch_are_refused(data_dir):
    c, exp, _ = prepared(data_dir)
    assert [name for name, condition in exp.conditions.items() if condition.bn_adapt] == ["blurred_bn_adapt"]
    bn_adapt.check(exp, {"x": 0})
    with pytest.raises(UserError, match=r"config.eval.blurred_bn_adapt.bn_adapt=true: resnet50 has no BatchN"):
        bn_adapt.check(exp, {})
    c.eval_batch_size = 1000
    with pytest.raises(UserError, match=r"eval_batch_size=1000: more than the 672 images.*; use at most 672"):
        bn_adapt.check(exp, {"x": 0})
    del exp.conditions["blurred_bn_adapt"]
    bn_adapt.check(exp, {})
