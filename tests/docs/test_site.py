"""The site: every page is in its menu, every public name on the page of the API, and links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import relex_codec

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_sources", REPOSITORY / "tools" / "site.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_in_the_menu(site: ModuleType) -> None:
    menu = re.findall(r": (\S+\.md)$", (REPOSITORY / "mkdocs.yml").read_text(), re.M)
    assert sorted(menu) == sorted([*(str(page.with_suffix(".md")) for page in site.pages()), "docs/api.md"])


def test_every_public_name_is_on_the_page_of_the_api(site: ModuleType) -> None:
    named = [name for names in site.API.values() for name in names]
    assert sorted(name for name in named if "." not in name) == sorted(set(relex_codec.__all__) - {"__version__"})
    assert all(f"::: relex_codec.{name}" in site.api_page() for name in named)


def test_the_repository_has_one_address(site: ModuleType) -> None:
    assert f"repo_url: {site.address()}\n" in (REPOSITORY / "mkdocs.yml").read_text()
    assert f"repository-code: {site.address()}\n" in (REPOSITORY / "CITATION.cff").read_text()


def test_links_to_what_is_no_page_lead_to_the_repository(site: ModuleType, tmp_path: Path) -> None:
    known = set(site.pages())
    text = (
        "[a](limits.md#x) [b](../benchmarks/sizes.py) [c](../spec/vectors/) [d](https://x.org) "
        "![e](pictures/to-scale.svg) [f](first-run.ipynb#look-at-the-run)"
    )
    found = site.led(text, Path("docs/page.md"), known, tmp_path)
    address = site.address()
    assert found == (
        f"[a](limits.md#x) [b]({address}/blob/main/benchmarks/sizes.py) [c]({address}/tree/main/spec/vectors) "
        "[d](https://x.org) ![e](pictures/to-scale.svg) [f](first-run.md#look-at-the-run)"
    )
    assert (tmp_path / "docs" / "pictures" / "to-scale.svg").exists()
    with pytest.raises(SystemExit, match="not there"):
        site.led("[a](nothing.md)", Path("docs/page.md"), known, tmp_path)


def test_a_notebook_becomes_a_page_with_what_it_printed_and_drew(site: ModuleType, tmp_path: Path) -> None:
    page = site.notebook_page(REPOSITORY / "docs" / "first-run.ipynb", tmp_path)
    assert page.startswith("# A first run\n") and "\n```python\nimport os\n" in page
    assert re.search(r"^```text\n12 of 12 steps equal", page, re.M)
    (picture,) = re.findall(r"!\[.*?\]\(pictures/(.*?)\)", page)
    assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_all_sources_can_be_laid_out(site: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no link that leads nowhere, pictures of notebooks included."""
    monkeypatch.setattr("sys.argv", ["site.py", str(tmp_path / "pages")])
    site.main()
    written = {str(path.relative_to(tmp_path / "pages")) for path in (tmp_path / "pages").rglob("*.md")}
    assert {str(page.with_suffix(".md")) for page in site.pages()} | {"docs/api.md"} == written
