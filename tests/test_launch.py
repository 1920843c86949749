"""The launch scripts, as far as a machine without their schedulers can tell."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), *sorted((ROOT / "tests").glob("*.sh"))]
JOB_SETS = sorted((ROOT / "launch").glob("*.yaml"))
# Fields of jobset.x-k8s.io/v1alpha2 (reference of the JobSet API), as far as the files use them.
JOB_SET = {
    "network",
    "failurePolicy",
    "successPolicy",
    "startupPolicy",
    "suspend",
    "replicatedJobs",
    "coordinator",
}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_scripts_pass_shellcheck(script):
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_scripts_are_executable_and_say_how_to_run_them(script):
    assert os.access(script, os.X_OK)
    header = script.read_text().split("set -euo pipefail")[0]
    assert f"{script.parent.name}/{script.name} " in header


@pytest.mark.parametrize("path", JOB_SETS, ids=lambda p: p.name)
def test_job_sets_fit_the_schema(path):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    job_set = yaml.safe_load(path.read_text())
    assert (job_set["apiVersion"], job_set["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert set(job_set) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(job_set["spec"]) <= JOB_SET
    # A failed pod fails its Job, and that restarts the set; for the codes that a Job's policy names it ends the set.
    failure = job_set["spec"]["failurePolicy"]
    assert set(failure) == {"maxRestarts", "rules"}
    assert failure["rules"] == [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]
    for replicated in job_set["spec"]["replicatedJobs"]:
        assert set(replicated) == {"name", "replicas", "template"}
        template = replicated["template"]  # a JobTemplateSpec: a Job without its kind and name
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, **template}
        kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
        spec = template["spec"]
        assert spec["parallelism"] == spec["completions"]
        [rule] = spec["podFailurePolicy"]["rules"]
        assert rule == {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [2]}}
        assert spec["template"]["spec"]["restartPolicy"] == "Never"  # or Kubernetes refuses the policy
        assert spec["backoffLimit"] == 0
        [container] = spec["template"]["spec"]["containers"]
        environment = {e["name"]: e.get("value") for e in container.get("env", ())}
        if "JAX_COORDINATOR_ADDRESS" in environment:
            name = job_set["metadata"]["name"]
            assert environment["JAX_COORDINATOR_ADDRESS"].startswith(f"{name}-{replicated['name']}-0-0.{name}:")
            assert environment["JAX_NUM_PROCESSES"] == str(spec["completions"])


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "srun --kill-on-bad-exit=1 .venv/bin/python -m bjax.main"),
        (
            {"CONTAINER": "a.sqsh", "MOUNTS": "/data,/home"},
            "srun --kill-on-bad-exit=1 --container-image=a.sqsh --container-mounts=/data:/data,/home:/home "
            "--container-workdir=HERE python -m bjax.main",
        ),
        (
            {"CONTAINER": "a.sif", "MOUNTS": "/data"},
            "srun --kill-on-bad-exit=1 apptainer exec --nv --bind /data --pwd HERE a.sif python -m bjax.main",
        ),
    ],
)
@pytest.mark.parametrize("code", [0, 1, 75])
def test_the_slurm_script_starts_tasks_and_requeues_stopped_ones(variables, expected, code, tmp_path):
    for name, body in {"srun": f'echo srun "$@"; exit {code}', "scontrol": 'echo scontrol "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "HOME": "/home",
        "SLURM_JOB_ID": "7",
        **variables,
    }
    script = ROOT / "launch" / "slurm.sh"
    done = subprocess.run(
        [script, "--config=c.py", "a b"], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    assert done.returncode == code, done.stderr
    assert lines[0] == f"{expected} --distributed=auto --config=c.py a b".replace("HERE", str(tmp_path))
    assert lines[1:] == (["scontrol requeue 7"] if code == 75 else [])


@pytest.mark.parametrize(("codes", "code", "starts"), [("0", 0, 1), ("2", 2, 1), ("1 0", 0, 2), ("1 1 1 1", 1, 3)])
def test_the_host_script_retries_crashes_but_not_mistakes(codes, code, starts, tmp_path):
    fake = tmp_path / "python"
    (tmp_path / "codes").write_text(codes)
    fake.write_text(
        f'#!/bin/sh\ncd {tmp_path}\necho "$@" >>said\nread first rest <codes\necho "$rest" >codes\nexit $first\n'
    )
    fake.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(fake), "RETRIES": "2"}
    done = subprocess.run(
        [ROOT / "launch" / "gpu_host.sh", "--config=c.py"],
        env=environment,
        timeout=20,
        stderr=subprocess.PIPE,
    )
    assert done.returncode == code
    assert (tmp_path / "said").read_text() == "-m bjax.main --distributed=off --config=c.py\n" * starts


# A run: says that it is there, and on SIGTERM saves and ends with 75.
FAKE_RUN = f"""#!{sys.executable}
import pathlib, signal, sys, time
folder = pathlib.Path(__file__).parent

def stop(*_):
    (folder / "saved").touch()
    sys.exit(75)

signal.signal(signal.SIGTERM, stop)
(folder / "here").touch()
time.sleep(60)
(folder / "ended by itself").touch()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_the_host_script_ends_its_training_when_told(number, tmp_path):
    fake = tmp_path / "python"
    fake.write_text(FAKE_RUN)
    fake.chmod(0o755)
    # As from a terminal: a test runner in the background may ignore some of them, and a script cannot change that.
    process = subprocess.Popen(
        ["env", "--default-signal=INT,TERM,HUP", ROOT / "launch" / "gpu_host.sh"],
        env={**os.environ, "PYTHON": str(fake)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 20
        while not (tmp_path / "here").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # Ctrl-C
        else:
            process.send_signal(number)
        _, said = process.communicate(timeout=20)
    finally:
        if process.poll() is None or not (tmp_path / "saved").exists():
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 75, said
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_processes_of_one_machine_are_stopped_together(number, tmp_path):
    (tmp_path / "bjax").mkdir()
    (tmp_path / "bjax" / "__init__.py").touch()
    shutil.copy(ROOT / "bjax" / "errors.py", tmp_path / "bjax")
    (tmp_path / "bjax" / "launch").symlink_to(ROOT / "launch")
    # In the place of bjax.main; a process writes into a folder of its own.
    own_folder = 'folder = folder / os.environ["JAX_PROCESS_ID"]\nfolder.mkdir()\n'
    (tmp_path / "bjax" / "main.py").write_text(FAKE_RUN.replace("\ndef stop", f"\nimport os\n{own_folder}\ndef stop"))
    process = subprocess.Popen(
        ["env", "--default-signal=HUP", sys.executable, "-m", "launch.local", "2"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )
    try:
        deadline = time.monotonic() + 20
        while len(list(tmp_path.glob("bjax/*/here"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(timeout=20) == 75
    finally:
        process.kill()
    assert len(list(tmp_path.glob("bjax/*/saved"))) == 2
