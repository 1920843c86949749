"""Several real processes on one machine (CPU, Gloo): the same run as by one, whatever happens to them."""

import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import filelock
import pytest

from bjax.errors import UserError
from bjax.main import main
from bjax.runtime import distributed

ROOT = Path(__file__).parents[1]
STEPS = 30
TINY = {
    "model.options.depth": 1,
    "model.options.width": 32,
    "model.options.heads": 2,
    "model.options.variant": "Ti/8",
    "data.image_size": 16,
    "data.resize": 20,
    "data.threads": 2,
    "batch_size": 16,
    "eval_batch_size": 16,
    "eval_only": "sharp",
    "eval.sharp.split": "test[:13]",  # fewer than a batch: with four processes, two have a part and one has nothing
    "steps": STEPS,
    "optim.warmup": 5,
    "log_every": 1,
    "checkpoint_every": 10,
}


def flags(workdir, data_dir, **overrides):
    values = {**TINY, "data.data_dir": data_dir, **overrides}
    config = ROOT / "configs" / "vit_mask.py"
    return [
        f"--config={config}:demo",
        f"--workdir={workdir}",
        *(f"--config.{k}={v}" for k, v in values.items()),
    ]


# `bjax.main`, which also writes down the example ids of every batch that this process places on its devices.
RECORDING = """
import json, os, sys
import jax
from bjax import main
from bjax.runtime import sharding

def put(batch, mesh, original=sharding.put):
    with open(os.path.join(os.environ["IDS"], f"{jax.process_index()}.jsonl"), "a") as file:
        file.write(json.dumps(batch["id"].tolist()) + "\\n")
    return original(batch, mesh)

sharding.put = put
sys.exit(main.main())
"""


