"""bjax as a package: its commands, what its import costs, and its configs where there is no clone."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import bjax
from bjax import __main__ as door
from bjax import config
from bjax.errors import UserError

ROOT = Path(__file__).parents[1]
OWN = """
from mine.base import SEED
from bjax.configs import vit_mask

def get_config(arg=""):
    config = vit_mask.get_config(arg)
    config.seed = SEED
    return config
"""


def python(*arguments, cwd=ROOT, path=ROOT):
    environment = {**os.environ, "PYTHONPATH": str(path)}
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_importing_bjax_imports_nothing():
    program = """
import sys
before = set(sys.modules)
import bjax
print(sorted(name for name in set(sys.modules) - before if name.split(".")[0] not in sys.stdlib_module_names))
print(bjax.predict.load.__name__, "jax" in sys.modules)
"""
    assert python("-c", program) == (0, "['bjax']\nload True\n", "")


def test_a_start_imports_nothing_that_can_wait_and_looks_for_garbage_only_afterwards():
    program = """
import contextlib, gc, io, runpy, sys
sys.argv = ["bjax.main", "--config=vit.py:demo", "--print_config"]
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    runpy.run_module("bjax.main", run_name="__main__")
print("scipy" in sys.modules, gc.isenabled(), gc.get_freeze_count() > 100_000)
"""
    assert python("-c", program) == (0, "False True True\n", "")


def test_compiled_programs_are_kept_small_ones_too_unless_jax_is_told_otherwise(tmp_path, monkeypatch):
    program = """
import jax
from bjax.runtime import compile_cache
compile_cache.keep()
jax.jit(lambda x: x + 1)(1.0)
"""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("COMPILATION_CACHE_DIR", "PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.delenv(f"JAX_{name}", raising=False)
    assert python("-c", program) == (0, "", "")
    assert len(list((tmp_path / ".cache/bjax/xla").glob("*-cache"))) == 1
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "other"))
    assert python("-c", program) == (0, "", "")
    assert len(list((tmp_path / "other").glob("*-cache"))) == 1
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "60")
    assert python("-c", program.replace("+ 1", "+ 2")) == (0, "", "")
    assert len(list((tmp_path / "other").glob("*-cache"))) == 1


def test_the_face_of_bjax_is_the_same_for_people_and_type_checkers():
    tree = ast.parse((ROOT / "bjax/__init__.py").read_text())
    named = [
        a.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "bjax"
        for a in node.names
    ]
    assert ["__version__", *named] == bjax.__all__
    assert set(bjax.__all__) <= set(dir(bjax))
    assert all(getattr(bjax, name).__name__ == f"bjax.{name}" for name in named)
    with pytest.raises(AttributeError, match="module 'bjax' has no attribute 'blurr'"):
        bjax.blurr  # noqa: B018


def test_the_version_is_one():
    cited = (ROOT / "CITATION.cff").read_text().splitlines()
    assert f"version: {bjax.__version__}" in cited
    assert f'version = "{bjax.__version__}"' in (ROOT / "pyproject.toml").read_text().splitlines()


def test_the_help_is_one_screen_and_names_every_command(capsys):
    for argv in ([], ["--help"], ["-h"]):
        assert door.main(argv) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) <= 24 and max(map(len, lines)) <= 80
        assert all(any(line.startswith(f"  {name} ") for line in lines) for name in door.COMMANDS)
    assert door.main(["--version"]) == 0
    assert capsys.readouterr().out == f"bjax {bjax.__version__}\n"


def test_an_unknown_command_is_told_with_the_nearest(capsys):
    assert door.main(["tarin", "--help"]) == 2
    assert capsys.readouterr().err.startswith("bjax: tarin: no such command (did you mean train?); there are: train, ")


@pytest.mark.parametrize("name", ["local", "sweep", "weights"])
def test_a_command_is_that_of_its_module(name):
    code, help, _ = python("-m", "bjax", name, "--help")
    assert (code, help.split(" [")[0]) == (0, f"usage: bjax {name}")
    code, _, said = python("-m", "bjax", name, "--wrong")
    assert code == 2 and said.endswith(f"(see bjax {name} --help)\n")


def test_every_command_has_help(capsys):
    for name, (module, _) in door.COMMANDS.items():
        module = importlib.import_module(f"{module}.__main__" if name == "weights" else module)
        with pytest.raises(SystemExit) as e:
            module.main(["--help"])
        assert (e.value.code, capsys.readouterr().out.startswith("usage: ")) == (0, True), name


def test_every_command_has_a_module():
    for module, _ in door.COMMANDS.values():
        path = ROOT / module.replace(".", "/")
        program = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        assert "__main__" in program.name or 'if __name__ == "__main__"' in program.read_text()


def test_configs_come_with_the_package_and_a_users_own_come_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    packaged = config.load("vit_mask.py:demo")
    assert config.load("configs/vit_mask.py:demo") == config.load(f"{ROOT}/configs/vit_mask.py:demo") == packaged
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/vit_mask.py").write_text(OWN.replace("from mine.base import SEED", "SEED = 3"))
    assert config.load("configs/vit_mask.py:demo").seed == 3
    assert config.load("vit_mask.py:demo") == packaged
    with pytest.raises(UserError) as e:
        config.load("vit_maks.py:demo")
    assert "no such file (did you mean" in str(e.value) and "configs/vit_mask.py, densenet121.py, " in str(e.value)
    with pytest.raises(UserError, match="no such file"):
        config.load("elsewhere/vit_mask.py:demo")


def test_a_users_folder_of_configs_works_beside_the_packages(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site/bjax").symlink_to(ROOT / "bjax")  # as of the wheel: without a clone's configs/
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/base.py").write_text("SEED = 7\n")
    (tmp_path / "configs/mine.py").write_text(OWN.replace("mine.base", "configs.base"))
    flags = ("--config=configs/mine.py:demo", "--executor=print", "--grid", "optim.lr=1e-4,1e-3")
    # -P: as of the script `bjax`, the working directory is not on the path.
    code, printed, said = python("-P", "-m", "bjax", "sweep", *flags, cwd=tmp_path, path=tmp_path / "site")
    assert (code, said, printed.count("-m bjax.main --config=configs/mine.py:demo ")) == (0, "", 2)
