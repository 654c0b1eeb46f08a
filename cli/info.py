"""``relex-codec info``."""

from __future__ import annotations

import click

from .output import as_json, print_json, show


@click.command("info")
@click.argument("file")
@click.option("--tensors", is_flag=True, help="Add a row for each tensor.")
@as_json
def command(file: str, tensors: bool, as_json: bool) -> None:
    """Show what FILE holds: base, steps, sizes, and how well a line describes the run. FILE may be a journal."""
    from relex_codec.journal.reader import is_journal

    if is_journal(file):
        from relex_codec.run import recorded

        document = recorded.describe(file)
        shown = recorded.text(document, tensors)
    else:
        import relex_codec
        from relex_codec.run.info import text

        with relex_codec.open(file) as run:
            document = run.info()
        shown = text(document, tensors)
    if as_json:
        print_json(document)
    else:
        show(shown)
