"""Draws docs/pictures/to-scale.svg: the checkpoints of a real run beside the file that gives them back, areas to scale.

The sizes are those of benchmarks/results: `sizes.json` (a checkpoint, the line) and `exact.json` (the exact tier).

usage: python tools/pictures.py
"""

from __future__ import annotations

import json
import math
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
SIDE, GAP, COLUMNS = 13.0, 3.0, 25
"""Of the square that is one checkpoint, and how many stand in a row."""
STYLE = """
  text { font: 15px system-ui, -apple-system, 'Segoe UI', sans-serif; fill: #24292f }
  .small { font-size: 13px; fill: #57606a }
  .big { font-size: 17px; font-weight: 600 }
  .checkpoint { fill: #8c959f }
  .exact { fill: #0969da } .line { fill: #d4760a }
  .arrow { stroke: #57606a; fill: none; stroke-width: 1.5 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .small { fill: #9198a1 } .checkpoint { fill: #6e7681 }
    .exact { fill: #4493f8 } .line { fill: #e3912d } .arrow { stroke: #9198a1 }
  }"""


def main() -> None:
    """Draw it."""
    sizes = json.loads((RESULTS / "sizes.json").read_text())
    run = sizes["peers"]["sparse"]
    (row,) = (row for row in sizes["rows"] if (row["run"], row["quality"]) == ("sparse", "default"))
    frames = next(
        row["bytes"] for row in json.loads((RESULTS / "exact.json").read_text())["cases"]["sparse"]["rows"]
        if row["codec"] == "relex-codec"
    )  # fmt: skip
    steps, checkpoint, line = run["steps"], run["checkpoint"], row["bytes"]["total"]
    drawing = picture(steps, checkpoint, line, frames)
    (REPOSITORY / "docs" / "pictures" / "to-scale.svg").write_text(drawing)


def square(x: float, y: float, area: float, kind: str) -> str:
    """Return a square of an area that is given in checkpoints."""
    side = SIDE * math.sqrt(area)
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{side:.2f}" height="{side:.2f}" rx="1"/>'


def picture(steps: int, checkpoint: int, line: int, frames: int) -> str:
    """Return the drawing.

    Args:
        checkpoint, line, frames: bytes of one step, of a file without the exact tier, and of the exact tier.
    """
    pitch = SIDE + GAP
    rows = math.ceil(steps / COLUMNS)
    left, top = 10.0, 52.0
    width, height = left + COLUMNS * pitch + 400, top + rows * pitch + 14
    total = (line + frames) / 1e6
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'aria-label="{steps} checkpoints of a run as {steps} squares, and the file that gives them all back as one of '
        f'{(line + frames) / checkpoint:.1f} squares, to scale">',
        f"<style>{STYLE}</style>",
        f'<text class="big" x="{left}" y="22">{steps} checkpoints of a run</text>',
        f'<text class="small" x="{left}" y="42">{steps * checkpoint / 1e9:.2f} GB; each square is one step</text>',
    ]
    for number in range(steps):
        out.append(square(left + number % COLUMNS * pitch, top + number // COLUMNS * pitch, 1, "checkpoint"))
    middle = top + rows * pitch / 2
    begin = left + COLUMNS * pitch + 10
    out += [
        f'<path class="arrow" d="M{begin:.0f} {middle:.0f} h52 m-8 -5 l8 5 l-8 5"/>',
        f'<text class="small" x="{begin + 4:.0f}" y="{middle - 10:.0f}">encode</text>',
    ]
    x, y = begin + 78, middle - SIDE
    out += [
        square(x, y, frames / checkpoint, "exact"),
        square(x + SIDE * math.sqrt(frames / checkpoint) + 3, y, line / checkpoint, "line"),
        f'<text class="big" x="{x:.0f}" y="{y - 40:.0f}">run.relex</text>',
        f'<text class="small" x="{x:.0f}" y="{y - 20:.0f}">{total:.1f} MB, to the same scale</text>',
        f'<rect class="exact" x="{x:.0f}" y="{y + 34:.0f}" width="10" height="10"/>',
        f'<text class="small" x="{x + 16:.0f}" y="{y + 43:.0f}">every step, bit for bit ({frames / 1e6:.1f} MB)</text>',
        f'<rect class="line" x="{x:.0f}" y="{y + 56:.0f}" width="10" height="10"/>',
        f'<text class="small" x="{x + 16:.0f}" y="{y + 65:.0f}">'
        f"the line: any step, roughly ({line / 1e6:.1f} MB)</text>",
        "</svg>",
    ]
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    main()
