"""``relex-codec info``."""

from __future__ import annotations

import sys

import click

from .help import Command
from .output import as_json, base_option, columns, print_json, show


@click.command(
    "info",
    cls=Command,
    examples=(
        ("What a file holds", "relex-codec info run.relex"),
        ("For a script", "relex-codec info run.relex --json"),
    ),
)
@click.argument("file")
@click.option("--tensors", is_flag=True, help="Add a row for each tensor.")
@click.option("--fits", is_flag=True, help="Add how well other curves than the line predict steps they have not seen.")
@click.option(
    "--trust", is_flag=True, help="Where FILE has no norms, compute them; that reads base and directions once."
)
@click.option(
    "--ranks", is_flag=True, help="Add how much of the change adapters of ranks 1 to 64 keep; decodes all once."
)
@base_option
@as_json
def command(file: str, tensors: bool, fits: bool, trust: bool, ranks: bool, base: str | None, as_json: bool) -> None:
    """Show what FILE holds: base, steps, sizes, how straight the run went, and how far its line may be believed.

    FILE may be a journal.
    """
    from dataclasses import asdict

    import relex_codec
    from relex_codec.core.text import labelled
    from relex_codec.journal.reader import is_journal
    from relex_codec.run.info import fits_text, text
    from relex_codec.run.sparkline import BLOCKS, PLAIN

    if is_journal(file):
        _of_journal(file, tensors, as_json)
        return
    with relex_codec.open(file, base=base) as run:
        if trust:
            run.trust(run.observed_steps[-1])
        document = run.info()
        if fits:
            document["fits"] = [asdict(row) for row in run.fits()]
        if ranks:
            from relex_codec.run.spectrum import kept_by_rank, ranks_text

            document["ranks"] = kept_by_rank(run._reader, progress=True)
        moved = run.movement()
    if as_json:
        print_json(document)
        return
    show(text(document, tensors, moved, BLOCKS if _can_show(BLOCKS) else PLAIN, columns()))
    if ranks:
        show("\n" + labelled([("ranks", ranks_text(document["ranks"]))], columns()))
    if fits:
        show("\n" + fits_text(document["fits"]))


def _can_show(characters: str) -> bool:
    try:
        characters.encode(getattr(sys.stdout, "encoding", None) or "ascii")  # there is no stdout where it is closed
    except (LookupError, UnicodeEncodeError):
        return False
    return True


def _of_journal(file: str, tensors: bool, as_json: bool) -> None:
    from relex_codec.run import recorded

    document = recorded.describe(file)
    if as_json:
        print_json(document)
    else:
        show(recorded.text(document, tensors, columns()))
