"""Named conditions over whole splits: every image once, a row of answers for each, one row of results a condition."""

import collections
import functools
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from bjax.data.loader import Source, fingerprint
from bjax.errors import UserError
from bjax.evaluate import bn_adapt, bucket, calibration
from bjax.evaluate.summary import LISTED, summarise
from bjax.experiment import SEED, Experiment, eval_batches
from bjax.runtime import sharding
from bjax.runtime.console import COMPILING, Progress
from bjax.step.eval_step import eval_step

IN_FLIGHT = 2  # batches handed to the devices ahead of the one whose result is awaited
IMAGES = ""  # beside the conditions' names: stands for which images a batch holds


def evaluate(exp: Experiment, variables: dict, beside: dict[str, Callable] | None = None) -> dict[str, dict]:
    """{condition: row}, the rows of results.json (`summarise`), in the config's order.

    beside: gets {file: function} of what else there is to write, calibration.json where its condition is evaluated.

    Conditions of one split share its decoded batches. Raises UserError where a split has no image that can be decoded,
    and for losses that are not finite; `distributed.Stopped` where the process is told to stop.
    """
    by_split = collections.defaultdict(dict)
    for name, condition in exp.conditions.items():
        adapted = {}
        if condition.bn_adapt:
            adapted = {"batch_stats": bn_adapt.statistics(exp, variables, condition.inputs)}
        by_split[condition.split][name] = _asked(exp, name, variables | adapted)
    results = {}
    for split, asked in by_split.items():
        source = exp.splits[split]
        images, answers = _answers(exp, source, asked)
        for name in asked:
            logits = answers[name].pop("logits", None)
            if logits is not None and beside is not None:
                counted = answers[name]["mask"]
                truth = {"label": answers[name]["label"][counted]} | images
                beside[calibration.FILE] = functools.partial(calibration.of_answers, logits[counted], truth)
            results[name] = _row(exp, name, source, images, answers[name])
        skipped = source.num_examples - len(images["id"])
        if skipped and jax.process_index() == 0:
            print(f"{source.name} {split}: {skipped} images could not be decoded and were left out")
    return {name: results[name] for name in exp.conditions}


def _asked(exp: Experiment, name: str, variables: dict) -> Callable | bucket.Stream:
    """What a condition asks of each batch: a function of a batch on the devices, or a stream of batches on the host."""
    key, condition = jax.random.key(SEED), exp.conditions[name]
    inputs = condition.inputs
    options = {"model": condition.model, "inputs": inputs, "objective": exp.objective, "mesh": exp.mesh}
    if name == calibration.CONDITION:
        options["more"] = ("sharpness", "logits")
    if inputs.mask.mode != "bucket":
        return functools.partial(eval_step, key, variables, **options)
    patches = (exp.config.data.image_size // inputs.patch_size) ** 2
    return bucket.stream(key, variables, batch_size=exp.config.eval_batch_size, patches=patches, **options)


def _answers(exp: Experiment, source: Source, asked: dict) -> tuple[dict, dict[str, dict]]:
    """Which images a split has, and by condition the answers to them, on the host: {name: array over images}."""
    whole = jax.jit(lambda x: x, out_shardings=NamedSharding(exp.mesh, PartitionSpec()))  # on every process
    streams = {name: stream for name, stream in asked.items() if isinstance(stream, bucket.Stream)}
    answers = {name: [] for name in (IMAGES, *asked)}
    in_flight = collections.deque()

    def collect() -> None:
        for name, rows in jax.device_get(in_flight.popleft()).items():
            answers[name].append(rows)

    total = -(-source.num_examples // exp.config.eval_batch_size)
    bar = Progress(total, 0, f"evaluate {source.split}", shown=jax.process_index() == 0, unit="batch", first=COMPILING)
    for batch in eval_batches(exp, source):
        placed = sharding.put(batch, exp.mesh)
        rows = {IMAGES: whole({k: placed[k] for k in ("id", "photograph", "mask")})}
        for name, ask in asked.items():
            if name in streams:
                streams[name].add(batch)
            else:
                rows[name] = ask(placed)
        # The host must not run ahead: every waiting batch lies on the devices.
        in_flight.append(rows)
        if len(in_flight) > IN_FLIGHT:
            collect()
        bar.advance()
    while in_flight:
        collect()
    for name, stream in streams.items():
        answers[name].append(stream.finish())
    bar.close()
    merged = {name: {k: np.concatenate([a[k] for a in parts]) for k in parts[0]} for name, parts in answers.items()}
    if not merged[IMAGES]["mask"].any():
        raise UserError(f"{source.name} {source.split}: none of its {source.num_examples} images could be decoded")
    return images_of(source, merged.pop(IMAGES)), merged


def _row(exp: Experiment, name: str, source: Source, images: dict, answers: dict) -> dict[str, object]:
    """The row of results.json of one condition."""
    counted = answers.pop("mask")
    answers = {k: v[counted] for k, v in answers.items()} | images
    nonfinite = int((~np.isfinite(answers["loss"])).sum())
    if nonfinite:
        raise UserError(
            f"config.eval.{name}: the loss of {nonfinite} of {counted.sum()} images of {source.name} {source.split} is "
            "not a finite number: the weights are damaged, or training diverged; evaluate others, or train again with "
            "a lower --config.optim.lr"
        )
    blur = exp.conditions[name].inputs.blur if exp.config.task == "blur_type" else None
    row = summarise(answers, blur)
    if row["n"] < source.num_examples:
        row["skipped"] = source.num_examples - row["n"]
    return row


def images_of(source: Source, seen: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Which images were evaluated, in their order: id, uint32[n], and, where several are of one, photograph, str[n]."""
    counted, marks = seen["mask"], _mark(seen["photograph"])[seen["mask"]]
    images = {"id": seen["id"][counted]}
    photographs = np.unique(marks)
    if len(photographs) < len(marks):
        names = {mark: f"{mark:016x}" for mark in photographs.tolist()}
        # The names of more are not kept, and would have to be read from all images.
        if len(names) <= LISTED:
            names = {_mark(fingerprint(x["photograph"])).item(): x["photograph"] for x in source}
        images["photograph"] = np.array([names[mark] for mark in marks.tolist()])
    return images


def _mark(fingerprints: np.ndarray) -> np.ndarray:
    """uint32[…, 2] -> uint64[…]; JAX has no integers of 64 bits."""
    return np.ascontiguousarray(fingerprints).view(np.uint64)[..., 0]
