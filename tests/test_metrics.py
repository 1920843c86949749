"""Intervals, the results table, and a log that survives kills."""

import base64
import dataclasses
import io
import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import ttest_1samp

from bjax import config as configs
from bjax import experiment, stats, train
from bjax.aot import programs
from bjax.blur import sample
from bjax.evaluate.summary import KINDS, accuracy_at, calibration_error, confusion, summarise, table
from bjax.runtime.console import Progress, parameter_table, parameters_line
from bjax.runtime.workdir import Log, session, write_text

RNG = np.random.default_rng(0)


def answers(n=200, classes=4, **more):
    """What `eval_step` says of n images, made up."""
    confidence = RNG.uniform(1 / classes, 1, n).astype(np.float32)
    label = RNG.integers(classes, size=n).astype(np.int32)
    right = RNG.random(n) < confidence**2  # too sure of itself
    prediction = np.where(right, label, (label + 1) % classes).astype(np.int32)
    return {
        "label": label,
        "prediction": prediction,
        "confidence": confidence,
        "top1": right.astype(np.float32),
        "top5": np.ones(n, np.float32),
        "loss": RNG.exponential(1, n).astype(np.float32),
        "kept": np.full(n, 0.25, np.float32),
        "sharpness": RNG.exponential(100, n).astype(np.float32),
        **more,
    }


def test_summary_is_of_all_images():
    given = answers(8, top1=np.float32([1, 0, 1, 0, 1, 0, 1, 0]), kept=np.float32([0, 0, 0, 1, 1, 0, 0, 0]))
    result = summarise(given)
    assert (result["top1"], result["top5"], result["kept"]) == (0.5, 1.0, 0.25)
    assert result["loss"] == pytest.approx(given["loss"].mean())
    assert (result["n"], result["empty"]) == (8, 6)
    assert result["top1_95"][0] < 0.5 < result["top1_95"][1]
    json.dumps(result)


def crops(hits, n=16):
    """Answers to n crops of each photograph a, b, …; hits: how many of each are right."""
    right = np.concatenate([np.arange(n) < h for h in hits]).astype(np.float32)
    names = np.repeat([chr(ord("a") + i) for i in range(len(hits))], n)
    order = RNG.permutation(len(right))
    ids = np.arange(len(right), dtype=np.uint32)[order]
    return answers(len(right), top1=right[order], photograph=names[order], id=ids)


def test_crops_of_one_photograph_are_not_taken_for_independent():
    hits = (16, 4, 12, 8)
    row = summarise(crops(hits))
    t = ttest_1samp(np.array(hits) / 16, 0).confidence_interval(0.95)
    assert row["top1_95_photographs"] == pytest.approx([max(0, t.low), min(1, t.high)])
    assert row["top1_95"] == pytest.approx(stats.wilson(40, 64))
    assert row["n_photographs"] == 4 and row["photographs"]["b"] == {"hits": 4, "n": 16}
    assert row["top5_95_photographs"] == pytest.approx(row["top5_95"])  # all right: never narrower than Wilson's
    assert "hits" not in row
    json.dumps(row, allow_nan=False)
    one = summarise(crops((12,)))
    assert one["top1_95_photographs"] == [0, 1] and "loss_95_photographs" not in one
    json.dumps(one, allow_nan=False)


def test_photographs_of_their_own_keep_a_bit_for_each_image():
    given = answers(21, id=RNG.permutation(21).astype(np.uint32))
    row = summarise(given)
    bits = np.unpackbits(np.frombuffer(base64.b64decode(row["hits"]), np.uint8), count=21)
    np.testing.assert_array_equal(bits, given["top1"][np.argsort(given["id"])])
    assert not any("photographs" in name for name in row)
    again = summarise({name: values[::-1] for name, values in given.items()})
    assert (again["hits"], again["images"]) == (row["hits"], row["images"])
    assert summarise({**given, "id": given["id"] + np.uint32(1)})["images"] != row["images"]


