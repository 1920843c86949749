"""Inference under a threshold, where every image keeps a number of patches of its own.

A compiled program has one length, so images are scored first, then grouped by how many patches they keep into a few
lengths, run in full batches of the shortest length that holds them, and their answers put back in order. Nothing has
a dynamic shape: one program per length.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from bjax import tokens
from bjax.errors import UserError
from bjax.runtime import sharding
from bjax.step.eval_step import eval_step
from bjax.step.inputs import Inputs, image_keys, see
from bjax.tokens import MaskSpec

# Programs per mask: each wastes at most a quarter of the budget on an image, and takes time to compile.
LENGTHS = 4


def programs_of(spec: MaskSpec, patches: int, number: int = LENGTHS) -> dict[int, MaskSpec]:
    """The masks to compile for the mask `spec`, by length: gathers that keep the same patches within a smaller budget.

    Lengths divide the budget evenly. An image may run in any program that is at least as long as what it keeps.
    """
    budget = tokens.budget(spec, patches)
    lengths = sorted({-(-budget * part // number) for part in range(1, number + 1)})
    return {n: dataclasses.replace(spec, mode="gather", keep_rate=n / patches) for n in lengths}


def stream(
    key: jax.Array, variables: dict, *, batch_size: int, patches: int, inputs: Inputs, mesh: Mesh, **options
) -> "Stream":
    """The evaluation of `inputs` (mask mode bucket) as a Stream, whose answers are those of `eval_step`.

    batch_size: of the programs; the mesh's devices divide it. patches: of an image. options: model, objective and
    more, of `eval_step`. Blur and scores are computed twice, once to count and once in the program: cheaper than
    keeping what they made on the way between. Raises UserError in a run of several processes.
    """
    if jax.process_count() > 1:
        raise UserError("mask.mode=bucket: evaluates in one process; use attend, or gather with a keep_rate")

    def count(batch):
        return _count(key, sharding.put(batch, mesh), inputs=inputs, mesh=mesh)

    def program(mask, batch):
        gathered = dataclasses.replace(inputs, mask=mask)
        return eval_step(key, variables, sharding.put(batch, mesh), inputs=gathered, mesh=mesh, **options)

    masks = programs_of(inputs.mask, patches)
    programs = {length: functools.partial(program, mask) for length, mask in masks.items()}
    return Stream(count, programs, batch_size)


@functools.partial(jax.jit, static_argnames=("inputs", "mesh"))
def _count(key, batch, *, inputs, mesh):
    return see(image_keys(key, batch["id"]), batch["image"], inputs, mesh).kept.keep.sum(axis=1)


class Stream:
    """Batches in, answers out in the same order, each image computed at about the length that it needs.

    count: host batch -> int[B], how many patches each image keeps.
    programs: by length, host batch of `batch_size` rows -> {name: array[batch_size, …]}. Every image that it is given
      keeps at most that many patches; rows whose "mask" is False fill it up.

    Host batches are dicts of arrays over images, with a "mask: bool[B]"; images whose mask is False get no answer.
    For one process: several would have to agree on which program comes next.
    """

    def __init__(self, count: Callable, programs: dict[int, Callable], batch_size: int):
        self.count, self.programs, self.batch_size = count, dict(sorted(programs.items())), batch_size
        self.waiting = {length: [] for length in self.programs}  # (position in the stream, row)
        self.scored = None  # the newest batch and its counts, which may still be on their way
        self.seen = 0
        self.answers = []  # (positions, what a program returned)

    def add(self, batch: dict[str, np.ndarray]) -> None:
        """Takes a batch of any size; runs a program for every group that is full."""
        before, self.scored = self.scored, (batch, self.count(batch))
        self._distribute(before)

    def finish(self) -> dict[str, np.ndarray]:
        """Runs what is left, and returns the answers of all images in the order in which they came."""
        self._distribute(self.scored)
        rows, lengths = [], list(self.programs)
        for length, longer in itertools.zip_longest(lengths, lengths[1:]):
            rows += self.waiting[length]
            # Rows that find room in the next longer batch would only cost a batch of their own.
            if rows and (longer is None or len(rows) + len(self.waiting[longer]) > self.batch_size):
                self._run(length, rows)
                rows = []
        if not self.answers:
            return {}
        order = np.argsort(np.concatenate([positions for positions, _ in self.answers]))
        parts = [{k: v[: len(p)] for k, v in answer.items()} for p, answer in jax.device_get(self.answers)]
        return {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}

    def _distribute(self, scored) -> None:
        if scored is None:
            return
        batch, counts = scored
        counts = np.asarray(counts)
        for i in np.flatnonzero(batch["mask"]):
            length = next(n for n in self.programs if n >= counts[i])
            self.waiting[length].append((self.seen, {name: values[i] for name, values in batch.items()}))
            self.seen += 1
            if len(self.waiting[length]) == self.batch_size:
                self._run(length, self.waiting[length])
                self.waiting[length] = []

    def _run(self, length: int, rows: list) -> None:
        positions, rows = zip(*rows, strict=True)
        filling = [jax.tree.map(np.zeros_like, rows[0])] * (self.batch_size - len(rows))
        batch = {name: np.stack([row[name] for row in (*rows, *filling)]) for name in rows[0]}
        self.answers.append((np.array(positions), self.programs[length](batch)))
