"""Named conditions over whole splits: every image once, a row of answers for each, one table at the end."""

import collections
import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from bjax import (
    bn_adapt,
    bucket,
    checkpoint,
    distributed,
    experiment,
    gallery,
    mask_quality,
    metrics,
    optim,
    sharding,
    speed,
    state,
    step,
)
from bjax import config as configs
from bjax.blur.sample import KINDS
from bjax.data import loader
from bjax.errors import UserError

# Fixed, so that every run and every condition blurs an image alike: differences between them are then paired.
SEED = 0
IN_FLIGHT = 2  # batches handed to the devices ahead of the one whose result is awaited
IMAGES = ""  # beside the conditions' names: stands for which images a batch holds


def open_splits(config, exp: experiment.Experiment) -> dict[str, loader.Source]:
    """The splits that the conditions and mask_quality name.

    Raises UserError for a split or dataset that does not exist, for one without the labels that the task needs, and for
    a condition that several processes cannot evaluate.
    """
    data_dir = config.data.data_dir or None
    sources = {}
    for name, condition in exp.conditions.items():
        split = condition.split
        if split not in sources:
            sources[split] = loader.open_split(config.data.name, split, data_dir=data_dir)
            if config.task == "object":
                sources[split] = loader.with_labels(sources[split], f"config.eval.{name}.split={split}")
        if condition.inputs.mask.mode == "bucket" and jax.process_count() > 1:
            raise UserError(
                f"config.eval.{name}.mask.mode=bucket: evaluates in one process; use attend, or gather with a keep_rate"
            )
    split = config.mask_quality.split
    if exp.quality and split not in sources:
        sources[split] = loader.open_split(config.data.name, split, data_dir=data_dir)
    return sources


