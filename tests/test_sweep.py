"""Sweeps: what is planned, what is skipped, what is named when it fails; on real runs where files are made."""

import contextlib
import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import made_up
import pytest
from test_distributed import TINY

from bjax import report
from bjax.errors import UserError
from bjax.launch import executors, sweep

ROOT = Path(__file__).parents[1]
VIT = ROOT / "configs" / "vit.py"


def arguments(out, *more, config=f"{VIT}:demo", **overrides):
    return [f"--config={config}", f"--out={out}", *(f"--config.{k}={v}" for k, v in overrides.items()), *more]


def printed(capsys, *more, **options):
    assert sweep.main(arguments("out", "--executor=print", *more, **options)) == 0
    return [shlex.split(line) for line in capsys.readouterr().out.splitlines()]


def test_grids_and_seeds_multiply(capsys):
    commands = printed(capsys, "--grid", "optim.lr=1e-3,1e-4", "--grid", "blur.sigma=(1,2),(2,4)", "--seeds=3")
    assert len(commands) == 12
    assert commands[-1][-3:] == ["--config.optim.lr=1e-4", "--config.blur.sigma=(2,4)", "--config.seed=2"]
    assert len({c[4] for c in commands}) == 12
    assert all(c[4].startswith("--workdir=out/") for c in commands)


def test_an_evaluation_and_a_training_of_one_config_are_two_runs(tmp_path):
    point = (("optim.lr", "0.1"),)
    runs = sweep.plan(f"{VIT}:demo", [], [point, (*point, ("mode", "eval"))], tmp_path)
    assert len({run.workdir for run in runs}) == 2
    assert runs[1].command[-1] == "--mode=eval" and "--mode" not in " ".join(runs[0].command)


def test_a_run_directory_depends_on_the_resolved_config_alone(capsys):
    [spelled] = printed(capsys, "--grid", "optim.lr=1e-3")
    [other] = printed(capsys, "--grid", "config.optim.lr=0.001")
    [fixed] = printed(capsys, "--grid", "seed=0", **{"optim.lr": 1e-3})
    [different] = printed(capsys, "--grid", "optim.lr=2e-3")
    assert spelled[4] == other[4] == fixed[4] != different[4]


def test_vit_mask_names_its_own_sweep(capsys):
    commands = printed(capsys, config=f"{ROOT / 'configs' / 'vit_mask.py'}:demo")
    points = {tuple(c for c in command if "mask.drop=" in c or ".mask.threshold=" in c) for command in commands}
    assert len(points) == len(commands) == 6
    assert "--config.eval.blurred_drop_below_random.mask.threshold=50.0" in commands[0]


def papers(capsys, args):
    commands = printed(capsys, config=f"configs/papers.py{args}")
    return [{word.partition("=")[0]: word.partition("=")[2] for word in command[3:]} for command in commands]


def test_papers_are_a_matrix_of_configs(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    runs = papers(capsys, ":demo")
    assert len({run["--workdir"] for run in runs}) == len(runs) == 13
    assert {run["--config"] for run in runs if "vit" in run["--config"]} == {
        f"configs/vit.py:demo,train={train},curves=true" for train in ("sharp", "blurred", "mix")
    }
    assert all("fraction=20" in run["--config"] for run in papers(capsys, ""))
    weights = papers(capsys, ":weights=w")
    evaluated = [run for run in weights if run.get("--mode") == "eval"]
    assert [run["--config.init_from"] for run in evaluated] == [
        "w/resnet50-0676ba61.pth",
        "w/vgg19-dcbb9e9d.pth",
        "w/googlenet-1378be20.pth",
        "w/vit_b_16-c867db91.pth",
    ]
    tuned = [run for run in weights if "--config.init_new_head" in run]
    assert len(tuned) == 8 and len(weights) == 12 + 5 + 4 + 8
    assert not any("--mode" in run for run in papers(capsys, ":imagenette,weights=w"))
    names = [run.get("--config.init_from") for run in papers(capsys, ":weights=torchvision")]
    assert {"torchvision:resnet50", "torchvision:vgg19", "torchvision:googlenet", "torchvision:vit_b_16"} < set(names)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "defines no sweep(); give --grid KEY=VALUE,VALUE"),
        (["--grid", "optim.lr"], "--grid optim.lr: expected KEY=VALUE,VALUE"),
        (["--grid", "optim.lrr=1,2"], "did you mean --config.optim.lr?"),
        (["--grid", "optim.lr=1", "--grid", "optim.lr=2"], "optim.lr is given twice"),
        (["--grid", "optim.lr=1e-3,0.001"], "optim.lr=1e-3 and optim.lr=0.001: the same run twice"),
        (["--grid", "optim.lr=1", "--executor=pbs"], "--executor"),
        (["--grid", "optim.lr=1", "--jobs=99999"], "--jobs=99999: expected 1 to"),
        (["--grid", "optim.lr=1", "--seeds=-1"], "--seeds=-1"),
    ],
)
def test_a_mistake_is_one_line(more, message, capsys, tmp_path):
    assert sweep.main(arguments(tmp_path, *more)) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert message in said[0]


