"""``relex-codec compare``."""

from __future__ import annotations

from typing import Any

import click

from relex_codec.core.text import on_one_line

from .help import Command
from .output import as_json, base_option, columns, print_json, show


@click.command(
    "compare",
    cls=Command,
    examples=(
        ("How far apart are two steps?", "relex-codec compare run.relex --steps 100,400"),
        ("Is this checkpoint that step?", "relex-codec compare run.relex --step 400 --against RUN/checkpoint-400"),
    ),
    rare=("tier",),
)
@click.argument("file")
@click.argument("other", required=False)
@click.option("--steps", metavar="A,B", help="Compare two steps of FILE.")
@click.option("--against", metavar="DIR", help="Compare the step that --step names with this checkpoint.")
@click.option("--step", type=float, metavar="S", help="The step for --against.")
@click.option(
    "--tier",
    type=click.Choice(["auto", "line", "track", "exact"]),
    default="auto",
    show_default=True,
    help="What steps of FILE are read from.",
)
@click.option("--tensors", is_flag=True, help="Add a row for each tensor.")
@base_option
@as_json
def command(
    file: str,
    other: str | None,
    steps: str | None,
    against: str | None,
    step: float | None,
    tier: str,
    tensors: bool,
    base: str | None,
    as_json: bool,
) -> None:
    """Compare two steps of FILE (--steps), a step with a checkpoint (--against), or two runs of one base (OTHER).

    Steps: how far each is from the base, how far from each other, the angle between the two ways, and the share of
    weights and bits that differ. A checkpoint: the error relative to what it moved, what is equal, and the most floats
    between two weights (ULPs). Runs: the cosine of the ways that they went to their last observed steps.
    """
    if sum(one is not None for one in (other, steps, against)) != 1:
        raise click.UsageError("give one of --steps A,B, --against DIR, or a second file")
    if (against is None) != (step is None):
        raise click.UsageError("--against and --step go together")
    import relex_codec

    with relex_codec.open(file, base=base) as run:
        if steps is not None:
            first, second = _two(steps)
            document = run.compare(first, second, tier=tier)
        elif against is not None and step is not None:
            document = run.compare_with_checkpoint(against, step, tier=tier)
        else:
            with relex_codec.open(str(other), base=base) as second_run:
                document = run.compare_with_run(second_run)
    if as_json:
        print_json(document)
    else:
        show(_text(document, tensors, columns()))


def _two(steps: str) -> tuple[float, float]:
    try:
        first, second = (float(part) for part in steps.split(","))
    except ValueError:
        raise click.UsageError(f"--steps is {steps!r}, expected two steps such as 100,200") from None
    return first, second


TITLES = {
    "weights": "weights",
    "moved_a": "moved (a)",
    "moved_b": "moved (b)",
    "difference": "difference",
    "relative_difference": "of the weights",
    "angle": "angle",
    "weights_differ": "weights differ",
    "bits_differ": "bits differ",
    "relative_error": "error",
    "error_of_weights": "of the weights",
    "weights_equal": "weights equal",
    "bits_equal": "bits equal",
    "largest_ulps": "ULPs",
    "cosine": "cosine",
}
SHARES = ("relative_difference", "weights_differ", "bits_differ", "error_of_weights", "weights_equal", "bits_equal")


def _text(document: dict[str, Any], tensors: bool, room: int) -> str:
    parts = [f"a: {document['a']}", f"b: {document['b']}"]
    if names := document.get("only_in_one"):
        parts.append(
            f"not compared: {len(names)} that only one has, or of another dtype or shape, the first {names[0]}"
        )
    groups = [("all", "", [document["total"]]), ("kind", "kind", document["by_kind"])]
    groups.append(("layer", "layer", document["by_layer"]))
    if tensors:
        groups.append(("tensor", "name", document["tensors"]))
    for title, key, rows in groups:
        parts += ["", _table(title, key, rows, room)]
    return "\n".join(on_one_line(line) for part in parts for line in part.split("\n"))


def _table(title: str, key: str, rows: list[dict[str, Any]], room: int) -> str:
    """Return rows as a table; one that is wider than the screen goes on below, with the names again."""
    titles = [column for column in TITLES if column in rows[0]] if rows else []
    lines = [[title, *(TITLES[column] for column in titles)]]
    for row in rows:
        name = on_one_line(str(row[key])) if key and row[key] is not None else "-" if key else ""
        lines.append([name, *(_cell(column, row[column]) for column in titles)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    blocks: list[list[int]] = [[]]
    for i in range(1, len(widths)):
        if room and blocks[-1] and widths[0] + sum(widths[j] + 2 for j in (*blocks[-1], i)) > room:
            blocks.append([])
        blocks[-1].append(i)
    found = [
        "\n".join("  ".join([f"{line[0]:<{widths[0]}}", *(f"{line[i]:>{widths[i]}}" for i in block)]) for line in lines)
        for block in blocks
    ]
    return "\n".join(line.rstrip() for line in "\n\n".join(found).split("\n"))


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "-"
    if column in SHARES:
        return f"{100 * value:.4g} %"
    if column == "angle":
        return f"{value:.2f}°"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
