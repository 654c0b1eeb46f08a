"""Every snippet of README.md and docs/ runs, in order, on a small run that is called what the text calls it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from relex_codec.demo.run_demo import BASE
from support.servers.fixtures import Bucket
from support.torch_dcp import ALONE

pytest.importorskip("transformers")

import torch
from safetensors.torch import load_file, save_file

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md")))
NOT_HERE = ("pip install", "tools/demo.sh")
"""Commands that are tried otherwise: by tools/test.sh, and in tests/demo."""


class Snippet(NamedTuple):
    """A fenced block.

    Attributes:
        line: where it begins, for messages.
        skipped: why it is not run, where a comment before it says so.
    """

    line: int
    language: str
    code: str
    skipped: str


def snippets(text: str) -> list[Snippet]:
    """The fenced blocks of a page; those without a language are output, or drawings."""
    found = []
    fences = re.compile(r"^(?:<!-- not run: (.*?) -->\n)?```(\w*)\n(.*?)^```$", re.M | re.S)
    for match in fences.finditer(text):
        found.append(Snippet(text.count("\n", 0, match.start()) + 1, match[2], match[3], match[1] or ""))
    return found


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``RUN`` (four steps of the demonstration's model), ``LATER`` (one more) and ``BASE``."""
    shutil.copytree(BASE, tmp_path / "BASE")
    base = load_file(tmp_path / "BASE" / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    drift = {name: torch.randn(value.shape, generator=generator) * 1e-4 for name, value in base.items()}
    for step in (100, 200, 300, 400, 500):
        folder = tmp_path / ("LATER" if step == 500 else "RUN") / f"checkpoint-{step}"
        shutil.copytree(BASE, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        moved = {name: (value + drift[name] * step / 100).to(value.dtype) for name, value in base.items()}
        save_file(moved, folder / "model.safetensors", {"format": "pt"})
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def bucket(request: pytest.FixtureRequest, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``s3://bucket`` with the run, its base and ``run.relex``, where the environment says how to reach it."""
    if request.node.callspec.params["page"] != "docs/cloud.md":
        yield
        return
    made: Bucket = request.getfixturevalue("moto_bucket")
    made.filesystem.call_s3("create_bucket", Bucket="bucket")
    for folder in ("RUN", "BASE"):
        made.filesystem.put(str(workplace / folder), f"bucket/{folder}", recursive=True)
    monkeypatch.setenv("AWS_ENDPOINT_URL", made.options["endpoint_url"])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", made.options["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", made.options["secret"])
    yield
    made.filesystem.rm("bucket", recursive=True)


def shell(code: str, folder: Path) -> None:
    """Run the lines of a block as they stand, with this package's command first on the path."""
    commands = [line for line in code.splitlines() if line.strip() and not line.startswith(NOT_HERE)]
    bin_folder = folder / ".bin"
    bin_folder.mkdir(exist_ok=True)
    script = bin_folder / "relex-codec"
    script.write_text(f"#!{sys.executable}\nfrom relex_codec.cli.main import main\nmain()\n")
    script.chmod(0o755)
    path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", command], cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable):UserWarning")
@pytest.mark.parametrize("page", PAGES)
def test_every_snippet_runs(page: str, workplace: Path, bucket: None, capsys: pytest.CaptureFixture[str]) -> None:
    found = [one for one in snippets((REPOSITORY / page).read_text()) if one.language]
    if "no_dist" in "".join(one.code for one in found) and not ALONE:
        pytest.skip(f"torch {torch.__version__} has no `no_dist`")
    names: dict[str, Any] = {"__name__": "snippet"}
    itself = ("-o run.relex", '"run.relex", base="BASE"')
    if found and page != "docs/cloud.md" and not any(said in one.code for one in found for said in itself):
        import relex_codec

        relex_codec.encode("RUN", "run.relex", base="BASE", exact=True)
    for one in found:
        assert one.language in ("sh", "python"), f"{page}:{one.line}: nobody runs {one.language}"
        if one.skipped:
            continue
        if one.language == "sh":
            shell(one.code, workplace)
        else:
            exec(compile("\n" * one.line + one.code, f"{page}", "exec"), names)
    capsys.readouterr()


def test_links_lead_somewhere() -> None:
    """Relative links of all pages, and the headings that they name."""
    for page in PAGES:
        text = (REPOSITORY / page).read_text()
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" in target:
                continue
            path, _, heading = target.partition("#")
            there = ((REPOSITORY / page).parent / path).resolve() if path else REPOSITORY / page
            assert there.exists(), f"{page} links to {target}"
            if heading:
                titles = re.findall(r"^#+ (.*)$", there.read_text(), re.M)
                anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
                assert heading in anchors, f"{page} links to {target}"


def test_the_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text().split()) <= 1500
