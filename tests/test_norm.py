"""BatchNorm over groups of images, each as a batch of its own on any number of devices, and folded in evaluation."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import scaling
from bjax import config, experiment, models
from bjax.aot import programs
from bjax.errors import UserError
from bjax.models import layers
from bjax.models.layers import MOMENTUM, BatchNorm, normalised
from bjax.runtime import sharding
from bjax.step import state
from bjax.step.inputs import Inputs
from bjax.step.losses import Objective
from bjax.step.train_step import compiled
from bjax.tokens import MaskSpec

SMALL = {"stages": (1, 1), "width": 8}


def images_of(number, size=8):
    """Every image has a deviation of its own, so that no two groups have the same statistics."""
    random = np.random.RandomState(0)
    return (random.normal(0, 1, (number, size, size, 3)) * np.arange(1, number + 1)[:, None, None, None]).astype("f4")


def trained(norm, variables, images):
    """What a norm makes of images in training, the running statistics, and the gradients of a weighted sum."""
    weights = np.random.RandomState(1).normal(0, 1, images.shape)

    def total(params, images):
        made, changed = norm.apply({**variables, "params": params}, images, mutable="batch_stats")
        return (weights[: len(images)] * made).sum(), (made, changed["batch_stats"])

    gradients, (made, changed) = jax.jit(jax.grad(total, (0, 1), has_aux=True))(variables["params"], images)
    return made, changed, gradients


def variables_of(norm):
    variables = norm.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    return jax.tree.map(lambda x: x + jnp.array([0.5, 0.1, 0.9]), variables)


def close(ours, theirs, atol=2e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=atol), ours, theirs)


def test_each_group_is_normalised_as_torch_does_and_the_running_statistics_are_the_groups_mean():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    images, group = images_of(12), 4
    norm = BatchNorm(use_running_average=False, group=group)
    variables = variables_of(norm)
    weights = np.random.RandomState(1).normal(0, 1, images.shape)
    made, changed, (of_params, of_images) = trained(norm, variables, images)
    running = []
    scale, bias = (torch.tensor(np.asarray(variables["params"][k])).requires_grad_() for k in ("scale", "bias"))
    for i in range(0, 12, group):
        mean, var = (torch.tensor(np.asarray(variables["batch_stats"][k])) for k in ("mean", "var"))
        part = torch.tensor(images[i : i + group].transpose(0, 3, 1, 2).copy()).requires_grad_()
        theirs = torch.nn.functional.batch_norm(part, mean, var, scale, bias, training=True, momentum=1 - MOMENTUM)
        (theirs * torch.tensor(weights[i : i + group].transpose(0, 3, 1, 2).copy())).sum().backward()
        close(made[i : i + group], theirs.detach().numpy().transpose(0, 2, 3, 1))
        close(of_images[i : i + group], part.grad.numpy().transpose(0, 2, 3, 1))
        n = group * 8 * 8  # of which torch keeps the unbiased variance
        kept = MOMENTUM * variables["batch_stats"]["var"]
        running.append({"mean": mean.numpy(), "var": kept + (var.numpy() - kept) * (n - 1) / n})
    close(of_params, {"scale": scale.grad.numpy(), "bias": bias.grad.numpy()}, 1e-3)
    close(changed, jax.tree.map(lambda *x: np.mean(x, axis=0), *running))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_one_group_is_the_batch(dtype):
    images = images_of(6).astype(dtype)
    whole, one = (BatchNorm(use_running_average=False, group=group, dtype=dtype) for group in (0, 6))
    variables = variables_of(whole)
    assert jax.tree.structure(variables) == jax.tree.structure(variables_of(one))
    atol = 1e-4 if dtype == jnp.float32 else 0.1
    a, b = trained(whole, variables, images), trained(one, variables, images)
    assert a[0].dtype == b[0].dtype == dtype
    close(*(jax.tree.map(lambda x: np.asarray(x, np.float32), x) for x in (a, b)), atol)


def test_evaluation_takes_the_running_statistics_of_any_number_of_images():
    images = images_of(5)
    norms = [BatchNorm(use_running_average=True, group=group) for group in (0, 4)]
    variables = variables_of(norms[0])
    np.testing.assert_array_equal(*(norm.apply(variables, images) for norm in norms))
    with pytest.raises(ValueError, match="norm_group=4: does not divide a batch of 5 images"):
        norms[1].clone(use_running_average=False).apply(variables, images, mutable="batch_stats")


@functools.cache
def step_on(devices, group, accumulate=1):
    """Loss, parameters and running statistics after two steps of 16 images."""
    mesh = sharding.make_mesh(devices, 1, jax.devices()[:devices])
    model = models.build("resnet18", num_classes=4, norm_group=group, **SMALL)
    tx = optax.sgd(0.1, momentum=0.9)
    init = functools.partial(state.init, model=model, tx=tx, image_size=16, ema=False)
    plan = sharding.plan(jax.eval_shape(init, jax.random.key(0)), mesh, ((".*", "fsdp"),))
    inputs = Inputs(None, MaskSpec(), 16, (0.5,) * 3, (0.5,) * 3)
    objective = Objective("object", 4, accumulate=accumulate)
    step = compiled(plan, model=model, tx=tx, inputs=inputs, objective=objective, mesh=mesh)
    current = jax.jit(init, out_shardings=plan)(jax.random.key(0))
    random = np.random.RandomState(0)
    for _ in range(2):
        batch = {"image": random.randint(0, 256, (16, 16, 16, 3)).astype(np.uint8)}
        batch["image"] //= np.arange(1, 17, dtype=np.uint8)[:, None, None, None]
        batch |= {"label": np.arange(16, dtype=np.int32) % 4, "id": np.arange(16, dtype=np.uint32)}
        batch["mask"] = np.ones(16, bool)
        current, metrics = step(jax.random.key(0), current, sharding.put(batch, mesh))
    return jax.device_get((metrics["loss"], current.params, current.batch_stats))


@pytest.mark.parametrize(("group", "accumulate"), [(2, 1), (8, 1), (4, 2)])
def test_the_group_decides_and_not_the_number_of_devices(group, accumulate):
    one = step_on(1, group, accumulate)
    for devices in (2, 4, 8):  # groups within a device, and groups of several
        close(step_on(devices, group, accumulate), one)
    with pytest.raises(AssertionError):
        close(step_on(1, 0), one)


def test_a_group_within_a_device_sends_no_statistics(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "KEPT", tmp_path)
    sizes = {"batch_size": 16, "data.image_size": 32, "dtype": "float32", "model.options.stages": "(1, 1, 1, 1)"}
    calls = {}
    for group in (0, 2):
        row = scaling.measure("resnet50", jax.devices(), 1, sizes | {"norm.group": group})
        assert set(row["collectives"]) == {"all-reduce"}
        calls[group] = row["collectives"]["all-reduce"]["calls"]
    assert calls[0] > 20
    assert calls[2] <= 10


def test_groups_that_do_not_divide_a_step_and_models_without_batch_norm_are_refused():
    def refused(file, **values):
        def build():
            c = config.load(f"configs/{file}.py:demo", [(k.replace("__", "."), str(v)) for k, v in values.items()])
            experiment.build(c, 10)

        with pytest.raises(UserError) as error:
            build()
        return str(error.value)

    told = "config.norm.group=12: does not divide {} images at once; use 8, or 0 for all"
    assert refused("resnet50", norm__group=12) == told.format(32)
    assert refused("resnet50", norm__group=12, optim__accumulate=2) == told.format(16)
    for name in ("vit", "vgg19"):
        told = f"config.norm.group=8: {name} has no BatchNorm; leave the group at 0"
        assert refused(name, norm__group=8, model__name=name) == told


class Pair(nn.Module):
    """A convolution and its norm in evaluation, folded or one after the other."""

    fold: bool
    stride: int = 1
    epsilon: float = 1e-5
    bias: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        conv = nn.Conv(6, (3, 3), strides=self.stride, padding=1, use_bias=self.bias, dtype=self.dtype, name="conv")
        norm = BatchNorm(use_running_average=True, epsilon=self.epsilon, dtype=self.dtype, name="norm")
        return normalised(conv, norm, x) if self.fold else norm(conv(x))


def folded_and_not(x, dtype="float32", params="float32", **options):
    """The two pairs and variables for both: scales of either sign, and a channel that never varied."""
    pairs = [Pair(fold, dtype=jnp.dtype(dtype), **options) for fold in (True, False)]
    shapes = [jax.eval_shape(pair.init, jax.random.key(0), x) for pair in pairs]
    assert shapes[0] == shapes[1]
    random = np.random.RandomState(2)
    draw = {"kernel": (0.2, 1), "bias": (0, 1), "scale": (0.3, 1), "mean": (0, 2), "var": (1, 0.1)}

    def drawn(path, leaf):
        values = random.normal(*draw[path[-1].key], leaf.shape)
        if path[-1].key == "var":
            values[0] = 0
        return jnp.asarray(values, params if path[0].key == "params" else jnp.promote_types(params, "float32"))

    variables = jax.tree_util.tree_map_with_path(drawn, shapes[0])
    assert (variables["params"]["norm"]["scale"] < 0).any() and (variables["params"]["norm"]["scale"] > 0).any()
    return pairs, variables


@pytest.fixture(params=["cpu", "default", "here"])
def platform(request, monkeypatch):
    """What is computed on a CPU, what elsewhere, and what is chosen where the test runs."""

    def chosen(*arguments, **forms):
        return forms[request.param](*arguments)

    if request.param != "here":
        monkeypatch.setattr(layers.lax, "platform_dependent", chosen)
    jax.clear_caches()
    yield request.param
    jax.clear_caches()


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"epsilon": 1e-3}, {"bias": True, "stride": 2}])
@pytest.mark.parametrize(
    ("dtype", "params", "tolerance"),
    [
        ("float32", "float32", 1e-6),
        ("float64", "float64", 1e-14),
        ("float64", "float32", 1e-6),
        ("float32", "bfloat16", 1e-6),
        ("bfloat16", "float32", 2**-6),
    ],
)
def test_a_norm_folded_into_its_convolution_computes_the_same(options, dtype, params, tolerance, platform):
    with jax.enable_x64("float64" in (dtype, params)):
        x = jnp.asarray(np.random.RandomState(0).normal(0, 1, (2, 8, 8, 4)), dtype)
        pairs, variables = folded_and_not(x, dtype, params, **options)
        folded, plain = (jax.jit(pair.apply)(variables, x) for pair in pairs)
        assert folded.dtype == plain.dtype == dtype
        folded, plain = (np.asarray(x, np.float64) for x in (folded, plain))
        stats = jax.tree.map(np.asarray, variables["batch_stats"]["norm"])
        # Rounded are values of some 12 and the mean, before they are scaled: most where nothing varied.
        size = (12 + abs(stats["mean"])) / np.sqrt(stats["var"] + pairs[0].epsilon) + 1
        assert (abs(folded - plain) / size).max() < tolerance
        assert abs(plain).min(axis=(0, 1, 2)).min() > 0


def test_gradients_through_a_folded_norm_are_those_of_the_two(platform):
    x = jnp.asarray(np.random.RandomState(0).normal(0, 1, (2, 8, 8, 4)), "float32")
    pairs, variables = folded_and_not(x, bias=True, epsilon=1e-3)
    weights = jnp.asarray(np.random.RandomState(1).normal(0, 1, (2, 8, 8, 6)), "float32")
    grads = [jax.grad(lambda v, x, p=p: (weights * p.apply(v, x)).sum(), (0, 1))(variables, x) for p in pairs]
    for ours, theirs in zip(*map(jax.tree.leaves, grads), strict=True):
        assert abs(theirs).min() > 0
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * abs(theirs).max())


@pytest.mark.parametrize(
    ("name", "options", "left"),
    [
        ("resnet18", {"stages": (1, 2)}, 0),
        ("resnet50", {"stages": (1, 2)}, 0),
        ("vgg19_bn", {}, 0),
        ("googlenet", {}, 0),
        ("densenet121", {"stages": (2, 2)}, 4 + 1 + 1),  # those before a convolution, with a ReLU between
    ],
)
def test_evaluation_subtracts_no_mean_from_what_a_convolution_made(name, options, left):
    model = models.build(name, dtype=jnp.bfloat16, **options)
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)

    def passes(what, platform="cuda", **options):
        """Operations of that kind on arrays of [2, rows, columns, channels] in the program for a platform."""
        traced = jax.jit(functools.partial(model.apply, **options)).trace(variables, images)
        program = traced.lower(lowering_platforms=(platform,)).as_text()
        return len(re.findall(rf"stablehlo\.{what} .*tensor<2x\d+x\d+x\d+x\w+>$", program, re.MULTILINE))

    norms = len(jax.tree.leaves(variables["batch_stats"])) // 2
    training = {"train": True, "mutable": "batch_stats", "rngs": {"dropout": jax.random.key(0)}}
    assert (passes("subtract"), passes("subtract", **training)) == (left, norms)
    inputs = name == "googlenet"  # which it normalises anew
    assert passes("multiply") == left + inputs < passes("multiply", "cpu")  # equal functions are there once
