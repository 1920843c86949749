"""Vision Transformer (Dosovitskiy et al. 2021, arXiv:2010.11929), with a choice of which patches it sees.

Class token, learned position embedding, pre-LayerNorm (eps 1e-6) and exact GELU: torchvision's `vit_b_16`
and timm's `vit_base_patch16_224` compute the same function, and with `tanh_gelu=True` so does
google-research/vision_transformer.

Which patches it sees is data (`tokens=`), chosen outside. Three rivals choose inside, from what the layers computed, on
the same weights: EViT (`evit_keep`), ToMe (`tome_r`) and `highpass_keep`, see `bjax.models.reduce`.
"""

import itertools
import math
import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from bjax.errors import UserError
from bjax.models import attention as attentions
from bjax.models import reduce

TOKEN_OPTIONS = ("evit_keep", "evit_layers", "tome_r", "highpass_keep")  # constructor options that change no parameter
# width, depth, heads; the MLP is four times as wide as the stream in all of them
VARIANTS = {
    "Ti": (192, 12, 3),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "H": (1280, 32, 16),
}


def vit(
    *,
    num_classes: int = 1000,
    dtype=jnp.float32,
    variant: str = "S/16",
    depth: int | None = None,
    width: int | None = None,
    heads: int | None = None,
    mlp_dim: int | None = None,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    representation_size: int | None = None,
    tanh_gelu: bool = False,
    evit_keep: float = 1.0,
    evit_layers: tuple[int, ...] | None = None,
    tome_r: int = 0,
    highpass_keep: float = 1.0,
    attention: str = "auto",
) -> "ViT":
    """The ViT called `variant`: Ti, S, B, L or H, a slash, and the patch size in pixels ("B/16").

    `depth`, `width`, `heads` and `mlp_dim` override the variant's own (`mlp_dim` follows `width`). `evit_layers`, where
    evit_keep and highpass_keep act, are counted from 0; by default they lie at a quarter, a half and three quarters of
    the depth: 3, 6 and 9 of 12, EViT's. `attention`: auto, cuDNN's fused one on GPUs where it can be, or xla, see
    `bjax.models.attention`.

    Raises UserError for a variant not of that form, heads that do not divide the width, a keep rate outside (0, 1], a
    layer that there is not, a negative r, and two of EViT, ToMe and highpass at once.
    """
    match = re.fullmatch(rf"({'|'.join(VARIANTS)})/([1-9]\d*)", variant)
    if not match:
        raise UserError(f"variant={variant!r}: expected {', '.join(VARIANTS)}, then /patch size, as in S/16")
    for option, value in {"depth": depth, "width": width, "heads": heads, "mlp_dim": mlp_dim}.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise UserError(f"{option}={value}: expected a whole number of at least 1")
        if (value or 0) > (most := 1000 if option == "depth" else 2**17):
            raise UserError(f"{option}={value}: expected at most {most:,}")
    for option, value in {"dropout": dropout, "drop_path": drop_path}.items():
        if not isinstance(value, int | float) or not 0 <= value < 1:
            raise UserError(f"{option}={value}: expected a rate in [0, 1)")
    width, depth, heads = (a or b for a, b in zip((width, depth, heads), VARIANTS[match[1]], strict=True))
    if width % heads:
        raise UserError(f"heads={heads} does not divide width={width}: give both")
    if evit_layers is None:
        evit_layers = tuple(sorted({depth * quarter // 4 for quarter in (1, 2, 3)}))
    evit_layers = (evit_layers,) if isinstance(evit_layers, int | float) else tuple(evit_layers)
    for option, value in {"evit_keep": evit_keep, "highpass_keep": highpass_keep}.items():
        if not 0 < value <= 1:
            raise UserError(f"{option}={value}: expected a share of the tokens in (0, 1]")
    if not all(layer in range(depth) for layer in evit_layers):
        raise UserError(f"evit_layers={evit_layers}: expected layers from 0 to {depth - 1}")
    if tome_r < 0 or tome_r != int(tome_r):
        raise UserError(f"tome_r={tome_r}: expected how many tokens each layer merges away, a whole number")
    if attention not in attentions.IMPLEMENTATIONS:
        raise UserError(f"attention={attention}: expected {' or '.join(attentions.IMPLEMENTATIONS)}")
    asked = {"tome_r": tome_r > 0, "evit_keep": evit_keep < 1, "highpass_keep": highpass_keep < 1}
    if sum(asked.values()) > 1:
        both = " with ".join(option for option, on in asked.items() if on)
        raise UserError(f"{both}: one of them, the others at tome_r=0, evit_keep=1 and highpass_keep=1")
    return ViT(
        num_classes=num_classes,
        patch_size=int(match[2]),
        width=width,
        depth=depth,
        heads=heads,
        mlp_dim=mlp_dim or 4 * width,
        dropout=dropout,
        drop_path=drop_path,
        representation_size=representation_size,
        tanh_gelu=tanh_gelu,
        evit_keep=evit_keep,
        evit_layers=evit_layers,
        tome_r=tome_r,
        highpass_keep=highpass_keep,
        attention=attention,
        dtype=dtype,
    )


class ViT(nn.Module):
    """Images (and which of their patches to keep) to logits.

    The position embedding is made for the size of the images at `init`; weights of another size go through
    `resize_positions`, which `bjax.weights.load` does by itself.

    Random initialisation is big_vision's: Xavier uniform matrices, LeCun normal patch embedding, position
    embedding of deviation 1/sqrt(width), class token and head at zero.
    """

    num_classes: int
    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_dim: int
    dropout: float = 0.0  # after the position embedding and after every sublayer's matrices, as torchvision
    drop_path: float = 0.0  # stochastic depth: rate of the last block, growing linearly from 0, as timm
    representation_size: int | None = None  # a tanh layer before the head: ImageNet-21k checkpoints of 2020
    tanh_gelu: bool = False
    evit_keep: float = 1.0  # share of tokens that each of evit_layers keeps, beside one fused of the others
    evit_layers: tuple[int, ...] = ()
    tome_r: int = 0  # tokens that every layer merges away
    highpass_keep: float = 1.0  # share of tokens that each of evit_layers keeps, the others merged into one
    attention: str = "auto"  # by platform, or xla
    dtype: jnp.dtype = jnp.float32

    @property
    def reduces(self) -> bool:
        """Whether layers leave out or merge tokens by themselves."""
        return self.evit_keep < 1 or self.tome_r > 0 or self.highpass_keep < 1

    def token_counts(self, tokens: int) -> list[tuple[int, int]]:
        """How many tokens (attention, MLP) of every block compute, of `tokens` at the start, class token included."""
        counts = [tokens]
        for i in range(self.depth):
            keep = min(self._in(i, self.evit_keep), self._in(i, self.highpass_keep))
            counts.append(reduce.tokens_after(counts[-1], keep, self.tome_r))
        return list(itertools.pairwise(counts))

    def flops(self, tokens: int) -> int:
        """Floating-point operations of one image's forward pass on `tokens` tokens, class token included.

        A multiply and an add are two. With D the width, M the MLP's and T tokens, a block costs 8TD² (query, key,
        value, output), 4T²D (scores, weighted values) and, after what it leaves out, 4TDM. Then the embedding of the
        T - 1 patches and the head; 2T²D more where highpass chooses, whose scores are computed twice. Norms,
        activations, softmax and biases are not counted.
        """
        width = self.width
        total = 2 * (tokens - 1) * 3 * self.patch_size**2 * width
        for i, (attention, mlp) in enumerate(self.token_counts(tokens)):
            total += 2 * attention**2 * width * (self._in(i, self.highpass_keep) < 1)
            total += 8 * attention * width**2 + 4 * attention**2 * width + 4 * mlp * width * self.mlp_dim
        size = self.representation_size or width
        return total + 2 * size * self.num_classes + (2 * width * size if self.representation_size else 0)

    def _in(self, layer: int, keep: float) -> float:
        return keep if layer in self.evit_layers else 1.0

    @nn.compact
    def __call__(self, images, *, train: bool = False, tokens=None):
        """Logits `float32[B, num_classes]` of normalised `images: float32[B, H, W, 3]`.

        images: H and W are multiples of the patch size; patches are numbered row by row.
        train: dropout and stochastic depth on.
        tokens: None for every patch, or an object with the static `mode: str`, `keep: bool[B, N]` and, to gather,
          `indices: int32[B, K]`:

          - "zero_pixels": nothing happens here, the pixels were erased before.
          - "zero_tokens": embeddings of dropped patches become zero; their position embedding stays, and so does
            attention to them.
          - "attend": nothing attends to a dropped patch, so its pixels have no influence on the logits and get no
            gradient. Costs as much as keeping all.
          - "gather": the same function, computed on the class token and the K patches at `indices` only. Positions
            whose `keep` is False are budget left over and are masked out; a true static attribute `full` promises that
            there are none and saves the mask.

        Raises ValueError where the image does not divide into patches, the position embedding is of another size, the
        token mode is unknown, or the mode masks tokens in a model that reduces them by itself.
        """
        mode = "zero_pixels" if tokens is None else tokens.mode
        if mode not in ("zero_pixels", "zero_tokens", "attend", "gather"):
            raise ValueError(f"tokens.mode={mode!r}: expected zero_pixels, zero_tokens, attend or gather")
        patches = patchify(images, self.patch_size)
        batch, count, _ = patches.shape
        position = self._position_embedding(count).astype(self.dtype)
        class_token = self.param("class_token", nn.initializers.zeros, (1, 1, self.width)).astype(self.dtype)
        class_token, position = class_token + position[:, :1], position[:, 1:]

        key_mask = None  # bool[B, tokens without the class token]: who is attended to
        if mode == "attend":
            key_mask = tokens.keep
        elif mode == "gather":
            # Raw patches are gathered, not embedded ones: the embedding is paid for K patches only.
            patches = jnp.take_along_axis(patches, tokens.indices[:, :, None], axis=1)
            position = jnp.take(position[0], tokens.indices, axis=0)
            if not getattr(tokens, "full", False):
                key_mask = jnp.take_along_axis(tokens.keep, tokens.indices, axis=1)

        x = nn.Dense(self.width, dtype=self.dtype, name="embedding")(patches)
        if mode == "zero_tokens":
            x = jnp.where(tokens.keep[:, :, None], x, 0)
        x = jnp.concatenate([jnp.broadcast_to(class_token, (batch, 1, self.width)), x + position], axis=1)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        if key_mask is not None:
            if self.reduces:
                why = "evit_keep, tome_r and highpass_keep need all of them to count"
                raise ValueError(f"tokens.mode={mode!r} masks tokens: {why}")
            key_mask = jnp.concatenate([jnp.ones((batch, 1), bool), key_mask], axis=1)
        there = x.shape[1]
        if not self.reduces:  # which count tokens themselves
            more = attentions.padded_length(there, self.dtype) - there
            x = jnp.pad(x, ((0, 0), (0, more), (0, 0)))
            if key_mask is not None:
                key_mask = jnp.pad(key_mask, ((0, 0), (0, more)))
        if train:  # on GPUs XLA would lay images innermost, and transpose in every block
            x = lax.platform_dependent(x, cuda=attentions.images_outermost, default=lambda x: x)
        sizes = None  # f32[B, T]: patches that a merged token stands for
        for i in range(self.depth):
            x, sizes = Block(
                heads=self.heads,
                mlp_dim=self.mlp_dim,
                dropout=self.dropout,
                drop_path=self.drop_path * i / max(self.depth - 1, 1),
                tanh_gelu=self.tanh_gelu,
                evit_keep=self._in(i, self.evit_keep),
                tome_r=self.tome_r,
                highpass_keep=self._in(i, self.highpass_keep),
                attention=self.attention,
                dtype=self.dtype,
                name=f"block_{i}",
            )(x, key_mask, sizes, there=there, train=train)
        x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x[:, 0])
        if self.representation_size:
            x = jnp.tanh(nn.Dense(self.representation_size, dtype=self.dtype, name="pre_logits")(x))
        head = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, dtype=jnp.float32, name="head")
        return head(x)

    def _position_embedding(self, count: int):
        shape = (1, count + 1, self.width)
        if self.has_variable("params", "position_embedding"):
            have = self.get_variable("params", "position_embedding").shape
            if have[2] != self.width:
                raise ValueError(
                    f"the position embedding is {have[2]} wide, the model {self.width}: these variables are of "
                    "another variant; build the model with theirs"
                )
            if have != shape:
                raise ValueError(
                    f"the position embedding is for {have[1] - 1} patches, the images have {count}: "
                    "use images of that size, or convert it with bjax.models.vit.resize_positions"
                )
        return self.param("position_embedding", nn.initializers.normal(1 / math.sqrt(self.width)), shape)


class Block(nn.Module):
    """Self-attention, then MLP, each normalised before it; in between, some tokens are left out or merged.

    `x: [B, T, D]`, `key_mask: bool[B, T]` or None and `there` as of `attention.attend`, `sizes: f32[B, T]` or None for
    ones. Returns the new x and sizes.
    """

    heads: int
    mlp_dim: int
    dropout: float
    drop_path: float
    tanh_gelu: bool
    dtype: jnp.dtype
    evit_keep: float = 1.0
    tome_r: int = 0
    highpass_keep: float = 1.0
    attention: str = "auto"

    @nn.compact
    def __call__(self, x, key_mask, sizes=None, *, there: int | None = None, train: bool):
        batch, length, width = x.shape
        norm = partial(nn.LayerNorm, epsilon=1e-6, dtype=self.dtype)
        dense = partial(nn.Dense, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype)
        mlp_dense = partial(dense, bias_init=nn.initializers.normal(1e-6))
        # Queries, keys and values share a matrix; twice the fan average makes each of them a Xavier matrix.
        qkv_init = nn.initializers.variance_scaling(2.0, "fan_avg", "uniform")
        drop = nn.Dropout(self.dropout, deterministic=not train)
        drop_path = nn.Dropout(self.drop_path, broadcast_dims=(1, 2), deterministic=not train)

        y = dense(3 * width, kernel_init=qkv_init, name="qkv")(norm(name="norm1")(x))
        head = width // self.heads
        query, key, value = jnp.moveaxis(y.reshape(batch, length, 3, self.heads, head), 2, 0)
        # Attention in proportion to size: a token that stands for s patches is attended to as s equal ones are.
        bias = None if sizes is None else jnp.log(sizes)[:, None, None, :].astype(query.dtype)
        options = {"there": there, "key_mask": key_mask, "bias": bias, "implementation": self.attention}
        y = attentions.attend(query, key, value, **options)
        x += drop_path(drop(dense(width, name="out")(y.reshape(batch, length, width))))

        if self.evit_keep < 1:
            x = reduce.keep_attentive(x, reduce.class_attention(query * head**-0.5, key), self.evit_keep)
        if self.tome_r:
            x, sizes = reduce.merge_similar(x, key.mean(axis=2), sizes, self.tome_r)
        if self.highpass_keep < 1:
            shares = reduce.high_pass(query * head**-0.5, key, sizes)
            x, sizes = reduce.keep_high(x, shares, sizes, self.highpass_keep)

        y = mlp_dense(self.mlp_dim, name="mlp_1")(norm(name="norm2")(x))
        y = drop(nn.gelu(y, approximate=self.tanh_gelu))
        return x + drop_path(drop(mlp_dense(width, name="mlp_2")(y))), sizes


def patchify(images, patch_size: int):
    """`[B, H, W, C]` to `[B, (H/p)(W/p), p·p·C]`: patches row by row, each flattened row, column, channel."""
    batch, height, width, channels = images.shape
    if height % patch_size or width % patch_size:
        raise ValueError(f"images of {height}x{width} pixels do not divide into patches of {patch_size}")
    rows, columns = height // patch_size, width // patch_size
    patches = images.reshape(batch, rows, patch_size, columns, patch_size, channels).swapaxes(2, 3)
    return patches.reshape(batch, rows * columns, patch_size * patch_size * channels)


def resize_positions(position_embedding, grid: tuple[int, int]):
    """A position embedding `[1, 1 + n·n, D]` for `grid` (rows, columns) instead of n by n patches.

    The class token's stays; the others are resized as an n by n image, bicubic with antialiasing: timm's
    `resample_abs_pos_embed`. Raises ValueError for an embedding that is not of a square grid.
    """
    side = math.isqrt(position_embedding.shape[1] - 1)
    if side * side != position_embedding.shape[1] - 1:
        shape, expected = position_embedding.shape, "a class token and n·n patches"
        raise ValueError(f"position embedding of shape {shape}: expected {expected}")
    if (side, side) == tuple(grid):
        return position_embedding
    width = position_embedding.shape[2]
    image = jnp.reshape(position_embedding[:, 1:], (1, side, side, width))
    image = jax.image.resize(image, (1, *grid, width), method="bicubic", antialias=True)
    return jnp.concatenate([position_embedding[:, :1], image.reshape(1, -1, width)], axis=1)
