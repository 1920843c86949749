"""A user's mistake is one line with one prefix and exit code 2, whatever the command."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bjax.errors import Parser, UserError, command, nearest, new_file, new_folder, positive, some_of

ROOT = Path(__file__).parents[1]
DEMO = "--config=configs/vit_mask.py:demo"
NUMBERS = "--json=README.md/numbers.json"

# command -> (arguments that would do, a wrong value, a missing file or a file in the place of a folder)
COMMANDS = {
    "bjax": ([], "tarin", None),
    "bjax.main": ([DEMO, "--print_config"], "--mode=evaluate", "--config=configs/nowhere.py"),
    "bjax.predict": (["docs/blur.png", "--workdir=nowhere"], "--out=README.md", "nowhere.jpg"),
    "bjax.report": (["--out=report", "nowhere"], "--out=README.md", "nowhere.too"),
    "bjax.export": (["--out=model.bin", "nowhere"], "--out=docs", "--condition=blurred"),
    "bjax.weights": (["--model=resnet50", "nowhere.pth"], "--num_classes=0", "--image_size=64"),
    "bjax.data.prepare": (
        ["folder", "pets", "--source=nowhere"],
        "--on_corrupt=ignore",
        "--data_dir=README.md",
    ),
    "bjax.thresholds": (["docs/blur.png"], "--scope=planet", "nowhere.jpg"),
    "launch.sweep": ([DEMO, "--executor=print"], "--seeds=many", "--config=configs/nowhere.py"),
    "launch.local": (None, "two", None),  # what follows the number is told by each of the processes
    "launch.preflight": (["--config=resnet50.py", "--on=h200x1"], "--images=0", "--on=h300x8"),
    "benchmarks.augmix": ([], "--model=resnet", NUMBERS),
    "benchmarks.blur": ([], "--against=scipy", NUMBERS),
    "benchmarks.compiled": ([], "--models=vgg91", NUMBERS),
    "benchmarks.coverage": ([], "--repetitions=0", None),
    "benchmarks.figure_blur": ([], "--out=docs", "--photo=nowhere.jpg"),
    "benchmarks.gpu": (["--out=docs"], "--only=train-vgg91", "--out=README.md"),
    "benchmarks.infer": ([], "--models=vgg91", NUMBERS),
    "benchmarks.input": ([], "--threads=1,x", NUMBERS),
    "benchmarks.scaling": ([], "--models=vgg91", NUMBERS),
    "benchmarks.small": ([], "--images=60,many", "--out=docs"),
    "benchmarks.startup": ([], "--rounds=0", NUMBERS),
    "benchmarks.tokens": ([], "--keep=1,2", NUMBERS),
    "benchmarks.train": ([], "--against=tensorflow", NUMBERS),
}
ELSEWHERE = {"bjax.sharpness"}  # which says where it went, see tests/test_sharpness.py
MORE = [
    ("benchmarks.coverage", "--seed=-1"),
    ("benchmarks.figure_blur", "--out=figure.txt"),
    ("benchmarks.scaling", "--batch=9"),
    ("benchmarks.scaling", "--on=v5e-7"),
    ("benchmarks.compiled", "--on=tpu"),
    ("benchmarks.infer", "--size=100"),
    ("benchmarks.tokens", "--batch=9"),
    ("benchmarks.tokens", "--variant=Q/16"),
    ("benchmarks.tokens", "--size=100"),
    ("benchmarks.tokens", "--selector=oracle"),
    ("bjax.main", "--config.mask.selector=oracle"),
    ("bjax.main", "--config.blur.where=middle"),
    ("bjax.main", "--config.loss.jsd=12"),
    ("bjax.main", "--config.adapt.methods=tent,bn_steam"),
    ("bjax.main", "--config.adapt.streams=unbalanced"),
    ("bjax.main", "--config.adapt.condition=blured"),
    ("bjax.thresholds", "--measure=sigma"),
    ("bjax.weights", "--option=variant"),
    ("bjax.main", "--config=configs/ranking.py:weights=nowhere.npz"),
    ("launch.sweep", "--config=configs/ranking.py:train=blurred"),
]
MISTAKES = [
    pytest.param(name, [*(right or ()), mistake], id=f"{name} {mistake}")
    for name, (right, *mistakes) in COMMANDS.items()
    for mistake in (*(() if right is None else ("--wrong_flag=1",)), *mistakes)
    if mistake
]
MISTAKES += [pytest.param(name, [*COMMANDS[name][0], m], id=f"{name} {m}") for name, m in MORE]


def sources(*folders):
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def test_every_command_is_in_the_table():
    doors = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
        for path in sources("bjax", "launch", "benchmarks")
        if path.name == "__main__.py" or 'if __name__ == "__main__"' in path.read_text()
    }
    assert doors - ELSEWHERE == set(COMMANDS)


@pytest.mark.parametrize(("name", "arguments"), MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(name, arguments, monkeypatch, capsys):
    if name == "benchmarks.figure_blur":
        pytest.importorskip("matplotlib")
    monkeypatch.chdir(ROOT)
    module = importlib.import_module(f"{name}.__main__" if name in ("bjax", "bjax.weights") else name)
    assert module.main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("bjax: ")
    assert said.err.count("\n") == 1
    assert arguments[-1].lstrip("-").partition("=")[0] in said.err or "nowhere" in said.err


def test_words_are_guessed_and_mistakes_told_in_one_place():
    for path in sources("bjax", "launch", "benchmarks"):
        if path.name == "errors.py":
            continue
        names = {
            name.name if isinstance(node, ast.Import) else node.module
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in node.names
        }
        assert "difflib" not in names, path


def test_nearest():
    assert nearest("blured", ["sharp", "blurred"]) == " (did you mean blurred?)"
    assert nearest("zzz", ["sharp", "blurred"]) == ""
    assert nearest(3, ["30"]) == " (did you mean 30?)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds=2", "--ronds=3"], "unrecognized arguments: --ronds=3 (did you mean --rounds?)"),
        (["--round=2"], "unrecognized arguments: --round=2 (did you mean --rounds?)"),
        ([""], "unrecognized arguments: "),
        (["--rounds=0"], "argument --rounds: '0': expected a whole number of at least 1"),
        (["--rounds=1.5"], "argument --rounds: '1.5': expected a whole number of at least 1"),
        (["--peers=cv2,pxi"], "argument --peers: 'pxi': expected some of cv2, pix (did you mean pix?)"),
        (["--out={file}"], "argument --out: {file}: is a file; name a folder"),
        (["--out={file}/more/of/it"], "argument --out: {file}: is a file; name a folder"),
        (["--json={folder}"], "argument --json: {folder}: is a folder; name a file"),
        (["--json={file}/numbers.json"], "argument --json: {file}: is a file; name a folder"),
    ],
)
def test_a_parser_says_what_it_expects(arguments, message, tmp_path):
    places = {"folder": tmp_path, "file": tmp_path / "file"}
    places["file"].touch()
    parser = Parser("python -m a.command")
    parser.add_argument("--rounds", type=positive)
    parser.add_argument("--peers", type=some_of(("cv2", "pix")))
    parser.add_argument("--out", type=new_folder)
    parser.add_argument("--json", type=new_file)
    with pytest.raises(UserError) as error:
        parser.parse_args([argument.format(**places) for argument in arguments])
    assert str(error.value) == f"{message.format(**places)} (see python -m a.command --help)"


def test_what_is_right_is_parsed(tmp_path):
    assert positive("12") == 12
    assert some_of(("cv2", "pix"))("pix, cv2") == ["pix", "cv2"] and some_of(())("") == []
    assert new_folder(f"{tmp_path}/a/b") == tmp_path / "a/b" and new_folder("a") == Path("a")
    assert new_file(f"{tmp_path}/a/b") == tmp_path / "a/b" and new_file("a") == Path("a")


def test_a_command_returns_its_exit_code(capsys):
    assert command(lambda argv: len(argv), ["a", "b", "c"]) == 3
    assert command(lambda argv: None, []) == 0

    def interrupted(argv):
        raise KeyboardInterrupt(*argv)

    assert command(interrupted, []) == command(interrupted, ["goes on"], name=lambda: "bjax (process 1)") == 130
    assert capsys.readouterr().err == "bjax: interrupted\nbjax (process 1): goes on\n"
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        command(lambda argv: 1 / 0, [])


def test_a_run_that_is_interrupted_says_how_to_go_on(monkeypatch, tmp_path, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("bjax.train.run", interrupted)
    config = f"--config={ROOT}/configs/vit_mask.py:demo"
    assert importlib.import_module("bjax.main").main([config, f"--workdir={tmp_path}", "--distributed=off"]) == 130
    assert capsys.readouterr().err == "bjax: interrupted; the same command goes on from the last checkpoint\n"


@pytest.mark.parametrize("program", ["print('a' * 10)", "print('a\\n' * 10**6)", "Parser('x').parse_args(argv)"])
def test_output_that_nobody_reads_ends_in_silence(program):
    lines = f"import sys\nfrom bjax.errors import Parser, command\nsys.exit(command(lambda argv: {program}))"
    process = subprocess.Popen(
        [sys.executable, "-c", lines, "--help"],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    said = process.communicate()[1]
    assert (said, process.returncode) == (b"", 141)
