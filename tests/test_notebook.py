"""The documentation's notebook: as it was run, and what it shows still works."""

import base64
import importlib
import inspect
import json
import re
import shlex
from pathlib import Path

import matplotlib
import pytest

from bjax import blur
from bjax.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/walk.ipynb"
CELLS = [cell for cell in json.loads(PAGE.read_text())["cells"] if cell["cell_type"] == "code"]


def outputs(kind):
    """What the notebook shows: all that is of a MIME type, or the text that it prints (text/plain)."""
    for output in (output for cell in CELLS for output in cell["outputs"]):
        if output["output_type"] == "stream":
            yield from ["".join(output["text"])] * (kind == "text/plain")
        elif kind in output["data"]:
            yield "".join(output["data"][kind])


def test_the_notebook_was_run_from_top_to_bottom():
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    kinds = {output["output_type"] for cell in CELLS for output in cell["outputs"]}
    assert kinds <= {"stream", "display_data", "execute_result"}  # no error
    pictures = [base64.b64decode(data) for data in outputs("image/png")]
    assert len(pictures) == 4 and all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert PAGE.stat().st_size < 500_000


def test_the_notebook_holds_nothing_of_the_machine_that_ran_it():
    told = "\n".join(outputs("text/plain"))
    assert not re.findall(r"/(?:tmp|opt|root|home|usr|var)\b\S*", told)
    assert not re.findall(r"[\x00-\x08\x0b-\x1f]", told)  # of a progress bar
    assert max(map(len, told.splitlines())) <= 120


def called_right(function):
    def unchanged(images, *arguments, **options):
        inspect.signature(function).bind(images, *arguments, **options)
        return images

    return unchanged


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # a picture that nothing here shows
def test_what_the_notebook_shows_still_works(tiny_run, tmp_path, monkeypatch):
    """All but the training, in whose place there is a run already."""
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    for name in ("motion", "defocus"):  # 2 s of compilation each; tests/test_blur.py has them
        monkeypatch.setattr(blur, name, called_right(getattr(blur, name)))
    names = {}
    for cell in CELLS:
        source = "".join(cell["source"])
        if not source.startswith("%%bash\n"):
            exec(compile(source, PAGE.name, "exec"), names)
            continue
        name, command, *argv = shlex.split(source.removeprefix("%%bash\n").replace("\\\n", ""))
        main = importlib.import_module(COMMANDS[command][0]).main
        assert name == "bjax"
        if command == "train":
            assert main([*argv, "--print_config"]) == 0
            Path("run").symlink_to(tiny_run)
        else:
            assert main(argv) == 0
    names["plt"].close("all")
    assert names["answer"].kept == pytest.approx(0.5)
