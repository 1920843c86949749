import builtins
import functools
import gzip
import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import peers
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bjax import models, weights
from bjax.errors import UserError
from bjax.models.vit import resize_positions
from bjax.weights.__main__ import main

pytestmark = pytest.mark.usefixtures("optimized")
SLOW = functools.partial(pytest.param, marks=pytest.mark.slow)

GOLDEN = json.loads(gzip.decompress((Path(__file__).parent / "golden" / "models.json.gz").read_bytes()))
# The small members that tests/golden/make.py writes
OPTIONS = {
    "resnet50": {"stages": (1, 1, 1, 1)},
    "vgg19_bn": {"stages": ((8,), (8,), (8,), (8,), (16,)), "hidden": 32},
    "googlenet": {},
    "densenet121": {"stages": (1, 2, 1, 1), "growth": 8, "width": 16},
    "vit": {"variant": "Ti/8", "width": 48, "depth": 2, "heads": 3, "mlp_dim": 96},
}


def golden_tensors(name):
    return peers.random_tensors(GOLDEN[name]["shapes"], GOLDEN[name]["gain"])


def golden_model(name, num_classes=5, image_size=None):
    """The small model, and the shapes of its variables."""
    model = models.build(name, num_classes=num_classes, **OPTIONS[name])
    size = image_size or GOLDEN[name]["image_size"]
    return model, jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))


