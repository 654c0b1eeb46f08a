"""Lays out the sources of the site: README, docs/, spec/ and the rest as they stand, and a page of the API.

Pages keep their places, so that a link works in the repository and on the site alike. Links to what is no page (code,
results, vectors) lead to the repository. Notebooks become pages with their outputs.

usage: python tools/site.py DIRECTORY
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/*.md", "docs/*.ipynb", "spec/*.md", "spec/*/README.md")
PICTURES = {".png", ".svg", ".gif"}
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
SOURCE = re.compile(r'(<img[^>]* src=")([^"]+)(")')

API = {
    "Open a file": ("open", "Run", "Resident", "safe_open"),
    "Write one": ("encode", "append", "merge", "Recorder"),
    "With other libraries": (
        "load_model", "load_tokenizer", "RelexStorageReader", "integrations.fsspec_filesystem.RelexFileSystem",
        "integrations.trainer.RelexCallback", "integrations.vllm.switch", "integrations.vllm.verify",
    ),
    "What these return": (
        "Coefficients", "Trust", "run.adapter.Adapter", "run.comparison.Comparison", "run.comparison.Difference",
        "run.patches.Patch", "run.safe_open.Slice", "run.sweep.Sweep", "run.sweep.SweepRow", "trust.fits.HeldOut",
        "trust.scores.Score", "trust.scores.Scores", "integrations.vllm.Switched",
    ),
    "Errors": (
        "RelexError", "InvalidArgument", "CheckpointError", "BaseMismatch", "Unsupported", "Truncated", "Corrupt",
    ),
}  # fmt: skip
"""Public names, by what one wants to do. Those of ``relex_codec`` itself are here all, which a test holds."""


def address() -> str:
    """Return where the repository is, as pyproject.toml says."""
    found = re.search(r'^Repository = "(.*)"$', (REPOSITORY / "pyproject.toml").read_text(), re.M)
    if found is None:
        raise SystemExit("pyproject.toml names no Repository under [project.urls]")
    return found[1]


def pages() -> list[Path]:
    """Return the pages, relative to the repository."""
    return sorted(path.relative_to(REPOSITORY) for pattern in PAGES for path in REPOSITORY.glob(pattern))


def led(text: str, page: Path, known: set[Path], site: Path) -> str:
    """Return the text of a page with links to what is no page leading to the repository, and its pictures copied."""

    def lead(match: re.Match[str]) -> str:
        before, target, after = match.groups()
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        if (site / page.parent / target).is_file() and Path(target).suffix in PICTURES:
            return match[0]  # a picture of a notebook, which is on the site alone
        there = (REPOSITORY / page.parent / target).resolve()
        if not there.exists():
            raise SystemExit(f"{page} links to {target}, which is not there")
        path = there.relative_to(REPOSITORY)
        if path in known:
            return f"{before}{target.removesuffix('.ipynb')}.md{after}" if path.suffix == ".ipynb" else match[0]
        if there.suffix in PICTURES:
            (site / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(there, site / path)
            return match[0]
        return f"{before}{address()}/{'tree' if there.is_dir() else 'blob'}/main/{path}{after}"

    return SOURCE.sub(lead, LINK.sub(lead, text))


def notebook_page(notebook: Path, pictures: Path) -> str:
    """Return a notebook as Markdown: texts, cells, and under each what it printed; its pictures are written."""
    pictures.mkdir(parents=True, exist_ok=True)
    parts = []
    for number, cell in enumerate(json.loads(notebook.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {"text/plain": output.get("text", [])})
            if "image/png" in data:
                picture = pictures / f"{notebook.stem}-{number}.png"
                picture.write_bytes(base64.b64decode("".join(data["image/png"])))
                parts.append(f"![what the cell draws](pictures/{picture.name})")
            else:
                parts.append("```text\n" + "".join(data["text/plain"]).rstrip("\n") + "\n```")
        if number == 0:
            parts.append(
                f"This page is [a notebook]({address()}/blob/main/{notebook.relative_to(REPOSITORY)}) with its output."
            )
    return "\n\n".join(parts) + "\n"


def api_page() -> str:
    """Return the page of the public names; what stands there comes from their docstrings."""
    lines = [
        "# Python API",
        "",
        "[Python](python.md) shows it in use. Examples read `run.relex`, which was encoded with `exact=True` from "
        "`base/` and steps 10 to 40 of `ckpts/`, and is open as `run`.",
        "",
    ]
    for title, names in API.items():
        lines += [f"## {title}", ""]
        for name in names:
            lines += [f"::: relex_codec.{name}", ""]
    return "\n".join(lines)


def main() -> None:
    """Lay the sources out."""
    (place,) = sys.argv[1:]
    site = Path(place)
    shutil.rmtree(site, ignore_errors=True)
    known = set(pages())
    for page in known:
        (site / page).parent.mkdir(parents=True, exist_ok=True)
        source = REPOSITORY / page
        notebook = page.suffix == ".ipynb"
        text = notebook_page(source, site / "docs" / "pictures") if notebook else source.read_text()
        (site / page.with_suffix(".md")).write_text(led(text, page, known, site))
    (site / "docs" / "api.md").write_text(api_page())


if __name__ == "__main__":
    main()
