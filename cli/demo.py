"""``relex-codec demo``."""

from __future__ import annotations

from pathlib import Path

import click

from .help import Command
from .output import as_json, print_json, show


@click.command(
    "demo",
    cls=Command,
    examples=(("Keep what it makes, to look at", "relex-codec demo relex-demo"),),
)
@click.argument("directory", required=False, type=click.Path(path_type=Path))
@click.option("--steps", type=click.IntRange(min=2), default=60, show_default=True, help="Training steps to observe.")
@as_json
def command(directory: Path | None, steps: int, as_json: bool) -> None:
    """Train a small model with GRPO, archive the run bit for bit, restore and compare it, extrapolate, score it all.

    Everything stays in DIRECTORY if one is given. Takes about a minute on two cores.
    """
    from relex_codec.demo.run_demo import run_demo

    report = run_demo(directory, steps=steps)
    if as_json:
        print_json(report.as_dict())
    else:
        show(report.table())