def equal(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def same_function(model, variables, images, logits):
    """Within 1e-4 of PyTorch's logits, and of the same opinion."""
    ours = np.asarray(jax.jit(model.apply)(variables, images))
    np.testing.assert_allclose(ours, logits, rtol=0, atol=1e-4)
    assert (ours.argmax(1) == logits.argmax(1)).all()


@pytest.mark.parametrize("name", GOLDEN)
def test_logits_of_golden_files(name):
    model, like = golden_model(name)
    variables = weights.convert(name, golden_tensors(name), like=like)
    images = peers.random_images(GOLDEN[name]["image_size"])
    same_function(model, variables, images, np.array(GOLDEN[name]["logits"]))


@pytest.mark.parametrize(
    ("name", "sizes", "options", "gain"),
    [
        ("resnet18", (224,), {}, 1.0),
        SLOW("resnet50", (224, 193), {}, 1.0),
        SLOW("vgg19", (224, 160), {"init_weights": False}, 1.0),
        SLOW("googlenet", (224, 203), {"init_weights": False, "transform_input": True}, 1.25),
        SLOW("densenet121", (224, 187), {}, 1.25),
    ],
)
def test_logits_of_torchvision(name, sizes, options, gain):
    zoo = peers.torchvision_models()
    theirs, tensors = peers.with_random_weights(lambda: getattr(zoo, name)(**options), gain)
    variables = weights.convert(name, tensors)
    for size in sizes:
        images = peers.random_images(size)
        same_function(models.build(name), variables, images, peers.run(theirs, images))


@pytest.mark.parametrize(("variant", "size"), [("B/16", 224), ("B/32", 160)])
def test_logits_of_torchvision_vit(variant, size):
    zoo = peers.torchvision_models()
    patch_size = int(variant[2:])
    build = zoo.vit_b_16 if patch_size == 16 else zoo.vit_b_32
    theirs, tensors = peers.with_random_weights(lambda: build(image_size=size))
    images = peers.random_images(size)
    model = models.build("vit", variant=variant)
    same_function(model, weights.convert("vit", tensors), images, peers.run(theirs, images))


@pytest.mark.parametrize("name", ["resnet101", "resnet152", "vgg19_bn", "densenet169", "densenet201"])
def test_every_key_of_torchvision_finds_its_place(name):
    zoo = peers.torchvision_models()
    import torch

    with torch.device("meta"):
        state = getattr(zoo, name)().state_dict()
    # Zeros of stride zero: no memory for the larger ones
    zeros = {key: np.broadcast_to(np.float32(0), value.shape) for key, value in state.items()}
    variables = weights.convert(name, zeros)
    assert len(jax.tree.leaves(variables)) == sum("num_batches" not in key for key in state)


def test_googlenet_training_outputs():
    zoo = peers.torchvision_models()
    import torch

    theirs, tensors = peers.with_random_weights(
        lambda: zoo.googlenet(num_classes=7, init_weights=False, dropout=0, dropout_aux=0, transform_input=True)
    )
    model = models.build("googlenet", num_classes=7, dropout=0.0, aux_dropout=0.0)
    images = peers.random_images(123, batch=4)
    apply = jax.jit(lambda variables, images: model.apply(variables, images, train=True, mutable="batch_stats"))
    # To its end: torch writes its new statistics into the memory that these arrays share.
    (logits, aux), updates = jax.block_until_ready(apply(weights.convert("googlenet", tensors), images))
    with torch.no_grad():
        expected = theirs.train()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    for ours, torchs in zip((logits, *aux), (expected.logits, expected.aux_logits1, expected.aux_logits2), strict=True):
        np.testing.assert_allclose(ours, torchs.numpy(), rtol=0, atol=1e-4)
    # PyTorch's new variances are unbiased, Flax's are not; the means must agree.
    running = {key: value.numpy() for key, value in theirs.state_dict().items()}
    expected = flax.traverse_util.flatten_dict(weights.convert("googlenet", running)["batch_stats"])
    for path, ours in flax.traverse_util.flatten_dict(updates["batch_stats"]).items():
        if path[-1] == "mean":
            np.testing.assert_allclose(ours, expected[path], rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("train", "dtype"), [(False, "float32"), (True, "float64")])
def test_resnet50_gradients(train, dtype):
    # With the statistics of a small batch, float32's rounding alone moves the gradients by percents, so that
    # training mode is compared in float64.
    zoo = peers.torchvision_models()
    import torch

    theirs, tensors = peers.with_random_weights(lambda: zoo.resnet50(num_classes=10))
    images, labels = peers.random_images(96, batch=4).astype(dtype), np.array([3, 1, 4, 1])
    theirs = theirs.to(getattr(torch, dtype)).train(train)
    for parameter in theirs.parameters():
        parameter.requires_grad_()
    logits = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).backward()
    # A gradient has its parameter's layout, so the same import carries it over.
    gradients = {key: parameter.grad.numpy() for key, parameter in theirs.named_parameters()}
    expected = weights.convert("resnet50", tensors | gradients)["params"]

    with jax.enable_x64(dtype == "float64"):
        model = models.build("resnet50", num_classes=10, dtype=dtype)
        variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), weights.convert("resnet50", tensors))

        def loss(params, batch_stats):
            variables = {"params": params, "batch_stats": batch_stats}
            logits, _ = model.apply(variables, images, train=train, mutable="batch_stats")
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        ours = jax.jit(jax.grad(loss))(variables["params"], variables["batch_stats"])
    errors = jax.tree.map(lambda a, b: np.linalg.norm(np.asarray(a) - b) / np.linalg.norm(b), ours, expected)
    for path, error in flax.traverse_util.flatten_dict(errors, sep="/").items():
        assert error < (1e-3 if dtype == "float32" else 1e-6), path


def test_timm_has_torchvisions_keys_for_resnet_and_densenet():
    zoo, timm = peers.torchvision_models(), peers.timm()
    import torch

    with torch.device("meta"):
        for name in ("resnet50", "densenet121"):
            shapes = [
                {key: value.shape for key, value in model.state_dict().items()}
                for model in (getattr(zoo, name)(), timm.create_model(name))
            ]
            assert shapes[0] == shapes[1]


def test_logits_of_timm_vgg():
    timm = peers.timm()
    stages = [8, "M", 8, "M", 8, "M", 8, "M", 16, "M"]
    theirs, tensors = peers.with_random_weights(lambda: timm.models.vgg.VGG(stages, num_classes=5))
    model = models.build("vgg19", num_classes=5, stages=OPTIONS["vgg19_bn"]["stages"])
    images = peers.random_images(224)
    variables = weights.convert("vgg19", tensors, like=jax.eval_shape(model.init, jax.random.key(0), images))
    same_function(model, variables, images, peers.run(theirs, images))
    import torch

    with torch.device("meta"):
        everything = timm.create_model("vgg19").state_dict()
    zeros = {key: np.broadcast_to(np.float32(0), value.shape) for key, value in everything.items()}
    assert len(jax.tree.leaves(weights.convert("vgg19", zeros))) == len(everything) == 38


