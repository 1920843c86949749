"""One function a kind of fault: (place, reference, rng) -> outcome, a few words that are counted."""

import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

from bjax.errors import UserError
from bjax.main import main
from bjax.predictor import read
from bjax.report.read import load as read_runs
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


def damage_beside(place: Place, reference: tuple, rng: random.Random, half: Path, whole: Path) -> str:
    """The same of a file beside the checkpoints, or another digit, before one of those that read it.

    half, whole: a run that was stopped, and one that is finished.
    """
    workdir = place.folder / "damaged"
    shutil.rmtree(workdir, ignore_errors=True)
    look = rng.choice((_goes_on, _goes_on, _evaluated, _reported, _asked))
    source = whole if look is _evaluated else rng.choice((half, whole))
    shutil.copytree(source, workdir)
    files = sorted(p for p in workdir.iterdir() if p.is_file() and p.stat().st_size)
    file = rng.choice(files)
    spoil(file, rng.choice(("digit", "bit", "cut", "zeros", "delete")), rng)
    return look(place, reference, source, file)


BESIDE = ("config.json", "classes.json")  # what must be as before, or written as before
TOLD, UNTOLD = "named: the same bytes", "of nothing that is read, or written again: the same bytes"


def _goes_on(place: Place, reference: tuple, source: Path, file: Path) -> str:
    workdir, way = file.parent, ""
    code, err = in_process(place.arguments(workdir))
    if code == 2 and len(err.splitlines()) == 1 and "; delete it" in err and str(file) in err:
        file.unlink()
        code, err = in_process(place.arguments(workdir))
        way = "refused in a line that names it, and without it "
    sessions = [json.loads((x / "run.json").read_text())["sessions"] for x in (source, workdir)]
    told = file.name in err
    if code or "Traceback" in err:
        return _verdict(workdir, reference, code, err)
    if sessions[1][: len(sessions[0])] != sessions[0] and not told:
        return "SILENT: other sessions"
    results, rows, arrays = left(workdir)
    if (results, arrays) != (reference[0], reference[2]) or not _same(source, workdir):
        return OTHER
    if rows == reference[1]:
        return f"{way}{TOLD if told else UNTOLD}"
    lost = len(reference[1]) - len(rows)
    if lost > 0 and f" {lost} rows are damaged or missing" in err and all(row in reference[1] for row in rows):
        return f"{way}rows left out and counted: otherwise the same bytes"
    return "SILENT: other rows"


def _evaluated(place: Place, reference: tuple, source: Path, file: Path) -> str:
    workdir = file.parent
    code, err = in_process([f"--workdir={workdir}", "--mode=eval", f"--config.data.data_dir={place.data_dir}"])
    if code == 2 and len(err.splitlines()) == 1 and file.name in err:
        return "refused in a line that names it"
    if code or "Traceback" in err:
        return _verdict(workdir, reference, code, err)
    same = json.loads((workdir / "results.json").read_text()) == reference[0] and _same(source, workdir)
    return OTHER if not same else TOLD if file.name in err else UNTOLD


def _reported(place: Place, reference: tuple, source: Path, file: Path) -> str:
    (runs, notes), expected = read_runs([file.parent]), read_runs([source])
    if len(notes) > len(expected[1]):
        return "named, its part left out of the report" if file.name in " ".join(notes) else f"NOT NAMED: {notes}"
    same = [_facts(run) for run in runs] == [_facts(run) for run in expected[0]]
    return "of nothing that is read: the same report" if same else "SILENT: another report"


def _facts(run) -> tuple:
    return run.config, run.rows, run.sessions, run.classes


def _asked(place: Place, reference: tuple, source: Path, file: Path) -> str:
    with contextlib.redirect_stderr(io.StringIO()):
        expected = read(source)
        try:
            run = read(file.parent)
        except UserError as error:
            return "refused in a line that names it" if file.name in str(error) else f"NOT NAMED: {error}"
    same = (run.config, run.classes) == (expected.config, expected.classes)
    return "of nothing that is read: the same answers" if same else "SILENT: other answers"


def _same(source: Path, workdir: Path) -> bool:
    return all((source / name).read_bytes() == (workdir / name).read_bytes() for name in BESIDE)


def spoil(file: Path, kind: str, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    if kind == "delete":
        file.unlink()
        return
    if kind == "digit" and (digits := [i for i, c in enumerate(data) if chr(c).isdigit()]):
        place = rng.choice(digits)
        data[place] = rng.choice([c for c in b"0123456789" if c != data[place]])
    elif kind in ("bit", "digit"):
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


PATIENCE = 120  # seconds for the other to see that one is gone


def processes(place: Place, reference: tuple, rng: random.Random, seconds: float) -> str:
    """SIGKILL to one or both of two processes of a run, maybe damage to its newest checkpoint; then both again."""
    workdir, damaged = place.folder / "several", ""
    shutil.rmtree(workdir, ignore_errors=True)
    for _ in range(rng.randint(1, 2)):
        job = place.start_several(workdir)
        time.sleep(rng.uniform(0, seconds))
        for victim in rng.choice(((0,), (1,), (0, 1))):
            job[victim].kill()
        if ended(job, PATIENCE) is None:
            return f"HANGS {PATIENCE} s after the end of the other"
    steps = checkpoint.steps(workdir / "checkpoints")
    if len(steps) > 1 and rng.random() < 0.5:
        files = (workdir / "checkpoints" / str(steps[-1])).rglob("*")
        files = sorted(p for p in files if p.stat().st_size and p.is_file() and p.name not in checkpoint.LATER)
        spoil(rng.choice(files), rng.choice(("bit", "cut", "zeros", "delete")), rng)
        damaged = "killed, then a checkpoint damaged"
    said = ended(place.start_several(workdir), 600)
    if said is None:
        return "HANGS when run again"
    code, err = max(code for code, _ in said), "".join(err for _, err in said)
    verdict = _verdict(workdir, reference, code, err)
    if verdict or not damaged:
        return verdict or SAME
    return f"{damaged}: {'named by both, ' if err.count('; left out') == 2 else 'NOT NAMED by both, '}{SAME}"


def ended(job: list[subprocess.Popen], seconds: float) -> list[tuple[int, str]] | None:
    """(code, stderr) of each process; None, and all of them are killed, where one takes longer."""
    deadline = time.monotonic() + seconds
    try:
        said = [process.communicate(timeout=max(0.1, deadline - time.monotonic()))[1] for process in job]
    except subprocess.TimeoutExpired:
        for process in job:
            process.kill()
            process.communicate()
        return None
    return [(process.returncode, err) for process, err in zip(job, said, strict=True)]


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
