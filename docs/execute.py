"""Runs the pages that are notebooks and keeps what they print and draw: `python docs/execute.py` (extra `docs`).

In an empty folder, that goes with what was written into it, so that no path of this machine gets into a page.
"""

import base64
import io
import tempfile
from pathlib import Path

from PIL import Image


def execute(page: Path) -> None:
    """Runs a notebook and writes it, with its outputs, in its place."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(page, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(
            notebook,
            timeout=None,
            record_timing=False,  # and nothing that differs in every run
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        ).execute()
    for data in (output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ())):
        data.pop("image/jpeg", None)  # Pillow's pictures come as PNG as well
        if "image/png" in data:
            data["image/png"] = of_256_colours(data["image/png"])
    nbformat.write(notebook, page)
    print(f"wrote {page}")


def of_256_colours(png: str) -> str:
    """A PNG in base64, as another of a quarter of the size: notebooks are kept in the repository."""
    small = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(256).save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


if __name__ == "__main__":
    for page in sorted(Path(__file__).parent.glob("*.ipynb")):
        execute(page)
