"""Intervals, the results table, and a log that survives kills."""

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm, sem

from bjax import metrics

SQUARES = {"loss_squared": 20.0, "kept_squared": 1.0}


def test_interval_of_a_mean_is_scipys():
    x = np.random.default_rng(0).normal(3, 2, 200)
    found = metrics.mean_interval(x.sum(), (x**2).sum(), len(x))
    np.testing.assert_allclose(found, norm.interval(0.95, x.mean(), sem(x)), rtol=1e-9)
    assert metrics.mean_interval(5.0, 25.0, 1) == (5.0, 5.0)


@given(n=st.integers(1, 5000), share=st.floats(0, 1))
def test_wilson_is_scipys(n, share):
    hits = round(share * n)
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    np.testing.assert_allclose(metrics.wilson(hits, n), (expected.low, expected.high), atol=1e-12)


def test_summary_divides_each_sum_once():
    sums = {"n": 8.0, "top1": 4.0, "top5": 8.0, "loss": 12.0, "kept": 2.0, "empty": 1.0, **SQUARES}
    result = metrics.summarise(sums)
    assert (result["top1"], result["top5"], result["loss"], result["kept"]) == (0.5, 1.0, 1.5, 0.25)
    assert (result["n"], result["empty"]) == (8, 1)
    assert result["top1_95"][0] < 0.5 < result["top1_95"][1]


def test_table_lines_up():
    row = metrics.summarise(
        {"n": 8.0, "top1": 4.0, "top5": 8.0, "loss": 12.0, "kept": 2.0, "empty": 1.0, **SQUARES}
    )
    lines = metrics.table({"sharp": row, "a_long_condition": {**row, "n": 50_000}}).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "50.00" in lines[2]
    assert "25.0" in lines[2]


def test_log_drops_what_the_killed_run_wrote_after_its_checkpoint(tmp_path):
    log = metrics.Log(tmp_path, 0, writes=True)
    for step in (10, 20, 30):
        log.write(step, {"loss": step / 10})
    log.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 40, "lo')  # killed in the middle of a line
    log = metrics.Log(tmp_path, 20, writes=True)
    log.write(30, {"loss": 7.0})
    log.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 2.0}, {"step": 30, "loss": 7.0}]


def test_log_of_another_process_writes_nothing(tmp_path):
    log = metrics.Log(tmp_path, 0, writes=False)
    log.write(1, {"loss": 1.0})
    log.close()
    assert not list(tmp_path.iterdir())


def test_tensorboard_files_appear_where_it_is_installed(tmp_path):
    pytest.importorskip("tensorboardX", reason="the extra `tensorboard` is not installed")
    log = metrics.Log(tmp_path, 0, writes=True)
    log.write(1, {"loss": 1.0})
    log.close()
    assert list((tmp_path / "tensorboard").iterdir())


def test_progress_is_plain_lines_off_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    bar = metrics.Progress(10, 0, "train", shown=True)
    bar.advance()
    bar.line("loss 1.0")
    bar.close()
    assert capsys.readouterr().out == "train 1/10  loss 1.0\n"
    bar = metrics.Progress(10, 0, "train", shown=False)
    bar.advance()
    bar.line("loss 1.0")
    bar.close()
    assert capsys.readouterr().out == ""


def test_files_are_written_whole(tmp_path):
    path = tmp_path / "results.json"
    metrics.write_text(path, "a")
    metrics.write_text(path, "b")
    assert path.read_text() == "b"
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
