"""Many runs: a grid of overrides of one config, or the sweep that the config file itself names.

    python -m launch.sweep --config=configs/vit_mask.py:demo                        its own `sweep()`
    python -m launch.sweep --config=configs/vit.py:demo --grid optim.lr=1e-4,3e-4,1e-3 --grid model.options.depth=4,6 \
        --seeds=3 --config.steps=100 --jobs=2
    python -m launch.sweep --config=configs/papers.py:demo                          both papers' experiments
    python -m launch.sweep … --executor=print                                       the commands, nothing run
    python -m launch.sweep … --executor=slurm --slurm partition=gpu --slurm gpus_per_node=1 --slurm time=600

Several grids multiply; `--config.KEY=VALUE` holds for every run. `sweep(arg)` of a config file, arg being the text
after the colon, yields one dict of overrides per run; there "config" names another config than its own, and "mode"
what `--mode` takes. Each run lives in OUT/HASH, HASH being that of its resolved config when it was new. The same
command again finds its runs by the config.json in their folders, also where an earlier version wrote it or a folder was
renamed: it skips what is finished, goes on with what was stopped and runs what is new. OUT/sweep.json lists
{HASH: overrides}. A run that failed is named and left alone unless --retry is given. A run's output is in
OUT/HASH/log.txt, the exit code of its last try in OUT/HASH/exit. On Ctrl-C, SIGTERM or a closed terminal the runs save
and end before the sweep does; under nohup it goes on.

Exit code: 0 all finished (or, on Slurm, submitted); 1 some failed; 2 a mistake in the command; 75 told to stop.
"""

import hashlib
import itertools
import json
import re
import shlex
import sys
from pathlib import Path

import filelock

from bjax import config as configs
from bjax import sums
from bjax.errors import Parser, UserError, as_command, new_folder
from bjax.launch import executors
from bjax.launch.executors import Run
from bjax.runtime.workdir import write


@as_command
def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    overrides, rest = configs.split_arguments(argv)
    args = _parser().parse_args(rest)
    out = args.out or default_out(args.config)
    runs = plan(args.config, overrides, points(args), out)
    if args.executor == "print":
        for run in runs:
            if run.state != "finished":
                print(shlex.join(run.command))
        return 0
    write_index(out, args.config, runs)
    if args.executor == "local":
        return executors.local(runs, args.jobs, args.retry)
    return executors.slurm(runs, out, args.slurm, args.retry)


def points(args) -> list[tuple[tuple[str, str], ...]]:
    """The overrides of every run: the product of the grids (or the config's own sweep) and the seeds."""
    if args.grid:
        axes = [grid_axis(text) for text in args.grid]
        keys = [key for key, _ in axes]
        if len(set(keys)) < len(keys):
            twice = max(keys, key=keys.count)
            raise UserError(f"--grid: {twice} is given twice; list all its values at once")
        points = list(itertools.product(*([(key, value) for value in values] for key, values in axes)))
    else:
        module = configs.module(configs.located(args.config.partition(":")[0]))
        if not hasattr(module, "sweep"):
            raise UserError(f"--config={args.config}: defines no sweep(); give --grid KEY=VALUE,VALUE")
        try:
            named = list(module.sweep(args.config.partition(":")[2]))
        except ValueError as e:
            raise UserError(f"--config={args.config}: {e}") from None
        points = [tuple((key, text(value)) for key, value in point.items()) for point in named]
    if args.seeds < 0:
        raise UserError(f"--seeds={args.seeds}: expected how many, such as --seeds=3 for 0, 1 and 2")
    if not args.seeds:
        return points
    return [(*point, ("seed", str(seed))) for point in points for seed in range(args.seeds)]


def grid_axis(argument: str) -> tuple[str, list[str]]:
    """ "optim.lr=1e-4,1e-3" -> its key and values; commas inside brackets belong to a value: blur.sigma=(1,2),(2,4)."""
    key, equals, values = argument.partition("=")
    each = re.findall(r"(?:\([^()]*(?:\([^()]*\)[^()]*)*\)|[^,()])+", values)
    given = [value for value in each if value.strip()]
    if not equals or not key or not given:
        raise UserError(f"--grid {argument}: expected KEY=VALUE,VALUE, such as optim.lr=1e-4,1e-3")
    return key.removeprefix("config."), given


