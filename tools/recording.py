"""Records docs/pictures/recording.svg: a run is archived, compared, deleted, restored, and compared once more.

The commands are run in a temporary directory, and what is drawn is what they printed: with ``~`` for that directory,
and without the line a minute that stands for a bar where there is no terminal. Lines appear one after another where
the viewer animates; where it does not, or the reader prefers no motion, all of them are there at once.

usage: python tools/recording.py RUN BASE    (RUN: global_step_1 to global_step_400 of the benchmarks' sparse run)
"""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "pictures" / "recording.svg"
PROGRESS = re.compile(r"\w+: \d+ %, ")
COLUMNS = 100
FONT, ADVANCE, LINE, MARGIN, BAR = 14, 8.5, 20, 16, 30
"""Size of the letters, how far one is from the next, the pitch of lines, the margin, and the bar above."""
PAUSE, READING = 1.1, 0.35
"""Seconds before each command and between two lines of output."""

STYLE = f"""
  text {{ font: {FONT}px ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace }}
  text {{ fill: #1f2328; white-space: pre }}
  .screen {{ fill: #f6f8fa; stroke: #d1d9e0 }} .bar {{ fill: #d1d9e0 }}
  .prompt {{ fill: #0969da }} .command {{ font-weight: 600 }} .output {{ fill: #59636e }}
  g {{ animation: appear 0.01s both }}
  @keyframes appear {{ from {{ opacity: 0 }} }}
  @media (prefers-reduced-motion: reduce) {{ g {{ animation: none }} }}
  @media (prefers-color-scheme: dark) {{
    text {{ fill: #e6edf3 }} .screen {{ fill: #151b23; stroke: #3d444d }} .bar {{ fill: #3d444d }}
    .prompt {{ fill: #4493f8 }} .output {{ fill: #9198a1 }}
  }}"""


def commands(last: int) -> list[str]:
    """Return what is typed, for a run whose last step is `last`."""
    return [
        "du -sh RUN | cut -f 1",
        "relex-codec encode RUN --base BASE -o run.relex --exact",
        "relex-codec info run.relex | head -8",
        "relex-codec verify run.relex --against RUN",
        f"cp -r RUN/global_step_{last} kept",
        "rm -r RUN",
        "relex-codec restore run.relex -o RUN",
        f"cmp kept/model.safetensors RUN/global_step_{last}/model.safetensors && echo the same bytes",
    ]


def played(folder: Path, last: int) -> list[tuple[str, list[str]]]:
    """Run the commands in a folder that holds ``RUN`` and ``BASE``; return each with the lines that it printed.

    One that fails ends it all.
    """
    binaries = folder / ".bin"
    binaries.mkdir()
    script = binaries / "relex-codec"
    script.write_text(f"#!{sys.executable}\nfrom relex_codec.cli.main import main\nmain()\n")
    script.chmod(0o755)
    environment = {**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "COLUMNS": str(COLUMNS)}
    found = []
    for command in commands(last):
        done = subprocess.run(
            ["bash", "-c", command], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        printed = done.stdout.decode()
        if done.returncode:
            raise SystemExit(f"{command} failed:\n{printed}")
        lines = printed.replace(str(folder), "~").splitlines()
        found.append((command, [line for line in lines if not PROGRESS.match(line)]))
    return found


def wrapped(line: str) -> list[str]:
    """Break a line where a terminal would."""
    return [line[at : at + COLUMNS] for at in range(0, len(line), COLUMNS)] or [""]


def drawing(found: list[tuple[str, list[str]]]) -> str:
    """Return the recording as SVG, one group for each line."""
    rows: list[tuple[float, str, str]] = []  # when it appears, its class, its text
    now = 0.0
    for command, printed in found:
        now += PAUSE
        rows.append((now, "command", command))
        now += PAUSE
        for line in printed:
            now += READING
            rows += [(now, "output", piece) for piece in wrapped(line)]
    width, height = 2 * MARGIN + COLUMNS * ADVANCE, BAR + 2 * MARGIN + len(rows) * LINE
    said = "a terminal in which a run is archived, compared with its checkpoints, deleted, restored, and compared again"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" role="img" aria-label="{said}">',
        f"<style>{STYLE}\n</style>",
        f'<rect class="screen" x="0.5" y="0.5" width="{width - 1:.0f}" height="{height - 1}" rx="8"/>',
        *(f'<circle class="bar" cx="{20 + 18 * dot}" cy="{BAR / 2 + 3:.0f}" r="5.5"/>' for dot in range(3)),
    ]
    for number, (when, kind, text) in enumerate(rows):
        y = BAR + MARGIN + (number + 0.75) * LINE
        prompt = '<tspan class="prompt">$ </tspan>' if kind == "command" else ""
        shown = html.escape(text, quote=False)
        lines.append(
            f'<g style="animation-delay:{when:.2f}s"><text class="{kind}" x="{MARGIN}" y="{y:.0f}" '
            f'xml:space="preserve">{prompt}{shown}</text></g>'
        )
    return "\n".join([*lines, "</svg>", ""])


def transcript(svg: str) -> list[tuple[str, list[str]]]:
    """Return the commands that a recording shows, each with its lines: those that were wrapped stay so."""
    found: list[tuple[str, list[str]]] = []
    for kind, text in re.findall(r'<text class="(\w+)"[^>]*>(.*?)</text>', svg):
        plain = html.unescape(re.sub("<.*?>", "", text))
        if kind == "command":
            found.append((plain.removeprefix("$ "), []))
        else:
            found[-1][1].append(plain)
    return found


def main() -> None:
    """Record it."""
    run, base = sys.argv[1:]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        shutil.copytree(run, folder / "RUN")
        shutil.copytree(base, folder / "BASE")
        last = max(int(path.name.rpartition("_")[2]) for path in (folder / "RUN").iterdir())
        PICTURE.write_text(drawing(played(folder, last)), encoding="utf-8")


if __name__ == "__main__":
    main()
