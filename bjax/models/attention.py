"""Self-attention by the platform that a program is lowered for: cuDNN's fused kernel on GPUs, XLA's products elsewhere.

The fused kernel never writes the scores to memory. It takes bfloat16 and float16, head sizes that are multiples of 8 up
to 128, and an even number of tokens; what it does not take goes through XLA on GPUs too. The choice is
`lax.platform_dependent`'s, so that a program which is compiled for a GPU on another machine has it as well.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Bool, Float

HALF = (jnp.bfloat16, jnp.float16)
LARGEST_HEAD = 128  # of the fused kernel on every GPU that has it
IMPLEMENTATIONS = ("auto", "xla")

Heads = Float[Array, "b t h d"]


def padded_length(tokens: int, dtype: jnp.dtype) -> int:
    """How many tokens to compute with for so many: in half precision the next even number, for the fused kernel.

    The next multiple of 8, the side of the matrix units' tiles, moves 4 % more bytes in a step of the masked ViT-S,
    on GPUs (33.5 GB, 32.3 with even numbers) and TPUs (49.4, 47.7) alike.
    """
    return tokens + tokens % 2 if dtype in HALF else tokens


def attend(
    query: Heads,
    key: Heads,
    value: Heads,
    *,
    there: int | None = None,
    key_mask: Bool[Array, "b t"] | None = None,
    bias: Float[Array, "b 1 1 t"] | None = None,
    implementation: str = "auto",
) -> Heads:
    """softmax(query · keyᵀ / √d + bias) · value, of the type of `value`; the softmax is computed in float32.

    key_mask: who is attended to; None: the first `there` tokens, the others are padding; both None: all.
    implementation: auto | xla. auto: by platform, as above; xla: XLA's products everywhere.
    """
    length, scale = query.shape[1], query.shape[3] ** -0.5
    padded = key_mask is None and (there or length) < length

    def products(query, key, value, key_mask, bias):
        mask = (jnp.arange(length) < there)[None] if padded else key_mask
        mask = None if mask is None else mask[:, None, None, :]
        # Scaled here, not in the scores: there XLA scales before or after the product, depending on what follows, and
        # a mask that keeps all would change the last bit.
        return jax.nn.dot_product_attention(query * scale, key, value, bias, mask, scale=1.0, implementation="xla")

    def fused(query, key, value, key_mask, _):
        cudnn = functools.partial(jax.nn.dot_product_attention, query, key, value, implementation="cudnn")
        if key_mask is not None:
            return cudnn(mask=jnp.broadcast_to(key_mask[:, None, None, :], (len(query), 1, length, length)))
        if padded:  # cheaper than a mask, which the kernel reads as a bias
            return cudnn(key_value_seq_lengths=jnp.full(len(query), there, jnp.int32))
        return cudnn()

    fits = query.dtype in HALF and query.shape[3] % 8 == 0 and query.shape[3] <= LARGEST_HEAD and length % 2 == 0
    if implementation == "xla" or not fits or bias is not None or not has_cudnn():
        return products(query, key, value, key_mask, bias)
    return lax.platform_dependent(query, key, value, key_mask, bias, cuda=fused, default=products)


@jax.custom_vjp
def images_outermost(x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
    """x, which lies in memory image after image, as the fused kernel reads it, and so does its gradient.

    Under `vmap` x stays as it lies. There is no forward mode on GPUs.
    """
    return _outermost(x)


@jax.custom_batching.custom_vmap
def _outermost(x):
    return _constrained(x)


@_outermost.def_vmap
def _(size, batched, x):
    return x, batched[0]


@custom_partitioning
def _constrained(x):
    return with_layout_constraint(x, Layout((0, 1, 2)))


# XLA cannot split the constraint: alone it would have the whole batch gathered on every device.
_constrained.def_partition(
    lambda mesh, arguments, result: (mesh, _constrained.fun, result.sharding, (result.sharding,)),
    sharding_rule="b t d -> b t d",
)
images_outermost.defvjp(lambda x: (images_outermost(x), None), lambda _, gradient: (images_outermost(gradient),))


@functools.cache
def has_cudnn() -> bool:
    """Whether JAX finds cuDNN; without it nothing is lowered for NVIDIA's GPUs."""
    heads = jax.ShapeDtypeStruct((1, 2, 1, 8), jnp.bfloat16)
    try:
        jax.eval_shape(functools.partial(jax.nn.dot_product_attention, implementation="cudnn"), heads, heads, heads)
    except RuntimeError as error:
        if "cudnn" not in str(error).lower():
            raise
        return False
    return True
