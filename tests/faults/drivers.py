"""One function a kind of fault: (place, reference, rng) -> outcome, a few words that are counted."""

import contextlib
import io
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

from bjax.main import main
from bjax.runtime import checkpoint
from bjax.runtime.lock import NAME as LOCK
from tests.faults.tiny import EVERY, STEPS, Place, left

SAME, OTHER = "ended with the same bytes", "SILENT: ended with other bytes"


def _verdict(workdir: Path, reference: tuple, code: int, err: str) -> str | None:
    """None where the run ended as an undisturbed one does."""
    if "Traceback" in err:
        return f"TRACEBACK (code {code})"
    if code:
        lines = err.splitlines()
        return f"refused in one line (code {code})" if len(lines) == 1 else f"REFUSED in {len(lines)} lines"
    return None if left(workdir) == reference else OTHER


def kill(place: Place, reference: tuple, rng: random.Random, seconds: float) -> tuple[str, int]:
    """SIGKILL at one to three random moments; (outcome, how many kills met a living process)."""
    workdir, kills = place.folder / "killed", 0
    shutil.rmtree(workdir, ignore_errors=True)
    for _ in range(rng.randint(1, 3)):
        process = place.start(workdir)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0, seconds))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    code, err = place.finish(workdir)
    return _verdict(workdir, reference, code, err) or SAME, kills


def damage(place: Place, reference: tuple, rng: random.Random, half: Path) -> str:
    """A bit, a cut, zeros or no more of a random file below checkpoints/ of a run that was stopped at `half`."""
    workdir = place.folder / "damaged"
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(half, workdir)
    files = sorted(p for p in (workdir / "checkpoints").rglob("*") if p.is_file() and p.stat().st_size)
    file, kind = rng.choice(files), rng.choice(("bit", "cut", "zeros", "delete"))
    step = int(file.relative_to(workdir / "checkpoints").parts[0])
    spoil(file, kind, rng)
    code, err = in_process(place.arguments(workdir))
    named = f"{file.relative_to(workdir / 'checkpoints' / str(step))} is " in err
    verdict = _verdict(workdir, reference, code, err)
    if verdict:
        return verdict
    newest = max(checkpoint.steps(half / "checkpoints"))
    if named:
        return "named, recovered from the newest good step: the same bytes"
    read = step == newest and file.name not in checkpoint.LATER
    return "NOT NAMED: the same bytes" if read else "of no file that is read: the same bytes"


def spoil(file: Path, kind: str, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    if kind == "delete":
        file.unlink()
        return
    if kind == "bit":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del data[rng.randrange(len(data)) :]
    else:
        start = rng.randrange(len(data))
        data[start : start + 4096] = bytes(len(data[start : start + 4096]))
    file.write_bytes(data)


def in_process(arguments: list[str]) -> tuple[int, str]:
    """(code, stderr) of the command in this process, which has JAX and the compiled programs already."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(arguments)
        except Exception as error:
            code = 1
            err.write(f"Traceback: {type(error).__name__}: {error}")
    return code, err.getvalue()


PHASES = ("start-up", "compilation", "training", "evaluation")


def stop(place: Place, reference: tuple, rng: random.Random, phase: str, number: int) -> str:
    """A request to stop in a phase; then the same command goes on."""
    workdir = place.folder / "stopped"
    shutil.rmtree(workdir, ignore_errors=True)
    process = place.start(workdir)
    if phase == "start-up":
        time.sleep(rng.uniform(0.3, 3))  # the interpreter itself takes its first tenths
    else:
        mark = {"compilation": "mesh", "training": f"train {rng.randint(1, STEPS - 1)}/"}
        mark["evaluation"] = f"train {STEPS}/"
        for line in process.stdout:
            if line.startswith(mark[phase]):
                break
        if phase == "evaluation":
            time.sleep(rng.uniform(0, 0.3))
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    done = (workdir / "results.json").exists()
    if process.returncode == 0 and done:
        return "had finished"
    if process.returncode != 75 or err:
        return f"CODE {process.returncode}: {err[-200:]}"
    rows = (workdir / "metrics.jsonl").read_text().count("\n") if (workdir / "metrics.jsonl").exists() else 0
    saved = max(checkpoint.steps(workdir / "checkpoints"), default=0)
    code, err = place.finish(workdir)
    verdict = _verdict(workdir, reference, code, err)
    if verdict:
        return verdict
    return "75, saved" if saved == min(rows, STEPS) and saved else "75, no step done" if not rows else "75, LOST"


def two(place: Place, reference: tuple, rng: random.Random) -> str:
    """A second process on a workdir; then the first is killed, and its lock is in nobody's way."""
    workdir = place.folder / "two"
    shutil.rmtree(workdir, ignore_errors=True)
    first = place.start(workdir)
    try:
        while first.poll() is None and not (workdir / LOCK).exists():
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)  # wherever it is, it holds the lock
        code, err = place.finish(workdir)
    finally:
        first.kill()
        first.communicate()
    if code != 2 or f"in use by process {first.pid} on" not in err or len(err.splitlines()) != 1:
        return f"NOT REFUSED (code {code})"
    code, err = place.finish(workdir)
    return (
        _verdict(workdir, reference, code, err)
        or "the second refused in one line; the lock of the dead in nobody's way"
    )


def full(place: Place, reference: tuple, rng: random.Random, disk: Path, room: int) -> str:
    """A disk of its own with `room` bytes left; then with more."""
    workdir, ballast = disk / "run", disk / "ballast"
    shutil.rmtree(workdir, ignore_errors=True)
    ballast.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - room)))
    code, err = place.finish(workdir)
    ballast.unlink()
    if code == 0:
        return "had room"
    if code != 2 or len(err.splitlines()) != 1 or os.strerror(28) not in err:
        return f"NOT TOLD in one line (code {code}, {len(err.splitlines())} lines)"
    saved = checkpoint.steps(workdir / "checkpoints")
    code, err = place.finish(workdir)
    return (
        _verdict(workdir, reference, code, err)
        or f"told in one line, {'went on' if saved else 'began anew'}: the same bytes"
    )


def stopped_half_way(place: Place) -> Path:
    """A run that was stopped after its second checkpoint: a copy of one that went on for as long."""
    workdir = place.folder / "half"
    process = place.start(workdir)
    for line in process.stdout:
        if line.startswith(f"train {2 * EVERY}/"):
            break
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=300)
    assert process.returncode == 75
    return workdir