def text(value: object) -> str:
    """A value of `sweep()` as the command line has it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def plan(spec: str, shared: list[tuple[str, str]], points, out: Path) -> list[Run]:
    """Resolves and checks the config of every point before anything is run. Raises UserError.

    A run that `out` already holds is found by its config; only a new one gets a folder, named by the hash of its own.
    """
    runs, there = {}, held(out)
    for point in points:
        overrides = dict(point)
        point_spec, mode = overrides.pop("config", spec), overrides.pop("mode", "train")
        overrides = [*shared, *overrides.items()]
        config = configs.load(point_spec, overrides)
        asked = identity(config.to_dict(), mode)
        if asked in runs:
            label = " ".join(f"{k}={v}" for k, v in point)
            raise UserError(f"{runs[asked].label} and {label}: the same run twice")
        resolved = configs.to_json(config) + (mode if mode != "train" else "")
        workdir = there.get(asked) or out / hashlib.sha256(resolved.encode()).hexdigest()[:10]
        if taken := next((run.label for run in runs.values() if run.workdir == workdir), None):
            why = f"its config.json, changed since, is that of {taken}"
            raise UserError(f"{workdir}: {why}; move the folder away")
        flags = [f"--config={point_spec}", f"--workdir={workdir}"]
        flags += [f"--config.{k}={v}" for k, v in overrides]
        flags += [f"--mode={mode}"] if mode != "train" else []
        runs[asked] = Run(workdir, point, (sys.executable, "-m", "bjax.main", *flags), config.steps)
    return list(runs.values())


def held(out: Path) -> dict[str, Path]:
    """{identity: folder} of the runs in `out`, whatever their folders are called and which version wrote them.

    Of several folders with the same run it is one with results.
    """
    folders = sorted(out.glob("*/config.json"), key=lambda p: (not (p.parent / "results.json").exists(), p))
    by_identity = {}
    for path in folders:
        config = configs.read_plain(path)
        by_identity.setdefault(identity(config, mode_of(path.parent, config)), path.parent)
    return by_identity


def identity(config: dict, mode: str) -> str:
    """What makes a run another run, as text: all of its config, and what it does with it."""
    return json.dumps([mode, config], sort_keys=True)


def mode_of(workdir: Path, config: dict) -> str:
    """The --mode with which the run in `workdir` was started: one that has trained may have been evaluated since."""
    if any((workdir / name).exists() for name in ("metrics.jsonl", "checkpoints")):
        return "train"
    path = workdir / "run.json"
    try:
        return json.loads(sums.read(path))["sessions"][0]["mode"]
    except FileNotFoundError:
        # Killed, or of an earlier version. Only given weights are evaluated without training.
        return "eval" if config.get("init_from") else "train"
    except (ValueError, LookupError, TypeError) as e:
        raise UserError(f"{path}: damaged ({type(e).__name__}: {e}); delete it") from None


def write_index(out: Path, spec: str, runs: list[Run]) -> None:
    """OUT/sweep.json: {"config": …, "runs": {HASH: {KEY: text}}}; runs of earlier commands stay listed."""
    path = out / "sweep.json"
    out.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(out / ".sweep.json.lock"):  # another sweep may be adding its runs
        index = read_index(path) if path.exists() else {"config": spec, "runs": {}}
        if index["config"] != spec:
            raise UserError(f"--out={out}: holds a sweep of {index['config']}; use another")
        for run in runs:
            name, point = run.workdir.name, dict(run.overrides)
            if name not in index["runs"] and (run.workdir / "config.json").exists():
                # Found in a folder that was renamed: in the place of its former name.
                former = (k for k, p in index["runs"].items() if p == point and not (out / k).exists())
                old = next(former, name)
                index["runs"] = {name if k == old else k: p for k, p in index["runs"].items()}
            index["runs"][name] = point
        write(path, index)


def read_index(path: Path) -> dict:
    """What `write_index` wrote. Raises UserError for a damaged file."""
    try:
        index = json.loads(sums.read(path))
        if isinstance(index["config"], str) and isinstance(index["runs"], dict):
            return index
        why = "no index of a sweep"
    except (ValueError, KeyError, TypeError) as e:
        why = f"{type(e).__name__}: {e}"
    raise UserError(
        f"{path}: damaged ({why}); delete it and give the sweep's commands again: they list its runs anew, and what is "
        "finished stays"
    )


def default_out(spec: str) -> Path:
    """runs/sweep_vit_mask_demo for configs/vit_mask.py:demo."""
    path, _, args = spec.partition(":")
    name = "_".join(filter(None, ("sweep", Path(path).stem, args)))
    return Path("runs") / re.sub(r"[^\w.=-]+", "_", name)


def _parser() -> Parser:
    epilog = "--config.KEY=VALUE holds for every run."
    p = Parser("python -m launch.sweep", "Run a grid of overrides of one config.", epilog=epilog)
    p.add_argument("--config", metavar="FILE.py[:ARGS]", required=True)
    axis = "an axis of the grid; without any, the config's own sweep()"
    p.add_argument("--grid", metavar="KEY=V1,V2", action="append", default=[], help=axis)
    p.add_argument("--seeds", type=int, default=0, metavar="N", help="every point with the seeds 0 to N - 1")
    out = "where the sweep lives (default: runs/sweep_NAME_ARGS)"
    p.add_argument("--out", type=new_folder, metavar="DIR", help=out)
    p.add_argument("--executor", choices=("print", "local", "slurm"), default="local")
    jobs = "local: at a time (default: half the cores)"
    p.add_argument("--jobs", type=int, default=0, metavar="N", help=jobs)
    p.add_argument("--retry", action="store_true", help="run the failed ones again")
    option = "an sbatch option by submitit's name: partition, time (minutes), gpus_per_node, array_parallelism, …"
    p.add_argument("--slurm", metavar="KEY=VALUE", action="append", default=[], help=option)
    return p


if __name__ == "__main__":
    sys.exit(main())
