"""The two pure functions that run on the devices: uint8 images in, new state or answers per image out.

Blur, scores, masks and normalisation happen here, so the host only decodes and crops. Per-image work runs under
`shard_map`: each device blurs its own rows, and every random draw comes from the image's own key, so the number of
devices changes nothing.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bjax import augment, dead_leaves, losses, sharpness, tokens
from bjax.blur import imagenet_c, sample
from bjax.sharding import BATCH
from bjax.state import State
from bjax.tokens import MaskSpec


@dataclasses.dataclass(frozen=True)
class Inputs:
    """How uint8 images become what the model sees: blur -> leave out patches -> normalise (0..1 scale).

    quantize: round the blurred images to the 256 levels of a file, half to even. For task=blur_type: an image that was
    not blurred lies on the levels and one that was does not, which would tell them apart without looking at the blur,
    and photographs in files, whose blur is to be named, all lie on them. Elsewhere the blur is not the label, and the
    images stay as they were blurred.
    """

    blur: sample.BlurSpec
    mask: MaskSpec
    patch_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    corruption: tuple[str, int] | None = None  # ImageNet-C's name and severity, instead of `blur`
    quantize: bool = False


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is predicted and how it is trained; see `configs/common.py` for the fields."""

    task: str
    num_classes: int
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    aux: float = 0.3
    parameters: float = (
        0.0  # weight of estimating the blur's parameters, for which the model then has outputs
    )
    accumulate: int = 1
    ema: float = 0.0
    dead_leaves: float = 0.0
    dead_leaves_steps: int = 0


