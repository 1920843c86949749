"""How the runs of a sweep are run, by this machine or by Slurm, and what their folders tell of how far they are."""

import collections
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO

from bjax.errors import UserError
from bjax.launch import signals
from bjax.launch.signals import STOPPED
from bjax.runtime import lock
from bjax.runtime.workdir import row_of

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
        """running | finished | failed | stopped (goes on) | waiting; as the files of the run tell it."""
        if lock.held(self.workdir):  # by another sweep, or by hand; those of this one are known to it
            return "running"
        code = _read(self.workdir / "exit")
        if code == "0" and (self.workdir / "results.json").exists():
            return "finished"
        if code is None:
            return "stopped" if (self.workdir / "config.json").exists() else "waiting"
        return "stopped" if code in (str(STOPPED), str(-signal.SIGTERM)) else "failed"

    @property
    def progress(self) -> str:
        """How far the run is, from the last row of metrics.jsonl."""
        lines = (_read(self.workdir / "metrics.jsonl") or "").splitlines()
        rows = [row for line in lines if (row := row_of(line.encode()))]
        if not rows:
            return ""
        losses = [f"  loss {row['loss']:.4f}" for row in rows if "loss" in row]
        total = f"/{self.steps}" if self.steps else ""
        return "".join((f"step {rows[-1]['step']}{total}", *losses[-1:]))

    def is_due(self, retry: bool) -> bool:
        """Whether it is to be run: neither finished nor, unless `retry`, failed."""
        return self.state in ("waiting", "stopped") or (retry and self.state == "failed")

    @property
    def cause(self) -> str:
        """The last line a failed run wrote."""
        written = (_read(self.workdir / "log.txt") or "").splitlines()
        lines = [line for line in written if line.strip()] or ["no output"]
        return next((line for line in reversed(lines) if line.startswith("bjax")), lines[-1])


