"""Cross-entropy against torch and by hand; mixing keeps images and targets together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bjax.blur.sample import Params
from bjax.step import augment, losses


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_torchs(smoothing):
    torch = pytest.importorskip("torch", reason="torch, the peer of this test, is not installed")
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(6, 5)).astype(np.float32) * 10, rng.integers(0, 5, 6)
    peer = torch.nn.CrossEntropyLoss(label_smoothing=smoothing, reduction="none")
    expected = peer(torch.tensor(logits), torch.tensor(labels))
    found = losses.cross_entropy(logits, losses.targets(jnp.asarray(labels), 5, smoothing))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_cross_entropy_of_bfloat16_logits_is_float32():
    loss = losses.cross_entropy(jnp.zeros((2, 4), jnp.bfloat16), losses.targets(jnp.array([0, 1]), 4))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, np.log(4), rtol=1e-6)


def marked(batch=4, size=16, classes=4):
    """Images whose every pixel is the image's number, so that a mixture can be read off."""
    images = jnp.broadcast_to(jnp.arange(batch, dtype=jnp.float32)[:, None, None, None], (batch, size, size, 3))
    return images, jnp.eye(classes)[:batch]


@pytest.mark.parametrize("seed", range(5))
def test_mixup_blends_each_image_with_the_one_before(seed):
    images, targets = marked()
    mixed, soft = augment.mixup(jax.random.key(seed), images, targets, 0.4)
    lam = float(soft[0, 0])
    assert 0.5 <= lam <= 1
    for i in range(4):
        np.testing.assert_allclose(mixed[i], lam * i + (1 - lam) * ((i - 1) % 4), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(soft[i, (i - 1) % 4], 1 - lam, atol=1e-6)
    np.testing.assert_allclose(soft.sum(axis=1), 1, rtol=1e-6)


def test_cutmix_labels_follow_the_pasted_area():
    images, targets = marked()
    shares = []
    for seed in range(20):
        mixed, soft = augment.cutmix(jax.random.key(seed), images, targets, 1.0)
        own = (np.asarray(mixed) == np.arange(4)[:, None, None, None]).mean(axis=(1, 2, 3))
        np.testing.assert_allclose(soft.diagonal(), own, atol=1e-6)
        np.testing.assert_allclose(soft.sum(axis=1), 1, rtol=1e-6)
        box = np.asarray(mixed[0, :, :, 0]) != 0
        rows, columns = box.any(axis=1), box.any(axis=0)
        assert box.sum() == rows.sum() * columns.sum()  # one rectangle
        shares.append(own[0])
    assert max(shares) - min(shares) > 0.5


def test_the_loss_of_parameters_counts_only_those_of_the_own_kind():
    rng = np.random.default_rng(0)
    kind = np.array([0, 1, 2, 3])
    drawn = Params(*(jnp.asarray(rng.uniform(1, 3, 4), jnp.float32) for _ in Params._fields))
    exact = np.stack(
        [
            drawn.sigma / 2,
            drawn.length / 10,
            np.cos(2 * drawn.angle),
            np.sin(2 * drawn.angle),
            drawn.radius / 4,
        ],
        axis=1,
    )
    np.testing.assert_allclose(losses.blur_parameters(exact, kind, drawn), 0, atol=1e-6)
    own = np.array([[0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 1]])
    others = exact + (1 - own)
    np.testing.assert_allclose(losses.blur_parameters(others, kind, drawn), 0, atol=1e-6)
    # PyTorch's huber_loss(delta=1): 0.5 up to an error of 1, so 0.5 · number of outputs here
    np.testing.assert_allclose(losses.blur_parameters(exact + own, kind, drawn), [0, 0.5, 1.5, 0.5], atol=1e-5)
    decoded = losses.decode_parameters(jnp.asarray(exact))
    expected = np.stack([drawn.sigma, drawn.length, drawn.angle % np.pi, drawn.radius], axis=1)
    np.testing.assert_allclose(decoded, expected, rtol=1e-5)
