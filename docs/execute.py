"""Runs the pages that are notebooks and keeps what they print and draw: `python docs/execute.py` (extra `docs`).

In an empty folder, that goes with what was written into it, so that no path of this machine gets into a page.
"""

import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

for page in sorted(Path(__file__).parent.glob("*.ipynb")):
    notebook = nbformat.read(page, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(
            notebook,
            timeout=None,
            record_timing=False,  # and nothing that differs in every run
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        ).execute()
    for output in (output for cell in notebook.cells for output in cell.get("outputs", ())):
        output.get("data", {}).pop("image/jpeg", None)  # Pillow's pictures come as PNG as well
    nbformat.write(notebook, page)
    print(f"wrote {page}")
