"""Where every tensor of a published file goes: one table of names per family, and one rule for the leaves."""

import re

import numpy as np

from bjax.errors import UserError

Arrays = dict[tuple[str, ...], np.ndarray]  # by Flax's path, collection first

# Applied in turn to PyTorch's keys, torchvision's and timm's; then ".3" becomes "_3" and the other dots "/".
RENAMES = {
    "resnet": [],
    "vgg": [
        (r"^pre_logits\.fc1\.", "classifier.0."),
        (r"^pre_logits\.fc2\.", "classifier.3."),
        (r"^head\.fc\.", "classifier.6."),
    ],
    "googlenet": [],
    "densenet": [
        (r"^features\.", ""),
        (r"\.(norm|conv)\.([12])\.", r".\1\2."),  # before torchvision 0.3
        (r"^(denseblock\d+|transition\d+)\.", r"\1_"),
    ],
    "vit": [
        (r"^(conv_proj|patch_embed\.proj)\.", "embedding."),
        (r"^cls_token$", "class_token"),
        (r"^(encoder\.pos_embedding|pos_embed)$", "position_embedding"),
        (r"^(encoder\.layers\.encoder_layer_|blocks\.)(\d+)\.", r"block_\2."),
        (r"\.ln_([12])\.", r".norm\1."),
        (r"\.(self_attention\.in_proj_|attn\.qkv\.)", ".qkv."),
        (r"\.(self_attention\.out_proj|attn\.proj)\.", ".out."),
        (r"\.mlp\.(0|linear_1|fc1)\.", ".mlp_1."),
        (r"\.mlp\.(3|linear_2|fc2)\.", ".mlp_2."),
        (r"^encoder\.ln\.", "norm."),
        (r"^heads\.", ""),
        (r"^pre_logits\.fc\.", "pre_logits."),
    ],
}

# google-research/vision_transformer, whose leaves are Flax's already
VISION_TRANSFORMER_RENAMES = [
    (r"^opt/target/", ""),
    (r"^cls$", "class_token"),
    (r"^Transformer/posembed_input/pos_embedding$", "position_embedding"),
    (r"^Transformer/encoder_norm/", "norm/"),
    (r"^Transformer/encoderblock_(\d+)/", r"block_\1/"),
    (r"/LayerNorm_0/", "/norm1/"),
    (r"/LayerNorm_2/", "/norm2/"),
    (r"/MultiHeadDotProductAttention_1/", "/"),
    (r"/MlpBlock_3/Dense_0/", "/mlp_1/"),
    (r"/MlpBlock_3/Dense_1/", "/mlp_2/"),
]

# Modules that a new head replaces; the first one's bias counts the classes.
HEADS = {
    "resnet": [("fc",)],
    "vgg": [("classifier_6",)],
    "googlenet": [("fc",), ("aux1", "fc2"), ("aux2", "fc2")],
    "densenet": [("classifier",)],
    "vit": [("head",), ("pre_logits",)],
}

# Linear layers on a flattened feature map, and its side: PyTorch flattens channel first, Flax channel last.
FLATTENING = {("classifier_0",): 7, ("aux1", "fc1"): 4, ("aux2", "fc1"): 4}


def family(name: str) -> str:
    """A key of the tables above: "resnet" for "resnet50", "vgg" for "vgg19_bn"."""
    return re.match(r"[a-z]+", name)[0]


def to_flax(family: str, tensors: dict[str, np.ndarray]) -> tuple[Arrays, list[str]]:
    """Flax's paths, collection first, to float32 arrays; and the keys that have no use."""
    if family == "vit" and any(key.endswith("embedding/kernel") for key in tensors):
        return _from_vision_transformer(tensors), []
    arrays, ignored = {}, []
    for key, tensor in tensors.items():
        if key.endswith(".num_batches_tracked"):
            ignored.append(key)
            continue
        path, array = _from_torch(_rename(key, RENAMES[family]), _float32(key, tensor))
        _put(arrays, path, array, key)
    return arrays, ignored


def _from_torch(key, array):
    module, _, leaf = re.sub(r"\.(\d+)", r"_\1", key).replace(".", "/").rpartition("/")
    module = tuple(module.split("/")) if module else ()
    if leaf in ("running_mean", "running_var"):
        return ("batch_stats", *module, leaf.removeprefix("running_")), array
    if leaf != "weight" or not module:
        return ("params", *module, leaf), array
    if array.ndim == 1:
        return ("params", *module, "scale"), array
    side = FLATTENING.get(module, 1)
    if module in FLATTENING and array.ndim == 2 and array.shape[1] % side**2 == 0:
        array = array.reshape(len(array), -1, side, side)
    if array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
        if module[0] == "embedding" or module[0].startswith("classifier") or module in FLATTENING:
            array = array.reshape(-1, array.shape[-1])
    else:
        array = array.T
    return ("params", *module, "kernel"), array


def _from_vision_transformer(tensors):
    arrays = {}
    for key, tensor in tensors.items():
        path = ("params", *_rename(key, VISION_TRANSFORMER_RENAMES).split("/"))
        _put(arrays, path, _float32(key, tensor), key)
    # Attention's arrays keep the heads apart: kernels [D, heads, D/heads] in, [heads, D/heads, D] out.
    for path in list(arrays):
        *block, module, leaf = path
        if leaf == "kernel" and module in ("embedding", "out") and arrays[path].ndim:
            arrays[path] = arrays[path].reshape(-1, arrays[path].shape[-1])
        parts = [(*block, part, leaf) for part in ("query", "key", "value")]
        if module == "query" and all(part in arrays for part in parts):
            apart = [arrays.pop(part) for part in parts]
            if apart[0].ndim < 2 or len({array.shape for array in apart}) > 1:
                shapes = ", ".join(str(array.shape) for array in apart)
                raise UserError(f"{'/'.join(block)}: query, key and value {leaf}s of shapes {shapes}")
            flat = (-1,) if leaf == "bias" else (len(apart[0]), -1)
            arrays[(*block, "qkv", leaf)] = np.concatenate([array.reshape(flat) for array in apart], axis=-1)
    return arrays


def _rename(key, renames):
    for pattern, replacement in renames:
        key = re.sub(pattern, replacement, key)
    return key


def _float32(key, tensor):
    # bfloat16 of ml_dtypes is floating to JAX, not to NumPy.
    if not np.issubdtype(tensor.dtype, np.floating) and tensor.dtype.name != "bfloat16":
        raise UserError(f"{key} is {tensor.dtype}: expected floating-point weights, not quantised ones")
    if not tensor.size:
        raise UserError(f"{key} is empty: its shape is {tensor.shape}")
    return np.asarray(tensor, np.float32)


def _put(arrays, path, array, key):
    if path in arrays:
        raise UserError(f"{key}: {'/'.join(path)} is in the file twice, under two names")
    arrays[path] = array
