"""One holder of a workdir: the second is refused, a dead one is never in the way, who reads does not ask."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY

from bjax.errors import UserError
from bjax.launch import executors
from bjax.launch.executors import Run
from bjax.main import main
from bjax.predictor import load
from bjax.report.read import read_run
from bjax.runtime import lock

ROOT = Path(__file__).parents[1]
HOLD = """
import sys, time
from pathlib import Path
from bjax.runtime import lock
with lock.hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of tmp_path / "run"."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, cwd=ROOT, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_is_refused_until_the_first_dies(holder, tmp_path):
    workdir = tmp_path / "run"
    with (
        pytest.raises(UserError, match=f"in use by process {holder.pid} on {os.uname().nodename} since 20"),
        lock.hold(workdir),
    ):
        pass
    assert lock.held(workdir)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (workdir / lock.NAME).exists()  # stale, and in nobody's way
    assert not lock.held(workdir)
    with lock.hold(workdir):
        assert lock.held(workdir)
    assert workdir.is_dir()
    assert not any(workdir.iterdir())


def test_a_folder_made_for_the_lock_goes_again_where_nothing_came_into_it(tmp_path):
    with lock.hold(tmp_path / "a" / "b"):
        assert lock.held(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    with lock.hold(tmp_path / "c"):
        (tmp_path / "c" / "config.json").touch()
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["config.json"]


def test_a_look_at_the_lock_refuses_nobody(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(lock.time, "sleep", lambda _: seen.append(os.close(looking)))
    (tmp_path / lock.NAME).touch()
    looking = os.open(tmp_path / lock.NAME, os.O_RDONLY)
    lock.fcntl.flock(looking, lock.fcntl.LOCK_SH)
    with lock.hold(tmp_path):
        assert len(seen) == 1


def test_training_and_evaluation_are_refused_and_prediction_and_report_are_not(
    holder, tiny_run, tmp_path, data_dir, capsys
):
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run, workdir, dirs_exist_ok=True)
    flags = [f"--config.{k}={v}" for k, v in {**TINY, "data.data_dir": data_dir}.items()]
    for mode in ("train", "eval", "bn_adapt"):
        config = f"--config={ROOT}/configs/vit_mask.py:demo"
        assert main([config, f"--workdir={workdir}", f"--mode={mode}", *flags]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"--workdir={workdir}: in use by process {holder.pid}" in line
    assert load(workdir).run.what == f"{workdir}, step 2"
    assert read_run(workdir, name="run")[0].rows


def test_a_sweep_shows_a_run_whose_lock_is_held_as_running_and_leaves_it_alone(holder, tmp_path, capsys):
    run = Run(tmp_path / "run", (), (sys.executable, "-c", "raise SystemExit('started')"), 0)
    assert run.state == "running"
    assert executors.local([run], 1, retry=True) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 running"
    assert not (run.workdir / "log.txt").exists()