class Job:
    """`count` processes of one run, started as a scheduler would; together they have four devices."""

    def __init__(self, count, arguments, *, indices=None, timeout=60, address=None, ids=None):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            address = address or f"127.0.0.1:{s.getsockname()[1]}"
        shared = {**os.environ, "JAX_NUM_CPU_DEVICES": str(4 // count)}
        if count > 1:
            shared |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
        if ids:
            ids.mkdir(parents=True)
            shared["IDS"] = str(ids)
        program = ["-c", RECORDING] if ids else ["-m", "bjax.main"]
        command = [sys.executable, *program, f"--distributed_timeout={timeout}", *arguments]
        self.processes = [
            subprocess.Popen(
                command,
                cwd=ROOT,
                env={**shared, "JAX_PROCESS_ID": str(i)} if count > 1 else shared,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for i in (range(count) if indices is None else indices)
        ]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.communicate()

    def wait_for_rows(self, workdir, number):
        log = workdir / "metrics.jsonl"
        deadline = time.monotonic() + 200
        while not (log.exists() and log.read_text().count("\n") >= number):
            for process in self.processes:
                assert process.poll() is None, process.communicate()[1][-3000:]
            assert time.monotonic() < deadline, "no progress"
            time.sleep(0.005)

    def ended(self, timeout=240):
        """[(exit code, stdout, stderr)] of all processes; those that do not end in time fail the test."""
        deadline = time.monotonic() + timeout
        said = [p.communicate(timeout=max(0.1, deadline - time.monotonic())) for p in self.processes]
        return [(p.returncode, *out) for p, out in zip(self.processes, said, strict=True)]


def run(count, arguments, code=0, ids=None):
    with Job(count, arguments, ids=ids) as job:
        ended = job.ended()
    assert [c for c, _, _ in ended] == [code] * count, "\n".join(err[-3000:] for _, _, err in ended)
    return ended


def losses(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(r["step"], r["loss"]) for r in rows if "loss" in r]


def results(workdir):
    return json.loads((workdir / "results.json").read_text())


@pytest.fixture(scope="module")
def two(shared_dir, data_dir):
    """An undisturbed run of two processes."""
    workdir = shared_dir / "two_processes"
    with filelock.FileLock(shared_dir / "two_processes.lock"):
        if not (workdir / "results.json").exists():
            said = run(2, flags(workdir, data_dir), ids=shared_dir / "two_ids")
            (workdir / "said.json").write_text(json.dumps([out for _, out, _ in said]))
    return workdir


@pytest.fixture(scope="module")
def one(shared_dir, data_dir):
    """The same run in one process."""
    workdir = shared_dir / "one_process"
    with filelock.FileLock(shared_dir / "one_process.lock"):
        if not (workdir / "results.json").exists():
            run(1, flags(workdir, data_dir), ids=shared_dir / "one_ids")
    return workdir


def ids_of_steps(folder, count):
    """The ids of each step's global batch, from what `count` processes recorded of their parts of it."""
    parts = [
        [json.loads(line) for line in (folder / f"{i}.jsonl").read_text().splitlines()][:STEPS] for i in range(count)
    ]
    return [list(itertools.chain(*step)) for step in zip(*parts, strict=True)]


def assert_same_run(workdir, reference):
    steps, values = zip(*losses(workdir), strict=True)
    expected_steps, expected = zip(*losses(reference), strict=True)
    assert steps == expected_steps == tuple(range(1, STEPS + 1))
    assert values == pytest.approx(expected, abs=1e-5)
    assert results(workdir)["sharp"]["n"] == 13  # each image once
    assert results(workdir)["sharp"]["loss"] == pytest.approx(results(reference)["sharp"]["loss"], abs=1e-5)


@pytest.mark.slow
def test_one_two_and_four_processes_train_alike(one, two, data_dir, tmp_path, shared_dir):
    assert_same_run(two, one)
    run(4, flags(tmp_path / "run", data_dir), ids=tmp_path / "ids")
    assert_same_run(tmp_path / "run", one)
    expected = ids_of_steps(shared_dir / "one_ids", 1)
    assert [len(step) for step in expected] == [16] * STEPS
    assert ids_of_steps(shared_dir / "two_ids", 2) == expected
    assert ids_of_steps(tmp_path / "ids", 4) == expected


# What Gloo prints below Python, whose threads cut into each other's lines.
GLOO = re.compile(r"\[Gloo\] Rank | is connected to | peer ranks\.?|Expected number of connected| is :|\d+|\s")


@pytest.mark.slow
def test_only_process_0_speaks(two):
    first, second = json.loads((two / "said.json").read_text())
    assert "4 cpu devices, 2 processes" in first
    assert "top-1 %" in first
    assert GLOO.sub("", second) == ""


@pytest.mark.slow
def test_a_run_told_to_stop_is_saved_by_two_processes_and_goes_on_with_one_or_four(one, data_dir, tmp_path):
    workdir = tmp_path / "stopped"
    with Job(2, flags(workdir, data_dir)) as job:
        # Before the steps are compiled, since these steps take milliseconds and JAX looks for the signal once a second.
        assert any(line.startswith("mesh") for line in job.processes[0].stdout)
        job.processes[1].send_signal(signal.SIGTERM)  # one of them hears it
        ended = job.ended(200)
    assert [code for code, _, _ in ended] == [distributed.STOPPED] * 2, ended[0][2] + ended[1][2]
    assert f"of {STEPS} is saved in {workdir}" in ended[0][1]
    stopped_at = losses(workdir)[-1][0]
    assert stopped_at < STEPS
    assert (workdir / "checkpoints" / str(stopped_at)).is_dir()

    shutil.copytree(workdir, tmp_path / "by_one")
    assert main(flags(tmp_path / "by_one", data_dir)) == 0
    assert_same_run(tmp_path / "by_one", one)
    [(_, out, _), *_] = run(4, flags(workdir, data_dir))
    assert f"goes on from step {stopped_at} of {STEPS}" in out
    assert_same_run(workdir, one)


@pytest.mark.slow
def test_a_killed_process_ends_the_job_and_the_next_job_goes_on_exactly(two, data_dir, tmp_path):
    workdir = tmp_path / "killed"
    with Job(2, flags(workdir, data_dir), timeout=10) as job:
        job.wait_for_rows(workdir, 13)
        job.processes[1].kill()
        (code, _, _), _ = job.ended(60)
    assert code not in (0, distributed.STOPPED)
    assert not (workdir / "results.json").exists()
    run(2, flags(workdir, data_dir))
    assert losses(workdir) == losses(two)
    assert results(workdir) == results(two)


@pytest.mark.slow
def test_one_process_told_to_stop_saves(data_dir, tmp_path, capsys):
    workdir = tmp_path / "stopped"
    log = workdir / "metrics.jsonl"

    def stop():
        while not (log.exists() and log.read_text()):
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    assert main(flags(workdir, data_dir)) == distributed.STOPPED
    stopped_at = losses(workdir)[-1][0]
    assert f"step {stopped_at} of {STEPS} is saved in {workdir}" in capsys.readouterr().out
    assert (workdir / "checkpoints" / str(stopped_at)).is_dir()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_process_that_never_comes_and_an_unreachable_coordinator_are_told(tmp_path, data_dir):
    arguments = flags(tmp_path / "run", data_dir)
    with (
        Job(2, arguments, indices=[0], timeout=2) as missing,
        Job(2, arguments, indices=[1], timeout=2, address="127.0.0.1:9") as unreachable,
    ):
        [(code_0, _, err_0)], [(code_1, _, err_1)] = missing.ended(60), unreachable.ended(60)
    assert code_0 == code_1 == 2
    assert "process 0 of 2 waited 2 s at 127.0.0.1:" in err_0
    assert "not all of the others have come" in err_0
    assert "process 1 of 2 waited 2 s at 127.0.0.1:9: process 0 cannot be reached (Connection refused)" in err_1
    for err in (err_0, err_1):
        assert len([line for line in err.splitlines() if line.startswith("bjax: ")]) == 1
        assert "Traceback" not in err


ADDRESS = {"JAX_COORDINATOR_ADDRESS": "host:1"}
SLURM = {"SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (ADDRESS, "JAX_COORDINATOR_ADDRESS is set, but JAX_NUM_PROCESSES and JAX_PROCESS_ID not"),
        (
            {"JAX_PROCESS_ID": "0"},
            "JAX_PROCESS_ID is set, but JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES not",
        ),
        (
            {**ADDRESS, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
            "JAX_PROCESS_ID=2 of JAX_NUM_PROCESSES=2",
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "host", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
            "expected HOST:PORT",
        ),
        ({"SLURM_NTASKS": "4"}, "a Slurm job of 4 tasks, but this process is none.*start it with srun"),
        ({k: v for k, v in SLURM.items() if k != "SLURM_PROCID"}, "SLURM_PROCID is not set"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, "launch/gke_gpu.yaml"),
    ],
)
def test_a_partial_environment_is_told(environ, message):
    with pytest.raises(UserError, match=message):
        distributed.find(environ)


def test_what_is_found():
    assert distributed.find({}) is None
    assert distributed.find({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1"}) is None
    assert distributed.find(SLURM) == {"cluster_detection_method": "slurm"}
    mpi = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
    assert distributed.find({**mpi, "OMPI_MCA_orte_hnp_uri": "1.0;tcp://a:1"}) == {"cluster_detection_method": "ompi"}
    found = distributed.find({**mpi, **ADDRESS})
    assert (found["num_processes"], found["process_id"], found["local_device_ids"]) == (2, 1, [1])


def test_a_stop_agreed_on_while_a_run_was_starting_is_not_missed(monkeypatch):
    asked = []
    monkeypatch.setattr(distributed.jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(
        distributed.multihost_utils,
        "reached_preemption_sync_point",
        lambda step: asked.append(step) or step == 1,
    )
    with distributed.stop_requests():
        # Calls are counted, not steps: a run that goes on from a checkpoint begins with the first number as well.
        assert distributed.stopping()
        assert distributed.stopping()
    assert asked == [1, 2]
    assert not distributed.stopping()


def test_distributed_on_without_a_cluster_is_a_mistake(tmp_path, capsys, data_dir):
    assert main([*flags(tmp_path, data_dir), "--distributed=on"]) == 2
    assert "give every process JAX_COORDINATOR_ADDRESS" in capsys.readouterr().err
