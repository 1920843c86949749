"""Workdirs that cannot be written and files of runs that are damaged: one line each, and nothing lost."""

import contextlib
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import skimage
from conftest import TINY

from bjax.errors import UserError
from bjax.main import main
from bjax.predictor import load
from bjax.report.read import load as read_runs
from tests.faults import drivers

ROOT = Path(__file__).parents[1]


def command(workdir, data_dir, *more):
    values = {**TINY, "eval.sharp.split": "test[:16]", "eval_batch_size": 16, "data.data_dir": data_dir}
    flags = [f"--config.{k}={v}" for k, v in values.items()]
    return main([f"--config={ROOT}/configs/vit_mask.py:demo", f"--workdir={workdir}", *flags, *more])


def file_in_the_way(name):
    def make(folder):
        (folder / "run").mkdir()
        (folder / "run" / name).write_text("")
        return folder / "run"

    return make


def folder_in_the_way(name):
    def make(folder):
        (folder / "run" / name / "x").mkdir(parents=True)
        return folder / "run"

    return make


def below_a_file(folder):
    (folder / "file").write_text("")
    return folder / "file" / "run"


PLACES = {
    "below_a_file": below_a_file,
    "too_long": lambda folder: folder / ("x" * 300),
    **{f"{n}_is_a_file": file_in_the_way(n) for n in ("checkpoints", "tensorboard")},
    **{
        f"{n}_is_a_folder": folder_in_the_way(n)
        for n in (".lock", "config.json", "classes.json", "metrics.jsonl", "results.json", "run.json")
    },
}


@pytest.mark.parametrize("place", PLACES)
def test_a_workdir_that_cannot_be_written_is_one_line(place, tmp_path, data_dir, capsys):
    workdir = PLACES[place](tmp_path)
    assert command(workdir, data_dir) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"bjax: --workdir={workdir}")


def test_a_workdir_that_vanishes_is_one_line(tmp_path, data_dir, capsys, monkeypatch):
    monkeypatch.setattr("bjax.train.evaluate", lambda *_: (tmp_path / "run").rename(tmp_path / "gone") and {})
    assert command(tmp_path / "run", data_dir) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"bjax: --workdir={tmp_path / 'run'}: No such file or directory")


def bound() -> list[str]:
    """What makes a command respect the modes of files, which root needs not; skips where it cannot be done."""
    if os.geteuid():
        return []
    command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner"]
    if not shutil.which("setpriv") or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("root may write everywhere, and setpriv is not here")
    return command


@pytest.mark.slow
def test_a_run_that_may_only_be_read_predicts_reports_and_exports(tiny_run, tmp_path, data_dir):
    without_rights, run, out = bound(), tmp_path / "run", tmp_path / "out"
    shutil.copytree(tiny_run, run)
    out.mkdir()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    photo = Path(skimage.__file__).parent / "data" / "chelsea.png"
    commands = {
        f"bjax.predict {photo} --workdir={run}": (0, "chelsea.png"),
        f"bjax.report {run} --out={out / 'report'}": (0, "trained on sharp and blurred images"),
        f"bjax.export {run} --out={out / 'model'} --platforms=cpu": (0, "wrote "),
        f"bjax.main --workdir={run} --mode=eval": (2, f"bjax: --workdir={run}: Permission denied ({run}/.lock); see "),
        f"bjax.report {run} --out={run / 'report'}": (2, f"{run}: may not be written; name another folder"),
        f"bjax.export {run} --out={run / 'model'}": (2, f"{run}: may not be written; name another folder"),
    }
    for path in (run, *run.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        for command, (code, word) in commands.items():
            line = [*without_rights, sys.executable, "-m", *command.split()]
            done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == code, done.stderr
            assert word in (done.stderr if code else done.stdout), done
            assert not code or done.stderr.count("\n") == 1, done.stderr
    finally:
        for path in (run, *run.rglob("*")):
            path.chmod(0o755)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["bit", "cut", "zeros", "delete", "empty", "other"])
@pytest.mark.parametrize("file", ["config.json", "results.json", "run.json", "classes.json", "metrics.jsonl"])
def test_a_damaged_file_of_a_run_is_no_traceback_anywhere(file, kind, tiny_run, tmp_path, data_dir, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run, workdir)
    if kind in ("empty", "other"):
        (workdir / file).write_text({"empty": "", "other": '{"a": 1}'}[kind])
    else:
        drivers.spoil(workdir / file, kind, random.Random(file + kind))
    for look in (lambda: load(workdir), lambda: read_runs([workdir])):
        with contextlib.suppress(UserError):
            look()
    capsys.readouterr()
    # Without --config, with a part of the conditions: both depend on what the workdir holds.
    code = main([f"--workdir={workdir}", "--mode=eval", "--config.eval_only=sharp"])
    lines = capsys.readouterr().err.splitlines()
    assert code in (0, 2) and len(lines) <= 1 + (code == 0), lines
    if code:
        assert str(workdir) in lines[-1] or "config." in lines[-1], lines
