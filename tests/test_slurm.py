"""A real Slurm on this machine: the shipped batch script stopped and requeued, a sweep as an array job.

tests/slurm.sh run
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import test_distributed
from test_distributed import TINY, flags, losses, results

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif("SLURM_CONF" not in os.environ, reason="no Slurm; tests/slurm.sh run starts one"),
]


def command(*arguments, devices=1):
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "JAX_NUM_CPU_DEVICES": str(devices),
    }
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wait(condition, what, log, seconds=200):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}; {log.read_text()[-3000:] if log.exists() else 'no output'}"
        time.sleep(0.05)


def test_the_batch_script_is_requeued_twice_and_ends_exactly_as_undisturbed(tmp_path, data_dir):
    test_distributed.run(2, flags(tmp_path / "undisturbed", data_dir))

    workdir, out = tmp_path / "run", tmp_path / "out"
    size = ["--ntasks-per-node=2", "--gres=none", "--cpus-per-task=1", "--time=10", f"--output={out}"]
    job = command("sbatch", "--parsable", *size, "launch/slurm.sh", *flags(workdir, data_dir), devices=2).strip()

    def said(text, times):
        return lambda: out.exists() and out.read_text().count(text) >= times

    try:
        wait(said("4 cpu devices, 2 processes", 1), "did not start", out)
        command("scontrol", "requeue", job)
        wait(said("goes on from step", 1), "was not requeued", out)
        command("scancel", "--signal=TERM", job)
        wait(said("goes on from step", 2), "did not requeue itself", out)
        wait((workdir / "results.json").exists, "did not end", out)
    finally:
        subprocess.run(["scancel", job], check=False)
    assert out.read_text().count("the same command goes on") == 2  # told by process 0 of both
    starts = [int(n) for n in re.findall(r"goes on from step (\d+)", out.read_text())]
    assert 0 < starts[0] < starts[1] < test_distributed.STEPS
    assert losses(workdir) == losses(tmp_path / "undisturbed")
    assert results(workdir) == results(tmp_path / "undisturbed")


def test_a_sweep_as_an_array_job_of_which_one_run_is_preempted(tmp_path, data_dir):
    pytest.importorskip("submitit")
    options = {**TINY, "data.data_dir": data_dir}
    sweep = [
        *(
            sys.executable,
            "-m",
            "launch.sweep",
            f"--config={ROOT / 'configs' / 'vit.py'}:demo",
            f"--out={tmp_path}",
        ),
        *("--executor=slurm", "--slurm=time=20", "--grid=optim.lr=1e-3,1e-4"),
        *(f"--config.{k}={v}" for k, v in options.items()),
    ]
    said = command(*sweep)
    assert re.search("2 (pending|running)|1 running, 1 pending", said), said
    runs = [path.parent for path in tmp_path.glob("*/job")]
    jobs = [(run / "job").read_text() for run in runs]
    assert sorted(job.split("_")[1] for job in jobs) == ["0", "1"]  # one array
    log = runs[0] / "log.txt"
    try:
        wait(lambda: log.exists() and "model    vit" in log.read_text(), "did not start", log)
        assert "finished" not in command(*sweep)  # submits nothing twice
        command("scancel", "--signal=USR2", jobs[0])  # what Slurm sends before the time limit
        wait(lambda: all((run / "results.json").exists() for run in runs), "did not end", log)
        wait(lambda: all((run / "exit").exists() for run in runs), "did not end", log)
    finally:
        subprocess.run(["scancel", *jobs], check=False)
    assert "the same command goes on" in log.read_text()  # saved, and in its next life
    assert log.read_text().count("model    vit") == 2  # from the beginning, where it was told before its first step
    assert "2 finished" in command(*sweep)
    assert [path.parent for path in tmp_path.glob("*/job")] == runs