def test_logits_of_timm_vit():
    timm = peers.timm()
    theirs, tensors = peers.with_random_weights(lambda: timm.create_model("vit_tiny_patch16_224"))
    images = peers.random_images(224)
    model = models.build("vit", variant="Ti/16")
    same_function(model, weights.convert("vit", tensors), images, peers.run(theirs, images))


def vision_transformer_tensors(width=48, depth=2, heads=3, mlp_dim=96, patch_size=8, grid=4, classes=5):
    """Names and shapes as google-research/vision_transformer saves them."""
    dense = lambda name, *shape, bias: {f"{name}/kernel": shape, f"{name}/bias": bias}  # noqa: E731
    norm = lambda name: {f"{name}/scale": (width,), f"{name}/bias": (width,)}  # noqa: E731
    shapes = {
        "cls": (1, 1, width),
        "Transformer/posembed_input/pos_embedding": (1, grid * grid + 1, width),
        **dense("embedding", patch_size, patch_size, 3, width, bias=(width,)),
        **norm("Transformer/encoder_norm"),
        **dense("head", width, classes, bias=(classes,)),
    }
    for i in range(depth):
        block = f"Transformer/encoderblock_{i}"
        attention = f"{block}/MultiHeadDotProductAttention_1"
        split = (heads, width // heads)
        for part in ("query", "key", "value"):
            shapes |= dense(f"{attention}/{part}", width, *split, bias=split)
        shapes |= dense(f"{attention}/out", *split, width, bias=(width,))
        shapes |= norm(f"{block}/LayerNorm_0") | norm(f"{block}/LayerNorm_2")
        shapes |= dense(f"{block}/MlpBlock_3/Dense_0", width, mlp_dim, bias=(mlp_dim,))
        shapes |= dense(f"{block}/MlpBlock_3/Dense_1", mlp_dim, width, bias=(width,))
    random = np.random.RandomState(2)
    return {key: random.uniform(-0.4, 0.4, shape).astype(np.float32) for key, shape in shapes.items()}


@pytest.mark.parametrize("tanh_gelu", [False, True])
def test_logits_of_a_vision_transformer_file(tmp_path, tanh_gelu):
    timm = peers.timm()
    path = tmp_path / "ViT-Ti_8.npz"
    np.savez(path, **vision_transformer_tensors())
    theirs = timm.models.vision_transformer.VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=48,
        depth=2,
        num_heads=3,
        mlp_ratio=2,
        num_classes=5,
        act_layer="gelu_tanh" if tanh_gelu else "gelu",
    ).eval()
    theirs.load_pretrained(str(path))
    images = peers.random_images(32)
    model = models.build("vit", num_classes=5, tanh_gelu=tanh_gelu, **OPTIONS["vit"])
    same_function(model, weights.load("vit", path), images, peers.run(theirs, images))


def test_vision_transformer_file_in_bfloat16_and_with_pre_logits(tmp_path):
    tensors = vision_transformer_tensors()
    np.savez(tmp_path / "f32.npz", **tensors)
    rounded = {f"opt/target/{key}": tensor.astype(ml_dtypes.bfloat16) for key, tensor in tensors.items()}
    np.savez(tmp_path / "bf16.npz", **rounded)
    exact, coarse = (weights.load("vit", tmp_path / file) for file in ("f32.npz", "bf16.npz"))
    assert equal(coarse, jax.tree.map(lambda a: a.astype(ml_dtypes.bfloat16).astype(np.float32), exact))

    np.savez(tmp_path / "21k.npz", **tensors | {"pre_logits/kernel": np.eye(48), "pre_logits/bias": np.ones(48)})
    variables = weights.load("vit", tmp_path / "21k.npz")
    assert variables["params"]["pre_logits"]["bias"].dtype == np.float32
    like = golden_model("vit", num_classes=3)[1]
    with pytest.raises(UserError, match="pre_logits/kernel"):
        weights.load("vit", tmp_path / "21k.npz", like=like)
    assert weights.load("vit", tmp_path / "21k.npz", like=like, new_head=True)["params"].keys() == like["params"].keys()


