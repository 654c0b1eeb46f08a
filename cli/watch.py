"""``relex-codec watch``."""

from __future__ import annotations

import signal
import threading
from typing import Any

import click

from .output import as_json, print_json, show


@click.command("watch")
@click.argument("directory")
@click.option("--base", required=True, metavar="BASE", help="The model training started from: directory, URL, hf://...")
@click.option(
    "-o", "--output", required=True, metavar="OUT", help="The journal, or NAME.relex, written with --until-step."
)
@click.option("--until-step", type=int, metavar="N", help="End when step N is archived.  [default: watch on]")
@click.option(
    "--delete-verified",
    is_flag=True,
    help="Delete the weight files of a step once it is archived and verified, and a later one too.",
)
@click.option(
    "--delete-also",
    "also",
    multiple=True,
    metavar="NAME",
    help="Files beside them that go too, such as optimizer.pt; may be repeated.",
)
@click.option(
    "--settled",
    type=float,
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a checkpoint's files must be at rest, where no marker (STABLE) says that it is complete.",
)
@as_json
def command(directory: str, output: str, as_json: bool, also: tuple[str, ...], **options: Any) -> None:
    """Take each checkpoint below DIRECTORY into a journal as it appears, and verify it.

    OUT is a directory of exact differences (docs/recording.md), which encode, info, verify and decode read. With
    --delete-verified only weights go: never those of the newest checkpoint, never anything that is not archived.
    Ctrl-C and SIGTERM end after the step in work; the same command goes on.
    """
    from relex_codec.errors import InvalidArgument
    from relex_codec.recording.watch import watch

    if output.lower().endswith(".relex") and options["until_step"] is None:
        raise InvalidArgument(f"{output} is written when the run is at its end: give --until-step, or a journal")
    stop = threading.Event()
    before = [signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        found = watch(directory, output, stop=stop, also=also, say=lambda line: show(line, err=True), **options)
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)
    if as_json:
        print_json({**found._asdict(), "output": output, "stopped": stop.is_set()})
        return
    steps = found.steps
    count = f"{len(steps)} steps" + (f", {steps[0]} to {steps[-1]}" if steps else "")
    show(f"{found.journal}: {count}{', stopped' if stop.is_set() else ''}")
