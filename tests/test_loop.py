"""End to end: the command line on real photographs, killed and resumed, evaluated again, and its mistakes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Small enough for seconds; everything else is the demo as it is.
SMALL = {
    "steps": 30,
    "batch_size": 32,
    "model.options.depth": 1,
    "model.options.width": 96,
    "model.options.heads": 3,
    "log_every": 1,
    "checkpoint_every": 5,
    "optim.warmup": 5,
}


def command(workdir, data_dir, *more, config="configs/vit_mask.py:demo", **overrides):
    values = {**SMALL, "data.data_dir": data_dir, **overrides}
    flags = [f"--config.{k}={v}" for k, v in values.items()]
    return [sys.executable, "-m", "bjax.main", f"--config={config}", f"--workdir={workdir}", *flags, *more]


def environment():
    # One device, as a user has: the other tests' eight would need batches divisible by eight.
    return {**os.environ, "XLA_FLAGS": "", "PYTHONWARNINGS": "error::DeprecationWarning:bjax"}


def run(arguments, code=0):
    done = subprocess.run(arguments, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def read(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return json.loads((workdir / "results.json").read_text()), rows


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_dir):
    """A run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    done = run(command(workdir, data_dir))
    return workdir, done.stdout


def test_a_run_leaves_results_metrics_and_a_table(finished):
    workdir, out = finished
    results, rows = read(workdir)
    assert list(results)[:2] == ["sharp", "blurred"]
    assert all(r["n"] == 224 for r in results.values())
    assert results["sharp"]["kept"] == results["blurred"]["kept"] == 1.0
    assert results["blurred_keep_half"]["kept"] == 0.5
    for drop in ("below", "above"):  # a control keeps as many patches as what it controls
        own, control = results[f"blurred_drop_{drop}"], results[f"blurred_drop_{drop}_random"]
        assert own["kept"] == pytest.approx(control["kept"], abs=1e-6)
        assert 0 < own["kept"] < 1
    below, above = results["blurred_drop_below"]["kept"], results["blurred_drop_above"]["kept"]
    assert below + above == pytest.approx(1, abs=1e-6)
    assert [r["step"] for r in rows if "loss" in r] == list(range(1, 31))
    assert rows[25]["loss"] < rows[0]["loss"]
    for word in (
        "photos train: 672 images, 14 classes",
        "32 images a step",
        "total",
        "top-1 %",
        "blurred_drop_above",
    ):
        assert word in out, word


def test_evaluation_alone_repeats_the_results(finished, data_dir, tmp_path):
    workdir, _ = finished
    before, _ = read(workdir)
    original = (workdir / "results.json").rename(tmp_path / "results.json")
    run(command(workdir, data_dir, "--mode=eval", eval_batch_size=96))
    after, _ = read(workdir)
    original.replace(workdir / "results.json")
    for name in before:
        for key in before[name]:
            assert after[name][key] == pytest.approx(before[name][key], rel=1e-5), (name, key)


def test_a_run_killed_in_the_middle_ends_with_the_same_results(finished, tmp_path, data_dir):
    workdir = tmp_path / "killed"
    log = workdir / "metrics.jsonl"
    process = subprocess.Popen(
        command(workdir, data_dir),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 300
    while not (log.exists() and log.read_text().count("\n") >= 13):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (workdir / "results.json").exists()

    out = run(command(workdir, data_dir)).stdout
    assert "goes on from step" in out
    results, rows = read(workdir)
    undisturbed, undisturbed_rows = read(finished[0])
    assert results == undisturbed
    assert [(r["step"], r["loss"]) for r in rows if "loss" in r] == [
        (r["step"], r["loss"]) for r in undisturbed_rows if "loss" in r
    ]


def test_a_workdir_belongs_to_one_config(finished, data_dir):
    done = run(command(finished[0], data_dir, seed=1), code=2)
    assert done.stderr.splitlines()[-1].startswith(
        f"bjax: --workdir={finished[0]}: holds a run with another config"
    )
    assert "seed: 0 → 1" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "bjax: --config: missing; for example --config=configs/vit_mask.py:demo"),
        (["--config=configs/vit_maks.py"], "did you mean configs/vit_mask.py?"),
        (["--config=configs/vit_mask.py:demo", "--config.optim.lrr=1"], "did you mean --config.optim.lr?"),
        (["--config=configs/vit_mask.py:demo", "--mode=test"], "--mode"),
        (["--config=configs/vit_mask.py:demo", "--wokdir=x"], "--wokdir=x"),
        (
            ["--config=configs/vit_mask.py:demo", "--mode=eval", "--workdir=nowhere"],
            "--workdir=nowhere: holds no",
        ),
        (["--config=configs/vit_mask.py"], ":imagenette"),
        (["--config=configs/vit_mask.py:demo", "--config.batch_size=1000"], "more than the 672 images"),
        (["--config=configs/vit_mask.py:demo", "--config.eval.sharp.split=tset"], "tset"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, message, data_dir, tmp_path):
    where = [f"--config.data.data_dir={data_dir}"] if len(arguments) else []
    if not any(a.startswith("--workdir") for a in arguments):
        where.append(f"--workdir={tmp_path}/run")
    done = run([sys.executable, "-m", "bjax.main", *arguments, *where], code=2)
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_print_config_shows_the_resolved_config(data_dir):
    done = run(
        [
            sys.executable,
            "-m",
            "bjax.main",
            "--config=configs/vit_mask.py:demo",
            "--config.optim.lr=7",
            "--print_config",
        ]
    )
    assert json.loads(done.stdout)["optim"]["lr"] == 7.0