def test_a_bin_of_strengths_is_over_its_photographs():
    label, sigma = np.full(64, 1, np.int32), np.full(64, 1.1, np.float32)
    blur = sample.BlurSpec(dict.fromkeys(sample.KINDS, 0.25), sigma=(1, 3), length=(7, 17), radius=4)
    nothing = dict.fromkeys(("length", "radius"), np.zeros(64, np.float32))
    row = summarise({**crops((16, 4, 12, 8)), "label": label, "sigma": sigma, **nothing}, blur)
    part = row["by_strength"]["gaussian"][0]
    assert (part["n"], part["n_photographs"]) == (64, 4)
    assert part["top1_95_photographs"] == pytest.approx(row["top1_95_photographs"])
    assert "n_photographs" not in row["by_strength"]["gaussian"][1]


def test_the_table_prints_the_interval_over_photographs_and_what_it_is_worth():
    rows = {"few": summarise(crops((16, 12, 12, 11))), "images": summarise(answers(8))}
    lines = table(rows, classes=14).splitlines()
    low, high = rows["few"]["top1_95_photographs"]
    assert f"{100 * low:.1f}–{100 * high:.1f}" in lines[2] and lines[2].endswith(" 4")
    assert lines[0].endswith("photographs") and lines[3].endswith(" 8")
    assert lines[4].startswith("95 %: Student's t over the photographs") and "named" in lines[4]
    assert lines[5:] == [
        "few: too few photographs to trust that interval (docs/intervals.md); top-1 on each: a 100.0, b 75.0, c 75.0, "
        "d 68.8"
    ]
    lines = table({"enough": summarise(crops([8] * 14))}, classes=14).splitlines()
    assert len(lines) == 5 and lines[3] == "each of 224 images, crops of 14 photographs"


def test_calibration_error_is_that_of_its_bins():
    given = answers(500)
    edges, expected = np.linspace(0, 1, 16), 0.0
    for low, high in itertools.pairwise(edges):
        own = (given["confidence"] > low) & (given["confidence"] <= high)
        if own.any():
            expected += own.mean() * abs(given["top1"][own].mean() - given["confidence"][own].mean())
    assert calibration_error(given["confidence"], given["top1"]) == pytest.approx(expected, rel=1e-5)
    right = np.ones(4)
    assert calibration_error(right, right) == 0  # sure and right
    assert calibration_error(right, np.zeros(4)) == 1  # sure and wrong


def test_accuracy_at_a_coverage_is_that_of_the_highest_ranked():
    correct = np.float64([0, 1, 1, 0, 0, 0, 0, 0, 0, 1])
    ranking = np.float64([1, 9, 8, 7, 2, 2, 2, 2, 2, 0])
    found = accuracy_at(correct, ranking)
    assert found[:3] == [1, 1, pytest.approx(2 / 3)]
    assert found[-1] == correct.mean()


def test_confusion_is_scikit_learns_layout():
    assert confusion([0, 0, 1, 3], [0, 2, 1, 0], 4) == [
        [1, 0, 1, 0],
        [0, 1, 0, 0],
        [0, 0, 0, 0],
        [1, 0, 0, 0],
    ]


def test_blur_kinds_are_those_that_are_drawn():
    assert KINDS == sample.KINDS