@pytest.mark.parametrize(
    ("name", "renames"),
    [
        ("densenet121", {"norm1": "norm.1", "norm2": "norm.2", "conv1": "conv.1", "conv2": "conv.2"}),
        ("vit", {"mlp.0": "mlp.linear_1", "mlp.3": "mlp.linear_2"}),
    ],
)
def test_keys_of_early_torchvision_releases(name, renames):
    tensors = golden_tensors(name)
    legacy = {}
    for key, tensor in tensors.items():
        for new, old in renames.items():
            key = key.replace(f"{new}.", f"{old}.") if "layer" in key else key
        legacy[key] = tensor
    assert legacy.keys() != tensors.keys()
    like = golden_model(name)[1]
    assert equal(weights.convert(name, legacy, like=like), weights.convert(name, tensors, like=like))


def test_safetensors_and_npz_are_read_without_torch(tmp_path, monkeypatch):
    tensors = golden_tensors("resnet50")
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", **tensors)
    half = {key: tensor.astype(ml_dtypes.bfloat16) for key, tensor in tensors.items()}
    safetensors.numpy.save_file(half, tmp_path / "bf16.safetensors")
    forbid_import(monkeypatch, "torch")
    like = golden_model("resnet50")[1]
    expected = weights.convert("resnet50", tensors, like=like)
    assert equal(weights.load("resnet50", tmp_path / "a.safetensors", like=like), expected)
    assert equal(weights.load("resnet50", tmp_path / "a.npz", like=like), expected)
    coarse = weights.load("resnet50", tmp_path / "bf16.safetensors", like=like)
    assert equal(coarse, jax.tree.map(lambda a: a.astype(ml_dtypes.bfloat16).astype(np.float32), expected))
    (tmp_path / "a.pth").touch()
    with pytest.raises(UserError, match=r"a\.pth.*pip install 'bjax\[torch\]'"):
        weights.load("resnet50", tmp_path / "a.pth")