def train_step(
    key: jax.Array,
    state: State,
    batch: dict[str, jax.Array],
    *,
    model,
    tx: optax.GradientTransformation,
    inputs: Inputs,
    objective: Objective,
    mesh: Mesh,
) -> tuple[State, dict[str, jax.Array]]:
    """One update. batch: image uint8[B, H, W, 3], label int32[B], id uint32[B], mask bool[B].

    Rows whose mask is False are blank; they have no loss of their own, but BatchNorm sees them and mixing uses them.

    key: the run's key, the same at every step. Returns the new state and float32[] metrics: loss, top1 (both over the
    images that count), kept (mean share of patches), grad_norm; and corrupt, how many rows do not count.
    """
    key = jax.random.fold_in(key, state.step)
    draw_keys, mix_key, dropout_key = jax.random.split(key, 3)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(draw_keys, batch["id"])
    images = batch["image"]
    if objective.dead_leaves:
        on = (state.step < objective.dead_leaves_steps) | (objective.dead_leaves_steps == 0)
        share = jnp.full(len(images), objective.dead_leaves) * on
        images = _per_image(dead_leaves.replace, mesh)(_stream(keys, 2), images, share)
    images, kind, drawn = _blur(keys, images, inputs, mesh)
    labels = kind if objective.task == "blur_type" else batch["label"]
    targets = losses.targets(labels, objective.num_classes, objective.label_smoothing)
    images, targets = _mix(mix_key, images, targets, objective)
    images, kept = _mask(keys, images, inputs, mesh)

    weights = batch["mask"].astype(jnp.float32)
    count = jnp.maximum(weights.sum(), 1.0)

    def loss_of_part(params, batch_stats, part, dropout_key):
        images, kept, targets, kind, drawn, weights = part
        # Split weights are gathered where they are used. Left to itself the compiler may send the activations, which
        # are larger, from device to device instead.
        params = jax.lax.with_sharding_constraint(params, NamedSharding(mesh, P()))
        outputs, changed = _apply(
            model,
            {"params": params, "batch_stats": batch_stats},
            images,
            kept,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        outputs, aux = outputs if isinstance(outputs, tuple) else (outputs, ())

        def loss_of(outputs):
            loss = losses.cross_entropy(outputs[:, : objective.num_classes], targets)
            if objective.parameters:
                estimates = outputs[:, objective.num_classes :]
                loss += objective.parameters * losses.blur_parameters(estimates, kind, drawn)
            return loss

        loss = loss_of(outputs)
        for more in aux:
            loss += objective.aux * loss_of(more)
        logits = outputs[:, : objective.num_classes]
        return (weights * loss).sum() / count, (changed.get("batch_stats", {}), logits)

    gradient = jax.value_and_grad(loss_of_part, has_aux=True)
    parts = (images, kept, targets, kind, drawn, weights)
    if objective.accumulate == 1:
        (loss, (batch_stats, logits)), grads = gradient(state.params, state.batch_stats, parts, dropout_key)
    else:
        loss, batch_stats, logits, grads = _accumulate(
            gradient, state, parts, dropout_key, objective.accumulate
        )

    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
        # Early averages would hold mostly the random start: the decay grows to its value (tf.train's and timm's rule).
        decay = jnp.minimum(objective.ema, (1 + state.step) / (10 + state.step))
        ema = optax.incremental_update({"params": params, "batch_stats": batch_stats}, ema, 1 - decay)
    metrics = {
        "loss": loss,
        "top1": (weights * _hits(logits, labels, 1)).sum() / count,
        "grad_norm": optax.tree.norm(grads),
        "corrupt": (1 - weights).sum(),
    }
    if kept is not None:
        metrics["kept"] = (weights * kept.keep.mean(axis=1)).sum() / count
    return State(state.step + 1, params, batch_stats, opt_state, ema), metrics


@functools.partial(jax.jit, static_argnames=("inputs", "objective", "mesh", "score"))
def prepare(
    key: jax.Array,
    batch: dict[str, jax.Array],
    *,
    inputs: Inputs,
    objective: Objective,
    mesh: Mesh,
    score: bool = True,
) -> tuple[jax.Array, tokens.Tokens | None, jax.Array, dict[str, jax.Array]]:
    """A batch as evaluation sees it, and the truth about it.

    Returns normalised images float32[B, H, W, 3], the tokens kept, labels int32[B], and facts, float32[B] each: the
    parameters of the blur drawn (0 where its kind has none) and, unless not `score` or over 1024 px, sharpness, the
    variance of the whole blurred image's Laplacian. The draw of an image's blur depends on key and id alone, so every
    condition and every run blurs it alike.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["id"])
    images, kind, drawn = _blur(keys, batch["image"], inputs, mesh)
    labels = kind if objective.task == "blur_type" else batch["label"]
    facts = {name: getattr(drawn, name) for name in ("sigma", "length", "angle", "radius")}
    if score and max(images.shape[1:3]) <= sharpness.LARGEST_PATCH:
        whole = functools.partial(sharpness.laplacian_variance, patch_size=images.shape[1:3])
        facts["sharpness"] = _per_image(whole, mesh)(images)[:, 0, 0]
    images, kept = _mask(keys, images, inputs, mesh)
    return images, kept, labels, facts


@functools.partial(jax.jit, static_argnames=("model", "objective", "mesh"))
def assess(
    variables: dict,
    images: jax.Array,
    kept: tokens.Tokens | None,
    labels: jax.Array,
    facts: dict[str, jax.Array],
    mask: jax.Array,
    *,
    model,
    objective: Objective,
    mesh: Mesh,
) -> dict[str, jax.Array]:
    """The model's answers to what `prepare` returns, one row per image, whole on every process.

    int32[B] label and prediction; float32[B] top1, top5, loss, confidence (the largest probability), kept (a share),
    and the facts; bool[B] mask, as given: which rows count; estimates float32[B, 4] of the blur's sigma, length, angle
    and radius, where the model estimates them.
    """
    outputs = _apply(model, variables, images, kept, train=False)
    logits = outputs[:, : objective.num_classes]
    answers = {
        "label": labels,
        "prediction": logits.argmax(axis=1).astype(jnp.int32),
        "confidence": jax.nn.softmax(logits.astype(jnp.float32)).max(axis=1),
        "top1": _hits(logits, labels, 1),
        "top5": _hits(logits, labels, 5),
        "loss": losses.cross_entropy(logits, losses.targets(labels, objective.num_classes)),
        "kept": jnp.ones(len(labels)) if kept is None else kept.keep.mean(axis=1),
        "mask": mask,
        **facts,
    }
    if objective.parameters:
        answers["estimates"] = losses.decode_parameters(outputs[:, objective.num_classes :])
    return jax.lax.with_sharding_constraint(answers, NamedSharding(mesh, P()))


def eval_step(
    key: jax.Array,
    variables: dict,
    batch: dict[str, jax.Array],
    *,
    model,
    inputs: Inputs,
    objective: Objective,
    mesh: Mesh,
    score: bool = True,
) -> dict[str, jax.Array]:
    """`prepare`, then `assess`: the answers to a batch, one row per image.

    Compiled in these two parts: conditions that differ in blur or selector share the second, by far the larger, so that
    a grid of them compiles the model once per number of tokens.
    """
    prepared = prepare(key, batch, inputs=inputs, objective=objective, mesh=mesh, score=score)
    return assess(variables, *prepared, batch["mask"], model=model, objective=objective, mesh=mesh)


def outputs(
    keys: jax.Array, images: jax.Array, variables: dict, *, model, inputs: Inputs
) -> tuple[jax.Array, tokens.Tokens | None]:
    """What the model says of sharp images, on one device: evaluation without blur, labels or a mesh.

    keys: [B], of a random selector. images: uint8[B, H, W, 3]. Returns float32[B, outputs] and the tokens kept.
    """
    images, kept = _mask_local(inputs, keys, images.astype(jnp.float32) / 255)
    return _apply(model, variables, images, kept, train=False), kept


def batch_statistics(
    key: jax.Array,
    variables: dict,
    batch: dict[str, jax.Array],
    *,
    model,
    inputs: Inputs,
    mesh: Mesh,
    momentum: float,
) -> dict:
    """The mean and variance that each BatchNorm sees in this batch, as a tree like `variables["batch_stats"]`.

    As in training, each layer is fed by layers that normalise with the batch's own statistics. momentum: the model's.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["id"])
    images, *_ = _blur(keys, batch["image"], inputs, mesh)
    images, kept = _mask(keys, images, inputs, mesh)
    # From zero, one step of the running average is the batch's share of it.
    start = {**variables, "batch_stats": jax.tree.map(jnp.zeros_like, variables["batch_stats"])}
    _, changed = _apply(
        model, start, images, kept, train=True, mutable=["batch_stats"], rngs={"dropout": key}
    )
    return jax.tree.map(lambda x: x / (1 - momentum), changed["batch_stats"])


