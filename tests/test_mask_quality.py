"""Precision and recall of masks against a count by hand."""

import types

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from bjax import tokens
from bjax.blur import convolve, varying
from bjax.evaluate import mask_quality
from bjax.runtime import sharding
from bjax.tokens import MaskSpec

MASKS = (
    MaskSpec("attend", threshold=45_000.0),
    MaskSpec("attend", drop="above", keep_rate=0.5),
    MaskSpec("attend", threshold=0.0),
    MaskSpec("attend", selector="oracle", keep_rate=0.5),
)


@pytest.mark.parametrize(("sigma", "size"), [(2.0, 17), (4.0, 33)])
def test_counts_are_those_of_a_loop_on_any_number_of_devices(sigma, size):
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (8, 32, 48, 3), np.uint8),
        "id": np.arange(8, dtype=np.uint32),
        "mask": np.arange(8) < 6,
    }
    expected = np.zeros((len(MASKS), 4))
    for i in range(6):
        key = jax.random.fold_in(jax.random.key(0), i)
        region_key, mask_key = (jax.random.fold_in(key, n)[None] for n in (0, 1))
        image = jnp.float32(batch["image"][i : i + 1]) / 255
        image, sigma_map = varying.regions(region_key, image, sigma, kernel_size=size)
        sigma_map = np.asarray(sigma_map[0])
        blurred = np.array(
            [(sigma_map[y : y + 8, x : x + 8] > 0).mean() > 0.5 for y in range(0, 32, 8) for x in range(0, 48, 8)]
        )
        for row, mask in zip(expected, MASKS, strict=True):
            truth = sigma_map.reshape(1, 4, 8, 6, 8).mean((2, 4))
            dropped = ~np.asarray(tokens.select(mask_key, image, mask, 8, truth=truth).keep[0])
            row += (dropped & blurred).sum(), dropped.sum(), blurred.sum(), 24
    assert 0 < expected[0, 0] < expected[0, 1] < 144 and expected[3, 0] > expected[1, 0]
    for devices in (1, 8):
        mesh = sharding.make_mesh(-1, 1, jax.devices()[:devices])
        placed = sharding.put(batch, mesh)
        counts = mask_quality.count(
            jax.random.key(0),
            placed,
            jnp.float32(sigma),
            masks=MASKS,
            patch_size=8,
            mesh=mesh,
            kernel_size=size,
        )
        np.testing.assert_array_equal(counts, expected)


def test_the_kernel_holds_the_largest_sigma(monkeypatch):
    """The blur inside the regions has the deviation that mask_quality.json says."""
    image = np.zeros((1, 64, 64, 3), np.uint8)
    image[:, 32, 32] = 255
    batch = {"image": image, "id": np.zeros(1, np.uint32), "mask": np.ones(1, bool)}
    own = ml_collections.ConfigDict({"sigma": (1.0, 4.0), "split": "any"})
    config = ml_collections.ConfigDict({"mask_quality": own, "data": {"name": "any", "data_dir": ""}})
    monkeypatch.setattr(mask_quality, "eval_batches", lambda exp, source: [batch])
    seen = []

    def everywhere(key, images, sigma, *, kernel_size=19):
        blurred = convolve.gaussian(images, sigma, kernel_size=kernel_size)
        jax.debug.callback(lambda image: seen.append(np.asarray(image[0, :, :, 0], np.float64)), blurred)
        return blurred, jnp.broadcast_to(sigma[:, None, None], images.shape[:3])

    monkeypatch.setattr(mask_quality.varying, "regions", everywhere)
    exp = types.SimpleNamespace(quality={"all": MASKS[0]}, train=types.SimpleNamespace(patch_size=8))
    exp.config, exp.splits = config, {"any": None}
    exp.mesh = sharding.make_mesh(-1, 1, jax.devices()[:1])
    mask_quality.run(exp, {})
    jax.effects_barrier()
    x = np.arange(64) - 32
    deviations = [np.sqrt((image.sum(0) * x**2).sum() / image.sum()) for image in seen]
    np.testing.assert_allclose(deviations, (1.0, 4.0), rtol=0.005)


def test_rates():
    assert mask_quality.rates(30, 40, 60, 100) == {
        "precision": 0.75,
        "recall": 0.5,
        "dropped": 0.4,
        "blurred": 0.6,
        "patches": 100,
    }
    assert mask_quality.rates(0, 0, 0, 8)["precision"] is None
