"""One training run, from config to results.json. Reads from top to bottom: build, restore, loop, evaluate."""

import collections
import contextlib
import errno
import math
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from bjax import experiment, nonfinite
from bjax.config import to_json
from bjax.errors import UserError, nearest
from bjax.evaluate import bn_adapt, leave_results
from bjax.evaluate.conditions import evaluate
from bjax.experiment import Experiment
from bjax.runtime import checkpoint, distributed, lock, memory, sharding
from bjax.runtime.console import COMPILING, Progress, parameter_table, parameters_line
from bjax.runtime.workdir import Log, check_same_run, finish, finished, results, session, write_classes, write_text
from bjax.step import optim
from bjax.step.state import State, load
from bjax.step.train_step import compiled

SIGNS = {"top1": 1, "top5": 1, "loss": -1}  # of what checkpoints are kept by: higher, or lower, is better
COMPILES = 15  # seconds that the first step is given to be saved: a scheduler that asks to stop kills after 30
IN_FLIGHT = 2  # steps handed to the devices ahead of the one whose result is awaited


def run(config, workdir: Path) -> dict[str, dict]:
    """Trains (or goes on with) the run of `config` in `workdir`, evaluates it, and returns what results.json holds.

    Run again after any interruption it goes on from the newest checkpoint and ends with the same numbers; a run that is
    finished is left as it is. A step is saved before it is evaluated. On SIGTERM or SIGUSR1 it saves a checkpoint after
    the step at hand, or leaves the evaluation at hand, and raises `distributed.Stopped`.
    """
    # --- what the run consists of; every user's mistake shows up here, before anything is computed
    main_process = jax.process_index() == 0
    exp = experiment.build(config)
    source = exp.source
    if config.batch_size > source.num_examples:
        step = jax.device_count() * config.optim.accumulate
        fits = source.num_examples // step * step
        way = f"use at most {fits}" if fits else "use fewer devices, or no optim.accumulate"
        raise UserError(
            f"config.batch_size={config.batch_size}: more than the {source.num_examples} images of "
            f"{source.name} {source.split}; {way}, or let a config choose all sizes, such as --config=vit_mask.py:small"
        )
    total_steps = config.steps or math.ceil(config.epochs * source.num_examples / config.batch_size)
    largest = max((split.num_examples for split in exp.splits.values()), default=0)
    memory.check_batches(config, batch_size=total_steps * config.batch_size, eval_batch_size=largest)
    with contextlib.ExitStack() as stack:
        distributed.by_main(lambda: stack.enter_context(lock.hold(workdir)))
        check_same_run(workdir, config, print if main_process else None)
        if _main_process_says(main_process and _finished(exp, total_steps, workdir)):
            if main_process:
                done = f"finished: step {total_steps} of {total_steps} is done and evaluated"
                print(f"{done}; {workdir / 'results.json'} has the results, --mode=eval evaluates again", flush=True)
            return results(workdir / "results.json")
        return _run(exp, total_steps, workdir)


def _finished(exp: Experiment, total_steps: int, workdir: Path) -> bool:
    checkpoints = workdir / "checkpoints"
    newest = max(checkpoint.steps(checkpoints), default=0)
    whole = newest == total_steps and checkpoint.is_whole(checkpoints, newest)  # a damaged one is trained again
    return whole and finished(workdir, exp.config, total_steps)


