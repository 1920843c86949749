"""Adapted statistics are those a pass over the images gives, in every family that has BatchNorm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bjax import models, sharding, step
from bjax.blur.sample import BlurSpec
from bjax.models.norm import MOMENTUM
from bjax.tokens import MaskSpec

INPUTS = step.Inputs(BlurSpec({"sharp": 1.0}), MaskSpec(), 16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.mark.parametrize("name", ["resnet18", "vgg19_bn", "googlenet", "densenet121"])
def test_the_first_norm_gets_the_mean_and_variance_of_its_input(name):
    options = {"hidden": 8} if name == "vgg19_bn" else {}
    options |= {"stages": (2, 2, 2, 2)} if name == "densenet121" else {}
    model = models.build(name, num_classes=3, **options)
    batch = {
        "image": np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8),
        "id": np.arange(4, dtype=np.uint32),
    }
    mesh = sharding.make_mesh(1, 1, jax.devices()[:1])

    @jax.jit
    def both(batch):
        variables = model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
        found = step.batch_statistics(
            jax.random.key(0), variables, batch, model=model, inputs=INPUTS, mesh=mesh, momentum=MOMENTUM
        )
        # An oracle of its own: catch what the first convolution returns, and take its statistics by hand.
        images = (batch["image"] / 255.0 - 0.5) / 0.25
        _, caught = model.apply(
            variables, images, train=False, capture_intermediates=lambda m, _: isinstance(m, jax_conv()), mutable=True
        )
        return found, caught["intermediates"]

    found, convolutions = both(batch)
    outputs = [np.asarray(x, np.float64) for x in jax.tree.leaves(convolutions)]
    means = {x.shape[-1]: [] for x in outputs}
    for x in outputs:
        means[x.shape[-1]].append((x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))))
    first = min(jax.tree_util.tree_leaves_with_path(found), key=lambda item: _order(name, item[0]))
    path = jax.tree_util.keystr(first[0][:-1])
    stats = {jax.tree_util.keystr(p): v for p, v in jax.tree_util.tree_leaves_with_path(found)}
    mean, var = stats[f"{path}['mean']"], stats[f"{path}['var']"]
    assert any(
        np.allclose(mean, m, atol=1e-4) and np.allclose(var, v, rtol=1e-3) for m, v in means[len(mean)]
    ), path


def jax_conv():
    from flax import linen as nn

    return nn.Conv


def _order(name, path):
    """Sorts the stem's norm first: it alone is fed the same in training and in evaluation."""
    stem = {"resnet18": "bn1", "vgg19_bn": "features_1", "googlenet": "conv1", "densenet121": "norm0"}[name]
    return stem not in [getattr(k, "key", "") for k in path]
