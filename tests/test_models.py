import subprocess
import sys
import textwrap
from functools import partial
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest

from bjax import weights
from bjax.errors import UserError
from bjax.models import MODELS, build
from bjax.models.layers import MOMENTUM, adaptive_average_pool
from bjax.models.vit import Block, patchify, resize_positions

# At 224 pixels with 1000 classes: torchvision's own counts, and timm's for ViT Ti and S
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "vgg19": 143_667_240,
    "vgg19_bn": 143_678_248,
    "googlenet": 13_004_888,
    "densenet121": 7_978_856,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    "vit": 22_050_664,
}


def shapes(model, size=224):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))


def count(model):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(model)["params"]))


@pytest.mark.parametrize("name", MODELS)
def test_parameter_counts(name):
    assert name in PARAMETERS, f"pin the parameter count of {name}"
    assert count(build(name)) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("vit", {"variant": "Ti/16"}, 5_717_416),
        ("vit", {"variant": "B/16"}, 86_567_656),
        ("vit", {"variant": "B/32"}, 88_224_232),
        ("vit", {"variant": "L/16"}, 304_326_632),
        ("vit", {"variant": "H/14"}, 632_045_800),
        ("googlenet", {"aux_heads": False}, 6_624_904),
        ("densenet121", {"num_classes": 4}, 6_957_956),
    ],
)
def test_parameter_counts_of_options(name, options, parameters):
    assert count(build(name, **options)) == parameters


@pytest.mark.parametrize("name", ["resnet50", "vgg19_bn", "googlenet", "densenet121", "vit"])
def test_bfloat16_computes_with_float32_parameters_statistics_and_logits(name):
    model = build(name, num_classes=7, dtype=jnp.bfloat16)
    variables = shapes(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    images = jax.ShapeDtypeStruct((3, 224, 224, 3), jnp.float32)
    logits = jax.eval_shape(model.apply, variables, images)
    assert (logits.shape, logits.dtype) == ((3, 7), jnp.float32)
    # Every product is of bfloat16 matrices, but for the head's.
    products = list(products_of(jax.make_jaxpr(model.apply)(variables, images).jaxpr))
    assert [product for product in products if product[0] != "bfloat16"] == [("float32", (3, 7))]
    assert len(products) > 12

    def train(variables, images):
        rngs = {"dropout": jax.random.key(0)}
        return model.apply(variables, images, train=True, rngs=rngs, mutable="batch_stats")

    outputs, updates = jax.eval_shape(train, variables, images)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} <= {jnp.dtype("float32")}
    if name == "googlenet":
        outputs, aux_logits = outputs
        assert [(head.shape, head.dtype) for head in aux_logits] == [((3, 7), jnp.float32)] * 2
    assert (outputs.shape, outputs.dtype) == ((3, 7), jnp.float32)


