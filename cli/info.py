"""``relex-codec info``."""

from __future__ import annotations

import sys

import click

from .output import as_json, print_json, show


@click.command("info")
@click.argument("file")
@click.option("--tensors", is_flag=True, help="Add a row for each tensor.")
@as_json
def command(file: str, tensors: bool, as_json: bool) -> None:
    """Show what FILE holds: base, steps, sizes, and how well a line describes the run."""
    import relex_codec
    from relex_codec.run.error_text import BLOCKS, PLAIN
    from relex_codec.run.info import text

    with relex_codec.open(file) as run:
        document = run.info()
    if as_json:
        print_json(document)
    else:
        show(text(document, tensors, BLOCKS if _can_show(BLOCKS) else PLAIN))


def _can_show(characters: str) -> bool:
    try:
        characters.encode(sys.stdout.encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return True
