"""Checkpoints by Orbax: written in the background, verified before use, restored onto whatever devices there are now.

A step is a folder: `default` as Orbax writes it, notes.json, and manifest.sha256, written after all others and before
the folder gets its name. Of a step nothing is used before all its files are found to be what they were; one that is
damaged is named in a line, and the newest that is whole is used. Steps of before there were manifests are used with a
warning. A folder that is renamed to STEP.damaged is never used again, nor deleted.
"""

import contextlib
import dataclasses
import errno
import itertools
import json
import logging
import math
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from bjax import manifest
from bjax.errors import UserError
from bjax.runtime import distributed

ITEM, NOTES, METADATA = "default", "notes.json", "_CHECKPOINT_METADATA"
# Orbax changes them after the manifest is written; but for whether there is a manifest, nothing is read from them.
LATER = (METADATA, "commit_success.txt")
HALF_WRITTEN, REMOVED = ".orbax-checkpoint-tmp", "removed."
GOOD, NOT_VERIFIED, BAD = range(3)
# Orbax prints what it raises, pages of it, and what it raises is told once, by whoever catches it.
logging.getLogger("absl").addFilter(lambda x: not (x.exc_info and "orbax" in x.pathname))
# Of a save that failed, TensorStore's threads and asyncio tell what nobody waits for any more.
logging.getLogger("asyncio").addFilter(lambda x: "never retrieved" not in x.getMessage())
warnings.filterwarnings("ignore", "coroutine 'async_serialize.* was never awaited", RuntimeWarning)
_before = sys.unraisablehook


def _unraisable(x) -> None:
    if not (x.exc_type is RuntimeError and str(x.exc_value) == "Event loop is closed"):
        _before(x)


sys.unraisablehook = _unraisable


class _Handler(ocp.CompositeCheckpointHandler):
    """Adds notes and manifest to a step when all processes have written it, while it has no name yet."""

    notes: dict

    def finalize(self, directory) -> None:
        super().finalize(directory)
        folder = Path(directory)
        (folder / NOTES).write_text(json.dumps(self.notes))
        manifest.write(folder, leave_out=LATER)


@ocp.args.register_with_handler(_Handler, for_save=True, for_restore=True)
class _Args(ocp.args.Composite):
    """What Orbax wants to know a handler by."""


@dataclasses.dataclass(frozen=True)
class Kept:
    """Which steps stay: the newest, every so-manieth for ever, and the best by their scores."""

    newest: int = 2
    every: int = 0  # 0: none
    best: int = 0

    def of(self, steps: list[int], scores: Mapping[int, float]) -> set[int]:
        """Of `steps`; one without a score, if scores decide, awaits its evaluation only while it is the newest."""
        ordered = sorted(steps)
        scored = [step for step in ordered if math.isfinite(scores.get(step, math.nan))]
        scored.sort(key=lambda step: (scores[step], step))
        return {
            *ordered[-self.newest :],
            *(step for step in ordered if self.every and step % self.every == 0),
            *(scored[-self.best :] if self.best else ()),
        }


class Manager:
    """The checkpoints in a folder; see `manager`."""

    def __init__(self, directory: Path, kept: Kept, read_only: bool):
        self.directory, self.kept, self.read_only = directory, kept, read_only
        self.scores: dict[int, float] = {}  # by which the best are kept
        self.spared: frozenset[int] = frozenset()  # kept in any case
        self.writes = not read_only and jax.process_index() == 0
        self.restored: int | None = None
        self.unverified = False  # what was restored may be damaged
        self.removals: list[Future] = []
        if read_only:
            return
        self.size = 0  # of what is saved, bytes on the disk
        self.handler = _Handler(**{ITEM: ocp.StandardCheckpointHandler()})
        self.checkpointer = ocp.AsyncCheckpointer(self.handler)
        self.pool = ThreadPoolExecutor(1)
        if self.writes:
            directory.mkdir(parents=True, exist_ok=True)
            for path in directory.iterdir():
                if HALF_WRITTEN in path.name or path.name.startswith(REMOVED):
                    shutil.rmtree(path)

    def steps(self) -> list[int]:
        return steps(self.directory)

    def wait_until_finished(self) -> None:
        """Waits until what was saved is on the disk, and what is not kept is gone."""
        self.checkpointer.wait_until_finished()
        self._prune()
        for removal in self.removals:
            removal.result()
        self.removals.clear()

    def _prune(self) -> None:
        """Steps go by losing their name, which takes no time; their files go in the background."""
        present = steps(self.directory)
        for step in set(present) - self.kept.of(present, self.scores) - self.spared if self.writes else ():
            path = self.directory / f"{REMOVED}{step}"
            os.replace(self.directory / str(step), path)
            self.removals.append(self.pool.submit(shutil.rmtree, path))

    def close(self) -> None:
        if self.read_only:
            return
        try:
            self.wait_until_finished()
        finally:
            self.pool.shutdown()
            self.checkpointer.close()


@contextlib.contextmanager
def manager(
    directory: str | Path, *, keep: int = 2, every: int = 0, best: int = 0, read_only: bool = False
) -> Iterator[Manager]:
    """A manager of `directory`. What a killed process left half written is removed here, unless `read_only`."""
    made = Manager(Path(directory).absolute(), Kept(keep, every, best), read_only)
    with contextlib.closing(made):
        yield made


def steps(directory: str | Path) -> list[int]:
    """The steps in `directory` that were written to their end; others have longer names."""
    return sorted(int(path.name) for path in Path(directory).glob("*") if path.name.isdecimal())


def exists(directory: str | Path) -> bool:
    """Whether `directory` holds a finished checkpoint."""
    return bool(steps(directory))