@pytest.mark.slow
def test_finished_runs_are_skipped_and_failed_ones_named_and_retried(tmp_path, data_dir, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    options = {**TINY, "steps": 2, "data.data_dir": data_dir}
    del options["batch_size"]
    grid = ("--grid", "batch_size=8,1000", "--jobs=1")  # there are 672 images
    assert sweep.main(arguments(tmp_path, *grid, **options)) == 1
    said = capsys.readouterr()
    assert "1 finished, 1 failed" in said.out
    assert "failed: batch_size=1000: bjax: config.batch_size=1000: more than the 672 images" in said.err
    index = json.loads((tmp_path / "sweep.json").read_text())
    good, bad = (tmp_path / name for name in index["runs"])
    assert list(index["runs"].values()) == [{"batch_size": "8"}, {"batch_size": "1000"}]
    assert json.loads((good / "results.json").read_text())["sharp"]["n"] == 13
    assert (bad / "exit").read_text() == "2"

    times = good.joinpath("log.txt").stat().st_mtime_ns, bad.joinpath("log.txt").stat().st_mtime_ns
    assert sweep.main(arguments(tmp_path, *grid, **options)) == 1
    assert times == (good.joinpath("log.txt").stat().st_mtime_ns, bad.joinpath("log.txt").stat().st_mtime_ns)
    assert sweep.main(arguments(tmp_path, *grid, "--retry", **options)) == 1
    assert good.joinpath("log.txt").stat().st_mtime_ns == times[0]
    assert bad.joinpath("log.txt").read_text().count("more than the 672 images") == 2
    assert sweep.main(arguments(tmp_path, config=f"{ROOT / 'configs' / 'vit_mask.py'}:demo")) == 2
    assert "holds a sweep of" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_told_to_stop_stops_its_runs_and_goes_on(tmp_path, data_dir):
    options = {**TINY, "steps": 1000, "data.data_dir": data_dir}
    command = [
        sys.executable,
        "-m",
        "launch.sweep",
        *arguments(tmp_path, "--grid", "optim.lr=1e-3", **options),
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    killer = threading.Timer(200, process.kill)
    killer.start()
    while process.poll() is None and not list(tmp_path.glob("*/metrics.jsonl")):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate()
    killer.cancel()
    assert process.returncode == executors.STOPPED
    assert "1 stopped" in out.decode()
    [run] = tmp_path.glob("*/config.json")
    assert list((run.parent / "checkpoints").iterdir())
    assert (run.parent / "exit").read_text() == "75"


def rewritten(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def older(config):
    """What a version without some of the fields would have written."""
    for key in ("init_new_head", "speed_rounds", "eval_only", "mask_quality"):
        del config[key]
    config["dead_leaves_steps"] = 0  # which is gone
    del config["loss"]["parameters"]
    for condition in config["eval"].values():
        del condition["bn_adapt"], condition["blur"]["psf_size"]


GRID = ("--grid", "optim.lr=1e-3,1e-4", "--seeds=2")
POINTS = [{"optim.lr": lr, "seed": seed} for lr in ("1e-3", "1e-4") for seed in "01"]


def test_a_sweep_of_an_earlier_version_is_found_again_whatever_its_folders_are_called(tmp_path, capsys, monkeypatch):
    made_up.sweep(tmp_path, f"{VIT}:demo", POINTS)
    first, second, third, fourth = sorted(p.parent for p in tmp_path.glob("*/config.json"))
    for folder in (first, second, third):
        rewritten(folder / "config.json", older)
    second.rename(tmp_path / "the best")
    rewritten(tmp_path / "sweep.json", lambda index: index["runs"].pop(third.name))
    monkeypatch.setattr(executors, "start", lambda run, cores: pytest.fail(f"starts {run}"))
    assert sweep.main(arguments(tmp_path, *GRID)) == 0
    said = capsys.readouterr().out
    assert "4 finished" in said and f"next: python -m bjax.report {tmp_path}" in said
    index = json.loads((tmp_path / "sweep.json").read_text())["runs"]
    names = {first.name: 0, "the best": 1, fourth.name: 3, third.name: 2}
    assert {name: POINTS[i] for name, i in names.items()} == index
    assert list(index) == list(names)
    assert printed(capsys, *GRID, f"--out={tmp_path}") == []

    # With another value than such a run had it is another run.
    commands = printed(capsys, *GRID, f"--out={tmp_path}", **{"loss.parameters": 0.5})
    assert len(commands) == 4
    assert not any(Path(command[4].partition("=")[2]).exists() for command in commands)

    # The report shows the four as two points of two seeds: old and new are alike.
    assert report.main([str(tmp_path), f"--out={tmp_path / 'report'}"]) == 0
    text = (tmp_path / "report" / "report.md").read_text()
    assert "Points: 2; seeds of each: 2." in text


def test_a_stopped_run_of_an_earlier_version_goes_on_in_its_folder(tmp_path, capsys):
    made_up.sweep(tmp_path, f"{VIT}:demo", POINTS[:1])
    [folder] = (p.parent for p in tmp_path.glob("*/config.json"))
    rewritten(folder / "config.json", older)
    (folder / "exit").write_text("75")
    (folder / "results.json").unlink()
    [command] = printed(capsys, "--grid", "optim.lr=1e-3", "--seeds=1", f"--out={tmp_path}")
    assert f"--workdir={folder}" in command


def test_of_one_config_an_evaluation_is_not_taken_for_a_training(tmp_path):
    overrides = [("init_from", "w.npz")]
    point = (("optim.lr", "0.1"),)
    names = {}
    for trained in (True, False):
        folder = made_up.run(tmp_path / f"{trained}", f"{VIT}:demo", [*overrides, *point], trained=trained)
        names["train" if trained else "eval"] = folder
    runs = sweep.plan(f"{VIT}:demo", overrides, [point, (*point, ("mode", "eval"))], tmp_path)
    assert [run.workdir for run in runs] == [names["train"], names["eval"]]
    (names["eval"] / "run.json").write_text('{"sessions": [{"mode": "bn_adapt"}]}')
    [run] = sweep.plan(f"{VIT}:demo", overrides, [(*point, ("mode", "eval"))], tmp_path)
    assert run.workdir not in names.values()
    (names["eval"] / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run\.json: damaged .* delete it"):
        sweep.plan(f"{VIT}:demo", overrides, [point], tmp_path)


def test_damaged_rows_do_not_stop_a_sweep_from_showing_progress(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(
        b'{"step": 1, "loss": 2.5}\n{"ste\x01}\n[1]}\n\xff{}\n{"step": 7}\n{"a": 1}\n'
    )
    assert executors.Run(tmp_path, (), (), 9).progress == "step 7/9  loss 2.5000"


def test_a_damaged_config_of_a_run_is_told_before_anything_is_run(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("\0\0")
    assert sweep.main(arguments(tmp_path, *GRID)) == 2
    assert f"{tmp_path}/run/config.json: damaged" in capsys.readouterr().err


def test_sweeps_that_share_a_folder_all_list_their_runs(tmp_path):
    program = """
import pathlib, sys
from bjax.launch import executors, sweep

out = pathlib.Path("out")
for i in range(60):
    sweep.write_index(out, "c.py", [executors.Run(out / f"{sys.argv[1]}{i}", (), (), 0)])
"""
    command = [sys.executable, "-c", program]
    both = [
        subprocess.Popen([*command, name], cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True)
        for name in "ab"
    ]
    said = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    index = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert set(index["runs"]) == {f"{name}{i}" for name in "ab" for i in range(60)}
    assert not list((tmp_path / "out").glob("*.tmp"))


@pytest.mark.parametrize("text", ["{", "[]", '{"config": "x"}', '{"runs": {}, "config": 1}', "{}{}", "\0\0"])
def test_a_damaged_index_is_told_in_one_line(text, tmp_path, capsys):
    (tmp_path / "sweep.json").write_text(text)
    assert sweep.main(arguments(tmp_path, "--grid", "optim.lr=1")) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert f"{tmp_path}/sweep.json: damaged" in said[0] and "delete it" in said[0]
    assert (tmp_path / "sweep.json").read_text() == text


def test_a_job_that_fails_at_once_is_named(tmp_path, capsys, monkeypatch):
    """On a Slurm whose jobs have ended before `submit` returns."""

    class Executor:
        def __init__(self, **_):
            pass

        def update_parameters(self, **_):
            pass

        def batch(self):
            return contextlib.nullcontext()

        def submit(self, task):
            task()
            return types.SimpleNamespace(job_id="7_0")

    failed_job = types.SimpleNamespace(utils=types.SimpleNamespace(FailedJobError=RuntimeError))
    fake = types.SimpleNamespace(SlurmExecutor=Executor, core=failed_job)
    monkeypatch.setitem(sys.modules, "submitit", fake)
    monkeypatch.setattr(executors, "queue", lambda runs: {})
    monkeypatch.setattr(executors, "SECONDS", 0.01)
    mistake = (sys.executable, "-c", "import sys; sys.exit('bjax: no such file')")
    run = executors.Run(tmp_path / "run", (), mistake, 0)
    assert executors.slurm([run], tmp_path, [], False) == 1
    assert (run.workdir / "exit").read_text() == "1"
    said = capsys.readouterr()
    assert "1 failed" in said.out and "bjax: no such file" in said.err
    assert executors.slurm([run], tmp_path, [], False) == 1  # and left alone
    assert (run.workdir / "log.txt").read_text().count("no such file") == 1


# A run that, told by SIGTERM, saves and ends with 75.
FAKE_RUN = """
import os, pathlib, signal, sys, time

def stop(*_):
    pathlib.Path("saved").touch()
    sys.exit(75)

signal.signal(signal.SIGTERM, stop)
pathlib.Path("here.tmp").write_text(str(os.getpid()))
pathlib.Path("here.tmp").rename("here")
time.sleep(60)
"""
# A sweep of that run. With a signal's number it gets that signal after the run has started and before `Popen` returns.
FAKE_SWEEP = f"""
import pathlib, signal, subprocess, sys
from bjax.launch import executors

class Popen(subprocess.Popen):
    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        if len(sys.argv) > 1:
            while not pathlib.Path("here").exists():
                pass
            signal.raise_signal(int(sys.argv[1]))

executors.subprocess.Popen = Popen
run = executors.Run(pathlib.Path("run"), (), (sys.executable, "-c", {FAKE_RUN!r}), 0)
sys.exit(executors.local([run], 1, False))
"""


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def alive(pid):
    """Whether a process runs; one that ended and that nobody waited for does not."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def end(pid):
    """Kills a process that runs; returns whether it did."""
    running = alive(pid)
    if running:
        os.kill(pid, signal.SIGKILL)
    return running


@pytest.mark.parametrize("starting", [False, True], ids=["running", "being started"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_a_signal_reaches_every_run(number, starting, tmp_path):
    # As from a terminal: a test runner in the background may ignore some signals.
    command = ["env", "--default-signal=INT,TERM,HUP", sys.executable, "-c", FAKE_SWEEP]
    process = subprocess.Popen(
        [*command, str(int(number))] if starting else command,
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until((tmp_path / "here").exists)
    if not starting:
        process.send_signal(number)
    try:
        out, err = process.communicate(timeout=15)
    finally:
        process.kill()
        orphan = end(int((tmp_path / "here").read_text()))
    assert not orphan
    assert process.returncode == executors.STOPPED, err
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "run" / "exit").read_text() == "75"
    assert "1 stopped" in out


def test_a_second_ctrl_c_ends_what_does_not_end_by_itself(tmp_path):
    stubborn = FAKE_SWEEP.replace("sys.exit(75)", "pass")
    command = ["env", "--default-signal=INT", sys.executable, "-c", stubborn]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True)
    until((tmp_path / "here").exists)
    process.send_signal(signal.SIGINT)
    until((tmp_path / "saved").exists)
    process.send_signal(signal.SIGINT)
    try:
        out, _ = process.communicate(timeout=15)
    finally:
        process.kill()
        orphan = end(int((tmp_path / "here").read_text()))
    assert not orphan and process.returncode == executors.STOPPED
    assert (tmp_path / "run" / "exit").read_text() == "75"  # it goes on, and has not failed
    assert "Ctrl-C again ends them now" in out and "1 stopped" in out


@pytest.mark.parametrize("nohup", [False, True])
def test_a_closed_terminal_stops_the_runs_and_nohup_keeps_them(nohup, tmp_path):
    command = [*(["nohup"] if nohup else ["env", "--default-signal=HUP"]), sys.executable, "-c", FAKE_SWEEP]
    main, side = pty.openpty()
    process = subprocess.Popen(  # setsid makes the terminal its own
        ["setsid", "--ctty", *command], cwd=tmp_path, env=environment(), stdin=side, stdout=side, stderr=side
    )
    os.close(side)
    until((tmp_path / "here").exists)
    os.close(main)
    run = int((tmp_path / "here").read_text())
    try:
        if nohup:
            time.sleep(1)
            assert process.poll() is None and alive(run)
            process.terminate()
        assert process.wait(timeout=15) == executors.STOPPED
        assert not alive(run)
    finally:
        process.kill()
        end(run)
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "run" / "exit").read_text() == "75"
