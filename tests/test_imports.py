"""The architecture, checked: which module may import which, and what no module may import."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Arrows point down this table. A package stands for all its files; bjax.errors is open to everyone.
ALLOWED = {
    "main": {"train", "evaluate", "experiment", "config", "runtime"},
    "predict": {
        "experiment",
        "step",
        "evaluate",
        "overlay",
        "blur",
        "sharpness",
        "tokens",
        "config",
        "data",
        "runtime",
    },
    "export": {"predict", "config", "runtime"},
    "train": {"evaluate", "experiment", "step", "config", "runtime"},
    "evaluate": {
        "experiment",
        "step",
        "models",
        "blur",
        "tokens",
        "sharpness",
        "data",
        "stats",
        "config",
        "runtime",
    },
    "experiment": {"step", "models", "weights", "blur", "tokens", "data", "config", "runtime"},
    "report": {"config", "stats"},
    "step": {"blur", "tokens", "sharpness", "runtime"},
    "weights": {"models"},
    "tokens": {"sharpness"},
    "sharpness": {"blur", "data"},
    "runtime": {"config"},
    **dict.fromkeys(("config", "errors", "stats", "overlay", "blur", "data", "models"), frozenset()),
}
SOURCES = sorted((ROOT / "bjax").rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Full dotted names of everything `path` imports, at any depth of the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def unit(path: Path) -> str:
    """The row of ALLOWED that a file belongs to; bjax/__init__.py has none."""
    parts = path.relative_to(ROOT / "bjax").with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_arrows(path):
    own = unit(path)
    assert own in ALLOWED or own == "", f"{own} has no row in ALLOWED"
    for name in imported(path):
        assert not name.startswith(("tensorflow.", "torchvision", "timm", "cv2")) and name != "tensorflow", (
            name
        )
        if name.startswith("bjax."):
            other = name.split(".")[1]
            assert other in {own, "errors", *ALLOWED.get(own, ())}, f"{own} imports {other}"


@pytest.mark.parametrize("path", sorted((ROOT / "bjax/data").glob("*.py")), ids=lambda p: p.name)
def test_data_never_imports_jax(path):
    assert not any(name.split(".")[0] in ("jax", "flax", "optax") for name in imported(path))


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.name)
def test_configs_import_no_bjax(path):
    for name in imported(path):
        assert name.split(".")[0] in ("ml_collections", "configs", "difflib", "functools"), name
