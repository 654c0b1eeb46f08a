"""Runs docs/first-run.ipynb and writes it back with its outputs, without what differs from one machine to the next.

Needs nbclient, ipykernel and ipywidgets, and relex-codec with the extra demo.

usage: python tools/notebook.py
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "first-run.ipynb"
KEPT = {"image/png", "text/plain"}
"""What is kept of an output that is there in several forms: what GitHub and the site can both show."""


def executed(notebook: Any, folder: str) -> Any:
    """Run all cells of a notebook, in a kernel of this interpreter, and return it; a cell that fails raises.

    Args:
        folder: where the kernel starts, as it can import what lies there.
    """
    from nbclient import NotebookClient

    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": folder}},
    )
    return client.execute()


def cleaned(notebook: Any) -> Any:
    """Take away what says nothing of the run: names of kernels, versions of Python, second forms of one output."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "data" in output:
                output.data = {kind: value for kind, value in output.data.items() if kind in KEPT}
                if "image/png" in output.data:
                    output.data.pop("text/plain", None)  # <Figure size 640x480 with 1 Axes>
    return notebook


def main() -> None:
    """Run it."""
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = folder  # where the notebook's own directory then is
        nbformat.write(cleaned(executed(notebook, folder)), NOTEBOOK)


if __name__ == "__main__":
    main()