def forbid_import(monkeypatch, name):
    real = builtins.__import__

    def forbidding(module, *args, **kwargs):
        if module == name:
            raise ImportError(f"No module named {name!r}")
        return real(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", forbidding)


@pytest.mark.parametrize("wrapped", [lambda state: state, lambda state: {"model": state, "epoch": 3}])
def test_pth(tmp_path, wrapped):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    tensors = golden_tensors("vit")
    state = {f"module.{key}": torch.from_numpy(tensor).bfloat16() for key, tensor in tensors.items()}
    torch.save(wrapped(state), tmp_path / "vit.pth")
    expected = weights.convert("vit", {k: t.astype(ml_dtypes.bfloat16) for k, t in tensors.items()})
    assert equal(weights.load("vit", tmp_path / "vit.pth"), expected)


class Trap:
    def __reduce__(self):
        return exec, ("import builtins; builtins.sprung = True",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_runs_code_is_refused(tmp_path, legacy):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    path = tmp_path / "trap.pth"
    if legacy:
        path.write_bytes(pickle.dumps({"model": Trap()}, protocol=2))
    else:
        torch.save({"model": Trap()}, path)
    with pytest.raises(UserError, match=r"trap\.pth: refused.*could run code.*exec") as caught:
        weights.load("resnet50", path)
    assert "\n" not in str(caught.value)
    assert not hasattr(builtins, "sprung")


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth"])
@pytest.mark.parametrize("content", [b"", b"<html>404 Not Found</html>"])
def test_damaged_files(tmp_path, suffix, content):
    if suffix == ".pth":
        pytest.importorskip("torch", reason="PyTorch is not installed")
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"broken\{suffix}") as caught:
        weights.read(path)
    assert "\n" not in str(caught.value)


def safetensors_bytes(**entries):
    """A file by its format: the header's length, the header in JSON, the numbers; entries: (kind, shape, bytes)."""
    header, numbers = {}, b""
    for key, (kind, shape, content) in entries.items():
        offsets = [len(numbers), len(numbers) + len(content)]
        header[key] = {"dtype": kind, "shape": shape, "data_offsets": offsets}
        numbers += content
    header = json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + numbers


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2", "F8_E8M0"])
def test_safetensors_of_8_bit_floats_are_refused(tmp_path, kind):
    path = tmp_path / "small.safetensors"
    path.write_bytes(safetensors_bytes(fine=("F32", [1], bytes(4)), coarse=(kind, [4], bytes(4))))
    with pytest.raises(UserError, match=rf"small\.safetensors: coarse cannot be read \(it is {kind}\)"):
        weights.read(path)


def npy(header):
    header = repr(header).encode()
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + bytes(16)


@pytest.mark.parametrize(
    "content",
    [
        npy({"descr": "<f4", "fortran_order": False, "shape": (10**13,)}),
        npy({"descr": "<f4", "fortran_order": False, "shape": (10**30,)}),
        npy({"descr": "<f4", "fortran_order": False, "shape": (5,)}),
        npy({"descr": "|O", "fortran_order": False, "shape": (1,)}),
        npy("nothing"),
        b"no array",
        b"",
    ],
    ids=["terabytes", "overflow", "short", "objects", "no dictionary", "no array", "empty"],
)
def test_a_damaged_array_of_an_npz_is_named(tmp_path, content):
    path = tmp_path / "part.npz"
    np.savez(path, fine=np.ones(3))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("broken.npy", content)
    with pytest.raises(UserError, match=r"part\.npz: broken cannot be read \(.+\); expected dense") as caught:
        weights.read(path)
    assert "\n" not in str(caught.value)


def test_an_npy_named_npz_is_refused(tmp_path):
    with (tmp_path / "array.npz").open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(UserError, match=r"array\.npz: not a readable npz file of arrays"):
        weights.read(tmp_path / "array.npz")


def test_pth_of_parameters_is_read(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    layer = torch.nn.Linear(3, 2)
    torch.save(dict(layer.named_parameters()), tmp_path / "parameters.pth")  # which require gradients
    found = weights.read(tmp_path / "parameters.pth")
    assert found.keys() == {"weight", "bias"}
    np.testing.assert_array_equal(found["weight"], layer.weight.detach().numpy())


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda torch: torch.eye(3).to_sparse(), "it is nested, sparse or"),
        (lambda torch: torch.eye(3).to_sparse_csr(), "it is nested, sparse or"),
        (lambda torch: torch.empty(3, device="meta"), "it is nested, sparse or"),
        (lambda torch: torch.ones(3).to(torch.float8_e4m3fn), "it is torch.float8_e4m3fn"),
        (lambda torch: torch.ones(1).half().expand(10**6, 10**6), "it has more numbers than are stored"),
        (lambda torch: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "it is torch.qint8"),
    ],
)
def test_pth_of_other_tensors_is_refused(tmp_path, make, reason):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torch.save({"fine": torch.ones(3), "odd": make(torch)}, tmp_path / "some.pth")
    with pytest.raises(UserError, match=rf"some\.pth: odd cannot be read \({reason}.*; expected dense"):
        weights.read(tmp_path / "some.pth")


def test_pth_that_is_no_state_dict_or_cut_off_is_refused(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    path = tmp_path / "some.pth"
    for state, has in (({1: torch.ones(3)}, "1: Tensor"), ({"epoch": 3}, "'epoch': int")):
        torch.save(state, path)
        with pytest.raises(UserError, match=rf"some\.pth: expected a state dict.*; it has {has}$"):
            weights.read(path)
    for new in (True, False):
        torch.save({"weight": torch.ones(1000)}, path, _use_new_zipfile_serialization=new)
        data = path.read_bytes()
        for cut in (30, 300, len(data) // 2, len(data) - 10):
            path.write_bytes(data[:-cut])
            with pytest.raises(UserError, match=r"some\.pth: (not a readable PyTorch file|refused)") as caught:
                weights.read(path)
            assert "\n" not in str(caught.value)


def weight_files():
    tensors = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.ones(2, np.float16),
        "c": np.ones(()),
    }
    files = [(".safetensors", safetensors.numpy.save(tensors))]
    for save in (np.savez, np.savez_compressed):
        data = io.BytesIO()
        save(data, **tensors)
        files.append((".npz", data.getvalue()))
    return files


@pytest.mark.filterwarnings("ignore")
@given(st.sampled_from(weight_files()), st.data())
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_bytes_are_arrays_or_one_line(tmp_path, file, data):
    suffix, content = file
    content = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(["flip", "digit", "cut", "remove", "repeat"])):
            case "flip":
                content[place] ^= 1 << data.draw(st.integers(0, 7))
            case "digit":  # of a shape or an offset
                content[place] = data.draw(st.sampled_from(b"0123456789[](),-\xff"))
            case "cut":
                del content[max(place, 1) :]
            case "remove":
                del content[place : min(place + 4, len(content) - 1)]
            case "repeat":
                content[place:place] = content[place : place + data.draw(st.integers(1, 20))]
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(content)
    try:
        found = weights.read(path)
    except UserError as error:
        said = str(error)
        assert said.startswith(f"{path}: ") and "\n" not in said
        return
    assert all(isinstance(array, np.ndarray) for array in found.values())