def _run(exp: Experiment, total_steps: int, workdir: Path) -> dict[str, dict]:
    config, source, mesh = exp.config, exp.source, exp.mesh
    main_process = jax.process_index() == 0

    # --- state, born sharded
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    tx, init, shapes, plan = experiment.state_of(exp, total_steps)
    memory.check_state(config, mesh, shapes, memory.TRAINING)
    bn_adapt.check(exp, shapes.batch_stats)
    score = _score(exp)
    # Read before anything is built on the devices, and only where the run starts.
    fresh = not checkpoint.exists(workdir / "checkpoints")
    weights = experiment.weights_of(config, shapes) if config.init_from and fresh else None
    if main_process:
        print(_summary(exp, total_steps, shapes, plan), flush=True)

    options = {"model": exp.model, "tx": tx, "inputs": exp.train, "objective": exp.objective}
    update = compiled(plan, **options, mesh=mesh)
    rate = jax.jit(optim.schedule(config.optim, total_steps))  # one small program instead of a dozen

    with contextlib.ExitStack() as stack:
        stack.enter_context(distributed.stop_requests())
        # --- restore, or start
        manager = stack.enter_context(
            checkpoint.manager(
                workdir / "checkpoints",
                keep=config.checkpoint_keep,
                every=config.checkpoint_keep_every,
                best=config.checkpoint_keep_best,
            )
        )
        state = checkpoint.restore(manager, shapes, plan)
        if state is None:
            state = jax.jit(init, out_shardings=plan)(init_key)
            if weights is not None:
                state = load(state, weights, plan)
        start = int(state.step)
        # Only now: what fails before leaves the workdir free.
        about = stack.enter_context(session(workdir, "train", writes=main_process))
        if main_process:
            write_text(workdir / "config.json", to_json(config))
            write_classes(workdir, exp.class_names)
        if main_process and start:
            print(f"goes on from step {start} of {total_steps}", flush=True)

        # --- the loop
        distributed.defer(COMPILES)
        batches = experiment.train_batches(exp, start, total_steps)
        notes = checkpoint.notes(manager)
        log = Log(workdir, start, writes=main_process, crcs=notes.get("rows") if start else [])
        stack.enter_context(contextlib.closing(log))
        bar = Progress(total_steps, start, "train", shown=main_process, first=COMPILING)
        stack.enter_context(contextlib.closing(bar))
        recent, corrupt = notes.get("recent", []), notes.get("corrupt", 0)
        skipped, in_a_row = notes.get("skipped", 0), notes.get("skipped_in_a_row", 0)
        in_flight, ids = collections.deque(), []
        since, last = time.perf_counter(), start
        evaluated, beside = None, {}

        manager.scores = {step: score(row) for step, row in log.evaluated.items()}
        if log.lost:  # maybe of one that is kept for its score
            manager.spared = frozenset(manager.steps())

        def evaluate_at(step: int) -> dict[str, dict]:
            rows = evaluate(exp, state.variables, beside)
            log.write(step, _flat(rows))
            log.keep()
            manager.scores[step] = score(_flat(rows))
            return rows

        def due(step: int) -> bool:
            return step == total_steps or bool(config.eval_every and step % config.eval_every == 0)

        # A process that ended in an evaluation had saved the step, but not what the evaluation found.
        if start and due(start) and not _main_process_says(start in log.evaluated):
            evaluated = evaluate_at(start)
        for step, batch in enumerate(batches, start + 1):
            state, values = update(step_key, state, sharding.put(batch, mesh))
            distributed.defer()  # there is a step to save
            bar.advance()
            recent.append(values)
            ids.append(batch["id"])
            in_flight.append(values["loss"])
            if len(in_flight) > IN_FLIGHT:
                in_flight.popleft().block_until_ready()
            if step == start + 1 and config.log_every > 1:
                values["loss"].block_until_ready()  # compiled: from here on the clock shows the rate
                since, last = time.perf_counter(), step

            # Before a checkpoint as well: one with a NaN in it would take the place of those from before.
            stopping = distributed.stopping()
            saves = stopping or step % config.checkpoint_every == 0 or due(step)
            logs = step % config.log_every == 0 or step == total_steps
            if saves or logs:
                recent = _on_host(recent)
                in_a_row = nonfinite.check(recent, step, ids, manager, exp, workdir, in_a_row)
                recent = nonfinite.counted(recent)
                ids.clear()
            if logs:
                row = _means(recent)
                corrupt += round(row.pop("corrupt") * len(recent))
                skipped += round(sum(x.get("skipped", 0) for x in recent))
                row.pop("skipped", None)
                if len(recent) != step - (step - 1) // config.log_every * config.log_every:
                    # The checkpoint that it goes on from has no notes, or those of windows of another length.
                    row["steps"] = len(recent)
                row |= {"lr": float(rate(step - 1 - skipped)), "epoch": step * config.batch_size / source.num_examples}
                left = ""
                if step > last:
                    seconds = (time.perf_counter() - since) / (step - last)
                    row["images_per_second"] = config.batch_size / seconds
                    left = f"  {row['images_per_second']:.0f} img/s"
                    left += "" if bar.terminal else f"  {_clock(seconds * (total_steps - step))} left"
                row |= {name: n for name, n in (("corrupt", corrupt), ("skipped", skipped)) if n}
                log.write(step, row)
                told = f"loss {row['loss']:.4f}  top-1 {100 * row['top1']:.1f} %" if "loss" in row else "all skipped"
                bar.line(f"{told}{left}")
                recent, since, last = [], time.perf_counter(), step
            # After its row, which a restored step must have in metrics.jsonl; before the evaluation, which may fail.
            if saves:
                log.keep()
                # Copies: the notes are written in the background, and the lists grow.
                notes = {"recent": list(recent), "corrupt": corrupt, "rows": list(log.crcs)}
                notes |= {"skipped": skipped, "skipped_in_a_row": in_a_row}
                checkpoint.save(manager, step, state, notes)
            if stopping and step < total_steps:
                manager.wait_until_finished()
                raise distributed.Stopped(
                    f"told to stop: step {step} of {total_steps} is saved in {workdir}; the same command goes on"
                )
            if due(step):
                evaluated = evaluate_at(step)
                since, last = time.perf_counter(), step  # the evaluation's time is not the training's
        bar.close()
        manager.wait_until_finished()
        if corrupt and main_process:
            print(f"{source.name} {source.split}: {corrupt} times an image could not be decoded and was left out")
        if skipped and main_process:
            print(f"{skipped} of {total_steps} steps were skipped: their loss or gradient was not finite")

        if main_process and not (workdir / "config.json").exists():  # Orbax makes a folder that is gone anew
            raise FileNotFoundError(errno.ENOENT, "", str(workdir / "config.json"))

        # --- results; a run that was finished before is only evaluated
        if evaluated is None:
            evaluated = evaluate(exp, state.variables, beside)
        leave_results(exp, state.variables, evaluated, workdir, beside=beside)
        if main_process:
            about["finished"] = finish(workdir, config, total_steps)
    return evaluated


