"""``relex-codec merge``."""

from __future__ import annotations

import click

from .help import Command
from .output import as_json, print_json, show


@click.command(
    "merge",
    cls=Command,
    examples=(
        ("After `relex-codec encode ... --shard I/N` on N machines", "relex-codec merge run.relex.part-* -o run.relex"),
    ),
)
@click.argument("parts", nargs=-1, required=True, metavar="PART...")
@click.option(
    "-o", "--output", required=True, metavar="FILE", help="The file to write, path or URL, called NAME.relex."
)
@click.option("-f", "--force", "overwrite", is_flag=True, help="Replace FILE if it exists.")
@as_json
def command(parts: tuple[str, ...], output: str, overwrite: bool, as_json: bool) -> None:
    """Join the parts of a file that `relex-codec encode --shard I/N` wrote.

    FILE is byte for byte what `encode` writes without --shard. All parts are needed, in any order; those that are
    missing, given twice, or of another run or other options are named. Parts stay where they are:
    """
    import relex_codec

    relex_codec.merge(parts, output, overwrite=overwrite)
    with relex_codec.open(output) as file:
        document = file.info()
    if as_json:
        print_json(document)
        return
    steps, sizes = document["steps"], document["bytes"]
    count = "1 step" if len(steps) == 1 else f"{len(steps)} steps"
    joined = "1 part" if len(parts) == 1 else f"{len(parts)} parts"
    show(f"{output}: {count} of {document['parameters']:,} parameters in {sizes['total']:,} bytes, of {joined}")
