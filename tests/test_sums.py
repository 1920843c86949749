"""A digit that changes in a file of a run, which stays valid JSON: named, rebuilt or harmless, never believed."""

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bjax import config as configs
from bjax import sums
from bjax.errors import UserError
from bjax.main import main
from bjax.predictor import load
from bjax.report.read import load as read_runs
from bjax.runtime.workdir import Log, write, write_text

FILES = ("config.json", "results.json", "run.json", "classes.json", "metrics.jsonl")


@pytest.fixture
def run(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    return tmp_path / "run"


def flip(path, which=-1):
    """Another digit, so that what is JSON stays JSON; another letter in a file without digits."""
    text = path.read_text()
    at = [m.start() for m in re.finditer(r"(?<=\d)\d" if path.name != "classes.json" else "[a-y]", text)][which]
    path.write_text(text[:at] + chr(ord(text[at]) ^ 1) + text[at + 1 :])
    if path.suffix == ".json":
        json.loads(path.read_text())


def again(workdir, *more):
    """The run's own command, which goes on with what its config.json says."""
    return main([f"--workdir={workdir}", *more])


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("which", [0, -1])
def test_a_changed_digit_is_named_or_rebuilt(run, file, which, capsys):
    before = {name: (run / name).read_bytes() for name in FILES}
    flip(run / file, which)
    _, notes = read_runs([run])
    if file in ("config.json", "results.json", "run.json", "classes.json"):
        assert f"{run / file}: damaged" in notes[0]
    if file in ("config.json", "classes.json"):
        with pytest.raises(UserError, match=file):
            load(run)
    capsys.readouterr()
    code = again(run, "--mode=eval", "--config.eval_only=sharp")
    said = capsys.readouterr().err
    if file == "config.json":
        assert code == 2 and said.count("\n") == 1
        assert "config.json: damaged (it is not what was written; if you changed it, delete sums.sha256" in said
        (run / "sums.sha256").unlink()
        assert configs.read(run / file)
        return
    assert code == 0
    assert said.count("\n") == (file in ("results.json", "run.json")) and (not said or file in said)
    for name in ("config.json", "results.json", "classes.json"):
        assert (run / name).read_bytes() == before[name]
    if file in ("results.json", "run.json"):
        assert (run / f"{file}.damaged").exists()


def test_the_sums_are_those_of_sha256sum(run):
    done = subprocess.run(["sha256sum", "-c", "sums.sha256"], cwd=run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(re.findall(r"(.*): OK", done.stdout)) >= set(FILES)


@pytest.mark.parametrize("damage", [b"", b"\xff", b"0" * 200, None])
def test_damaged_sums_are_named_and_nothing_is_lost(run, damage, capsys):
    path = run / "sums.sha256"
    if damage is None:
        path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    else:
        path.write_bytes(damage)
    (run_read,), notes = read_runs([run])
    assert run_read.rows and not notes
    assert f"{path}: damaged" in capsys.readouterr().err
    write(run / "results.json", {})
    assert sums.listed(run / "results.json") and not sums.listed(run / "config.json")


def test_a_crash_between_sum_and_file_leaves_a_file_that_is_believed(tmp_path, monkeypatch):
    path, real = tmp_path / "results.json", sums.replace
    for content in ("first", "second"):
        before = path.read_bytes() if path.exists() else None
        for dies_at in range(3):

            def replace(file, data, left=[dies_at]):  # noqa: B006
                if not left[0]:
                    raise KeyboardInterrupt
                left[0] -= 1
                real(file, data)

            with monkeypatch.context() as patched:
                patched.setattr(sums, "replace", replace)
                with pytest.raises(KeyboardInterrupt):
                    write_text(path, content)
            sums.check(path)  # raises where it would be called damaged
            assert not path.exists() or sums.read(path) in (before, content.encode())
        write_text(path, content)
        assert len(sums.listed(path)) == 1
        path.write_text("other")
        with pytest.raises(ValueError, match="not what was written"):
            sums.read(path)
        write_text(path, content)
    path.unlink()
    with pytest.raises(ValueError, match="missing"):
        sums.check(path)


def test_a_file_that_is_replaced_while_it_is_read_is_believed(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_text(path, "old")
    real = sums.listed

    def slow(file):
        accepted = real(file)
        monkeypatch.undo()
        write_text(path, "new")
        return accepted

    monkeypatch.setattr(sums, "listed", slow)
    assert sums.read(path) == b"new"


ROWS = [{"loss": 1.25}, {"loss": 1.5}, {"sharp/top1": 0.25, "sharp/n": 13}, {"loss": 1.75}, {"sharp/top1": 0.5}]


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_of_metrics_only_the_damaged_rows_go_and_are_counted(tmp_path, capsys, data):
    """Rows 1, 2, 2, 3, 3; the last, of an evaluation, is after the save of step 3."""
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    path = folder / "metrics.jsonl"
    log = Log(folder, 0, writes=True, crcs=[])
    for step, row in zip((1, 2, 2, 3), ROWS, strict=False):
        log.write(step, row)
    log.keep()
    crcs = list(log.crcs)
    log.write(3, ROWS[-1])
    log.keep()
    log.write(4, {"loss": 2.0})
    log.close()
    lines = path.read_bytes().splitlines(keepends=True)
    row = data.draw(st.integers(0, 5))
    digits = [i for i, c in enumerate(lines[row]) if chr(c).isdigit()]
    kind = data.draw(st.sampled_from(["digit", "byte", "delete"]))
    place = data.draw(st.sampled_from(digits if kind == "digit" else range(len(lines[row]) - 1)))
    changed = bytearray(lines[row])
    changed[place] ^= 1 if kind == "digit" else data.draw(st.integers(1, 255))
    path.write_bytes(b"".join([*lines[:row], bytes(changed) if kind != "delete" else b"", *lines[row + 1 :]]))
    capsys.readouterr()
    log = Log(folder, 3, writes=True, crcs=crcs)
    log.close()
    # The row after the save goes with any other, since its sum is of all before: it is evaluated again.
    kept = [line for i, line in enumerate(lines[:5]) if i != row and (i < 4 or row == 5)]
    assert path.read_bytes() == b"".join(kept)
    said = capsys.readouterr().err
    assert log.evaluated.keys() == ({2, 3} if row == 5 else {2} if row != 2 else set())
    if row == 5:
        assert not said
    else:
        assert re.fullmatch(r"bjax: .*metrics.jsonl: 1 rows are damaged or missing and left out\n", said)


def test_a_run_without_sums_is_believed(run, capsys):
    (run / "sums.sha256").unlink()
    flip(run / "results.json")
    (read,), notes = read_runs([run])
    assert read.rows and not notes and not capsys.readouterr().err
