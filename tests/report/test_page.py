"""The page: one file without a network, made of the numbers of `info --json`, and looked at in a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import relex_codec
from relex_codec.report.numbers import collect
from relex_codec.trust.scores import parse_scores
from support.commands import cli, failed
from support.runs import Made

pytest.importorskip("bokeh", reason="bokeh (extra report) is not installed")

Zoo = Callable[..., Path]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.fixture(scope="module")
def written(zoo_file: Zoo, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A page of a run with errors and scores, and what ``info`` says of the run."""
    from relex_codec.report.page import page

    with relex_codec.open(zoo_file("micro", exact=True)) as run:
        numbers = collect(run)
        info = run.info()
    steps = len(numbers.steps)
    rows = [{"step": step, "tier": "line", "score": step / 100} for step in (23, 40, 60)]
    scores = parse_scores(json.dumps({"metric": "solved", "scores": rows}), "x")
    errors = np.vstack([np.linspace(0.9, 0.3, steps), np.linspace(1.4, 0.4, steps)])
    path = tmp_path_factory.mktemp("page") / "run.html"
    path.write_text(page(replace(numbers, errors=errors, scores=scores), "zoo <b>run</b>"), encoding="utf-8")
    return path, info


def parts(text: str) -> str:
    """The page without scripts and styles."""
    return re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.S)


def test_it_needs_nothing_else(written: tuple[Path, dict[str, Any]]) -> None:
    text = written[0].read_text(encoding="utf-8")
    assert len(text) < 3_000_000
    assert not re.search(
        r"<(script|link|img|iframe)[^>]*\b(src|href)=", parts(text) + "".join(re.findall(r"<script[^>]*>", text))
    )
    assert "default-src 'none'" in text and "http:" not in parts(text) and "https:" not in parts(text)
    assert "zoo &lt;b&gt;run&lt;/b&gt;" in text and "<b>run" not in text


def test_numbers_are_those_of_info(written: tuple[Path, dict[str, Any]]) -> None:
    """Every number in a table of the page is found in what ``info --json`` says."""
    path, info = written
    text = parts(path.read_text(encoding="utf-8"))
    known = {f"{x:.6g}" for x in numbers_in(info)}
    tables = re.findall(r"<table>.*?</table>", text, flags=re.S)
    assert len(tables) == 4
    cells = [html.unescape(cell) for table in tables for cell in re.findall(r"<td class=number>(.*?)</td>", table)]
    checked = 0
    for cell in cells:
        if cell == "-" or cell.endswith(" %"):
            continue
        number = float(cell.replace(",", ""))
        if f"{number:.6g}" not in known:  # counts by kind
            rows = info["tensor_rows"]
            counts = [sum(row["kind"] == kind for row in rows) for kind in {row["kind"] for row in rows}]
            sizes = [
                sum(int(np.prod(row["shape"])) for row in rows if row["kind"] == kind)
                for kind in {row["kind"] for row in rows}
            ]
            assert number in [*counts, *sizes], cell
        checked += 1
    assert checked > 60
    assert info["digest"] in text and f"{info['parameters']:,} parameters" in text
    for word in info["trust"]["words"] if info["trust"] else []:
        assert html.escape(word[1:]) in text


def numbers_in(document: Any) -> list[float]:
    if isinstance(document, dict):
        return [x for value in document.values() for x in numbers_in(value)]
    if isinstance(document, list):
        return [x for value in document for x in numbers_in(value)]
    return [float(document)] if isinstance(document, (int, float)) and not isinstance(document, bool) else []


def test_the_command(zoo_run: Made, zoo_file: Zoo, tmp_path: Path) -> None:
    out = tmp_path / "x.html"
    done = cli("report", zoo_file("raw"), "-o", out, "--title", "mine")
    assert done.returncode == 0 and "<h1>mine</h1>" in out.read_text(encoding="utf-8")
    failed(cli("report", zoo_file("raw"), "-o", out), "it exists")
    assert json.loads(cli("report", zoo_file("raw"), "-o", out, "-f", "--json").stdout)["bytes"] == out.stat().st_size
    failed(cli("report", zoo_file("raw"), "-o", tmp_path / "x.pdf"), "ends in .html")


def test_a_run_that_does_not_move_has_a_page(tmp_path: Path) -> None:
    from relex_codec.report.page import page
    from support.checkpoints import write_checkpoint, write_run
    from support.tensors import bf16

    write_checkpoint(tmp_path / "base", {"w": bf16([1.0] * 4)})
    write_run(tmp_path / "run", [1], lambda step: {"w": bf16([1.0] * 4)})
    relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=tmp_path / "base")
    with relex_codec.open(tmp_path / "x.relex") as run:
        text = page(collect(run), "still")
    assert "No tensor moved" in text and "<script" in text and len(text) < 20_000


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
@pytest.mark.parametrize("width", [500, 1200])
def test_a_browser_shows_it(written: tuple[Path, dict[str, Any]], tmp_path: Path, width: int) -> None:
    """All charts are there, nothing is wrong in the console, and nothing is asked of a network."""
    pytest.importorskip("matplotlib")
    from matplotlib import image

    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr",
        "--virtual-time-budget=10000", f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},3600",
        f"--screenshot={tmp_path / 'page.png'}", written[0].as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, cwd=tmp_path)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert console and "document idle" in console[-1], done.stderr[-3000:]
    assert [line for line in console if "bokeh" not in line or "rror" in line] == []
    pixels = np.asarray(image.imread(tmp_path / "page.png"))[..., :3]
    assert pixels.shape[1] == width
    blue, red = (np.abs(pixels - np.array(c) / 255).max(axis=-1) < 0.03 for c in ((0, 0x72, 0xB2), (0xF9, 0xE8, 0xDB)))
    assert blue.sum() > 200  # the line of all tensors, and that of tier track
    assert red.sum() > 5000  # what lies beyond the best step
    bright = (pixels[..., 0] > 0.8) & (pixels[..., 2] < 0.4) & (pixels[..., 1] > 0.7)
    assert bright.sum() > 500  # the heat maps
