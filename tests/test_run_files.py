"""Workdirs that cannot be written and files of runs that are damaged: one line each, and nothing lost."""

import contextlib
import random
import shutil
from pathlib import Path

import pytest
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