def is_whole(directory: str | Path, step: int) -> bool:
    """Whether `step` is in `directory` as it was saved; not known of steps from before there were manifests."""
    return manifest.wrong(Path(directory) / str(step)) is None


def save(manager: Manager, step: int, state, notes: dict | None = None) -> None:
    """Copies `state` off the devices and returns; the files appear later, whole or not at all.

    notes: what JSON can hold, saved with the state.
    """
    manager.checkpointer.wait_until_finished()
    manager._prune()
    manager.handler.notes = notes or {}
    distributed.by_main(lambda: _check_room(manager, state))
    manager.checkpointer.save(
        manager.directory / str(step),
        args=_Args(**{ITEM: ocp.args.StandardSave(state)}),
        custom_metadata={"manifest": 1},
    )


def _check_room(manager: Manager, state) -> None:
    """Raises OSError where the disk has no room for another step: sooner, and in fewer words, than Orbax would."""
    present = manager.steps()
    if present and not manager.size:
        last = (manager.directory / str(present[-1])).rglob("*")
        manager.size = sum(path.stat().st_size for path in last if path.is_file())
    needed = manager.size or sum(x.nbytes for x in jax.tree.leaves(state))
    if shutil.disk_usage(manager.directory).free < needed:
        manager.wait_until_finished()  # for what goes, to be gone
    if shutil.disk_usage(manager.directory).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(manager.directory))


def notes(manager: Manager) -> dict:
    """The notes saved with the restored checkpoint; {} where there are none."""
    if manager.restored is None:
        return {}
    folder = manager.directory / str(manager.restored)
    if (folder / NOTES).is_file():
        return json.loads((folder / NOTES).read_text())
    return _metadata(folder) or {}


def restore(manager: Manager, shapes, plan):
    """The newest state that is whole, placed by `plan` (shardings like `shapes`), or None where there is no checkpoint.

    A line on stderr names each step that is damaged, and one that is too old to be verified. What a manager that is not
    read-only passes over is put aside as STEP.damaged, since its step will be written again. Raises UserError where no
    step is whole, and where the checkpoint holds other arrays than `shapes`.
    """
    target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, plan)
    damaged = {}
    for step in reversed(steps(manager.directory)):
        folder = manager.directory / str(step)
        damaged[folder], state = _state_of(folder, target)
        if damaged[folder] is None:
            manager.restored, manager.unverified = step, not manifest.exists(folder)
            del damaged[folder]
            for other, fault in damaged.items():
                place = f", kept as {_put_aside(other).name}" if manager.writes else ""
                _say(f"{other}: {fault}; left out{place}, goes back to step {step}")
            return state
    if damaged:
        faults = "; ".join(f"{folder.name}: {fault}" for folder, fault in damaged.items())
        raise UserError(
            f"{manager.directory}: no checkpoint in it is whole ({faults}); nothing was deleted: put a copy of one "
            "back, or name another --workdir and train anew"
        )
    return None


def _state_of(folder: Path, target) -> tuple[str | None, object]:
    """(None, the state in `folder`), or (what is wrong with it, None), the same on all processes."""
    fault = manifest.wrong(folder, (jax.process_index(), jax.process_count()))
    verdict = GOOD if fault is None else BAD
    metadata = _metadata(folder)
    # A step has three signs of having had a manifest: the file, the notes, and Orbax's metadata, which are always
    # there and say so. With one left, or metadata gone, it is not taken for one of before manifests. config.json could
    # not tell: a run of before that goes on has steps of both kinds.
    had_one = manifest.exists(folder) or (folder / NOTES).exists() or metadata is None or "manifest" in metadata
    if fault and not had_one:
        verdict = NOT_VERIFIED
    verdict = distributed.worst(verdict)
    if verdict == BAD:
        return fault or "another process found it damaged", None
    if verdict == GOOD:
        return None, _read(folder, target)
    if jax.process_index() == 0:
        _say(f"{folder}: not verified: it is older than manifests, so damage would not be seen")
    try:
        state = _read(folder, target)
    except UserError:
        raise
    except Exception as error:  # whatever Orbax makes of damaged bytes
        fault = f"cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    else:
        fault = None
    if distributed.worst(int(fault is not None)):
        return fault or "another process cannot read it", None
    return None, state


def _read(folder: Path, target):
    handler = ocp.StandardCheckpointHandler()
    saved = handler.metadata(folder / ITEM).tree
    wanted = {_name(p): (x.shape, x.dtype) for p, x in jax.tree_util.tree_leaves_with_path(target)}
    held = {_name(p): (tuple(x.shape), x.dtype) for p, x in jax.tree_util.tree_leaves_with_path(saved)}
    wrong = sorted(k for k in wanted.keys() | held.keys() if wanted.get(k) != held.get(k))
    if wrong:
        k = wrong[0]
        raise UserError(
            f"{folder}: does not fit this config at {len(wrong)} arrays; the first, {k}, is "
            f"{held.get(k, 'absent')} there and {wanted.get(k, 'absent')} here; use another --workdir"
        )
    return handler.restore(folder / ITEM, args=ocp.args.StandardRestore(target))


def _metadata(folder: Path) -> dict | None:
    """What Orbax keeps for us beside a step; None where that is damaged."""
    try:
        return dict(json.loads((folder / METADATA).read_text()).get("custom_metadata") or {})
    except (OSError, ValueError, AttributeError, TypeError):
        return None


def _put_aside(folder: Path) -> Path:
    names = (f"{folder.name}.damaged{'' if i == 1 else f'_{i}'}" for i in itertools.count(1))
    free = next(path for path in map(folder.with_name, names) if not path.exists())
    os.replace(folder, free)
    return free


def _say(line: str) -> None:
    print(f"{distributed.name()}: {line}", file=sys.stderr, flush=True)


def _name(path) -> str:
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
