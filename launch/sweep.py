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

import argparse
import dataclasses
import hashlib
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock

from bjax import config as configs
from bjax.errors import UserError
from launch import signals

STOPPED = 75  # as in bjax.distributed
SECONDS = 0.2  # between looks at the runs
SLURM_ALIVE = ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED")


@dataclasses.dataclass(frozen=True)
class Run:
    """One point of the sweep. overrides: ((key, text), …) of the grid and the seed; config: resolved, with all."""

    workdir: Path
    overrides: tuple[tuple[str, str], ...]
    command: tuple[str, ...]
    steps: int

    @property
    def label(self) -> str:
        return " ".join(f"{k}={v}" for k, v in self.overrides) or "(the config as it is)"

    @property
    def state(self) -> str:
        """finished | failed | stopped (goes on) | waiting; as the files of the run tell it."""
        code = _read(self.workdir / "exit")
        if code == "0" and (self.workdir / "results.json").exists():
            return "finished"
        if code is None:
            return "stopped" if (self.workdir / "config.json").exists() else "waiting"
        return "stopped" if code in (str(STOPPED), str(-signal.SIGTERM)) else "failed"

    @property
    def progress(self) -> str:
        """How far the run is, from the last row of metrics.jsonl."""
        path = self.workdir / "metrics.jsonl"
        rows = (
            [json.loads(r) for r in path.read_text().splitlines() if r.endswith("}")] if path.exists() else []
        )
        losses = [row["loss"] for row in rows if "loss" in row]
        if not rows:
            return ""
        total = f"/{self.steps}" if self.steps else ""
        return f"step {rows[-1]['step']}{total}" + (f"  loss {losses[-1]:.4f}" if losses else "")

    @property
    def cause(self) -> str:
        """The last line a failed run wrote."""
        written = (_read(self.workdir / "log.txt") or "").splitlines()
        lines = [line for line in written if line.strip()] or ["no output"]
        return next((line for line in reversed(lines) if line.startswith("bjax")), lines[-1])


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    try:
        overrides, rest = configs.split_arguments(sys.argv[1:] if argv is None else argv)
        args = _parser().parse_args(rest)
        out = Path(args.out or default_out(args.config))
        runs = plan(args.config, overrides, points(args), out)
        if args.executor == "print":
            for run in runs:
                if run.state != "finished":
                    print(shlex.join(run.command))
            return 0
        write_index(out, args.config, runs)
        if args.executor == "local":
            return local(runs, args.jobs, args.retry)
        return slurm(runs, out, args.slurm, args.retry)
    except UserError as e:
        print(f"launch.sweep: {e}", file=sys.stderr)
        return 2


def points(args) -> list[tuple[tuple[str, str], ...]]:
    """The overrides of every run: the product of the grids (or the config's own sweep) and the seeds."""
    if args.grid:
        axes = [grid_axis(text) for text in args.grid]
        keys = [key for key, _ in axes]
        if len(set(keys)) < len(keys):
            raise UserError(
                f"--grid: {max(keys, key=keys.count)} is given twice; list all its values at once"
            )
        found = [tuple(zip(keys, values, strict=True)) for values in itertools.product(*(v for _, v in axes))]
    else:
        module = configs.module(args.config.partition(":")[0])
        if not hasattr(module, "sweep"):
            raise UserError(f"--config={args.config}: defines no sweep(); give --grid KEY=VALUE,VALUE")
        try:
            named = list(module.sweep(args.config.partition(":")[2]))
        except ValueError as e:
            raise UserError(f"--config={args.config}: {e}") from None
        found = [tuple((key, text(value)) for key, value in point.items()) for point in named]
    if args.seeds < 0:
        raise UserError(f"--seeds={args.seeds}: expected how many, such as --seeds=3 for 0, 1 and 2")
    return (
        [(*point, ("seed", str(seed))) for point in found for seed in range(args.seeds)]
        if args.seeds
        else found
    )


def grid_axis(argument: str) -> tuple[str, list[str]]:
    """ "optim.lr=1e-4,1e-3" -> its key and values; commas inside brackets belong to a value: blur.sigma=(1,2),(2,4)."""
    key, equals, values = argument.partition("=")
    found = [v for v in re.findall(r"(?:\([^()]*(?:\([^()]*\)[^()]*)*\)|[^,()])+", values) if v.strip()]
    if not equals or not key or not found:
        raise UserError(f"--grid {argument}: expected KEY=VALUE,VALUE, such as optim.lr=1e-4,1e-3")
    return key.removeprefix("config."), found