def test_weights_that_are_not_finite_are_refused(tmp_path):
    tensors = golden_tensors("vit")
    key = "encoder.layers.encoder_layer_1.ln_1.weight"
    for value in (np.nan, np.inf):
        broken = tensors | {key: np.where(np.arange(48) == 7, value, tensors[key])}
        safetensors.numpy.save_file(broken, tmp_path / "diverged.safetensors")
        message = r"diverged\.safetensors: 1 tensors hold NaN or infinity: params/block_1/norm1/scale; take"
        with pytest.raises(UserError, match=message):
            weights.load("vit", tmp_path / "diverged.safetensors")


@pytest.mark.parametrize(
    ("name", "key", "shape", "message"),
    [
        ("vit", "conv_proj.weight", (48, 3, 8), "no embedding/kernel of 2 dimensions"),
        ("vit", "encoder.pos_embedding", (48,), "no position_embedding of 3 dimensions"),
        ("vit", "heads.head.bias", (), "no head/bias to tell the number of classes"),
        ("vit", "heads.head.bias", (0,), r"heads.head.bias is empty: its shape is \(0,\)"),
        ("vgg19_bn", "classifier.0.weight", (32, 100), "1 shapes differ: params/classifier_0/kernel is"),
        ("resnet50", "fc.bias", (0,), "fc.bias is empty"),
    ],
)
def test_other_shapes_are_one_line(name, key, shape, message):
    tensors = golden_tensors(name)
    assert key in tensors
    like = None if name == "vit" else golden_model(name)[1]
    with pytest.raises(UserError, match=message):
        weights.convert(name, tensors | {key: np.zeros(shape, np.float32)}, like=like)


def test_other_shapes_of_attention_are_one_line():
    tensors = vision_transformer_tensors()
    key = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/key/kernel"
    tensors[key] = np.zeros((5, 3, 16), np.float32)
    with pytest.raises(UserError, match=r"block_0: query, key and value kernels of shapes .*\(5, 3, 16\)"):
        weights.convert("vit", tensors)


def test_other_files(tmp_path):
    with pytest.raises(UserError, match=r"absent\.npz: no such file"):
        weights.read(tmp_path / "absent.npz")
    (tmp_path / "model.h5").touch()
    with pytest.raises(UserError, match=r"model\.h5: expected a \.safetensors, \.npz or \.pth file"):
        weights.read(tmp_path / "model.h5")
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    with pytest.raises(UserError, match="expected a state dict"):
        weights.read(tmp_path / "list.pth")


def test_leftover_missing_and_wrong_shapes_are_listed():
    like = golden_model("resnet50")[1]
    tensors = golden_tensors("resnet50")
    tensors["layer1.0.se.weight"] = np.zeros((4, 4, 1, 1))
    del tensors["bn1.running_mean"], tensors["layer4.0.conv2.weight"]
    tensors["conv1.weight"] = np.zeros((64, 3, 3, 3))
    with pytest.raises(UserError) as caught:
        weights.convert("resnet50", tensors, like=like)
    message = str(caught.value)
    assert "1 tensors have no place in the model: params/layer1_0/se/kernel" in message
    assert "2 variables are not in the file: batch_stats/bn1/mean, params/layer4_0/conv2/kernel" in message
    assert "params/conv1/kernel is (3, 3, 3, 64), the model's (7, 7, 3, 64)" in message
    assert "\n" not in message


