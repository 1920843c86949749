"""One training run, from config to results.json. Reads from top to bottom: build, restore, loop, evaluate."""

import collections
import contextlib
import functools
import math
import time
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from bjax import (
    bn_adapt,
    checkpoint,
    distributed,
    evaluate,
    experiment,
    metrics,
    optim,
    sharding,
    state,
    step,
)
from bjax import config as configs
from bjax.data import loader
from bjax.errors import UserError

# A run may go on in its workdir with these changed: they do not alter what is learned.
FREE = (
    "data.data_dir",
    "data.threads",
    "data.prefetch",
    "data.resize",
    "data.interpolation",
    "data.on_corrupt",
)
FREE += (
    "eval",
    "eval_only",
    "eval_batch_size",
    "eval_every",
    "bn_adapt_batches",
    "gallery",
    "speed_rounds",
    "mask_quality",
)
FREE += ("log_every", "checkpoint_every", "checkpoint_keep", "mesh")
IN_FLIGHT = 2  # steps handed to the devices ahead of the one whose result is awaited


def run(config, workdir: Path) -> dict[str, dict]:
    """Trains (or goes on with) the run of `config` in `workdir`, evaluates it, and returns what results.json holds.

    Run again after any interruption it goes on from the newest checkpoint and ends with the same numbers. A step is
    saved before it is evaluated. On SIGTERM it saves a checkpoint after the step at hand, or leaves the evaluation at
    hand, and raises `distributed.Stopped`.
    """
    # --- what the run consists of; every user's mistake shows up here, before a device is touched
    source = loader.open_split(config.data.name, config.data.train, data_dir=config.data.data_dir or None)
    exp = experiment.build(config, source.num_classes)
    if config.task == "object":
        source = loader.with_labels(source, f"config.data.train={config.data.train}")
    sources = evaluate.open_splits(config, exp)
    configs.check_devices(config, jax.device_count())
    if config.batch_size > source.num_examples:
        raise UserError(
            f"config.batch_size={config.batch_size}: more than the {source.num_examples} images of "
            f"{source.name} {source.split}"
        )
    main_process = jax.process_index() == 0
    total_steps = config.steps or math.ceil(config.epochs * source.num_examples / config.batch_size)
    _check_workdir(workdir, config)

    # --- state, born sharded
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    evaluation = evaluate.build(config, exp, mesh, sources, source)
    tx = optim.build(config.optim, total_steps)
    init = functools.partial(
        state.init, model=exp.model, tx=tx, image_size=config.data.image_size, ema=config.optim.ema > 0
    )
    key = jax.random.key(config.seed)
    init_key, step_key = jax.random.split(key)
    shapes = jax.eval_shape(init, init_key)
    bn_adapt.check(config, exp, source, shapes.batch_stats)
    plan = sharding.plan(shapes, mesh, config.mesh.rules)
    # Read before anything is built on the devices, and only where the run starts.
    fresh = not checkpoint.exists(workdir / "checkpoints")
    weights = experiment.weights_of(config, shapes) if config.init_from and fresh else None
    if main_process:
        print(_summary(config, source, sources, mesh, total_steps, shapes, plan), flush=True)

    train_step = jax.jit(
        functools.partial(
            step.train_step, model=exp.model, tx=tx, inputs=exp.train, objective=exp.objective, mesh=mesh
        ),
        donate_argnums=1,
        out_shardings=(plan, None),
    )
    rate = optim.schedule(config.optim, total_steps)

    with contextlib.ExitStack() as stack:
        stack.enter_context(distributed.stop_requests())
        # --- restore, or start
        manager = stack.enter_context(
            checkpoint.manager(workdir / "checkpoints", keep=config.checkpoint_keep)
        )
        current = checkpoint.restore(manager, shapes, plan)
        if current is None:
            current = jax.jit(init, out_shardings=plan)(init_key)
            if weights is not None:
                current = state.load(current, weights, plan)
        start = int(current.step)
        # Only now: what fails before leaves the workdir free.
        stack.enter_context(metrics.session(workdir, "train", writes=main_process))
        evaluate.leave_config(config, workdir)
        evaluate.leave_classes(config, source, workdir)
        if main_process and start:
            print(f"goes on from step {start} of {total_steps}", flush=True)

        # --- the loop
        batches = loader.train_batches(
            source,
            seed=config.seed,
            batch_size=config.batch_size,
            image_size=config.data.image_size,
            crop=config.data.crop,
            scale=config.data.scale,
            flip=config.data.flip,
            start_step=start,
            num_steps=total_steps,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            threads=config.data.threads,
            prefetch=config.data.prefetch,
            on_corrupt=config.data.on_corrupt,
        )
        log = stack.enter_context(contextlib.closing(metrics.Log(workdir, start, writes=main_process)))
        bar = stack.enter_context(
            contextlib.closing(metrics.Progress(total_steps, start, "train", shown=main_process))
        )
        notes = checkpoint.notes(manager)
        recent, corrupt = notes.get("recent", []), notes.get("corrupt", 0)
        in_flight = collections.deque()
        since, last = time.perf_counter(), start
        results = None

        def evaluate_at(now: int) -> dict[str, dict]:
            found = evaluation(current.variables)
            log.write(now, _flat(found))
            return found

        def due(now: int) -> bool:
            return now == total_steps or bool(config.eval_every and now % config.eval_every == 0)

        # A process that ended in an evaluation had saved the step, but not what the evaluation found.
        if start and due(start) and not _main_process_says(start in log.evaluated):
            results = evaluate_at(start)
        for now, batch in enumerate(batches, start + 1):
            current, values = train_step(step_key, current, sharding.put(batch, mesh))
            bar.advance()
            recent.append(values)
            in_flight.append(values["loss"])
            if len(in_flight) > IN_FLIGHT:
                in_flight.popleft().block_until_ready()
            if now == start + 1 and config.log_every > 1:
                values["loss"].block_until_ready()  # compiled: from here on the clock shows the rate
                since, last = time.perf_counter(), now

            if now % config.log_every == 0 or now == total_steps:
                row = _means(recent)
                corrupt += round(row.pop("corrupt") * len(recent))
                if len(recent) < now - (now - 1) // config.log_every * config.log_every:
                    row["steps"] = len(
                        recent
                    )  # goes on from a checkpoint without notes: a part of the window
                row |= {"lr": float(rate(now - 1)), "epoch": now * config.batch_size / source.num_examples}
                left = ""
                if now > last:
                    seconds = (time.perf_counter() - since) / (now - last)
                    row["images_per_second"] = config.batch_size / seconds
                    left = f"  {row['images_per_second']:.0f} img/s"
                    left += "" if bar.terminal else f"  {_clock(seconds * (total_steps - now))} left"
                if corrupt:
                    row["corrupt"] = corrupt
                for name, value in row.items():
                    if not math.isfinite(value):
                        raise UserError(
                            f"the {name} is {value} at step {now}; try a lower --config.optim.lr than "
                            f"{config.optim.lr:g}, or --config.optim.clip=1 (rows so far: {workdir / 'metrics.jsonl'})"
                        )
                log.write(now, row)
                bar.line(f"loss {row['loss']:.4f}  top-1 {100 * row['top1']:.1f} %{left}")
                recent, since, last = [], time.perf_counter(), now
            # After its row, which a restored step must have in metrics.jsonl; before the evaluation, which may fail.
            stopping = distributed.stopping()
            if stopping or now % config.checkpoint_every == 0 or due(now):
                recent = [{k: float(v) for k, v in x.items()} for x in jax.device_get(recent)]
                # A copy: the notes are written in the background, and the list grows.
                checkpoint.save(manager, now, current, {"recent": list(recent), "corrupt": corrupt})
            if stopping and now < total_steps:
                manager.wait_until_finished()
                raise distributed.Stopped(
                    f"told to stop: step {now} of {total_steps} is saved in {workdir}; the same command goes on"
                )
            if due(now):
                results = evaluate_at(now)
                since, last = time.perf_counter(), now  # the evaluation's time is not the training's
        bar.close()
        manager.wait_until_finished()
        if corrupt and main_process:
            print(
                f"{source.name} {source.split}: {corrupt} times an image could not be decoded and was left out"
            )

        # --- results; a run that was finished before is only evaluated
        if results is None:
            results = evaluation(current.variables)
        evaluate.report(results, workdir)
        evaluate.measure(config, exp, mesh, current.variables, workdir)
    return results


