"""End to end: the command line on real photographs, killed and resumed, evaluated again, and its mistakes."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import conftest
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import peers
import pytest
import skimage
import test_prepare

from bjax import config as configs
from bjax import export, manifest, predict
from bjax.data import loader
from bjax.data.builder import prepare
from bjax.errors import UserError
from bjax.evaluate import conditions
from bjax.main import main
from bjax.runtime import checkpoint
from bjax.runtime.workdir import write_text
from bjax.specs import Data

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
    "gallery": 0,  # `tiny_run` has one
}


def command(workdir, data_dir, *more, config="configs/vit_mask.py:demo", **overrides):
    values = {**SMALL, "data.data_dir": data_dir, **overrides}
    flags = [f"--config.{k}={v}" for k, v in values.items()]
    return [sys.executable, "-m", "bjax.main", f"--config={config}", f"--workdir={workdir}", *flags, *more]


def run(arguments, code=0):
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=600)
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
        " parameters, ",
        "top-1 %",
        "blurred_drop_above",
    ):
        assert word in out, word


@pytest.mark.slow
def test_evaluation_alone_repeats_the_results(finished, data_dir, tmp_path):
    workdir, _ = finished
    before, _ = read(workdir)
    original = (workdir / "results.json").rename(tmp_path / "results.json")
    run(command(workdir, data_dir, "--mode=eval", eval_batch_size=96))
    after, _ = read(workdir)
    assert list(after) == list(before)
    write_text(workdir / "results.json", original.read_text())
    for name in before:
        for key in before[name]:
            found, expected = after[name][key], before[name][key]
            if key == "coverage":
                found, expected = (np.array(list(x.values())) for x in (found, expected))
            if key in ("photographs", "images"):
                assert found == expected
                continue
            np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=f"{name} {key}")


@pytest.mark.slow
def test_a_run_killed_in_the_middle_ends_with_the_same_results(finished, tmp_path, data_dir):
    workdir = tmp_path / "killed"
    log = workdir / "metrics.jsonl"
    process = subprocess.Popen(
        command(workdir, data_dir),
        cwd=ROOT,
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


def test_evaluation_keeps_to_the_run_it_evaluates(finished, data_dir, capsys, tmp_path):
    workdir, _ = finished
    before = (workdir / "results.json").read_text()
    flags = [f"--workdir={workdir}", "--mode=eval", "--config.eval_batch_size=128"]
    # Without --config it is the run's own; a part of the conditions leaves the other rows alone.
    assert main([*flags, "--config.eval_only=sharp"]) == 0
    assert f"evaluates {workdir}, step 30" in capsys.readouterr().out
    after = json.loads((workdir / "results.json").read_text())
    assert list(after) == list(json.loads(before))
    write_text(workdir / "results.json", before)
    for flag, word in {
        "--config.init_from=other.pth": "init_from",
        "--config.model.options.heads=1": "model.options.heads: 3 → 1",
        "--config.normalize.mean=0,0,0": "normalize.mean",
    }.items():
        assert main([*flags, flag]) == 2
        assert word in capsys.readouterr().err
    assert main([*flags, "--config.optim.ema=0.9", "--config.eval_only=sharp"]) == 0  # of no concern here
    write_text(workdir / "results.json", before)

    (tmp_path / "config.json").write_text("{")
    assert main([f"--workdir={tmp_path}", "--mode=eval"]) == 2
    assert f"{tmp_path}/config.json: damaged" in capsys.readouterr().err


def test_a_workdir_belongs_to_one_config(finished, data_dir):
    done = run(command(finished[0], data_dir, seed=1), code=2)
    assert done.stderr.splitlines()[-1].startswith(f"bjax: --workdir={finished[0]}: holds a run with another config")
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
        (
            ["--config=configs/vit_mask.py:demo", "--config.batch_size=1000"],
            "images of photos train; use at most 672,",
        ),
        (["--config=configs/vit_mask.py:demo", "--config.eval.sharp.split=tset"], "tset"),
        (["--config=configs/vit_mask.py:demo", "--config.eval.sharp.split=unseen"], "have no label"),
        (["--config=configs/vit_mask.py:demo", "--config.data.train=unseen"], "config.data.train=unseen"),
        (
            ["--config=configs/vit_mask.py:demo", "--config.eval.sharp.split=test+unseen"],
            "config.eval.sharp.split=test+unseen: images of photos in it have no label",
        ),
        (
            ["--config=configs/vit_mask.py:demo", "--config.data.train=train[:50%]+detailed"],
            "config.data.train=train[:50%]+detailed: images of photos in it have no label",
        ),
        (
            ["--config=configs/vit_mask.py:demo,grid=true", "--config.mask_quality.split=valid"],
            "split 'valid' names nothing",
        ),
        (
            ["--config=configs/resnet50.py:demo", "--config.bn_adapt_batches=0"],
            "config.bn_adapt_batches=0: expected at least 1",
        ),
        (
            ["--config=configs/vit_mask.py:demo", "--config.init_from=nowhere.pth"],
            "nowhere.pth: no such file",
        ),
        (["--config=configs/vit_mask.py:demo", f"--workdir={__file__}"], "is a file"),
        (
            ["--config=configs/vit_mask.py:demo", "--config.mask.keep_rate=2", "--print_config"],
            "config.mask.keep_rate",
        ),
        (["--config=configs/densenet121.py:train=mix"], "train=mix"),
        (
            ["--config=configs/vit_mask.py:demo", "--config.eval.blurred.blur.sigma=1,9"],
            "config.eval.blurred.blur.sigma=9: kernel_size=19 would cut the Gaussian off at 1σ, to a standard "
            "deviation of 5.08; use kernel_size=73, or a sigma of at most 3",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, message, data_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    where = [f"--config.data.data_dir={data_dir}"] if arguments else []
    if not any(a.startswith("--workdir") for a in arguments):
        where.append(f"--workdir={tmp_path}/run")
    assert main([*arguments, *where]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1, said
    assert not (tmp_path / "run").exists()


def test_a_mistake_leaves_no_traceback():
    done = run([sys.executable, "-m", "bjax.main"], code=2)
    assert done.stderr == "bjax: --config: missing; for example --config=configs/vit_mask.py:demo\n"


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


TINY = {
    "model.options.depth": 1,
    "model.options.width": 32,
    "model.options.heads": 2,
    "model.options.variant": "Ti/8",
    "data.image_size": 16,
    "data.resize": 20,
    "dtype": "float32",
    "steps": 2,
    "batch_size": 8,
    "eval_batch_size": 8,
    "data.threads": 2,
}


def in_process(spec, workdir, *more, **overrides):
    """The command line without a process of its own: on the eight devices of the tests."""
    flags = [f"--config.{k}={v}" for k, v in overrides.items()]
    return main([f"--config={ROOT / 'configs' / spec}", f"--workdir={workdir}", *more, *flags])


@pytest.mark.slow
def test_the_default_config_trains_on_imagenets_tars(tmp_path):
    tars = test_prepare.write_tars(tmp_path / "tars", test_prepare.train_images(), test_prepare.validation_images())
    prepare(test_prepare.builder(tars, tmp_path / "data"))
    assert in_process("vit_mask.py", tmp_path / "run", **TINY, **{"data.data_dir": tmp_path / "data"}) == 0
    results, rows = read(tmp_path / "run")
    assert results["sharp"]["n"] == 7  # one padded batch: each of the validation images once
    assert len(results) == 8
    assert rows[0]["step"] == 2


@pytest.mark.slow
def test_a_corrupt_image_stops_the_run_or_is_counted(tmp_path, capsys, monkeypatch):
    tars = test_prepare.write_tars(tmp_path / "tars", test_prepare.train_images(), test_prepare.validation_images())
    prepare(test_prepare.builder(tars, tmp_path / "data"))
    victim = loader.open_split("imagenet2012", "validation", data_dir=tmp_path / "data")[3]["file_name"]
    intact = loader.Source.__getitem__

    def truncated(source, index):
        example = intact(source, index)
        if example["file_name"] == victim:
            example["image"] = example["image"][: len(example["image"]) // 2]
        return example

    monkeypatch.setattr(loader.Source, "__getitem__", truncated)
    options = {**TINY, "data.data_dir": tmp_path / "data"}
    code = in_process("vit_mask.py", tmp_path / "stops", **options)
    said = capsys.readouterr().err.splitlines()[-1]
    assert code == 2
    assert said.startswith("bjax: ")
    for word in ("imagenet2012", "validation", victim):
        assert word in said

    assert in_process("vit_mask.py", tmp_path / "goes", **options, **{"data.on_corrupt": "skip"}) == 0
    results, _ = read(tmp_path / "goes")
    assert results["sharp"]["n"] == 6
    assert results["sharp"]["skipped"] == 1
    assert "1 images could not be decoded" in capsys.readouterr().out


def without_times(rows):
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]


@pytest.fixture(scope="module")
def evaluated_twice(tmp_path_factory, data_dir):
    """A tiny run whose windows of the log (4 steps) and evaluations (every 3 steps) do not fit one another.

    With AugMix, its draws and its divergence.
    """
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    options = {
        **TINY,
        "data.data_dir": data_dir,
        "data.resize": 0,
        "steps": 7,
        "log_every": 4,
        "eval_every": 3,
        "augmix.width": 2,
        "loss.jsd": 1.0,
    }
    options |= {"eval_batch_size": 56, "eval_only": "sharp,blurred", "gallery": 0}
    assert in_process("vit_mask.py:demo", workdir, **options) == 0
    return workdir, options


def fails(*_, **__):
    raise UserError("no evaluation today")


def test_a_failing_evaluation_costs_no_step(evaluated_twice, tmp_path, monkeypatch, capsys):
    undisturbed, options = evaluated_twice

    with monkeypatch.context() as patched:
        patched.setattr(conditions, "eval_step", fails)
        assert in_process("vit_mask.py:demo", tmp_path, **options) == 2
    assert "no evaluation today" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["3"]
    assert in_process("vit_mask.py:demo", tmp_path, **options) == 0
    assert "goes on from step 3 of 7" in capsys.readouterr().out
    results, rows = read(tmp_path)
    expected, expected_rows = read(undisturbed)
    assert results == expected
    # The evaluation of step 3 is done again, and the window that it fell into holds four steps.
    assert without_times(rows) == without_times(expected_rows)
    assert [row["step"] for row in rows] == [3, 4, 6, 7, 7]
    inputs = predict.read(tmp_path).inputs  # nothing that training does to images is done to a photograph
    assert (inputs.augmix, inputs.views) == (None, 1)


def test_the_newest_every_few_and_the_best_checkpoints_stay(evaluated_twice, tmp_path, capsys):
    _, options = evaluated_twice
    options = options | {"steps": 6, "eval_every": 1, "eval_only": "sharp", "optim.lr": 0.3, "optim.warmup": 0}
    options |= {"checkpoint_keep": 1, "checkpoint_keep_every": 4, "checkpoint_keep_best": 2}
    assert in_process("vit_mask.py:demo", tmp_path / "wrong", **options, checkpoint_best="sharp/los") == 2
    assert "checkpoint_best=sharp/los: expected CONDITION/METRIC (did you mean sharp/loss?)" in capsys.readouterr().err
    assert in_process("vit_mask.py:demo", tmp_path, **options, checkpoint_best="sharp/loss") == 0
    losses = {row["step"]: row["sharp/loss"] for row in read(tmp_path)[1] if "sharp/loss" in row}
    best = sorted(losses, key=losses.get)[:2]
    assert set(best) != {4, 6}  # or this test could not tell
    assert {int(path.name) for path in (tmp_path / "checkpoints").iterdir()} == {4, 6, *best}


def test_a_loss_that_is_not_finite_ends_the_run_with_what_it_came_from(evaluated_twice, tmp_path, capsys):
    _, options = evaluated_twice
    options = options | {"optim.lr": 1e30, "optim.warmup": 0, "log_every": 7, "checkpoint_every": 1}
    assert in_process("vit_mask.py:demo", tmp_path, **options) == 2
    (said,) = capsys.readouterr().err.splitlines()
    left = json.loads((tmp_path / "nonfinite.json").read_text())
    assert f" at step {left['step']}; try a lower --config.optim.lr than 1e+30" in said
    assert len(left["image_ids"]) == options["batch_size"]
    # No step with such a number in it took the place of one without.
    assert left["from_step"] == left["step"] - 1 == max(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert "nan" in left["metrics"].values() or "inf" in left["metrics"].values()


@pytest.mark.slow
def test_steps_that_are_not_finite_are_skipped_counted_and_limited(evaluated_twice, tmp_path, monkeypatch, capsys):
    _, options = evaluated_twice
    options = options | {"checkpoint_every": 2, "eval_only": "sharp", "optim.ema": 0.5}
    skip = {"nonfinite": "skip", "nonfinite_limit": 3}

    def poisoned(key, images, targets, objective):  # by what is in the batch, as overflow would be
        return images, jnp.where(targets[0].argmax() % 3 == 0, jnp.nan, targets)

    monkeypatch.setattr("bjax.step.train_step._mix", poisoned)
    assert in_process("vit_mask.py:demo", tmp_path / "whole", **options, **skip) == 0
    assert "of 7 steps were skipped: their loss or gradient was not finite" in capsys.readouterr().out
    results, rows = read(tmp_path / "whole")
    skipped = [row["skipped"] for row in rows if "loss" in row]
    assert 0 < skipped[0] <= skipped[1] < 7  # or this test could not tell
    assert all(np.isfinite(row["loss"]) for row in rows if "loss" in row)

    with monkeypatch.context() as patched:
        patched.setattr(conditions, "eval_step", fails)
        assert in_process("vit_mask.py:demo", tmp_path / "broken", **options, **skip) == 2
    # A run that stopped goes on, with the same end, when it is told to skip.
    assert in_process("vit_mask.py:demo", tmp_path / "stopped", **options) == 2
    (said,) = (line for line in capsys.readouterr().err.splitlines() if "is nan at step" in line)
    assert said.endswith(", or in this one --config.nonfinite=skip")
    for name in ("broken", "stopped"):
        assert in_process("vit_mask.py:demo", tmp_path / name, **options, **skip) == 0
        assert read(tmp_path / name)[0] == results
        assert without_times(read(tmp_path / name)[1]) == without_times(rows)

    monkeypatch.setattr("bjax.step.train_step._mix", lambda *given: (given[1], given[2] * jnp.nan))
    assert in_process("vit_mask.py:demo", tmp_path / "limit", **options, **skip) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "the loss is nan at step 4, like the 3 steps before, which were skipped (config.nonfinite_limit=3)" in said
    assert json.loads((tmp_path / "limit" / "nonfinite.json").read_text())["from_step"] == 3


@pytest.mark.slow
def test_a_deterministic_run_sets_what_gpus_need_and_has_the_same_results(
    evaluated_twice, tmp_path, monkeypatch, capsys
):
    undisturbed, options = evaluated_twice
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))  # put back afterwards
    assert in_process("vit_mask.py:demo", tmp_path, **options, deterministic="true") == 0
    assert "deterministic: the same bits on devices of the same kind" in capsys.readouterr().out
    assert "--xla_gpu_exclude_nondeterministic_ops=true" in os.environ["XLA_FLAGS"]
    assert read(tmp_path)[0] == read(undisturbed)[0]


def test_a_run_without_conditions_trains(evaluated_twice, tmp_path):
    own = tmp_path / "own.py"
    own.write_text(
        "from configs import common, vit_mask\n"
        "def get_config(arg=''):\n"
        "    config = vit_mask.get_config(arg)\n"
        "    config.eval = common.default().eval.copy_and_resolve_references()\n"
        "    for name in list(config.eval):\n"
        "        del config.eval[name]\n"
        "    return config\n"
    )
    flags = [f"--config.{k}={v}" for k, v in evaluated_twice[1].items() if k != "eval_only"]
    assert main([f"--config={own}:demo", f"--workdir={tmp_path / 'run'}", *flags]) == 0
    assert read(tmp_path / "run")[0] == {}


def test_a_row_of_another_length_than_its_window_says_so(evaluated_twice, tmp_path, monkeypatch):
    _, options = evaluated_twice

    with monkeypatch.context() as patched:
        patched.setattr(conditions, "eval_step", fails)
        assert in_process("vit_mask.py:demo", tmp_path, **options) == 2
    assert in_process("vit_mask.py:demo", tmp_path, **options | {"log_every": 2}) == 0
    rows = [row for row in read(tmp_path)[1] if "loss" in row]
    assert [(row["step"], row.get("steps")) for row in rows] == [(4, 4), (6, None), (7, None)]


def test_a_finished_run_is_left_as_it_is_and_evaluated_where_anything_has_changed(
    evaluated_twice, tmp_path, monkeypatch, capsys
):
    undisturbed, options = evaluated_twice
    shutil.copytree(undisturbed, tmp_path / "run")
    again = functools.partial(in_process, "vit_mask.py:demo", tmp_path / "run", **options)
    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.*")}
    capsys.readouterr()
    with monkeypatch.context() as patched:
        patched.setattr(conditions, "eval_step", fails)
        assert again() == 0
        said = capsys.readouterr()
        assert said.out.startswith("finished: step 7 of 7 is done and evaluated; ") and said.out.count("\n") == 1
        assert not said.err
        assert before == {path: path.read_bytes() for path in (tmp_path / "run").glob("*.*")}
        # Of another condition there are no results yet, also after a session that was killed in their evaluation.
        for _ in range(2):
            assert again("--config.eval.sharp.blur.sigma=1,1.5") == 2
            assert "no evaluation today" in capsys.readouterr().err
    assert again("--config.eval.blurred.blur.sigma=2,3") == 0
    results, _ = read(tmp_path / "run")
    assert results["sharp"] == read(undisturbed)[0]["sharp"] and results["blurred"] != read(undisturbed)[0]["blurred"]
    assert again("--config.eval.blurred.blur.sigma=2,3") == 0
    assert "finished: " in capsys.readouterr().out.splitlines()[-1]
    # What an evaluation in between has left is of other conditions than the command's.
    assert again("--mode=eval") == 0
    assert again("--config.eval.blurred.blur.sigma=2,3") == 0
    assert "finished: " not in capsys.readouterr().out
    # A damaged file is told and written again; a damaged checkpoint is trained again.
    path = tmp_path / "run" / "results.json"
    results = path.read_bytes()
    path.write_bytes(results.replace(b"1", b"2", 1))
    assert again("--config.eval.blurred.blur.sigma=2,3") == 0
    assert f"{path}: damaged" in capsys.readouterr().err and path.read_bytes() == results
    next((tmp_path / "run" / "checkpoints" / "7").rglob("d/*")).write_bytes(b"")
    assert again("--config.eval.blurred.blur.sigma=2,3") == 0
    assert "goes back to step 6" in capsys.readouterr().err and path.read_bytes() == results


def test_sigterm_is_heard_during_an_evaluation(evaluated_twice, tmp_path, monkeypatch, capsys):
    undisturbed, options = evaluated_twice
    real = conditions.eval_step
    calls = []

    def told(*args, **kwargs):
        calls.append(1)
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(conditions, "eval_step", told)
        assert in_process("vit_mask.py:demo", tmp_path, **options) == 75
        assert len(calls) == 2  # both conditions of the first of four batches
        assert "told to stop during an evaluation" in capsys.readouterr().out
        assert (tmp_path / "checkpoints" / "3").is_dir()
    assert in_process("vit_mask.py:demo", tmp_path, **options) == 0
    assert read(tmp_path)[0] == read(undisturbed)[0]
    assert without_times(read(tmp_path)[1]) == without_times(read(undisturbed)[1])
    before = (tmp_path / "results.json").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(conditions, "eval_step", told)
        assert in_process("vit_mask.py:demo", tmp_path, "--mode=eval", **options) == 75
    assert (tmp_path / "results.json").read_bytes() == before


def test_a_checkpoint_of_nans_has_no_results(evaluated_twice, tmp_path, capsys):
    undisturbed, options = evaluated_twice
    shutil.copytree(undisturbed, tmp_path / "run")
    weights = tmp_path / "run" / "checkpoints" / "7" / "default"
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.restore(weights.absolute())
        saved["params"]["head"]["bias"] = np.full_like(saved["params"]["head"]["bias"], np.nan)
        checkpointer.save(weights.absolute(), saved, force=True)
    manifest.write(weights.parent, leave_out=checkpoint.LATER)  # as if it had been saved so
    before = (tmp_path / "run" / "results.json").read_bytes()
    capsys.readouterr()
    assert in_process("vit_mask.py:demo", tmp_path / "run", "--mode=eval", **options) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("bjax: config.eval.sharp: the loss of 224 of 224 images of photos test is not a finite")
    assert (tmp_path / "run" / "results.json").read_bytes() == before


def test_what_training_leaves_out_is_counted_across_restarts(evaluated_twice, tmp_path, data_dir, monkeypatch, capsys):
    _, options = evaluated_twice
    options = {**options, "data.on_corrupt": "skip", "eval_only": "sharp"}
    intact = loader.Source.__getitem__

    def damaged(source, index):
        example = intact(source, index)
        return {**example, "image": b""} if source.split == "train" and index % 3 == 0 else example

    monkeypatch.setattr(loader.Source, "__getitem__", damaged)
    source = loader.open_split("photos", "train", data_dir=data_dir)
    data = Data(image_size=16, on_corrupt="skip", scale=(0.25, 1.0))
    batches = loader.train_batches(source, data, seed=0, batch_size=8, steps=(0, 7))
    left_out = np.cumsum([(~batch["mask"]).sum() for batch in batches])

    with monkeypatch.context() as patched:
        patched.setattr(conditions, "eval_step", fails)
        assert in_process("vit_mask.py:demo", tmp_path, **options) == 2
    assert in_process("vit_mask.py:demo", tmp_path, **options) == 0
    rows = {row["step"]: row for row in read(tmp_path)[1] if "corrupt" in row}
    assert {s: row["corrupt"] for s, row in rows.items()} == {4: left_out[3], 7: left_out[6]}
    assert f"photos train: {left_out[6]} times an image could not be decoded" in capsys.readouterr().out


def test_a_refused_command_is_no_session(evaluated_twice, tmp_path):
    workdir, options = evaluated_twice
    before = (workdir / "run.json").read_bytes()
    assert in_process("vit_mask.py:demo", workdir, **options | {"optim.lr": 9}) == 2
    assert (workdir / "run.json").read_bytes() == before


@pytest.mark.slow
def test_a_weight_file_is_evaluated_without_training(tmp_path, data_dir):
    torchvision = peers.torchvision_models()
    import torch

    peer, _ = peers.with_random_weights(lambda: torchvision.resnet18(num_classes=14))
    file = tmp_path / "weights.pth"
    torch.save(peer.state_dict(), file)
    options = {
        "model.name": "resnet18",
        "init_from": file,
        "data.data_dir": data_dir,
        "data.image_size": 32,
        "bn_adapt_batches": 1,
        "eval_only": "sharp",
    }
    assert in_process("resnet50.py:demo", tmp_path / "run", "--mode=bn_adapt", **options) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())

    source = loader.open_split("photos", "test", data_dir=data_dir)
    hits, loss = 0, 0.0
    for batch in loader.eval_batches(source, Data(image_size=32, resize=0), batch_size=32):
        images = (batch["image"] / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
        logits = torch.tensor(peers.run(peer, images.astype(np.float32)))
        labels = torch.tensor(batch["label"]).long()
        hits += int((logits.argmax(1) == labels).sum())
        loss += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
    assert results["sharp"]["top1"] == hits / 224
    assert results["sharp"]["loss"] == pytest.approx(loss / 224, rel=1e-4)
    assert results["sharp_bn_adapt"]["loss"] != results["sharp"]["loss"]
    assert list(results) == [*(n for n in results if "adapt" not in n), *(n for n in results if "adapt" in n)]
    # What was evaluated can be asked about photographs too.
    found = predict.read(tmp_path / "run")
    assert found.what == str(file)
    assert found.classes == source.class_names
    # What a report needs is left as after a training: the config with what was evaluated, and the facts of the run.
    config = configs.read(tmp_path / "run" / "config.json")
    assert config.init_from == str(file) and {"sharp", "blurred"} <= set(config.eval)
    (session,) = json.loads((tmp_path / "run" / "run.json").read_text())["sessions"]
    assert session["mode"] == "bn_adapt" and session["seconds"] > 0 and session["versions"]["jax"]
    more = {"eval_only": "blurred", "eval.blurred.blur.sigma": "3,3"}
    assert in_process("resnet50.py:demo", tmp_path / "run", "--mode=eval", **options | more) == 0
    config = configs.read(tmp_path / "run" / "config.json")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert config.eval.blurred.blur.sigma == (3, 3)
    assert set(results) == {"sharp", "sharp_bn_adapt", "blurred"}
    assert in_process("resnet50.py:demo", tmp_path / "run", "--mode=eval", **options, task="blur_type") == 2


@pytest.mark.slow
def test_a_weight_file_starts_a_run(tmp_path, data_dir, capsys):
    torchvision = peers.torchvision_models()
    import torch

    peer, _ = peers.with_random_weights(lambda: torchvision.resnet18(num_classes=5))
    file = tmp_path / "weights.pth"
    torch.save(peer.state_dict(), file)
    options = {
        "model.name": "resnet18",
        "init_from": file,
        "data.data_dir": data_dir,
        "data.image_size": 32,
        "steps": 1,
        "batch_size": 8,
        "optim.lr": 0,
        "checkpoint_every": 1,
        "eval_only": "sharp",
    }
    assert in_process("resnet50.py:demo", tmp_path / "run", **options) == 2
    assert "fc" in capsys.readouterr().err  # five classes there, fourteen here: told, not replaced
    assert in_process("resnet50.py:demo", tmp_path / "run", **options, init_new_head="true") == 0
    begun = tmp_path / "begun"
    shutil.copytree(tmp_path / "run", begun, ignore=shutil.ignore_patterns("checkpoints"))
    assert main([f"--workdir={begun}", "--mode=eval", "--config.eval_only=sharp"]) == 2
    assert "holds a training without a checkpoint yet" in capsys.readouterr().err
    # With a learning rate of zero the checkpoint holds the file's weights.
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.restore((tmp_path / "run" / "checkpoints" / "1" / "default").absolute())
    stem = peer.conv1.weight.detach().numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(saved["params"]["conv1"]["kernel"], stem)


CONFIGS = {
    "vit.py": {
        "model.options.depth": 1,
        "model.options.width": 32,
        "model.options.heads": 2,
        "loss.mixup": 0.2,
    },
    "resnet50.py": {"model.options.stages": "(1, 1, 1, 1)", "optim.ema": 0.9, "loss.label_smoothing": 0.1},
    "vgg19.py": {"model.options.stages": "((8,), (8, 8), (8,), (8,), (8,))", "model.options.hidden": 16},
    "googlenet.py": {"optim.accumulate": 1},
    "densenet121.py": {"model.options.stages": "(2, 2, 2, 2)", "optim.accumulate": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_every_recipe_takes_its_first_steps(config, tmp_path, data_dir):
    options = {
        "steps": 4,
        "batch_size": 16,
        "eval_batch_size": 224,
        "log_every": 1,
        "eval_every": 2,
        "checkpoint_every": 4,
        "data.data_dir": data_dir,
        "data.image_size": 32,
        "eval_only": "unseen" if config == "densenet121.py" else "blurred",
        **CONFIGS[config],
    }
    assert in_process(f"{config}:demo", tmp_path, **options) == 0
    results, rows = read(tmp_path)
    assert all(np.isfinite(r["loss"]) for r in rows if "loss" in r)
    assert [r["step"] for r in rows] == [1, 2, 2, 3, 4, 4]  # an evaluation after steps 2 and 4
    assert next(iter(results.values()))["n"] == (192 if config == "densenet121.py" else 224)


def test_a_run_of_an_earlier_version_is_evaluated_predicted_with_exported_and_gone_on_with(
    tiny_run, tmp_path, data_dir, capsys
):
    workdir = tmp_path / "old"
    shutil.copytree(tiny_run, workdir)
    results = json.loads((workdir / "results.json").read_text())
    path = workdir / "config.json"
    old = json.loads(path.read_text())
    for key in ("speed_rounds", "mask_quality", "bn_adapt_batches", "init_new_head"):
        del old[key]
    del old["loss"]["parameters"], old["data"]["interpolation"], old["blur"]["psf_size"]
    for condition in old["eval"].values():
        del condition["corruption"], condition["severity"], condition["bn_adapt"], condition["options"]
    old = json.dumps(old)
    values = conftest.TINY | {"data.data_dir": data_dir}
    flags = [f"--config.{key}={value}" for key, value in values.items()]
    config = [f"--config={ROOT}/configs/vit_mask.py:demo", *flags]
    for arguments in (["--mode=eval"], config):
        write_text(path, old)
        (workdir / "results.json").unlink()
        assert main([f"--workdir={workdir}", *arguments]) == 0
        out = capsys.readouterr().out
        assert out.count(f"{path}: older than some fields") == 1
        assert "speed_rounds=0, " in out and "eval.*.bn_adapt=False" in out
        assert json.loads((workdir / "results.json").read_text())["sharp"]["top1"] == results["sharp"]["top1"]
        assert not configs.differences(configs.read(path), configs.read(tiny_run / "config.json"))
    # What the run did not have is not taken from the command.
    write_text(path, old)
    assert main([f"--workdir={workdir}", *config, "--config.init_new_head=true"]) == 2
    assert "init_new_head: False → True" in capsys.readouterr().err
    assert path.read_text() == old

    # Of an option that is gone: what did nothing is forgotten; with what did something the run is evaluated alone.
    write_text(path, json.dumps(json.loads(old) | {"dead_leaves": 0.0, "dead_leaves_steps": 0}))
    assert main([f"--workdir={workdir}", *config]) == 0
    assert "dead_leaves" not in path.read_text()
    write_text(path, json.dumps(json.loads(old) | {"dead_leaves": 0.5, "dead_leaves_steps": 0}))
    assert main([f"--workdir={workdir}", "--mode=eval"]) == 0
    capsys.readouterr()
    for arguments in ([], config):
        assert main([f"--workdir={workdir}", *arguments]) == 2
        assert "its run has dead_leaves=0.5, which is gone" in capsys.readouterr().err
    write_text(path, old)

    photo = str(Path(skimage.__file__).parent / "data" / "chelsea.png")
    assert predict.main([photo, f"--workdir={workdir}", "--json"]) == 0
    said = capsys.readouterr()
    assert "older than some fields" in said.err and json.loads(said.out)
    assert export.main([str(workdir), f"--out={tmp_path / 'model.stablehlo'}"]) == 0