def text(value: object) -> str:
    """A value of `sweep()` as the command line has it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def plan(spec: str, shared: list[tuple[str, str]], points, out: Path) -> list[Run]:
    """Resolves and checks the config of every point before anything is run. Raises UserError.

    A run that `out` already holds is found by its config; only a new one gets a folder, named by the hash of its own.
    """
    runs, there = {}, held(out)
    for point in points:
        own = dict(point)
        own_spec, mode = own.pop("config", spec), own.pop("mode", "train")
        config = configs.load(own_spec, [*shared, *own.items()])
        asked = identity(config.to_dict(), mode)
        if asked in runs:
            raise UserError(
                f"{runs[asked].label} and {' '.join(f'{k}={v}' for k, v in point)}: the same run twice"
            )
        resolved = configs.to_json(config) + (mode if mode != "train" else "")
        workdir = there.get(asked) or out / hashlib.sha256(resolved.encode()).hexdigest()[:10]
        if taken := next((run for run in runs.values() if run.workdir == workdir), None):
            raise UserError(
                f"{workdir}: its config.json, changed since, is that of {taken.label}; move the folder away"
            )
        flags = [f"--config.{k}={v}" for k, v in (*shared, *own.items())]
        flags += [f"--mode={mode}"] if mode != "train" else []
        command = (
            sys.executable,
            "-m",
            "bjax.main",
            f"--config={own_spec}",
            f"--workdir={workdir}",
            *flags,
        )
        runs[asked] = Run(workdir, point, command, config.steps)
    return list(runs.values())


def held(out: Path) -> dict[str, Path]:
    """{identity: folder} of the runs in `out`, whatever their folders are called and which version wrote them.

    Of several folders with the same run it is one with results.
    """
    folders = sorted(out.glob("*/config.json"), key=lambda p: (not (p.parent / "results.json").exists(), p))
    found = {}
    for path in folders:
        config = configs.read_plain(path)
        found.setdefault(identity(config, mode_of(path.parent, config)), path.parent)
    return found


def identity(config: dict, mode: str) -> str:
    """What makes a run another run, as text: all of its config, and what it does with it."""
    return json.dumps([mode, config], sort_keys=True)


def mode_of(workdir: Path, config: dict) -> str:
    """The --mode with which the run in `workdir` was started: one that has trained may have been evaluated since."""
    if any((workdir / name).exists() for name in ("metrics.jsonl", "checkpoints")):
        return "train"
    path = workdir / "run.json"
    try:
        return json.loads(path.read_text())["sessions"][0]["mode"]
    except (
        FileNotFoundError
    ):  # killed, or of an earlier version; only given weights are evaluated without training
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
        temporary = path.with_name(f".sweep.json.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(index, indent=2) + "\n")
        temporary.replace(path)


def read_index(path: Path) -> dict:
    """What `write_index` wrote. Raises UserError for a damaged file."""
    try:
        index = json.loads(path.read_text())
        if isinstance(index["config"], str) and isinstance(index["runs"], dict):
            return index
        why = "no index of a sweep"
    except (ValueError, KeyError, TypeError) as e:
        why = f"{type(e).__name__}: {e}"
    raise UserError(
        f"{path}: damaged ({why}); delete it and give the sweep's commands again: they list its runs anew, and what is "
        "finished stays"
    )


def local(runs: list[Run], jobs: int, retry: bool) -> int:
    """Runs what is not finished, `jobs` at a time, each on its share of this machine's cores."""
    cores = (
        sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count()))
    )
    jobs = jobs or max(1, len(cores) // 2)
    if not 1 <= jobs <= len(cores):
        raise UserError(f"--jobs={jobs}: expected 1 to {len(cores)}, the cores of this machine")
    share = len(cores) // jobs
    slots = [cores[i * share : (i + 1) * share] for i in range(jobs)]
    waiting = [r for r in runs if r.state in ("waiting", "stopped") or (retry and r.state == "failed")]
    running: dict[Run, tuple[subprocess.Popen, list[int]]] = {}
    table = Table(runs)
    with signals.heard() as told:
        passed_on = 0
        try:
            while running or (waiting and not told):
                while waiting and slots and not told:
                    run = waiting.pop(0)
                    running[run] = (start(run, slots[0]), slots.pop(0))
                if len(told) > passed_on:
                    passed_on = len(told)
                    for process, _ in running.values():
                        process.terminate()
                    table.say(f"told to stop: waits until those that run ({len(running)}) have saved")
                time.sleep(SECONDS)
                for run, (process, slot) in list(running.items()):
                    if process.poll() is not None:
                        (run.workdir / "exit").write_text(str(process.returncode))
                        slots.append(slot)
                        del running[run]
                table.show(dict.fromkeys(running, "running"))
        finally:
            for process, _ in running.values():
                process.kill()
    return summary(runs, STOPPED if told else 0)


def start(run: Run, cores: list[int]) -> subprocess.Popen:
    """Starts a run on `cores`. In a session of its own: a terminal's signals reach it once, as SIGTERM, from here."""
    run.workdir.mkdir(parents=True, exist_ok=True)
    (run.workdir / "exit").unlink(missing_ok=True)
    with (run.workdir / "log.txt").open("a") as log:
        process = subprocess.Popen(run.command, stdout=log, stderr=log, start_new_session=True)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(process.pid, cores)  # XLA makes as many threads as it may use cores
    return process


@dataclasses.dataclass
class Task:
    """What a Slurm task does: one run. submitit pickles it, and calls `checkpoint` when the job is to be requeued."""

    command: tuple[str, ...]
    workdir: str

    def __call__(self) -> int:
        workdir = Path(self.workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "exit").unlink(missing_ok=True)
        with (workdir / "log.txt").open("a") as log:
            # SIGUSR2, which asks submitit to call `checkpoint`, reaches every process of the job.
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, preexec_fn=_ignore_usr2)
        code = self._ended()
        (workdir / "exit").write_text(str(code))
        return code

    def checkpoint(self):
        from submitit.helpers import DelayedSubmission

        self.process.terminate()  # saves and ends with 75
        self._ended()
        (Path(self.workdir) / "exit").write_text(str(STOPPED))
        return DelayedSubmission(Task(self.command, self.workdir))

    def _ended(self) -> int:
        # Not `wait`: `checkpoint` runs in a signal handler, inside it, and would wait for its lock for ever.
        while self.process.poll() is None:
            time.sleep(SECONDS)
        return self.process.returncode