def _means(recent: list[dict]) -> dict[str, float]:
    """The mean of each metric over steps, in float64: the same, whether or not a restart lies between them."""
    recent = jax.device_get(recent)
    return {name: math.fsum(float(x[name]) for x in recent) / len(recent) for name in recent[0]}


def _main_process_says(yes: bool) -> bool:
    return bool(multihost_utils.broadcast_one_to_all(np.array(yes)))


def _check_workdir(workdir: Path, config) -> None:
    """Refuses a workdir whose run was started with another config."""
    path = workdir / "config.json"
    if path.exists():
        run = configs.read(path, note=print if jax.process_index() == 0 else None)
        changed = [
            d
            for d in configs.differences(run, config)
            if not any(d.startswith((f"{key}:", f"{key}.")) for key in FREE)
        ]
        if changed:
            raise UserError(
                f"--workdir={workdir}: holds a run with another config ({'; '.join(changed)}); use another"
            )


def _summary(config, source, sources, mesh, total_steps: int, shapes, plan) -> str:
    devices, kind = mesh.devices.size, mesh.devices.flat[0].device_kind
    processes = jax.process_count()
    steps_per_epoch = source.num_examples / config.batch_size
    return "\n".join(
        [
            f"data     {source.name} {source.split}: {source.num_examples:,} images, {source.num_classes} classes",
            *(
                f"         {s.name} {split}: {s.num_examples:,} images, for evaluation"
                for split, s in sources.items()
            ),
            f"mesh     data {mesh.shape['data']} × fsdp {mesh.shape['fsdp']} on {devices} {kind} "
            f"device{'s' * (devices > 1)}, {processes} process{'es' * (processes > 1)}",
            f"batch    {config.batch_size:,} images a step, {config.batch_size // devices:,} a device",
            f"steps    {total_steps:,} ({total_steps / steps_per_epoch:.1f} epochs of {steps_per_epoch:.1f} steps)",
            "",
            metrics.parameter_table(shapes.params, plan.params),
            "",
        ]
    )


def _flat(results: dict[str, dict]) -> dict[str, float]:
    return {
        f"{name}/{k}": v for name, r in results.items() for k, v in r.items() if isinstance(v, int | float)
    }


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