def test_quantised_weights_and_double_names_are_refused():
    tensors = golden_tensors("vit")
    with pytest.raises(UserError, match=r"class_token is int8: expected floating-point weights"):
        weights.convert("vit", tensors | {"class_token": np.zeros((1, 1, 48), np.int8)})
    with pytest.raises(UserError, match=r"params/class_token is in the file twice"):
        weights.convert("vit", tensors | {"cls_token": tensors["class_token"]})
    with pytest.raises(UserError, match="unknown model: 'vit_b_16'"):
        weights.convert("vit_b_16", tensors)


@pytest.mark.parametrize("name", GOLDEN)
def test_a_new_head_is_made_only_when_asked(name):
    tensors = golden_tensors(name)
    like = golden_model(name, num_classes=3)[1]
    with pytest.raises(UserError, match="only the head differs: new_head starts one at zero"):
        weights.convert(name, tensors, like=like)
    notes = []
    new = weights.convert(name, tensors, like=like, new_head=True, note=notes.append)
    old = flax.traverse_util.flatten_dict(weights.convert(name, tensors, like=golden_model(name)[1]))
    assert jax.tree.map(np.shape, new) == jax.tree.map(lambda leaf: leaf.shape, like)
    for path, leaf in flax.traverse_util.flatten_dict(new).items():
        if leaf.shape == old[path].shape:
            assert np.array_equal(leaf, old[path])
        else:
            assert not leaf.any()
            assert f"started {'/'.join(path)} {leaf.shape} at zero" in notes


def test_auxiliary_heads_are_left_out_of_a_model_without():
    model = models.build("googlenet", num_classes=5, aux_heads=False)
    like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    notes = []
    variables = weights.convert("googlenet", golden_tensors("googlenet"), like=like, note=notes.append)
    assert "aux1" not in variables["params"]
    assert notes[1:] == ["left out 18 tensors of the auxiliary heads, which the model is built without"]
    with_aux = golden_model("googlenet")[1]
    main_only = {k: t for k, t in golden_tensors("googlenet").items() if not k.startswith("aux")}
    with pytest.raises(UserError, match="18 variables are not in the file: batch_stats/aux1/conv/bn/mean"):
        weights.convert("googlenet", main_only, like=with_aux)
    assert equal(weights.convert("googlenet", main_only), variables)


def test_position_embedding_is_resized_to_the_image():
    tensors = golden_tensors("vit")
    model, like = golden_model("vit", image_size=48)
    notes = []
    variables = weights.convert("vit", tensors, like=like, note=notes.append)
    assert notes == ["resized the position embedding from 16 to 36 patches"]
    embedding = variables["params"]["position_embedding"]
    np.testing.assert_array_equal(embedding, resize_positions(tensors["encoder.pos_embedding"], (6, 6)))
    assert model.apply(variables, peers.random_images(48)).shape == (2, 5)
    images = jax.ShapeDtypeStruct((1, 32, 48, 3), np.float32)
    with pytest.raises(UserError, match="24 patches are no square"):
        weights.convert("vit", tensors, like=jax.eval_shape(model.init, jax.random.key(0), images))


def test_command_line(tmp_path, capsys):
    path = tmp_path / "small.safetensors"
    safetensors.numpy.save_file(golden_tensors("resnet50"), path)
    stages = "--option=stages=(1,1,1,1)"
    assert main([str(path), "--model=resnet50", "--num_classes=5", stages]) == 0
    out = capsys.readouterr().out
    assert f"{path}: 104 tensors" in out
    assert "params: 53 arrays" in out

    assert main([str(path), "--model=resnet50", "--num_classes=2", stages]) == 2
    assert "fc/bias is (5,), the model's (2,)" in capsys.readouterr().err
    assert main([str(path), "--model=resnet50", "--num_classes=2", "--new_head", stages]) == 0
    assert "started params/fc/bias (2,) at zero" in capsys.readouterr().out
    assert main([str(path), "--model=resnet50"]) == 2
    assert "variables are not in the file" in capsys.readouterr().err
    assert main([str(path), "--model=resnet50", "--option=stages"]) == 2
    assert "expected KEY=VALUE" in capsys.readouterr().err

    safetensors.numpy.save_file(golden_tensors("vit"), path)
    assert main([str(path), "--model=vit", "--num_classes=5", "--option=variant=S/16"]) == 2
    assert main([str(path), "--model=vit"]) == 0
