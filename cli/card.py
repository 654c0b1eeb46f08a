"""``relex-codec card``."""

from __future__ import annotations

import os

import click

from .help import Command
from .output import base_option, show


@click.command(
    "card",
    cls=Command,
    examples=[
        ("for a file that goes to the Hub", "relex-codec card run.relex > README.md"),
        ("with a picture", "relex-codec card hf://org/name/run.relex --picture run.png > README.md"),
    ],
)
@click.argument("file")
@click.option("--picture", multiple=True, metavar="NAME", help="Show this one; default: FILE's .png, if there is one.")
@base_option
def command(file: str, picture: tuple[str, ...], base: str | None) -> None:
    """Print a model card for FILE: base, steps, sizes, what comes back, how to decode it."""
    import relex_codec
    from relex_codec.errors import InvalidArgument
    from relex_codec.journal.reader import is_journal
    from relex_codec.run.card import run_card
    from relex_codec.storage.urls import is_url, without_secrets

    if is_journal(file):
        raise InvalidArgument("cards are for .relex files: encode the journal first")
    with relex_codec.open(file, base=base) as run:
        document = run.info()
    place = without_secrets(file) if is_url(file) else os.path.basename(file)
    beside = os.path.splitext(file)[0] + ".png"
    found = [os.path.basename(beside)] if not is_url(file) and os.path.isfile(beside) else []
    show(run_card(document, place, picture or found).rstrip("\n"))