def local(runs: list[Run], jobs: int, retry: bool) -> int:
    """Runs what is not finished, `jobs` at a time, each on its share of this machine's cores."""
    may = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count()))
    cores = sorted(may(0))
    jobs = jobs or max(1, len(cores) // 2)
    if not 1 <= jobs <= len(cores):
        raise UserError(f"--jobs={jobs}: expected 1 to {len(cores)}, the cores of this machine")
    share = len(cores) // jobs
    slots = [cores[i * share : (i + 1) * share] for i in range(jobs)]
    waiting = [run for run in runs if run.is_due(retry)]
    running: dict[Run, tuple[subprocess.Popen, list[int]]] = {}
    table = Table(runs)
    with signals.heard() as told:
        passed_on, hurried = 0, False
        try:
            while running or (waiting and not told):
                while waiting and slots and not told:
                    run = waiting.pop(0)
                    running[run] = (start(run, slots[0]), slots.pop(0))
                if len(told) > passed_on:
                    passed_on = len(told)
                    hurried = told.count(signal.SIGINT) > 1
                    for process, _ in running.values():
                        process.kill() if hurried else process.terminate()
                    if not hurried:
                        wait = f"waits until those that run ({len(running)}) have saved; Ctrl-C again ends them now"
                        table.say(f"told to stop: {wait}")
                time.sleep(SECONDS)
                for run, (process, slot) in list(running.items()):
                    if process.poll() is not None:
                        # Killed at a second Ctrl-C, it goes on from its last checkpoint.
                        (run.workdir / "exit").write_text(str(STOPPED if hurried else process.returncode))
                        slots.append(slot)
                        del running[run]
                table.show(dict.fromkeys(running, "running"))
        finally:
            for process, _ in running.values():
                process.kill()
    return summary(runs, STOPPED if told else 0)


def start(run: Run, cores: list[int]) -> subprocess.Popen:
    """Starts a run on `cores`. In a session of its own: a terminal's signals reach it once, as SIGTERM, from here."""
    with _log_of_new_try(run.workdir) as log:
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
        with _log_of_new_try(Path(self.workdir)) as log:
            # SIGUSR2, which asks submitit to call `checkpoint`, reaches every process of the job; the run ignores it.
            command = ("sh", "-c", "trap '' USR2; exec \"$@\"", "sh", *self.command)
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        code = self._ended()
        (Path(self.workdir) / "exit").write_text(str(code))
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


def slurm(runs: list[Run], out: Path, options: list[str], retry: bool) -> int:
    """Submits what is not finished and not yet in the queue as one array job, through submitit."""
    try:
        import submitit
    except ImportError:
        raise UserError("--executor=slurm needs submitit: pip install 'bjax[launch]'") from None
    in_queue = queue(runs)
    chosen = [run for run in runs if run not in in_queue and run.is_due(retry)]
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
            # `exit` is the job's own, which may have ended by now.
            (run.workdir / "job").write_text(job.job_id)
        in_queue = queue(runs)
    Table(runs).show(in_queue)
    return summary(runs, 0, in_queue)


def queue(runs: list[Run]) -> dict[Run, str]:
    """The runs that Slurm still has, with their states in its words."""
    squeue = ["squeue", "--noheader", "--array", "--format=%i %T", "--states=all"]
    done = subprocess.run(squeue, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"--executor=slurm: squeue: {(done.stderr.splitlines() or ['failed'])[0]}")
    states = dict(line.split() for line in done.stdout.splitlines())
    by_run = {run: states.get(_read(run.workdir / "job") or "") for run in runs}
    return {run: state.lower() for run, state in by_run.items() if state in SLURM_ALIVE}


class Table:
    """One line a run, rewritten in place on a terminal; elsewhere a line whenever a run's state changes."""

    def __init__(self, runs: list[Run]):
        self.runs, self.last, self.drawn = runs, {}, 0
        self.terminal = sys.stdout.isatty()
        points = [dict(run.overrides) for run in runs]
        # What all have in common tells no two runs apart, and a line is short.
        self.told_apart_by = {
            run: " ".join(f"{k}={v}" for k, v in point.items() if any(p.get(k) != v for p in points))
            for run, point in zip(runs, points, strict=True)
        }

    def show(self, alive: dict[Run, str]) -> None:
        states = {run: alive.get(run) or run.state for run in self.runs}
        if self.terminal:
            rows = [(s, r.workdir.name, r.progress, self.told_apart_by[r]) for r, s in states.items()]
            lines = [f"{s:9} {name}  {progress:27}  {label}".rstrip() for s, name, progress, label in rows]
            lines.append(counted(states))
            width = shutil.get_terminal_size().columns
            up = f"\033[{self.drawn}F" if self.drawn else ""
            self.say(up + "\n".join(f"\033[K{line[: width - 1]}" for line in lines))
            self.drawn = len(lines)
        elif states != self.last:
            for run, state in states.items():
                if state != self.last.get(run):
                    line = f"{state:9} {run.workdir.name}  {self.told_apart_by[run]}  {run.progress}"
                    self.say(line.rstrip())
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
    """Counts the states, names the failed runs and the next command; returns the exit code."""
    states = {run: (alive or {}).get(run) or run.state for run in runs}
    if not sys.stdout.isatty():  # there it is the last line of the table
        print(counted(states))
    if set(states.values()) == {"finished"}:
        print(f"next: python -m bjax.report {runs[0].workdir.parent} --out=report")
    failed = [run for run, state in states.items() if state == "failed"]
    for run in failed:
        told = f"failed: {run.label}: {run.cause} ({run.workdir / 'log.txt'}; --retry runs it again)"
        print(told, file=sys.stderr)
    return code or int(bool(failed))


def counted(states: dict[Run, str]) -> str:
    return ", ".join(f"{n} {state}" for state, n in collections.Counter(states.values()).items())


def _option(argument: str) -> tuple[str, object]:
    key, equals, value = argument.partition("=")
    if not equals or not key:
        raise UserError(f"--slurm {argument}: expected KEY=VALUE, such as partition=gpu")
    return key.replace("-", "_"), int(value) if value.isdigit() else value


def _log_of_new_try(workdir: Path) -> TextIO:
    """The log of a run that is about to be started, whose folder no longer tells how an earlier try ended."""
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "exit").unlink(missing_ok=True)
    return (workdir / "log.txt").open("a")


def _read(path: Path) -> str | None:
    return path.read_text(errors="replace") if path.exists() else None