def test_strengths_and_estimates_of_each_kind():
    label = np.int32([0, 1, 1, 2, 2, 3])
    given = answers(
        6,
        label=label,
        prediction=np.int32([0, 1, 3, 2, 2, 3]),
        top1=np.float32([1, 1, 0, 1, 1, 1]),
        sigma=np.float32([0, 1.1, 3.0, 0, 0, 0]),
        length=np.float32([0, 0, 0, 8, 16, 0]),
        angle=np.float32([0, 0, 0, 0.1, 3.0, 0]),
        radius=np.float32([0, 0, 0, 0, 0, 4]),
        estimates=np.float32([[9] * 4, [1, 0, 0, 0], [2, 0, 0, 0], [0, 9, 3.1, 0], [0, 13, 0.1, 0], [0, 0, 0, 4]]),
    )
    blur = sample.BlurSpec(dict.fromkeys(sample.KINDS, 0.25), sigma=(1, 3), length=(7, 17), radius=4)
    result = summarise(given, blur)
    assert result["confusion"][1] == [0, 1, 0, 1]
    gaussian = result["by_strength"]["gaussian"]
    assert [(b["low"], b["high"], b["n"], b["top1"]) for b in gaussian] == [
        (1, 1.5, 1, 1),
        (1.5, 2, 0, None),
        (2, 2.5, 0, None),
        (2.5, 3, 1, 0),
    ]
    assert [b["n"] for b in result["by_strength"]["motion"]] == [1, 0, 0, 1]
    assert result["by_strength"]["defocus"] == [{"low": 4, "high": 4, "n": 1, "top1": 1}]
    estimates = result["estimates"]
    assert estimates["sigma"] == {"mae": pytest.approx((0.1 + 1) / 2), "n": 2}
    assert estimates["length"]["mae"] == pytest.approx(2)
    # 0.1 and 3.1 rad lie 0.1416 apart on the half circle, 3.0 and 0.1 lie 0.2416 apart.
    assert estimates["angle"]["mae"] == pytest.approx(np.rad2deg((np.pi - 3 + np.pi - 2.9) / 2), rel=1e-5)
    assert estimates["radius"] == {"mae": 0, "n": 1}


def test_table_lines_up():
    row = summarise(answers(8, top1=np.float32([1, 0] * 4)))
    lines = table({"sharp": row, "a_long_condition": {**row, "n": 50_000}}, classes=14).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "50.00" in lines[2]
    assert "25.0" in lines[2]
    row |= {"top1_95": [0.1, 1.0], "n": 50_000}
    lines = table(dict.fromkeys(("sharp", "blurred_drop_above_random"), row), classes=14).splitlines()
    assert max(map(len, lines)) <= 80 and lines[-1] == "each of 50,000 images"
    found = {"a_condition_of_25_letters": row, "regions": {**row, "iou": 1.0}}
    found = table(found, classes=14).splitlines()
    assert max(map(len, found)) <= 80 and found[0].endswith("kept %  IoU %")
    assert found[2].endswith(" 25.0") and found[3].endswith(" 25.0  100.0")
    few = table(dict.fromkeys(("sharp", "blurred"), row), classes=5).splitlines()
    assert [line[0].count("top-5") for line in (lines, few)] == [1, 0]
    assert all(len(line.split()) == 5 for line in few[1:4])


def test_log_drops_what_the_killed_run_wrote_after_its_checkpoint(tmp_path):
    log = Log(tmp_path, 0, writes=True)
    for step in (10, 20, 30):
        log.write(step, {"loss": step / 10})
    log.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 40, "lo')  # killed in the middle of a line
    log = Log(tmp_path, 20, writes=True)
    log.write(30, {"loss": 7.0})
    log.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 2.0}, {"step": 30, "loss": 7.0}]


def test_damaged_lines_are_left_out_and_counted(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"step": 1, "loss": 2.0}\n' + 30 * b"\0" + b'\n[1]\n{"step": 2, "loss": NaN}\n{"step": 3, "sharp/n": 4}\n'
    )
    log = Log(tmp_path, 20, writes=True)
    log.close()
    assert path.read_text() == '{"step": 1, "loss": 2.0}\n{"step": 3, "sharp/n": 4}\n'
    assert set(log.evaluated) == {3}
    assert capsys.readouterr().err == f"bjax: {path}: 3 damaged lines are left out\n"


