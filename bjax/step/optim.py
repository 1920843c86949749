"""The optimiser of a run: schedule, weight decay with its exceptions, clipping."""

import jax
import optax


def schedule(config, total_steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then cosine to zero, ×0.1 every third of the run, or constant.

    config: `config.optim`. A warm-up longer than half the run is cut to that, so short runs still train.
    """
    warmup = min(config.warmup, total_steps // 2)
    rest = total_steps - warmup
    if config.schedule == "cosine":
        main = optax.cosine_decay_schedule(config.lr, max(rest, 1))
    elif config.schedule == "step":
        thirds = {total_steps // 3 - warmup: 0.1, 2 * total_steps // 3 - warmup: 0.1}
        main = optax.piecewise_constant_schedule(config.lr, thirds)
    else:
        main = optax.constant_schedule(config.lr)
    # The first step of a warm-up already moves: torch's LinearLR and big_vision start above zero as well.
    ramp = optax.linear_schedule(config.lr / max(warmup, 1), config.lr, max(warmup - 1, 1))
    return optax.join_schedules([ramp, main], [warmup]) if warmup else main


def build(config, total_steps: int) -> optax.GradientTransformation:
    """The gradient transformation of `config.optim` for a run of `total_steps`."""
    rate = schedule(config, total_steps)
    mask = decayed if config.decay == "kernels" else None
    if config.name == "sgd":
        # torch's L2: decay enters the momentum
        decay = optax.add_decayed_weights(config.weight_decay, mask)
        steps = [decay, optax.sgd(rate, momentum=config.momentum)]
    else:
        steps = [optax.adamw(rate, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=mask)]
    if config.clip:
        steps.insert(0, optax.clip_by_global_norm(config.clip))
    return optax.chain(*steps)


def decayed(params) -> dict:
    """True for the parameters that decay: kernels; not biases, norms, class token and position embedding."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
