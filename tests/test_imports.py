"""The architecture, checked: which module may import which, and what no module may import."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Arrows point down this table. A package stands for all its files; bjax.errors is open to everyone.
ALLOWED = {
    "": {"blur", "errors", "export", "models", "predict", "sharpness", "tokens", "weights"},  # for type checkers
    "__main__": frozenset(),
    "main": {"train", "evaluate", "experiment", "small", "report", "config", "runtime"},
    "predict": {"predictor", "experiment", "report", "data", "stats", "runtime"},
    "predictor": {
        "experiment",
        "step",
        "blur",
        "sharpness",
        "tokens",
        "specs",
        "config",
        "data",
        "sums",
        "runtime",
        "stats",
    },
    "export": {"predictor", "config", "sums", "runtime"},
    "thresholds": {"sharpness", "blur", "data", "specs"},
    "train": {"nonfinite", "evaluate", "experiment", "step", "config", "runtime"},
    "nonfinite": {"experiment", "runtime"},
    "evaluate": {
        "experiment",
        "step",
        "models",
        "blur",
        "tokens",
        "sharpness",
        "data",
        "stats",
        "specs",
        "config",
        "runtime",
    },
    "experiment": {"step", "models", "weights", "blur", "tokens", "data", "specs", "config", "runtime", "published"},
    "small": {"published", "data", "config", "runtime"},
    "aot": {"experiment", "step", "runtime"},
    "report": {"config", "specs", "options", "stats", "sums"},
    "step": {"blur", "tokens", "sharpness", "specs", "runtime"},
    "weights": {"models", "runtime", "published"},
    "tokens": {"sharpness", "specs"},
    "blur": {"specs"},
    "sharpness": {"specs"},
    "runtime": {"config", "specs", "options", "manifest", "sums"},
    "config": {"combinations", "specs", "options", "sums"},
    "combinations": {"specs"},
    "specs": {"blur_spec", "options"},
    "blur_spec": {"options"},
    "data": {"specs", "manifest"},
    **dict.fromkeys(("errors", "options", "stats", "models", "manifest", "sums", "published"), frozenset()),
}
# Of the report: each can be read, changed and left out alone; what they share lies below them.
SECTIONS = ("answers", "adapt", "paper1", "matrix", "sweeps", "ranking", "curves", "calibration", "patches", "masks")
SECTIONS += ("paper2", "facts")
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
    """The row of ALLOWED that a file belongs to; of bjax/__init__.py it is ""."""
    parts = path.relative_to(ROOT / "bjax").with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_arrows(path):
    own = unit(path)
    assert own in ALLOWED, f"{own} has no row in ALLOWED"
    for name in imported(path):
        assert not name.startswith(("tensorflow.", "torchvision", "timm", "cv2")) and name != "tensorflow", name
        if name.startswith("bjax."):
            other = name.split(".")[1]
            assert other in {own, "errors", *ALLOWED.get(own, ())}, f"{own} imports {other}"


@pytest.mark.parametrize("section", SECTIONS)
def test_sections_of_the_report_import_no_section(section):
    names = imported(ROOT / f"bjax/report/{section}.py")
    assert not {".".join(name.split(".")[:3]) for name in names} & {f"bjax.report.{s}" for s in SECTIONS}


@pytest.mark.parametrize("path", sorted((ROOT / "bjax/data").glob("*.py")), ids=lambda p: p.name)
def test_data_never_imports_jax(path):
    assert not any(name.split(".")[0] in ("jax", "jaxtyping", "flax", "optax") for name in imported(path))


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.name)
def test_configs_import_no_bjax_but_what_can_be_asked_for(path):
    for name in imported(path):
        assert name.split(".")[0] in ("ml_collections", "functools") or name.startswith(
            ("bjax.specs", "bjax.options", "bjax.errors", "bjax.published", "bjax.configs")
        ), name


@pytest.mark.parametrize("name", ["specs", "blur_spec", "options", "stats", "errors", "published"])
def test_what_can_be_asked_for_needs_nothing_of_bjax(name):
    """So configs, which have no devices, and a report, which has no JAX, can read it."""
    known = () if name in ("stats", "errors") else ("bjax.errors", "bjax.options", "bjax.blur_spec")
    others = [x for x in imported(ROOT / "bjax" / f"{name}.py") if x.startswith(("bjax", "jax", "flax"))]
    assert all(x.startswith(known) for x in others), others