def _ignore_usr2() -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def slurm(runs: list[Run], out: Path, options: list[str], retry: bool) -> int:
    """Submits what is not finished and not yet in the queue as one array job, through submitit."""
    try:
        import submitit
    except ImportError:
        raise UserError("--executor=slurm needs submitit: pip install 'bjax[launch]'") from None
    in_queue = queue(runs)
    chosen = [
        r
        for r in runs
        if r not in in_queue and (r.state in ("waiting", "stopped") or (retry and r.state == "failed"))
    ]
    if chosen:
        executor = submitit.SlurmExecutor(folder=out / "slurm", max_num_timeout=1000, python=sys.executable)
        values = {"job_name": "bjax", "time": 24 * 60, **dict(_option(o) for o in options)}
        try:
            executor.update_parameters(**values)
            with executor.batch():
                jobs = [executor.submit(Task(run.command, str(run.workdir))) for run in chosen]
        except (ValueError, RuntimeError, TypeError, submitit.core.utils.FailedJobError) as e:
            raise UserError(f"--executor=slurm: {str(e).splitlines()[0]}") from None
        for run, job in zip(chosen, jobs, strict=True):
            run.workdir.mkdir(parents=True, exist_ok=True)
            (run.workdir / "job").write_text(
                job.job_id
            )  # `exit` is the job's own, which may have ended by now
        in_queue = queue(runs)
    Table(runs).show(in_queue)
    return summary(runs, 0, in_queue)


def queue(runs: list[Run]) -> dict[Run, str]:
    """The runs that Slurm still has, with their states in its words."""
    done = subprocess.run(
        ["squeue", "--noheader", "--array", "--format=%i %T", "--states=all"], capture_output=True, text=True
    )
    if done.returncode:
        raise UserError(f"--executor=slurm: squeue: {(done.stderr.splitlines() or ['failed'])[0]}")
    states = dict(line.split() for line in done.stdout.splitlines())
    found = {run: states.get(_read(run.workdir / "job") or "") for run in runs}
    return {run: state.lower() for run, state in found.items() if state in SLURM_ALIVE}