def _on_host(recent: list[dict]) -> list[dict[str, float]]:
    return [{k: float(v) for k, v in values.items()} for values in jax.device_get(recent)]


def _means(recent: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each metric over the steps that have it, in float64: the same with a restart between them."""
    values = {name: [x[name] for x in recent if name in x] for name in dict.fromkeys(k for x in recent for k in x)}
    return {name: math.fsum(x) / len(x) for name, x in values.items()}


def _score(exp: Experiment) -> Callable[[dict[str, float]], float]:
    """How good a checkpoint is by the row of its evaluation; higher is better.

    Raises UserError for a metric that no row has.
    """
    if not exp.conditions and not exp.config.checkpoint_best:
        return lambda row: math.nan
    metric = exp.config.checkpoint_best or f"{next(iter(exp.conditions))}/top1"
    condition, _, name = metric.rpartition("/")
    if condition not in exp.conditions or name not in SIGNS:
        known = [f"{condition}/{name}" for condition in exp.conditions for name in SIGNS]
        raise UserError(
            f"config.checkpoint_best={metric}: expected CONDITION/METRIC{nearest(metric, known)}, CONDITION one of "
            f"{', '.join(exp.conditions)} and METRIC one of {', '.join(SIGNS)}"
        )
    return lambda row: SIGNS[name] * row.get(metric, math.nan)  # top5 is not told of few classes


def _main_process_says(yes: bool) -> bool:
    return bool(multihost_utils.broadcast_one_to_all(np.array(yes)))


def _summary(exp: Experiment, total_steps: int, shapes: State, plan: State) -> str:
    config, source, mesh = exp.config, exp.source, exp.mesh
    devices, kind = mesh.devices.size, mesh.devices.flat[0].device_kind
    processes = jax.process_count()
    steps_per_epoch = source.num_examples / config.batch_size
    return "\n".join(
        [
            f"data     {source.name} {source.split}: {source.num_examples:,} images, {source.num_classes} classes",
            *(
                f"         {s.name} {split}: {s.num_examples:,} images, for evaluation"
                for split, s in exp.splits.items()
            ),
            f"mesh     data {mesh.shape['data']} × fsdp {mesh.shape['fsdp']} on {devices} {kind} "
            f"device{'s' * (devices > 1)}, {processes} process{'es' * (processes > 1)}",
            f"batch    {config.batch_size:,} images a step, {config.batch_size // devices:,} a device",
            f"steps    {total_steps:,} ({total_steps / steps_per_epoch:.1f} epochs of {steps_per_epoch:.1f} steps)",
            f"model    {config.model.name}: {parameters_line(shapes.params, plan.params)}",
            *(["", parameter_table(shapes.params, plan.params), ""] if config.list_parameters else []),
        ]
    )


def _flat(results: dict[str, dict]) -> dict[str, float]:
    return {f"{name}/{k}": v for name, r in results.items() for k, v in r.items() if isinstance(v, int | float)}


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