def build(
    config, exp: experiment.Experiment, mesh, sources: dict[str, loader.Source], training: loader.Source
) -> Callable[[dict], dict[str, dict]]:
    """Returns `evaluate(variables) -> {condition: row}`, the rows of results.json (`metrics.summarise`).

    Step functions are made once; conditions of one split share its decoded batches. training: the split that bn_adapt
    takes statistics from.
    """
    by_split = collections.defaultdict(dict)
    for name, condition in exp.conditions.items():
        by_split[condition.split][name] = condition
    whole = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))  # on every process

    def evaluate(variables: dict) -> dict[str, dict]:
        key = jax.random.key(SEED)
        variables = {
            name: {
                **variables,
                "batch_stats": bn_adapt.statistics(config, exp, mesh, training, variables, c.inputs),
            }
            if c.bn_adapt
            else variables
            for name, c in exp.conditions.items()
        }
        results = {}
        for split, conditions in by_split.items():
            source = sources[split]
            batches = experiment.eval_batches(config, source)
            total = -(-source.num_examples // config.eval_batch_size)
            bar = metrics.Progress(
                total, 0, f"evaluate {split}", shown=jax.process_index() == 0, unit="batch"
            )
            answers = {name: [] for name in (IMAGES, *conditions)}
            streams = {
                name: bucket.stream(
                    key,
                    variables[name],
                    batch_size=config.eval_batch_size,
                    patches=(config.data.image_size // c.inputs.patch_size) ** 2,
                    model=c.model,
                    inputs=c.inputs,
                    objective=exp.objective,
                    mesh=mesh,
                )
                for name, c in conditions.items()
                if c.inputs.mask.mode == "bucket"
            }
            in_flight = collections.deque()
            for batch in batches:
                placed = sharding.put(batch, mesh)
                found = {IMAGES: whole({k: placed[k] for k in ("id", "photograph", "mask")})}
                for name, condition in conditions.items():
                    if name in streams:
                        streams[name].add(batch)
                        continue
                    found[name] = step.eval_step(
                        key,
                        variables[name],
                        placed,
                        model=condition.model,
                        inputs=condition.inputs,
                        objective=exp.objective,
                        mesh=mesh,
                    )
                # The host must not run ahead: every waiting batch lies on the devices.
                in_flight.append(found)
                if len(in_flight) > IN_FLIGHT:
                    _collect(in_flight.popleft(), answers)
                bar.advance()
            for found in in_flight:
                _collect(found, answers)
            for name, stream in streams.items():
                answers[name].append(stream.finish())
            bar.close()
            images = _images(source, answers[IMAGES])
            for name, condition in conditions.items():
                rows = {k: np.concatenate([a[k] for a in answers[name]]) for k in answers[name][0]}
                counted = rows.pop("mask", np.zeros(0, bool))  # a stream without images has no rows
                if not counted.any():
                    raise UserError(
                        f"{source.name} {split}: none of its {source.num_examples} images could be decoded"
                    )
                rows = {k: v[counted] for k, v in rows.items()} | images
                nonfinite = int((~np.isfinite(rows["loss"])).sum())
                if nonfinite:
                    raise UserError(
                        f"config.eval.{name}: the loss of {nonfinite} of {counted.sum()} images of {source.name} "
                        f"{split} is not a finite number: the weights are damaged, or training diverged; evaluate "
                        "others, or train again with a lower --config.optim.lr"
                    )
                blur = condition.inputs.blur if config.task == "blur_type" else None
                results[name] = metrics.summarise(rows, blur)
                skipped = source.num_examples - results[name]["n"]
                if skipped:
                    results[name]["skipped"] = skipped
            if skipped and jax.process_index() == 0:
                print(f"{source.name} {split}: {skipped} images could not be decoded and were left out")
        return {name: results[name] for name in exp.conditions}  # in the config's order

    return evaluate


def _images(source: loader.Source, batches: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Which images were evaluated, in their order: id, uint32[n], and, where several are of one, photograph, str[n]."""
    seen = {k: np.concatenate([batch[k] for batch in batches]) for k in batches[0]}
    counted, marks = seen["mask"], _mark(seen["photograph"])[seen["mask"]]
    found = {"id": seen["id"][counted]}
    photographs = np.unique(marks)
    if len(photographs) < len(marks):
        names = {mark: f"{mark:016x}" for mark in photographs.tolist()}
        # The names of more are not kept, and would have to be read from all images.
        if len(names) <= metrics.LISTED:
            names = {_mark(loader.fingerprint(x["photograph"])).item(): x["photograph"] for x in source}
        found["photograph"] = np.array([names[mark] for mark in marks.tolist()])
    return found


def _mark(fingerprints: np.ndarray) -> np.ndarray:
    """uint32[…, 2] -> uint64[…]; JAX has no integers of 64 bits."""
    return np.ascontiguousarray(fingerprints).view(np.uint64)[..., 0]


def _collect(found: dict[str, dict], answers: dict[str, list]) -> None:
    for name, rows in jax.device_get(found).items():
        answers[name].append(rows)


def run(config, workdir: Path, *, adapt: bool = False) -> dict[str, dict]:
    """Evaluates without training; writes results.json, and config.json and classes.json, which tell what they are of.

    What is evaluated is the newest checkpoint of `workdir`, or, where there is none, the weights `config.init_from`.
    adapt: evaluate every condition a second time, as NAME_bn_adapt, with BatchNorm statistics of training images that
    are blurred like that condition's.
    """
    trained = checkpoint.exists(workdir / "checkpoints")
    if trained or (workdir / "config.json").exists():
        config = _of_this_run(config, workdir)
    if not trained and not config.init_from:
        raise UserError(
            f"--workdir={workdir}: holds no checkpoint; train first with --mode=train, or name weights with "
            "--config.init_from=FILE"
        )
    # Names the classes; with `adapt` its images are read as well.
    source = loader.open_split(config.data.name, config.data.train, data_dir=config.data.data_dir or None)
    exp = experiment.build(config, source.num_classes)
    if adapt:
        twins = {f"{k}_bn_adapt": dataclasses.replace(c, bn_adapt=True) for k, c in exp.conditions.items()}
        exp = dataclasses.replace(exp, conditions=exp.conditions | twins)
    sources = open_splits(config, exp)
    configs.check_devices(config, jax.device_count())
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    what, variables = variables_of(config, exp, mesh, workdir)
    bn_adapt.check(config, exp, source, variables.get("batch_stats"))
    if jax.process_index() == 0:
        print(f"evaluates {what}", flush=True)
    mode = "bn_adapt" if adapt else "eval"
    with distributed.stop_requests(), metrics.session(workdir, mode, writes=jax.process_index() == 0):
        results = build(config, exp, mesh, sources, source)(variables)
        workdir.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            _record(config, exp, workdir)
        leave_classes(config, source, workdir)
        report(results, workdir, keep_others=bool(config.eval_only))
        if not adapt:
            measure(config, exp, mesh, variables, workdir)
    return results


def variables_of(config, exp: experiment.Experiment, mesh, workdir: Path) -> tuple[str, dict]:
    """The variables of the newest checkpoint in `workdir`, or, where there is none, of the file `config.init_from`.

    The first value says which, for people. Raises UserError where they do not fit the config, and where a training that
    began with the file has no checkpoint yet: its weights are others.
    """
    tx = optim.build(config.optim, 1)
    init = functools.partial(
        state.init, model=exp.model, tx=tx, image_size=config.data.image_size, ema=config.optim.ema > 0
    )
    shapes = jax.eval_shape(init, jax.random.key(0))
    plan = sharding.plan(shapes, mesh, config.mesh.rules)
    if checkpoint.exists(workdir / "checkpoints"):
        with checkpoint.manager(workdir / "checkpoints", read_only=True) as manager:
            restored = checkpoint.restore(manager, shapes, plan)
        return f"{workdir}, step {int(restored.step)}", restored.variables
    if (workdir / "metrics.jsonl").exists():
        raise UserError(
            f"--workdir={workdir}: holds a training without a checkpoint yet; go on with it, or name an empty "
            f"--workdir to evaluate {config.init_from}"
        )
    variables = experiment.weights_of(config, shapes)
    return config.init_from, jax.device_put(variables, {k: getattr(plan, k) for k in variables})


def leave_config(config, workdir: Path) -> None:
    """Writes config.json, on one process."""
    if jax.process_index() == 0:
        metrics.write_text(workdir / "config.json", configs.to_json(config))


def leave_classes(config, source: loader.Source, workdir: Path) -> None:
    """Writes classes.json, the names of the model's classes in their order, for those who have no dataset."""
    names = KINDS if config.task == "blur_type" else source.class_names
    if jax.process_index() == 0:
        metrics.write_text(workdir / "classes.json", json.dumps(names, indent=0, ensure_ascii=False) + "\n")


def _of_this_run(config, workdir: Path):
    """`config` with the optimiser of the run in `workdir`, which decides the shape of its checkpoints.

    Raises UserError where the run's model or inputs are others than the config's: its weights would be misread.
    """
    run = configs.read(workdir / "config.json", note=print if jax.process_index() == 0 else None)
    for key in ("task", "init_from", "init_new_head", "data.name", "data.image_size", "model", "normalize"):
        changed = [d for d in configs.differences(run, config) if d.startswith((f"{key}:", f"{key}."))]
        if changed:
            raise UserError(
                f"--workdir={workdir}: holds a run with another config ({'; '.join(changed)}); leave that out, or "
                "name an empty --workdir to evaluate weights of your own"
            )
    config = configs.from_json(configs.to_json(config))  # ConfigDict's own copy sorts the keys
    config.optim = run.optim
    return config


def _record(config, exp: experiment.Experiment, workdir: Path) -> None:
    """Keeps config.json true to results.json: adds the conditions just evaluated to the run's config, or leaves one."""
    path = workdir / "config.json"
    run = configs.read(path) if path.exists() else configs.from_json(configs.to_json(config))
    before = run.eval if config.eval_only else {}
    evaluated = {name: c for name, c in config.eval.items() if name in exp.conditions}
    with run.unlocked():
        run.eval = ConfigDict({**before, **evaluated}, sort_keys=False)
    metrics.write_text(path, configs.to_json(run))


def measure(config, exp: experiment.Experiment, mesh, variables: dict, workdir: Path) -> None:
    """Writes what `config` asks for beside the results: speed.json (no run repeats it), mask_quality, gallery."""
    found = {}
    if config.speed_rounds:
        found["speed.json"] = speed.measure(config, exp, mesh, variables)
    if exp.quality:
        found["mask_quality.json"] = mask_quality.measure(config, exp, mesh)
    if jax.process_index() == 0:
        for name, content in found.items():
            metrics.write_text(workdir / name, json.dumps(content, indent=2, allow_nan=False) + "\n")
    if config.gallery:
        shown = gallery.collect(jax.random.key(SEED), config, exp, mesh, variables)
        if jax.process_index() == 0:
            gallery.write(workdir / "gallery.npz", shown)


def report(results: dict[str, dict], workdir: Path, *, keep_others: bool = False) -> None:
    """Prints the table and writes results.json, on one process. keep_others: other conditions' rows stay in it."""
    if jax.process_index() == 0:
        path = workdir / "results.json"
        if keep_others and path.exists():
            results = json.loads(path.read_text()) | results
        metrics.write_text(path, json.dumps(results, indent=2, allow_nan=False) + "\n")
        print(f"{metrics.table(results)}\nwritten to {path}", flush=True)