class Table:
    """One line a run, rewritten in place on a terminal; elsewhere a line whenever a run's state changes."""

    def __init__(self, runs: list[Run]):
        self.runs, self.last, self.drawn = runs, {}, 0
        self.terminal = sys.stdout.isatty()
        points = [dict(run.overrides) for run in runs]
        # What all have in common tells no two runs apart, and a line is short.
        self.own = {
            run: " ".join(f"{k}={v}" for k, v in point.items() if any(p.get(k) != v for p in points))
            for run, point in zip(runs, points, strict=True)
        }

    def show(self, alive: dict[Run, str]) -> None:
        states = {run: alive.get(run) or run.state for run in self.runs}
        if self.terminal:
            lines = [
                f"{states[r]:9} {r.workdir.name}  {r.progress:27}  {self.own[r]}".rstrip() for r in self.runs
            ]
            lines.append(", ".join(f"{n} {s}" for s, n in counts(states).items()))
            width = shutil.get_terminal_size().columns
            up = f"\033[{self.drawn}F" if self.drawn else ""
            self.say(up + "\n".join(f"\033[K{line[: width - 1]}" for line in lines))
            self.drawn = len(lines)
        elif states != self.last:
            for run, state in states.items():
                if state != self.last.get(run):
                    self.say(f"{state:9} {run.workdir.name}  {self.own[run]}  {run.progress}".rstrip())
        self.last = states

    def say(self, text: str) -> None:
        """Prints `text`, and nothing any more once nobody is there: that must not end the runs, which are to save.

        A terminal that is closed is gone at once, and Ctrl-C ends `| tee` as well.
        """
        self.drawn = 0  # what comes next is drawn below
        try:
            print(text, flush=True)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def summary(runs: list[Run], code: int, alive: dict[Run, str] | None = None) -> int:
    """Counts the states, names the failed runs; returns the exit code."""
    states = {run: (alive or {}).get(run) or run.state for run in runs}
    print(", ".join(f"{n} {s}" for s, n in counts(states).items()))
    failed = [run for run, state in states.items() if state == "failed"]
    for run in failed:
        print(
            f"failed: {run.label}: {run.cause} ({run.workdir / 'log.txt'}; --retry runs it again)",
            file=sys.stderr,
        )
    return code or int(bool(failed))


def counts(states: dict[Run, str]) -> dict[str, int]:
    return {state: list(states.values()).count(state) for state in dict.fromkeys(states.values())}


def default_out(spec: str) -> str:
    """runs/sweep_vit_mask_demo for configs/vit_mask.py:demo."""
    path, _, args = spec.partition(":")
    return str(
        Path("runs") / re.sub(r"[^\w.=-]+", "_", "_".join(filter(None, ("sweep", Path(path).stem, args))))
    )


def _option(argument: str) -> tuple[str, object]:
    key, equals, value = argument.partition("=")
    if not equals or not key:
        raise UserError(f"--slurm {argument}: expected KEY=VALUE, such as partition=gpu")
    return key.replace("-", "_"), int(value) if value.isdigit() else value


def _read(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message} (see --help)")


def _parser() -> argparse.ArgumentParser:
    p = _Parser(
        prog="python -m launch.sweep",
        description="Run a grid of overrides of one config.",
        epilog="--config.KEY=VALUE holds for every run.",
        allow_abbrev=False,
    )
    p.add_argument("--config", metavar="FILE.py[:ARGS]", required=True)
    p.add_argument(
        "--grid",
        metavar="KEY=V1,V2",
        action="append",
        default=[],
        help="an axis of the grid; without any, the config's own sweep()",
    )
    p.add_argument("--seeds", type=int, default=0, metavar="N", help="every point with the seeds 0 to N - 1")
    p.add_argument("--out", metavar="DIR", help="where the sweep lives (default: runs/sweep_NAME_ARGS)")
    p.add_argument("--executor", choices=("print", "local", "slurm"), default="local")
    p.add_argument(
        "--jobs", type=int, default=0, metavar="N", help="local: at a time (default: half the cores)"
    )
    p.add_argument("--retry", action="store_true", help="run the failed ones again")
    p.add_argument(
        "--slurm",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="an sbatch option by submitit's name: partition, time (minutes), gpus_per_node, array_parallelism, …",
    )
    return p


if __name__ == "__main__":
    sys.exit(main())
