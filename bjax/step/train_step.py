"""The pure function that trains: a state and a batch of uint8 images in, the next state and its metrics out."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from bjax.step import augment, losses
from bjax.step.gather import gathered
from bjax.step.inputs import Batch, Inputs, apply, blur, image_keys, mask
from bjax.step.losses import Objective
from bjax.step.state import State


def train_step(
    key: jax.Array,
    state: State,
    batch: Batch,
    *,
    model,
    tx: optax.GradientTransformation,
    inputs: Inputs,
    objective: Objective,
    mesh: Mesh,
    plan: dict | None = None,
) -> tuple[State, dict[str, jax.Array]]:
    """One update. batch: image uint8[B, H, W, 3], label int32[B], id uint32[B], mask bool[B].

    Rows whose mask is False are blank; they have no loss of their own, but BatchNorm sees them and mixing uses them.

    key: the run's key, the same at every step. plan: the NamedShardings of the params; None: the compiler decides how
    weights that lie split come together. Returns the new state and float32[] metrics: loss, top1 (both over the
    images that count), kept (mean share of patches), grad_norm; corrupt, how many rows do not count; and, where the
    objective skips steps whose loss or gradient is not finite, skipped: 1 where all but the step's number stays.
    """
    key = jax.random.fold_in(key, state.step)
    draw_keys, mix_key, dropout_key = jax.random.split(key, 3)
    keys = image_keys(draw_keys, batch["id"])
    images, kind, drawn, truth = blur(keys, batch["image"], inputs, mesh)
    labels = kind if objective.task == "blur_type" else batch["label"]
    targets = losses.targets(labels, objective.num_classes, objective.label_smoothing)
    images, targets = _mix(mix_key, images, targets, objective)
    images, kept = mask(keys, images, inputs, mesh, truth=truth)

    weights = batch["mask"].astype(jnp.float32)
    count = jnp.maximum(weights.sum(), 1.0)

    def loss_of_part(params, batch_stats, part, dropout_key):
        images, kept, *_, weights = part
        if inputs.views > 1:
            images = images.reshape(-1, *images.shape[2:])
            kept = jax.tree.map(lambda x: jnp.repeat(x, inputs.views, axis=0), kept)

        def outputs_of(params):
            variables = {"params": params, "batch_stats": batch_stats}
            training = {"train": True, "mutable": ["batch_stats"], "rngs": {"dropout": dropout_key}}
            return apply(model, variables, images, kept, **training)

        if plan is not None and mesh.shape["fsdp"] > 1:
            params = gathered(params, plan, outputs_of)
        outputs, changed = outputs_of(params)
        outputs, aux = outputs if isinstance(outputs, tuple) else (outputs, ())

        loss_of = functools.partial(_loss, part=part, objective=objective, views=inputs.views)
        loss = loss_of(outputs)
        for more in aux:
            loss += objective.aux * loss_of(more)
        outputs = outputs if inputs.views == 1 else outputs[:: inputs.views]
        logits = outputs[:, : objective.num_classes]
        return (weights * loss).sum() / count, (changed.get("batch_stats", {}), logits)

    gradient = jax.value_and_grad(loss_of_part, has_aux=True)
    parts = (images, kept, targets, kind, drawn, weights)
    if objective.accumulate > 1:
        gradient = functools.partial(_accumulate, gradient, objective.accumulate)
    (loss, (batch_stats, logits)), grads = gradient(state.params, state.batch_stats, parts, dropout_key)

    params = state.params
    if mesh.size > 1 and getattr(model, "norm_group", 0):
        # XLA for GPUs fuses a weight's update with its cast for the backward pass, which then waits for that weight's
        # gradient from all devices: gradients would be reduced one by one instead of together.
        grads, params = jax.lax.optimization_barrier((grads, params))
    updates, opt_state = tx.update(grads, state.opt_state, params)
    params = optax.apply_updates(params, updates)
    ema = state.ema
    if ema is not None:
        # Early averages would hold mostly the random start: the decay grows to its value (tf.train's and timm's rule).
        decay = jnp.minimum(objective.ema, (1 + state.step) / (10 + state.step))
        ema = optax.incremental_update({"params": params, "batch_stats": batch_stats}, ema, 1 - decay)
    metrics = {
        "loss": loss,
        "top1": (weights * losses.hits(logits, labels, 1)).sum() / count,
        "grad_norm": optax.tree.norm(grads),
        "corrupt": (1 - weights).sum(),
    }
    if kept is not None:
        metrics["kept"] = (weights * kept.keep.mean(axis=1)).sum() / count
    updated = State(state.step + 1, params, batch_stats, opt_state, ema)
    if objective.skip_nonfinite:
        finite = jnp.isfinite(loss) & jnp.isfinite(metrics["grad_norm"])
        updated = jax.tree.map(functools.partial(jnp.where, finite), updated, state).replace(step=updated.step)
        metrics["skipped"] = 1 - finite.astype(jnp.float32)
    return updated, metrics


def compiled(plan: State, **options) -> Callable:
    """`train_step` with these options, compiled: the next state lies as `plan` says, in the memory of the last."""
    step = functools.partial(train_step, plan=plan.params, **options)
    return jax.jit(step, donate_argnums=1, out_shardings=(plan, None))


def _loss(outputs, *, part, objective: Objective, views: int):
    """float32[B] of outputs float[B · views, …]: the first view of an image is classified, all are to agree."""
    _, _, targets, kind, drawn, _ = part
    if views > 1:
        several = outputs.reshape(-1, views, outputs.shape[1])
        outputs = several[:, 0]
    loss = losses.cross_entropy(outputs[:, : objective.num_classes], targets)
    if objective.parameters:
        estimates = outputs[:, objective.num_classes :]
        loss += objective.parameters * losses.blur_parameters(estimates, kind, drawn)
    if views > 1:
        loss += objective.jsd * losses.jensen_shannon(several[..., : objective.num_classes])
    return loss


def _mix(key, images, targets, objective: Objective):
    k_choice, k_mix = jax.random.split(key)
    mixes = {augment.mixup: objective.mixup, augment.cutmix: objective.cutmix}
    mixed = [mix(k_mix, images, targets, alpha) for mix, alpha in mixes.items() if alpha]
    if len(mixed) == 2:
        choice = jax.random.bernoulli(k_choice)
        return jax.tree.map(lambda a, b: jnp.where(choice, a, b), *mixed)
    return mixed[0] if mixed else (images, targets)


def _accumulate(gradient: Callable, number: int, params, batch_stats, parts, dropout_key):
    """What `gradient` returns, computed in `number` parts, one after the other; BatchNorm sees each part on its own."""
    # Rows go round-robin: each part then holds rows of every device, and none of them moves.
    split = jax.tree.map(lambda x: x.reshape(-1, number, *x.shape[1:]).swapaxes(0, 1), parts)

    def body(carry, item):
        loss, grads, batch_stats = carry
        part, i = item
        key = jax.random.fold_in(dropout_key, i)
        (more, (batch_stats, logits)), g = gradient(params, batch_stats, part, key)
        return (loss + more, jax.tree.map(jnp.add, grads, g), batch_stats), logits

    start = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params), batch_stats)
    (loss, grads, batch_stats), logits = jax.lax.scan(body, start, (split, jnp.arange(number)))
    return (loss, (batch_stats, logits.swapaxes(0, 1).reshape(-1, logits.shape[-1]))), grads
