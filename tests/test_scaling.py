"""What fsdp saves and what training sends, read off compiled programs: memory a device, collectives a step."""

import functools

import jax
import pytest

from benchmarks import scaling
from bjax import models, optim, sharding, state
from configs import common

VIT_L = {"variant": "L/16", "depth": 1}  # its embedding, head and one of its blocks


@pytest.fixture(scope="module")
def compiled():
    """{fsdp: the measurements of a step of a block of ViT-L on eight devices}"""
    return {n: scaling.measure("vit", VIT_L, (8 // n, n), batch=8, size=32) for n in (1, 8)}


def test_data_parallel_training_reduces_the_gradient_once_and_gathers_nothing(compiled):
    found = compiled[1]["collectives"]
    assert set(found) == {"all-reduce"}
    assert (
        found["all-reduce"]["calls"] == 2
    )  # the number of images that count, before; gradient and metrics, after
    # Within 0.1 %: the class token's gradient is a row of the position embedding's, sent once.
    assert found["all-reduce"]["bytes"] == pytest.approx(4 * compiled[1]["parameters"], rel=1e-3)


def test_the_memory_of_a_device_falls_with_fsdp(compiled):
    assert compiled[8]["state"] < compiled[1]["state"] / 7.9
    for row in compiled.values():  # the compiled program takes what the plan says, and the batch
        assert row["arguments"] == pytest.approx(row["state"], rel=1e-3)


def test_fsdp_gathers_the_weights_once_and_moves_no_activations(compiled):
    found = compiled[8]["collectives"]
    assert set(found) == {"all-gather", "all-reduce"}
    weights = 4 * compiled[8]["parameters"]
    assert (
        0.98 * weights < found["all-gather"]["bytes"] <= weights
    )  # biases and norms are whole on every device
    assert found["all-reduce"]["bytes"] == pytest.approx(weights, rel=1e-3)


def test_a_device_holds_its_part_of_vgg19s_classifier():
    model = models.build("vgg19", num_classes=1000)
    tx = optim.build(common.default().optim, 100)
    init = functools.partial(state.init, model=model, tx=tx, image_size=224, ema=False)
    shapes = jax.eval_shape(init, jax.random.key(0))
    held = {}
    for fsdp in (1, 8):
        plan = sharding.plan(shapes, sharding.make_mesh(8 // fsdp, fsdp), ((".*", "fsdp"),))
        held[fsdp] = (
            scaling.held(shapes, plan),
            scaling.held(shapes.params["classifier_0"], plan.params["classifier_0"]),
        )
    assert held[1] == (pytest.approx(12 * 143_667_240, rel=1e-6), 4 * (25088 + 1) * 4096)
    assert held[8][1] == 4 * (25088 // 8 + 1) * 4096
    assert held[8][0] < held[1][0] / 7.8


def test_collectives_are_read_from_hlo():
    hlo = """
  %all-reduce.1 = (f32[4,8]{1,0}, /*index=1*/bf16[3]{0}) all-reduce(%a, %b), channel_id=1
  ROOT %ag = f32[2,2]{1,0} all-gather(%c), dimensions={0}
  %all-gather-start.2 = f32[] all-gather-start(%c), dimensions={0}
  %done = f32[] all-gather-done(%all-gather-start.2)
  %x = f32[4]{0} add(%all-reduce.1, %y)
"""
    assert scaling.collectives(hlo) == {
        "all-reduce": {"calls": 1, "arrays": 2, "bytes": 134},
        "all-gather": {"calls": 2, "arrays": 2, "bytes": 20},
    }
