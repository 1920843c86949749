"""The way from Linen to NNX is open: every family of models, wrapped by Flax's own bridge, gives the same logits."""

import jax
import numpy as np
import pytest
from flax import nnx
from flax.nnx import bridge
from flax.nnx.bridge.variables import linen_vars_to_nnx_attrs

from bjax.models import build

TINY = {
    "resnet18": {"stages": (1, 1), "width": 8},
    "resnet50": {"stages": (1, 1), "width": 8},
    "vgg19": {"stages": ((4,), (4,)), "hidden": 8},
    "vgg19_bn": {"stages": ((4,), (4,)), "hidden": 8},
    "googlenet": {"aux_heads": False},
    "densenet121": {"stages": (1, 1), "growth": 8, "width": 8},
    "vit": {"variant": "Ti/16", "depth": 1, "width": 16, "heads": 2},
}


@pytest.mark.parametrize("name", TINY)
def test_a_model_gives_the_same_logits_as_an_nnx_module(name):
    model = build(name, num_classes=3, **TINY[name])
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: rng.uniform(0.01, 0.2, leaf.shape).astype(leaf.dtype), shapes)

    @jax.jit
    def both(variables, images):
        wrapped = bridge.ToNNX(model, rngs=nnx.Rngs(0))
        for attribute, value in linen_vars_to_nnx_attrs(variables).items():
            setattr(wrapped, attribute, value)
        counted = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(wrapped, (nnx.Param, nnx.BatchStat))))
        assert counted == sum(leaf.size for leaf in jax.tree.leaves(variables))
        return model.apply(variables, images, train=False), wrapped(images, train=False)

    linen, wrapped = both(variables, images)
    assert np.isfinite(linen).all() and np.ptp(linen) > 0
    np.testing.assert_allclose(wrapped, linen, rtol=1e-6)
