"""Published weight files as Flax variables: `load("resnet50", "torchvision:resnet50")`, or the path of a file.

Files (read without PyTorch where the format allows): `.safetensors`, `.npz`, and `.pth` with the extra
`bjax[torch]`, whose pickle is never allowed to run code.

Layouts, told apart by their keys: torchvision's for every family, its early releases included; timm's for
ResNet, VGG, DenseNet and ViT (timm has no GoogLeNet); google-research/vision_transformer's for the ViT. Every
tensor of the file must find its place and every variable its tensor; what is left out by design is told to
`note`.
"""

import contextlib
import logging
import math
import pickle
from collections.abc import Callable
from pathlib import Path

import flax.traverse_util
import jax
import numpy as np

from bjax import models
from bjax.errors import UserError
from bjax.models.vit import resize_positions
from bjax.published import find
from bjax.weights import cache, mapping

logger = logging.getLogger(__name__)


def load(name: str, path, *, like=None, new_head: bool = False, note: Callable[[str], None] = logger.info) -> dict:
    """`convert` of the tensors in the file at `path`; its errors name the file.

    path: or a name of `published.PUBLISHED`, whose file is downloaded where it is not there yet (`cache.get`).
    """
    named = find(str(path))
    path = cache.get(named, note) if named else Path(path).expanduser()
    tensors = read(path)
    note(f"{path}: {len(tensors)} tensors, {sum(tensor.size for tensor in tensors.values()):,} numbers")
    try:
        return convert(name, tensors, like=like, new_head=new_head, note=note)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def convert(
    name: str,
    tensors: dict[str, np.ndarray],
    *,
    like=None,
    new_head: bool = False,
    note: Callable[[str], None] = logger.info,
) -> dict:
    """The variables of the model called `name` from the tensors of a published file.

    name: a key of `bjax.models.MODELS`.
    tensors: key to array, any floating type.
    like: the variables to fill, as arrays or as shapes (`jax.eval_shape(model.init, key, images)`). A position
      embedding for another number of patches is resized (`bjax.models.vit.resize_positions`). Without `like` it is the
      model of that name that the file describes: its classes, its image size.
    new_head: leave out the file's last layer (and the auxiliary heads' last layers, and the ViT's `pre_logits`) and
      start the model's at zero, for other classes than the file's.
    note: called with a line for everything that is left out, resized or started anew.

    Returns `{"params": …, "batch_stats": …}` (only what `like` has), float32 numpy arrays. Raises UserError for tensors
    without a place, variables without a tensor, shapes that differ, numbers that are not finite; all are listed.
    """
    if name not in models.MODELS:
        models.build(name)  # raises, and lists the names
    family = mapping.family(name)
    arrays, ignored = mapping.to_flax(family, tensors)
    if ignored:
        note(f"left out {len(ignored)} counters (num_batches_tracked), which have no use in Flax")
    if new_head:
        dropped = [path for path in arrays if path[1:-1] in mapping.HEADS[family]]
        for path in dropped:
            del arrays[path]
    if like is None:
        like = _described(name, family, arrays)
    expected = {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(like).items()}

    aux = [path for path in arrays if path[1] in ("aux1", "aux2")]
    if aux and not any(path[1] in ("aux1", "aux2") for path in expected):
        note(f"left out {len(aux)} tensors of the auxiliary heads, which the model is built without")
        for path in aux:
            del arrays[path]
    if new_head:
        for path, shape in expected.items():
            if path[1:-1] in mapping.HEADS[family]:
                note(f"started {'/'.join(path)} {shape} at zero")
                arrays[path] = np.zeros(shape, np.float32)
    positions = ("params", "position_embedding")
    if positions in arrays and positions in expected:
        arrays[positions] = _resized(arrays[positions], expected[positions], note)

    _check(arrays, expected, family)
    if broken := sorted("/".join(path) for path in expected if not np.isfinite(arrays[path]).all()):
        way = "take a file of before training diverged"
        raise UserError(f"{len(broken)} tensors hold NaN or infinity: {', '.join(broken)}; {way}")
    return flax.traverse_util.unflatten_dict({path: arrays[path] for path in expected})


def read(path) -> dict[str, np.ndarray]:
    """The tensors of a `.safetensors`, `.npz` or `.pth` (`.pt`, `.bin`) file, as they are stored.

    Raises UserError for no such file, another kind of file, a damaged one, a tensor that is not dense or of 8-bit
    floats, and a pickle that wants to run code.
    """
    path = Path(path)
    if not path.is_file():
        kinds = ".safetensors, .npz and .pth files"
        raise UserError(f"{path}: no such file; weights are read from {kinds} on disk")
    readers = {".safetensors": _read_safetensors, ".npz": _read_npz}
    readers |= dict.fromkeys((".pth", ".pt", ".bin"), _read_torch)
    if path.suffix not in readers:
        raise UserError(f"{path}: expected a .safetensors, .npz or .pth file")
    return readers[path.suffix](path)


def _read_safetensors(path):
    import safetensors

    def array(key):
        kind = file.get_slice(key).get_dtype()
        if kind.startswith(("F8", "F6", "F4")):  # NumPy has none
            raise ValueError(f"it is {kind}")
        return file.get_tensor(key)

    with _readable(path, "safetensors file"), safetensors.safe_open(path, framework="numpy") as file:
        return _tensors(path, file.keys(), array)


def _read_npz(path):
    def array(key):
        array = file[key]
        if not isinstance(array, np.ndarray):
            raise ValueError("no .npy file")
        # NumPy has no bfloat16 and returns such arrays as two raw bytes.
        return array.view(jax.numpy.bfloat16) if array.dtype == "V2" else array

    # Opened here: np.load leaves a file open that is none of its own.
    with _readable(path, "npz file of arrays"), path.open("rb") as data, np.load(data, allow_pickle=False) as file:
        return _tensors(path, file.files, array)


