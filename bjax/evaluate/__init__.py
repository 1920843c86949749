"""Evaluation of a run: named conditions, their rows of results.json, and what may be measured beside them."""

import contextlib
import dataclasses
from pathlib import Path

import jax
from ml_collections import ConfigDict

from bjax import config as configs
from bjax import experiment
from bjax.errors import UserError
from bjax.evaluate import bn_adapt, conditions, gallery, mask_quality, similarity, speed
from bjax.evaluate.summary import table
from bjax.experiment import Experiment
from bjax.runtime import checkpoint, distributed, lock, memory
from bjax.runtime import workdir as workdirs

# Each has run(exp, variables) -> {file: content}, {} where not asked for.
ADD_ONS = (speed, mask_quality, similarity, gallery)


def run(config, workdir: Path, *, adapt: bool = False) -> dict[str, dict]:
    """Evaluates without training; writes results.json, and config.json and classes.json, which tell what they are of.

    What is evaluated is the newest checkpoint of `workdir`, or, where there is none, the weights `config.init_from`.
    adapt: evaluate every condition a second time, as NAME_bn_adapt, with BatchNorm statistics of training images that
    are blurred like that condition's.
    """
    main_process = jax.process_index() == 0
    trained = checkpoint.exists(workdir / "checkpoints")
    if trained or (workdir / "config.json").exists():
        config = workdirs.as_trained(workdir, config, print if main_process else None)
    if not trained and not config.init_from:
        raise UserError(
            f"--workdir={workdir}: holds no checkpoint; train first with --mode=train, or name weights with "
            "--config.init_from=FILE or a name (python -m bjax.weights lists them)"
        )
    exp = experiment.build(config)
    largest = max((split.num_examples for split in exp.splits.values()), default=0)
    memory.check_batches(config, eval_batch_size=largest)
    if adapt:
        twins = {f"{k}_bn_adapt": dataclasses.replace(c, bn_adapt=True) for k, c in exp.conditions.items()}
        exp = dataclasses.replace(exp, conditions=exp.conditions | twins)
    with contextlib.ExitStack() as stack:
        distributed.by_main(lambda: stack.enter_context(lock.hold(workdir)))
        what, variables = experiment.variables_of(exp, workdir)
        bn_adapt.check(exp, variables.get("batch_stats"))
        if main_process:
            print(f"evaluates {what}", flush=True)
        stack.enter_context(distributed.stop_requests())
        stack.enter_context(workdirs.session(workdir, "bn_adapt" if adapt else "eval", writes=main_process))
        beside = {}
        results = conditions.evaluate(exp, variables, beside)
        if main_process:
            _keep_config_true(exp, workdir)
            workdirs.write_classes(workdir, exp.class_names)
        keep_others = bool(config.eval_only)
        leave_results(exp, variables, results, workdir, keep_others=keep_others, add_ons=not adapt, beside=beside)
    return results


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
