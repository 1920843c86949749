"""Evaluation of a run: named conditions, their rows of results.json, and what may be measured beside them."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
from ml_collections import ConfigDict

from bjax import config as configs
from bjax import experiment
from bjax.errors import UserError
from bjax.evaluate import adapt, bn_adapt, conditions, gallery, mask_quality, similarity, speed
from bjax.evaluate.summary import table
from bjax.experiment import Experiment
from bjax.runtime import checkpoint, distributed, lock, memory
from bjax.runtime import workdir as workdirs

# Each has run(exp, variables) -> {file: content}, {} where not asked for.
ADD_ONS = (speed, mask_quality, similarity, gallery)


def run(config, workdir: Path, *, bn_twins: bool = False) -> dict[str, dict]:
    """Evaluates without training; writes results.json, and config.json and classes.json, which tell what they are of.

    What is evaluated is the newest checkpoint of `workdir`, or, where there is none, the weights `config.init_from`.
    bn_twins: evaluate every condition a second time, as NAME_bn_adapt, with BatchNorm statistics of training images
    that are blurred like that condition's.
    """
    config = _of_run(config, workdir)
    exp = experiment.build(config)
    largest = max((split.num_examples for split in exp.splits.values()), default=0)
    memory.check_batches(config, eval_batch_size=largest)
    if bn_twins:
        twins = {f"{k}_bn_adapt": dataclasses.replace(c, bn_adapt=True) for k, c in exp.conditions.items()}
        exp = dataclasses.replace(exp, conditions=exp.conditions | twins)
    with _weights(exp, workdir, "bn_adapt" if bn_twins else "eval") as variables:
        beside = {}
        results = conditions.evaluate(exp, variables, beside)
        if jax.process_index() == 0:
            _keep_config_true(exp, workdir)
            workdirs.write_classes(workdir, exp.class_names)
        keep_others = bool(config.eval_only)
        leave_results(exp, variables, results, workdir, keep_others=keep_others, add_ons=not bn_twins, beside=beside)
    return results


def run_adapt(config, workdir: Path) -> dict[str, object]:
    """Measures what adapting at test time does to what `run` evaluates; prints the table and writes adapt.json."""
    asked = adapt.plan(config)  # before a device is touched
    if jax.process_count() > 1:
        raise UserError("--mode=adapt: a stream has an order, and goes through one process; use --distributed=off")
    exp = experiment.build(_of_run(asked.config, workdir))
    with _weights(exp, workdir, "adapt") as variables:
        content = adapt.measure(exp, variables, asked)
        workdirs.write(workdir / adapt.FILE, content)
        print(f"{adapt.table(content)}\nwritten to {workdir / adapt.FILE}", flush=True)
    return content


def _of_run(config, workdir: Path):
    """`config` with what the run in `workdir` decides. Raises UserError where there are no weights, or others."""
    trained = checkpoint.exists(workdir / "checkpoints")
    if trained or (workdir / "config.json").exists():
        config = workdirs.as_trained(workdir, config, print if jax.process_index() == 0 else None)
    if not trained and not config.init_from:
        raise UserError(
            f"--workdir={workdir}: holds no checkpoint; train first with --mode=train, or name weights with "
            "--config.init_from=FILE or a name (python -m bjax.weights lists them)"
        )
    return config


@contextlib.contextmanager
def _weights(exp: Experiment, workdir: Path, mode: str) -> Iterator[dict]:
    """The variables to evaluate, told; `workdir` is held, and what is done with them is a session of its run.json."""
    main_process = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        distributed.by_main(lambda: stack.enter_context(lock.hold(workdir)))
        what, variables = experiment.variables_of(exp, workdir)
        bn_adapt.check(exp, variables.get("batch_stats"))
        if main_process:
            print(f"evaluates {what}", flush=True)
        stack.enter_context(distributed.stop_requests())
        stack.enter_context(workdirs.session(workdir, mode, writes=main_process))
        yield variables


def leave_results(
    exp: Experiment, variables: dict, results: dict, workdir: Path, *, keep_others=False, add_ons=True, beside=None
) -> None:
    """Prints the table and writes results.json, then what the add-ons measure, on one process.

    keep_others: other conditions' rows stay in results.json. beside: as of `conditions.evaluate`.
    """
    main_process = jax.process_index() == 0
    if main_process:
        path = workdir / "results.json"
        if keep_others:
            results = workdirs.results(path) | results
        workdirs.write(path, results)
        print(f"{table(results, classes=len(exp.class_names))}\nwritten to {path}", flush=True)
        for name, content in (beside or {}).items():
            workdirs.write(workdir / name, content())
    for add_on in ADD_ONS if add_ons else ():
        for name, content in add_on.run(exp, variables).items():
            if main_process:
                workdirs.write(workdir / name, content)


def _keep_config_true(exp: Experiment, workdir: Path) -> None:
    """Keeps config.json true to results.json: adds the conditions just evaluated to the run's config, or leaves one."""
    path = workdir / "config.json"
    config = exp.config
    run = configs.read(path) if path.exists() else configs.copied(config)
    before = run.eval if config.eval_only else {}
    evaluated = {name: c for name, c in config.eval.items() if name in exp.conditions}
    with run.unlocked():
        run.eval = ConfigDict({**before, **evaluated}, sort_keys=False)
    workdirs.write_text(path, configs.to_json(run))