@pytest.mark.parametrize("content", [b"\0\0", b"[]", b'{"sessions": 1}', b"\xff{"])
def test_a_damaged_run_json_is_put_aside(tmp_path, content, capsys):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(KeyError, match="the run's own"), session(tmp_path, "train", writes=True):
        raise KeyError("the run's own")
    assert len(json.loads((tmp_path / "run.json").read_text())["sessions"]) == 1
    assert (tmp_path / "run.json.damaged").read_bytes() == content
    assert "run.json: damaged" in capsys.readouterr().err


def test_log_of_another_process_writes_nothing(tmp_path):
    log = Log(tmp_path, 0, writes=False)
    log.write(1, {"loss": 1.0})
    log.close()
    assert not list(tmp_path.iterdir())


def test_tensorboard_files_appear_where_it_is_installed(tmp_path):
    pytest.importorskip("tensorboardX", reason="the extra `tensorboard` is not installed")
    loaded = "torch" in sys.modules
    log = Log(tmp_path, 0, writes=True)
    log.write(1, {"loss": 1.0})
    log.close()
    assert list((tmp_path / "tensorboard").iterdir())
    assert ("torch" in sys.modules) == loaded  # seconds of every start, for nothing


def test_progress_is_plain_lines_off_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    bar = Progress(10, 0, "train", shown=True)
    bar.advance()
    bar.line("loss 1.0")
    bar.close()
    assert capsys.readouterr().out == "train 1/10  loss 1.0\n"
    bar = Progress(10, 0, "train", shown=False)
    bar.advance()
    bar.line("loss 1.0")
    bar.close()
    assert capsys.readouterr().out == ""


def test_the_bar_says_what_is_done_before_the_first_step(capsys, monkeypatch):
    Progress(10, 0, "train", shown=True, first="compiling …").close()
    Progress(10, 10, "train", shown=True, first="compiling …").close()  # nothing is left to do
    assert capsys.readouterr().out == "train 0/10  compiling …\n"
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    bar = Progress(10, 0, "train", shown=True, first="compiling …")
    assert "compiling …" in terminal.getvalue().split("\r")[-1]
    bar.advance()
    bar.bar.refresh()
    assert "1/10" in terminal.getvalue().split("\r")[-1] and "compiling" not in terminal.getvalue().split("\r")[-1]
    bar.close()


def test_parameters_in_a_line_and_by_module_in_the_order_of_their_numbers():
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = {f"block_{i}": {"bias": jnp.zeros(250_000)} for i in (0, 1, 10, 2, 9)} | {"head": {"bias": jnp.zeros(3)}}
    places = jax.tree.map(lambda _: place, params)
    line = parameters_line(params, places)
    assert line == "1,250,003 parameters, 6 arrays, 5.0 MB, 5.0 a device"
    names = [row.split()[0] for row in parameter_table(params, places).splitlines()[2:]]
    assert names == ["block_0", "block_1", "block_2", "block_9", "block_10", "head", "total"]


@pytest.mark.parametrize("name", ["resnet50", "vgg19", "googlenet", "densenet121", "vit"])
def test_what_is_told_of_a_run_before_it_starts_fits_a_terminal(name):
    config = configs.load(f"{Path(__file__).parents[1]}/configs/{name}.py", [])
    exp = programs.placed(config, 1000, jax.devices()[:1])
    source = SimpleNamespace(name="imagenet2012", split="train", num_examples=1_281_167, num_classes=1000)
    exp = dataclasses.replace(exp, source=source, splits={"validation": source})
    _, _, shapes, plan = experiment.state_of(exp, 100)
    lines = train._summary(exp, 450_360, shapes, plan).splitlines()
    assert [line for line in lines if line.startswith(f"model    {name}: ")]
    assert max(map(len, lines)) <= 80


def test_files_are_written_whole(tmp_path):
    path = tmp_path / "results.json"
    write_text(path, "a")
    write_text(path, "b")
    assert path.read_text() == "b"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["results.json", "sums.sha256"]