def products_of(jaxpr):
    """The type of the inputs and the shape of every convolution and matrix product."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            left, right = (operand.aval.dtype.name for operand in equation.invars)
            yield left if left == right else f"{left} and {right}", equation.outvars[0].aval.shape
        for inner in equation.params.values():
            if hasattr(inner, "jaxpr"):
                yield from products_of(inner.jaxpr)


@pytest.mark.parametrize(
    ("name", "options", "smallest"),
    [
        ("resnet50", {}, 1),
        ("vgg19", {}, 32),
        ("vgg19_bn", {"stages": ((4,),) * 4}, 16),
        ("googlenet", {}, 15),
        ("densenet121", {}, 29),
        ("densenet121", {"stages": (1, 1)}, 5),
    ],
)
def test_images_of_fewer_than_the_smallest_pixels_are_refused(name, options, smallest):
    model = build(name, num_classes=3, **options)
    assert model.smallest == smallest
    shapes(model, smallest)
    if smallest > 1:
        with pytest.raises(ValueError, match=r"nothing left to pool, .*: the images are too small"):
            shapes(model, smallest - 1)


def test_the_smallest_images_of_a_densenet_give_finite_logits():
    model = build("densenet121", num_classes=3, stages=(1, 1), width=4, growth=4)
    images = jnp.asarray(peers.random_images(model.smallest, batch=2))
    assert np.isfinite(model.apply(model.init(jax.random.key(0), images), images)).all()


def test_googlenet_without_auxiliary_heads_returns_logits_in_training():
    model = build("googlenet", num_classes=7, aux_heads=False, dropout=0.0)
    images = jnp.zeros((3, 64, 64, 3))
    train = partial(model.apply, train=True, mutable="batch_stats")
    assert jax.eval_shape(train, shapes(model, 64), images)[0].shape == (3, 7)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet51", {}, r"unknown model: 'resnet51'; known: resnet18, .* \(did you mean resnet50\?\)"),
        ("zzz", {}, "unknown model: 'zzz'; known: .*, vit$"),
        (
            "resnet50",
            {"variant": "S/16"},
            "unknown option of model 'resnet50': 'variant'; known: bottleneck, ",
        ),
        ("vit", {"dept": 6}, r"unknown option of model 'vit': 'dept'; known: .* \(did you mean depth\?\)"),
        ("vit", {"variant": "S16"}, "variant='S16': expected Ti, S, B, L, H, then /patch size"),
        ("vit", {"variant": "S/0"}, "variant='S/0'"),
        ("vit", {"width": 100}, "heads=6 does not divide width=100"),
    ],
)
def test_unknown_names_and_options(name, options, message):
    with pytest.raises(UserError, match=message) as error:
        build(name, **options)
    assert "\n" not in str(error.value)


def test_adaptive_average_pool_is_torchs():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    for height in (1, 5, 7, 14):
        x = np.random.RandomState(height).normal(0, 1, (2, height, 13, 3)).astype(np.float32)
        for size in (4, 7):
            theirs = peers.run(torch.nn.AdaptiveAvgPool2d(size), x).transpose(0, 2, 3, 1)
            np.testing.assert_allclose(adaptive_average_pool(x, size), theirs, atol=1e-6)


def test_images_too_small_to_pool():
    model = build("vgg19", stages=((4,),) * 5, hidden=8)
    with pytest.raises(ValueError, match="the images are too small"):
        shapes(model, 31)


@pytest.mark.parametrize(
    ("name", "options", "theirs"),
    [
        (
            "resnet18",
            {"stages": (1, 1, 1, 1)},
            lambda zoo: zoo.resnet.ResNet(zoo.resnet.BasicBlock, [1, 1, 1, 1]),
        ),
        ("densenet121", {"stages": (1, 1)}, lambda zoo: zoo.DenseNet(block_config=(1, 1))),
    ],
)
def test_random_initialisation_has_torchvisions_deviations(name, options, theirs):
    state = theirs(peers.torchvision_models()).state_dict()
    model = build(name, **options)
    tensors = {key: value.numpy() for key, value in state.items()}
    expected = weights.convert(name, tensors, like=shapes(model))["params"]
    # "rbg" keys compile faster.
    ours = jax.jit(model.init)(jax.random.key(0, impl="rbg"), jnp.zeros((1, 32, 32, 3)))["params"]
    for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(expected), strict=True):
        if a.ndim > 1:
            assert abs(np.std(a) / np.std(b) - 1) < 8 / np.sqrt(a.size), jax.tree_util.keystr(path)
            assert abs(np.mean(a)) < 5 * np.std(b) / np.sqrt(a.size), jax.tree_util.keystr(path)


def test_statistics_of_a_sharded_batch_are_global():
    # Two devices need their own process: their number is fixed when JAX starts.
    code = """
        import jax, jax.numpy as jnp, numpy as np
        from jax.sharding import AxisType, NamedSharding, PartitionSpec
        from bjax.models import build

        model = build("resnet18", num_classes=3, stages=(1,), width=4)
        images = jax.random.normal(jax.random.key(0), (4, 16, 16, 3)) * jnp.arange(1, 5)[:, None, None, None]
        variables = jax.jit(model.init)(jax.random.key(1, impl='rbg'), images)
        train = jax.jit(lambda images: model.apply(variables, images, train=True, mutable="batch_stats"))
        mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
        sharded = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
        assert len(sharded.sharding.device_set) == 2
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), train(sharded), train(images))
        half = train(images[:2])[1]["batch_stats"]["bn1"]["mean"]
        assert not np.allclose(half, train(images)[1]["batch_stats"]["bn1"]["mean"], atol=1e-5)
    """
    command = [
        sys.executable,
        "-c",
        f"import jax; jax.config.update('jax_num_cpu_devices', 2)\n{textwrap.dedent(code)}",
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


# The ViT and its tokens


def tokens(mode, keep, indices=None, full=False):
    return SimpleNamespace(mode=mode, keep=keep, indices=indices, full=full)


@pytest.fixture(scope="module")
def vit():
    """A small ViT on 48-pixel images, 36 patches; its variables, none of which is zero; images."""
    model = build("vit", num_classes=5, variant="Ti/8", depth=2, width=48, heads=3)
    images = jnp.asarray(peers.random_images(48, batch=8))
    variables = shapes(model, 48)
    random = np.random.RandomState(0)
    variables = jax.tree.map(lambda leaf: jnp.float32(random.normal(0, 0.2, leaf.shape)), variables)
    return model, variables, images


@pytest.fixture(scope="module")
def keep():
    """bool[8, 36]: images that keep from all of their patches to none."""
    return jax.random.uniform(jax.random.key(3), (8, 36)) > jnp.linspace(0, 1, 8)[:, None]


def logits(vit, *args, **kwargs):
    model, variables, images = vit
    return jax.jit(lambda images: model.apply(variables, images, tokens=tokens(*args, **kwargs)))(images)


def test_keeping_all_changes_no_bit(vit):
    model, variables, images = vit
    expected = jax.jit(model.apply)(variables, images)
    everything = jnp.ones((8, 36), bool)
    for mode in ("zero_pixels", "zero_tokens", "attend"):
        np.testing.assert_array_equal(logits(vit, mode, everything), expected)
    indices = jnp.broadcast_to(jnp.arange(36), (8, 36))
    for full in (False, True):
        np.testing.assert_array_equal(logits(vit, "gather", everything, indices, full=full), expected)


def test_gather_is_attend(vit, keep):
    expected = logits(vit, "attend", keep)
    assert np.isfinite(expected).all()
    assert keep[0].all()
    assert not keep[7].any()
    # Kept patches first, as many as the fullest image has; then shuffled, since their order has no meaning.
    order = jnp.argsort(~keep, axis=1)
    np.testing.assert_allclose(logits(vit, "gather", keep, order), expected, rtol=0, atol=1e-5)
    shuffled = jax.random.permutation(jax.random.key(1), order, axis=1, independent=True)
    np.testing.assert_allclose(logits(vit, "gather", keep, shuffled), expected, rtol=0, atol=1e-5)
    # A budget that some images do not use up, and that others exceed by none
    budget = tuple(leaf[2:] for leaf in (keep, order[:, :30]))
    assert budget[0].sum(1).max() <= 30
    small = (vit[0], vit[1], vit[2][2:])
    np.testing.assert_allclose(logits(small, "gather", *budget), expected[2:], rtol=0, atol=1e-5)


def test_a_full_budget_needs_no_mask(vit):
    keep = jax.random.permutation(jax.random.key(0), jnp.tile(jnp.arange(36) < 12, (8, 1)), axis=1, independent=True)
    indices = jnp.argsort(~keep, axis=1)[:, :12]
    expected = logits(vit, "attend", keep)
    np.testing.assert_allclose(logits(vit, "gather", keep, indices, full=True), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["attend", "gather"])
def test_dropped_pixels_have_no_influence(vit, keep, mode):
    model, variables, images = vit
    indices = jnp.argsort(~keep, axis=1)
    total = lambda images: model.apply(variables, images, tokens=tokens(mode, keep, indices)).sum()  # noqa: E731
    gradient = jnp.abs(patchify(jax.jit(jax.grad(total))(images), 8)).max(axis=2)
    np.testing.assert_array_equal(gradient > 0, keep)
    other = jnp.where(jnp.repeat(jnp.repeat(keep.reshape(8, 6, 6, 1), 8, 1), 8, 2), images, 9.0)
    changed = logits((model, variables, other), mode, keep, indices)
    np.testing.assert_array_equal(changed, logits(vit, mode, keep, indices))


def test_zero_tokens_zeroes_the_embedding_and_keeps_the_position(vit, keep):
    model, variables, images = vit
    # A patch whose embedding is zero: pixels that cancel the bias, which a matrix of full column rank allows.
    kernel, bias = variables["params"]["embedding"]["kernel"], variables["params"]["embedding"]["bias"]
    pixels = -np.linalg.lstsq(np.asarray(kernel, np.float64).T, np.asarray(bias, np.float64))[0]
    patches = jnp.where(keep[:, :, None], patchify(images, 8), pixels.astype(np.float32))
    erased = patches.reshape(8, 6, 6, 8, 8, 3).swapaxes(2, 3).reshape(8, 48, 48, 3)
    expected = jax.jit(model.apply)(variables, erased)
    np.testing.assert_allclose(logits(vit, "zero_tokens", keep), expected, rtol=0, atol=1e-4)


def test_unknown_mode_and_sizes(vit):
    model, variables, images = vit
    with pytest.raises(ValueError, match=r"tokens\.mode='prune': expected zero_pixels"):
        model.apply(variables, images, tokens=tokens("prune", None))
    with pytest.raises(ValueError, match="images of 47x48 pixels do not divide into patches of 8"):
        model.apply(variables, images[:, :47])
    with pytest.raises(ValueError, match="the position embedding is for 36 patches, the images have 30"):
        model.apply(variables, images[:, :40])


def test_a_position_embedding_of_another_width_is_called_that(vit):
    _, variables, images = vit
    model = build("vit", num_classes=5, variant="Ti/8", depth=2, width=64, heads=2)
    for shown in (images, images[:, :40]):
        with pytest.raises(ValueError, match="the position embedding is 48 wide, the model 64: these variables"):
            model.apply(variables, shown)


def test_patches_are_numbered_row_by_row():
    images = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    patches = patchify(images, 2)
    assert patches.shape == (2, 6, 12)
    np.testing.assert_array_equal(patches[1, 4], images[1, 2:4, 2:4].ravel())


@pytest.mark.parametrize("grid", [(7, 7), (24, 24), (16, 9)])
def test_positions_are_resized_as_in_timm(grid):
    timm = peers.timm()
    import torch

    embedding = np.random.RandomState(0).normal(size=(1, 1 + 14 * 14, 8)).astype(np.float32)
    theirs = timm.layers.resample_abs_pos_embed(torch.from_numpy(embedding), list(grid)).numpy()
    np.testing.assert_allclose(resize_positions(embedding, grid), theirs, rtol=0, atol=1e-5)
    assert resize_positions(embedding, (14, 14)) is embedding
    with pytest.raises(ValueError, match="expected a class token and n"):
        resize_positions(embedding[:, 1:], grid)


def test_dropped_paths_are_whole_images_scaled_to_keep_the_mean():
    block = Block(heads=2, mlp_dim=8, dropout=0.0, drop_path=0.25, tanh_gelu=False, dtype=jnp.float32)
    x = jax.random.normal(jax.random.key(0), (64, 5, 4))
    variables = jax.jit(partial(block.init, train=False))(jax.random.key(1), x, None)
    # With the MLP at zero only the attention adds to the stream.
    variables["params"]["mlp_2"] = jax.tree.map(jnp.zeros_like, variables["params"]["mlp_2"])
    added = jax.jit(partial(block.apply, train=False))(variables, x, None)[0] - x
    train = jax.jit(partial(block.apply, train=True))
    trained = np.asarray(train(variables, x, None, rngs={"dropout": jax.random.key(2)})[0] - x)
    dropped = (trained == 0).all(axis=(1, 2))
    assert 5 < dropped.sum() < 30
    np.testing.assert_allclose(trained[~dropped], added[~dropped] / 0.75, rtol=0, atol=1e-5)


def test_depth_of_the_drop_path_grows_linearly():
    model = build("vit", variant="Ti/8", depth=4, width=24, heads=3, drop_path=0.3)
    rates = []

    def record(next_call, args, kwargs, context):
        if isinstance(context.module, Block):
            rates.append(context.module.drop_path)
        return next_call(*args, **kwargs)

    with nn.intercept_methods(record):
        shapes(model, 16)
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize(("shape", "less"), [((4, 2, 2, 3), 0.0625), ((32, 2, 2, 3), 0.0078), ((256, 7, 7, 3), 8e-5)])
def test_the_running_variance_is_the_biased_one_where_torchs_is_not(shape, less):
    torch = pytest.importorskip("torch")
    images = np.random.default_rng(0).normal(3, 2, shape).astype(np.float32)
    theirs = torch.nn.BatchNorm2d(3)
    expected = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2))).detach().numpy().transpose(0, 2, 3, 1)
    ours = nn.BatchNorm(use_running_average=False, momentum=MOMENTUM)
    variables = ours.init(jax.random.key(0), images)
    normalised, changed = ours.apply(variables, images, mutable="batch_stats")
    np.testing.assert_allclose(normalised, expected, rtol=0, atol=1e-5)  # in training they agree
    # Both begin with 1.
    ratio = (np.asarray(changed["batch_stats"]["var"]) - MOMENTUM) / (theirs.running_var.numpy() - MOMENTUM)
    np.testing.assert_allclose(1 - ratio, less, rtol=0.02, atol=2e-6)