def _read_torch(path):
    try:
        import torch
    except ImportError:
        way = "pip install 'bjax[torch]', or use the .safetensors file"
        raise UserError(f"{path}: reading it needs PyTorch: {way}") from None
    with _readable(path, "PyTorch file"):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            # PyTorch's message is a page of advice around one sentence.
            reason = str(error).partition("WeightsUnpickler error: ")[2].partition(". ")[0].split("\n")[0]
            raise UserError(
                f"{path}: refused, its pickle is damaged or holds more than tensors, which could run code "
                f"({reason}); save the state dict alone, best as .safetensors"
            ) from None
    # Training scripts store the state dict among other things (DeiT: "model", timm: "state_dict").
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    expected = f'{path}: expected a state dict, alone or under "model" or "state_dict"'
    if not isinstance(state, dict):
        raise UserError(expected)
    for key, tensor in state.items():
        if not isinstance(key, str) or not isinstance(tensor, torch.Tensor):
            raise UserError(f"{expected}; it has {key!r}: {type(tensor).__name__}")

    def array(key):
        tensor = state[key].detach()
        if tensor.is_nested or tensor.layout is not torch.strided or tensor.is_meta:
            raise ValueError("it is nested, sparse or on the meta device")
        if tensor.is_quantized or (tensor.dtype.itemsize == 1 and tensor.is_floating_point()):
            raise ValueError(f"it is {tensor.dtype}")
        if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            raise ValueError("it has more numbers than are stored")
        # NumPy has no bfloat16.
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        return tensor.resolve_conj().resolve_neg().numpy()

    tensors = _tensors(path, state, array)
    return {key.removeprefix("module."): tensor for key, tensor in tensors.items()}


def _tensors(path, keys, get):
    """{key: get(key)}; whatever `get` raises becomes a UserError with the file and the key."""
    tensors = {}
    for key in keys:
        try:
            tensors[key] = get(key)
        except Exception as error:  # a damaged tensor, or a kind that NumPy has not: libraries raise anything
            why = f"cannot be read ({_line(error)})"
            raise UserError(f"{path}: {key} {why}; expected dense floating-point weights") from None
    return tensors


@contextlib.contextmanager
def _readable(path, what):
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # damaged files: OSError, RuntimeError, BadZipFile, TokenError, …
        raise UserError(f"{path}: not a readable {what} ({_line(error)}); download it again") from None


def _line(error):
    return str(error).split("\n")[0].rstrip(".") or type(error).__name__


def _described(name, family, arrays):
    """Shapes of the variables of the model that the tensors describe."""
    shape = {path[1:]: array.shape for path, array in arrays.items() if path[0] == "params"}
    head = (*mapping.HEADS[family][0], "bias")
    if len(shape.get(head, ())) != 1:
        way = "pass like=, the shapes of the model"
        raise UserError(f"no {'/'.join(head)} to tell the number of classes: {way}")
    options, image_size = {}, 224
    if family == "googlenet":
        options["aux_heads"] = ("aux1", "fc2", "bias") in shape
    if family == "vit":
        needed = {("embedding", "kernel"): 2, ("position_embedding",): 3, ("block_0", "mlp_1", "kernel"): 2}
        for path, rank in needed.items():
            if len(shape.get(path, ())) != rank:
                missing = f"{'/'.join(path)} of {rank} dimensions"
                raise UserError(f"no {missing}: is this the file of a ViT with a class token?")
        inputs, width = shape["embedding", "kernel"]
        patch_size = math.isqrt(inputs // 3)
        image_size = patch_size * math.isqrt(shape["position_embedding",][1] - 1)
        options = {
            "variant": f"B/{patch_size}",
            "width": width,
            "depth": len({path[0] for path in shape if path[0].startswith("block_")}),
            "heads": 1,  # no variable's shape depends on it
            "mlp_dim": shape["block_0", "mlp_1", "kernel"][1],
            "representation_size": next(iter(shape.get(("pre_logits", "bias"), ())), None),
        }
    model = models.build(name, num_classes=shape[head][0], **options)
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), np.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


def _resized(embedding, shape, note):
    if embedding.shape[1] == shape[1]:
        return embedding
    patches, side = shape[1] - 1, math.isqrt(shape[1] - 1)
    if side * side != patches:
        raise UserError(f"position_embedding: the model's {patches} patches are no square, which files have")
    try:
        resized = np.asarray(resize_positions(embedding, (side, side)))
    except ValueError as error:
        raise UserError(str(error)) from None
    note(f"resized the position embedding from {embedding.shape[1] - 1} to {patches} patches")
    return resized


def _check(arrays, expected, family):
    leftover = sorted("/".join(path) for path in arrays.keys() - expected.keys())
    missing = sorted("/".join(path) for path in expected.keys() - arrays.keys())
    differ = sorted(path for path in arrays.keys() & expected.keys() if arrays[path].shape != expected[path])
    problems = []
    if leftover:
        problems.append(f"{len(leftover)} tensors have no place in the model: {', '.join(leftover)}")
    if missing:
        problems.append(f"{len(missing)} variables are not in the file: {', '.join(missing)}")
    if differ:
        shapes = [f"{'/'.join(p)} is {arrays[p].shape}, the model's {expected[p]}" for p in differ]
        problems.append(f"{len(differ)} shapes differ: {', '.join(shapes)}")
    only_heads = all(path[1:-1] in mapping.HEADS[family] for path in differ)
    if differ and only_heads and not leftover and not missing:
        problems.append("only the head differs: new_head starts one at zero")
    if problems:
        raise UserError("; ".join(problems))
