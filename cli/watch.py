"""``relex-codec watch``."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from .help import Command
from .output import as_json, print_json, show


@click.command(
    "watch",
    cls=Command,
    examples=(
        (
            "Until step 400; then run.relex is written",
            "relex-codec watch RUN --base BASE -o run.relex --until-step 400",
        ),
        ("Keep the disk free while it trains", "relex-codec watch RUN --base BASE -o run.journal --delete-verified"),
    ),
    rare=("also", "settled"),
)
@click.argument("directory")
@click.option("--base", required=True, metavar="BASE", help="The model training started from: directory, URL, hf://...")
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="OUT",
    help="The journal, or NAME.relex (a URL too), written after --until-step.",
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
def command(
    directory: str, output: str, as_json: bool, also: tuple[str, ...], until_step: int | None, **options: Any
) -> None:
    """Take each checkpoint below DIRECTORY into a journal as it appears, and verify it.

    OUT is a directory of exact differences (docs/recording.md), which encode, info, verify and decode read. With
    --delete-verified only weights go: never those of the newest checkpoint, never anything that is not archived.
    Ctrl-C and SIGTERM end after the step in work, a second one at once; the same command goes on.
    """
    from relex_codec.recording.target import target_of
    from relex_codec.recording.watch import Watcher

    target = target_of(output)
    if target.file is not None and until_step is None:
        raise click.UsageError(f"{output} is written when the run is at its end: give --until-step, or a journal")
    if also and not options["delete_verified"]:
        raise click.UsageError("--delete-also names what --delete-verified deletes besides weights: give both")
    options |= {"until_step": until_step, "also": also, "say": lambda line: show(line, err=True)}
    with _stopped_by_signals() as stopped:
        found = Watcher(directory, target.journal, **options).run(stopped.event)
    reached = until_step is None or any(step >= until_step for step in found.steps)
    if target.file is not None and reached:
        from relex_codec.encoding.encode import encode

        encode(found.journal, target.file, base=options["base"], exact=True, progress=True)
    if as_json:
        print_json({**found._asdict(), "output": output, "stopped": bool(stopped.number)})
    else:
        steps = found.steps
        count = f"{len(steps)} steps" + (f", {steps[0]} to {steps[-1]}" if steps else "")
        late = f", {len(found.left_out)} left out" if found.left_out else ""
        show(f"{found.journal}: {count}{late}{', stopped' if stopped.number else ''}")
        if target.file is not None and reached:
            show(f"{target.file}: written")
    if not reached:
        show(f"note: stopped before step {until_step}; the same command goes on", err=True)
        click.get_current_context().exit(128 + stopped.number)


class _Stopped:
    """The signal that asked for the end; none yet: ``number`` is 0."""

    def __init__(self) -> None:
        self.number = 0
        self.event = threading.Event()


@contextmanager
def _stopped_by_signals() -> Iterator[_Stopped]:
    """Let the first signal be heard between two steps, and leave the next to the command's own handlers."""
    stopped, numbers = _Stopped(), (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(number: int, frame: Any) -> None:
        stopped.number = number
        stopped.event.set()
        restore()

    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as by nohup
            signal.signal(number, stop)
    try:
        yield stopped
    finally:
        restore()
