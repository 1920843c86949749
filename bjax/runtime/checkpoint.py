"""Checkpoints by Orbax: written in the background, restored onto whatever devices there are now."""

import logging
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from bjax.errors import UserError

# Orbax warns that a manager is read-only, which it was asked to be.
logging.getLogger("absl").addFilter(lambda x: not str(x.msg).startswith("Given directory is read only"))


def manager(directory: str | Path, *, keep: int = 2, read_only: bool = False) -> ocp.CheckpointManager:
    """A manager of `directory`. What a killed process left half written is removed here, unless `read_only`."""
    if read_only:
        options = ocp.CheckpointManagerOptions(
            read_only=True, create=False, max_to_keep=None, save_interval_steps=0
        )
    else:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
    # The handler is named, because only then are shapes known before anything has been saved or restored.
    return ocp.CheckpointManager(
        Path(directory).absolute(), options=options, item_handlers=ocp.StandardCheckpointHandler()
    )


def exists(directory: str | Path) -> bool:
    """Whether `directory` holds a finished checkpoint; half-written ones have longer names than their step."""
    return any(path.name.isdigit() for path in Path(directory).glob("*"))


def save(manager: ocp.CheckpointManager, step: int, state, notes: dict | None = None) -> None:
    """Copies `state` off the devices and returns; the files appear later, whole or not at all.

    notes: what JSON can hold, saved with the state.
    """
    manager.save(step, args=ocp.args.StandardSave(state), custom_metadata=notes)


def notes(manager: ocp.CheckpointManager) -> dict:
    """The notes saved with the newest checkpoint; {} where there are none."""
    step = manager.latest_step()
    return {} if step is None else dict(manager.metadata(step).custom_metadata or {})


def restore(manager: ocp.CheckpointManager, shapes, plan):
    """The newest state, placed by `plan` (shardings like `shapes`), or None where there is no checkpoint.

    Raises UserError where the checkpoint holds other arrays than `shapes`.
    """
    step = manager.latest_step()
    if step is None:
        return None
    target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, plan)
    saved = manager.item_metadata(step).tree
    wanted = {_name(p): (x.shape, x.dtype) for p, x in jax.tree_util.tree_leaves_with_path(target)}
    held = {_name(p): (tuple(x.shape), x.dtype) for p, x in jax.tree_util.tree_leaves_with_path(saved)}
    wrong = sorted(k for k in wanted.keys() | held.keys() if wanted.get(k) != held.get(k))
    if wrong:
        k = wrong[0]
        raise UserError(
            f"{manager.directory}/{step}: does not fit this config at {len(wrong)} arrays; the first, {k}, is "
            f"{held.get(k, 'absent')} there and {wanted.get(k, 'absent')} here; use another --workdir"
        )
    return manager.restore(step, args=ocp.args.StandardRestore(target))


def _name(path) -> str:
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
