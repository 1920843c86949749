"""SIGTERM, SIGUSR1 and Ctrl-C, from the first line of bjax.main on: code 75, and what was done is saved."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY

ROOT = Path(__file__).parents[1]
# What `python -m bjax.main` does, told to stop inside a call of C that runs no handlers of Python.
BUSY = """
import ctypes, os, sys
from bjax.runtime import stop
stop.listen()
{before}
os.kill(os.getpid(), {number})
ctypes.CDLL(None).sleep(100)
"""


def ended(program, timeout=30):
    since = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    return done.returncode, done.stdout, done.stderr, time.monotonic() - since


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_process_with_nothing_to_save_ends_at_once_wherever_it_is(number):
    code, out, err, seconds = ended(BUSY.format(before="", number=int(number)))
    assert (code, err) == (75, "")
    assert out == "bjax: told to stop, with nothing to save since its last checkpoint; the same command goes on\n"
    assert seconds < 20


def test_the_first_step_is_given_some_time():
    program = BUSY.format(before="stop.defer(0.5)", number=int(signal.SIGTERM))
    assert ended(program)[0] == 75
    program = BUSY.replace("ctypes", "time").replace("time.CDLL(None).sleep(100)", "time.sleep(0.1); stop.defer()")
    program += "time.sleep(1)\nprint('saves', stop.told.is_set())"
    assert ended(program.format(before="stop.defer(0.5)", number=int(signal.SIGTERM)))[:2] == (
        0,
        "saves True\n",
    )


def test_nothing_slow_is_imported_before_it_listens():
    program = "import sys; sys.modules['jax'] = sys.modules['numpy'] = None; import bjax.runtime.stop"
    assert ended(program)[0] == 0
    lines = (ROOT / "bjax" / "main.py").read_text().splitlines()
    code = [line for line in lines[lines.index('"""', 1) + 1 :] if line and not line.startswith("#")]
    assert code[:3] == ["from bjax.runtime import stop", 'if __name__ == "__main__":', "    stop.listen()"]


INTERRUPTED = "bjax: interrupted; the same command goes on from the last checkpoint\n"


def test_ctrl_c_is_answered_also_where_python_runs_nothing():
    program = """
import hashlib, os, signal, threading
from bjax.runtime import stop
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a script's background ignores
stop.listen()
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    {}
except KeyboardInterrupt:
    print("raised")
"""
    code, out, err, seconds = ended(program.format("hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"))  # minutes of C
    assert (code, out, err) == (130, "", INTERRUPTED) and seconds < 20
    assert ended(program.format("threading.Event().wait(20)"))[:3] == (0, "raised\n", "")


def test_after_ctrl_c_nobody_waits_for_threads():
    program = """
import threading, time
from bjax.runtime import stop
threading.Thread(target=time.sleep, args=(100,)).start()
print("told")
stop.leave(130)
"""
    code, out, _, seconds = ended(program)
    assert (code, out) == (130, "told\n") and seconds < 20


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc's on_exit")
def test_a_request_in_the_last_moment_changes_no_exit_code():
    # What libraries do at the end of a process: here `raise(exit code)`, after Python is gone.
    program = """
import ctypes, sys
from bjax.runtime import stop
stop.listen()
{}
ctypes.CDLL(None).on_exit(ctypes.CDLL(None)["raise"], None)
sys.exit(15)
"""
    assert ended(program.format("stop.ended()"))[0] == 15
    assert ended(program.format(""))[0] == -signal.SIGTERM


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_training_that_is_told_saves_its_step(number, tmp_path, data_dir):
    values = {**TINY, "steps": 3000, "log_every": 1, "data.data_dir": data_dir}
    flags = [f"--config.{k}={v}" for k, v in values.items()]
    command = [sys.executable, "-m", "bjax.main", f"--config={ROOT}/configs/vit_mask.py:demo", *flags]
    with subprocess.Popen([*command, f"--workdir={tmp_path}"], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        log = tmp_path / "metrics.jsonl"
        while process.poll() is None and not (log.exists() and log.read_text()):
            time.sleep(0.01)
        process.send_signal(number)
        out, _ = process.communicate(timeout=100)
    assert process.returncode == 75
    [step] = (tmp_path / "checkpoints").iterdir()
    assert f"step {step.name} of 3000 is saved" in out
