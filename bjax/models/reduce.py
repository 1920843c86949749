"""Fewer tokens from what the layers of a ViT computed: EViT's dropping, ToMe's merging, highpass.

All act on the stream between a block's attention and its MLP, add no parameter, and leave a number of tokens that
depends on shapes alone. They are the rivals of masks that are chosen from the image, before the model.
"""

import math

import jax
import jax.numpy as jnp


def tokens_after(tokens: int, keep: float, tome_r: int) -> int:
    """How many of `tokens`, class token included, are left after a block that keeps such a share and merges so many."""
    kept = math.ceil(keep * (tokens - 1))
    if kept < tokens - 1:
        tokens = kept + 2  # the class token and the fused one
    return tokens - min(tome_r, (tokens - 1) // 2)


def class_attention(query, key):
    """What the class token attends to, `f32[B, T - 1]`: softmax of its scores over all tokens, mean of the heads.

    query (already scaled), key: `[B, T, heads, D]`; the class token is the first.
    """
    scores = jnp.einsum("bhd,bthd->bht", query[:, 0], key, preferred_element_type=jnp.float32)
    return jax.nn.softmax(scores, axis=-1).mean(axis=1)[:, 1:]


def keep_attentive(x, attention, keep: float):
    """EViT (Liang et al. 2022, arXiv:2202.07800, section 3): the attentive tokens, and one made of the others.

    Of `x: [B, T, D]` the class token stays, and the ceil(keep·(T - 1)) others with the largest
    `attention: f32[B, T - 1]`; a last token is the sum of those left out, each times its attention (equation 4 of the
    paper, not normalised, as in its code); where none is left out, there is none. To the next layer that drops, a fused
    token is a token like any other.
    Order does not matter to a transformer: the tokens kept stay in theirs.
    """
    batch, tokens, _ = x.shape
    kept = math.ceil(keep * (tokens - 1))
    if kept == tokens - 1:
        return x
    order = jnp.argsort(-attention, axis=1, stable=True)
    indices = jnp.sort(order[:, :kept], axis=1)
    # Weights of zero for the kept ones instead of gathering the others: one pass over x.
    left_out = jnp.ones((batch, tokens - 1), bool).at[jnp.arange(batch)[:, None], indices].set(False)
    weights = jnp.where(left_out, attention, 0).astype(x.dtype)
    fused = jnp.einsum("bt,btd->bd", weights, x[:, 1:])[:, None]
    indices = jnp.concatenate([jnp.zeros((batch, 1), indices.dtype), 1 + indices], axis=1)
    return jnp.concatenate([jnp.take_along_axis(x, indices[:, :, None], axis=1), fused], axis=1)


def merge_similar(x, metric, sizes, r: int):
    """ToMe (Bolya et al. 2023, arXiv:2210.09461, section 3): the r most similar pairs of tokens become one each.

    Bipartite soft matching: tokens at even positions are the sources, those at odd ones the destinations. Every source
    but the class token draws an edge to the destination of the highest cosine similarity of `metric: [B, T, C]` (the
    keys, mean over heads); the r best edges are kept, their sources merge into their destinations, as means weighted by
    `sizes: f32[B, T]` (None: ones). Returns `x: [B, T - r, D]`, sources that stay before destinations, the class token
    first, and the new sizes. At most half of the tokens besides the class token merge, whatever r.
    """
    batch, tokens, _ = x.shape
    r = min(r, (tokens - 1) // 2)
    sizes = jnp.ones((batch, tokens), jnp.float32) if sizes is None else sizes
    if r == 0:
        return x, sizes
    metric = jax.lax.stop_gradient(metric.astype(jnp.float32))
    metric = metric / jnp.linalg.norm(metric, axis=-1, keepdims=True)
    scores = jnp.einsum("bsc,bdc->bsd", metric[:, ::2], metric[:, 1::2]).at[:, 0].set(-jnp.inf)
    order = jnp.argsort(-scores.max(axis=2), axis=1, stable=True)
    merged, stay = order[:, :r], jnp.sort(order[:, r:], axis=1)
    destination = jnp.take_along_axis(scores.argmax(axis=2), merged, axis=1)
    # [B, destinations, r]: a matrix product instead of a scatter, which would be slow, and unordered on a GPU.
    into = jax.nn.one_hot(destination, scores.shape[2], axis=1, dtype=x.dtype)

    def merge(values):
        source, target = values[:, ::2], values[:, 1::2]
        moved = jnp.take_along_axis(source, merged[:, :, None], axis=1)
        target = target + jnp.einsum("bdr,brc->bdc", into.astype(values.dtype), moved)
        return jnp.concatenate([jnp.take_along_axis(source, stay[:, :, None], axis=1), target], axis=1)

    weights = sizes[:, :, None]
    new_sizes = merge(weights)
    return (merge(x * weights.astype(x.dtype)) / new_sizes.astype(x.dtype)), new_sizes[:, :, 0]


def high_pass(query, key, sizes):
    """How much of attention's high frequencies each token is the cause of, `f32[B, T - 1]`, the class token left out.

    A row of attention A is the mean of all tokens, its direct current, and what it takes of each beyond that; of a
    token the latter, |A - s / sum(s)|, summed over the queries and averaged over the heads. query (already scaled),
    key: `[B, T, heads, D]`, sizes: `f32[B, T]` (None: ones).
    """
    scores = jnp.einsum("bqhd,bthd->bhqt", query, key, preferred_element_type=jnp.float32)
    if sizes is None:
        sizes = jnp.ones(key.shape[:2], jnp.float32)
    attention = jax.nn.softmax(scores + jnp.log(sizes)[:, None, None], axis=-1)
    constant = sizes / sizes.sum(axis=1, keepdims=True)
    return jnp.abs(attention - constant[:, None, None]).sum(axis=2).mean(axis=1)[:, 1:]


def keep_high(x, shares, sizes, keep: float):
    """The tokens of high frequency, and one made of the others: `x: [B, kept + 2, D]` and its sizes.

    The class token stays, and the ceil(keep·(T - 1)) others with the largest `shares` (`high_pass`); the last is the
    mean of those left out, weighted by `sizes: f32[B, T]` (None: ones), and stands for all of them in attention: were
    they the same, nothing would change. Where none is left out, there is none.

    After no paper. Frequency-aware token reduction (Lee et al. 2025, arXiv:2511.21477) has the idea: A = 11ᵀ/n + a
    high-pass, by which tokens stay while the others are averaged. Its layers, its averages by place and its weighing of
    what is left are not here, and so not its name.
    """
    batch, tokens, _ = x.shape
    kept = math.ceil(keep * (tokens - 1))
    sizes = jnp.ones((batch, tokens), jnp.float32) if sizes is None else sizes
    if kept == tokens - 1:
        return x, sizes
    order = 1 + jnp.argsort(-jax.lax.stop_gradient(shares), axis=1, stable=True)
    stay = jnp.concatenate([jnp.zeros((batch, 1), order.dtype), jnp.sort(order[:, :kept], axis=1)], axis=1)
    # Weights of zero for the kept ones instead of gathering the others: one pass over x.
    weights = sizes.at[jnp.arange(batch)[:, None], stay].set(0)
    total = weights.sum(axis=1, keepdims=True)
    mean = jnp.einsum("bt,btd->bd", (weights / total).astype(x.dtype), x)[:, None]
    x = jnp.concatenate([jnp.take_along_axis(x, stay[:, :, None], axis=1), mean], axis=1)
    return x, jnp.concatenate([jnp.take_along_axis(sizes, stay, axis=1), total], axis=1)