def _apply(model, variables: dict, images, kept, **options):
    variables = {k: v for k, v in variables.items() if v}
    if kept is not None and kept.mode != "zero_pixels":
        options["tokens"] = kept
    return model.apply(variables, images, **options)


def _blur(keys, images, inputs: Inputs, mesh: Mesh):
    """uint8 images -> blurred float32 in [0, 1], the kind of blur drawn (0 under a corruption) and its parameters."""

    def local(keys, images):
        keys = _stream(keys, 0)
        if inputs.corruption is None:
            images, kind, drawn = sample.draw(keys, images.astype(jnp.float32) / 255, inputs.blur)
            return jnp.round(images * 255) / 255 if inputs.quantize else images, kind, drawn
        name, severity = inputs.corruption
        # One at a time: a vmapped kernel is a grouped convolution, slow on every platform.
        images = jax.lax.map(lambda item: imagenet_c.corrupt(*item, name, severity), (keys, images))
        nothing = jnp.zeros(len(images))
        return images.astype(jnp.float32) / 255, nothing.astype(jnp.int32), sample.Params(*[nothing] * 5)

    return _per_image(local, mesh)(keys, images)


def _mask(keys, images, inputs: Inputs, mesh: Mesh):
    """Images in [0, 1] -> normalised images and the tokens kept (None without a mask)."""
    return _per_image(functools.partial(_mask_local, inputs), mesh)(keys, images)


def _mask_local(inputs: Inputs, keys, images):
    kept = tokens.select(_stream(keys, 1), images, inputs.mask, inputs.patch_size)
    mean, std = jnp.asarray(inputs.mean), jnp.asarray(inputs.std)
    if inputs.mask.mode == "zero_pixels":
        fill = mean if inputs.mask.fill == "mean" else 0.0
        images = tokens.erase(images, kept, inputs.patch_size, fill)
    return (images - mean) / std, kept


def _per_image(function: Callable, mesh: Mesh) -> Callable:
    return jax.shard_map(function, mesh=mesh, in_specs=BATCH, out_specs=BATCH)


def _stream(keys, number: int):
    """Per-image keys for one purpose, so that blur and mask never share random numbers."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def _mix(key, images, targets, objective: Objective):
    k_choice, k_mix = jax.random.split(key)
    if objective.mixup and objective.cutmix:
        mixed = augment.mixup(k_mix, images, targets, objective.mixup)
        cut = augment.cutmix(k_mix, images, targets, objective.cutmix)
        choice = jax.random.bernoulli(k_choice)
        return jax.tree.map(lambda a, b: jnp.where(choice, a, b), mixed, cut)
    if objective.mixup:
        return augment.mixup(k_mix, images, targets, objective.mixup)
    if objective.cutmix:
        return augment.cutmix(k_mix, images, targets, objective.cutmix)
    return images, targets


def _accumulate(gradient: Callable, state: State, parts, dropout_key, number: int):
    """Gradients of a batch computed in `number` parts, one after the other; BatchNorm sees each part on its own."""
    # Rows go round-robin: each part then holds rows of every device, and none of them moves.
    split = jax.tree.map(lambda x: x.reshape(-1, number, *x.shape[1:]).swapaxes(0, 1), parts)

    def body(carry, item):
        loss, grads, batch_stats = carry
        part, i = item
        (more, (batch_stats, logits)), g = gradient(
            state.params, batch_stats, part, jax.random.fold_in(dropout_key, i)
        )
        return (loss + more, jax.tree.map(jnp.add, grads, g), batch_stats), logits

    start = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params), state.batch_stats)
    (loss, grads, batch_stats), logits = jax.lax.scan(body, start, (split, jnp.arange(number)))
    return loss, batch_stats, logits.swapaxes(0, 1).reshape(-1, logits.shape[-1]), grads


def _hits(logits: jax.Array, labels: jax.Array, k: int) -> jax.Array:
    """float32[B]: 1 where the label is among the k largest logits; ties go to the lower class, as in `lax.top_k`.

    0 where any logit of the row is not finite: what such a model says is no answer.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    before = (logits > own) | ((logits == own) & (jnp.arange(logits.shape[1]) < labels[:, None]))
    # A NaN compares false with everything: it would stand before no label.
    return ((before.sum(axis=1) < k) & jnp.isfinite(logits).all(axis=1)).astype(jnp.float32)
