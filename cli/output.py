"""What the commands share: options, and how they print."""

from __future__ import annotations

import json
import shutil
from typing import Any

import click

from relex_codec.core.text import printable

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
base_option = click.option(
    "--base",
    metavar="BASE",
    help="Where the base is: directory, URL, hf://org/name@revision. Default: as the file says.",
)
force_option = click.option(
    "-f",
    "--force",
    "overwrite",
    is_flag=True,
    help="Go over what is in DIR, as after a kill: files of the same names are replaced, others stay.",
)
steps_option = click.option(
    "--steps",
    metavar="LIST",
    help="Only these: A:B (both included), A:B:K (every K-th) or N, or several: 1:4,6,8.  [default: all]",
)
allow_pickle_option = click.option(
    "--allow-pickle",
    is_flag=True,
    help="Read pickled checkpoints too: FSDP shards, torch.distributed, .bin and .pt. Nothing in them is run: they are "
    "parsed by a list of what is allowed.",
)
workers_option = click.option(
    "--workers",
    type=int,
    metavar="N",
    help="Tensors, or parts of them, to work on at the same time.  [default: processors]",
)
engine_option = click.option(
    "--engine",
    default="auto",
    show_default=True,
    metavar="E",
    help="local (threads), processes, ray (a cluster), or auto: processes for 5 workers and more on runs of some "
    "gigabytes. The result is the same.",
)
address_option = click.option(
    "--address",
    metavar="ADDRESS",
    help="The Ray cluster: HOST:PORT, auto, or local for a new one on this machine, which then ends with the command.  "
    "[default: RAY_ADDRESS, or one that runs here, or a new one]",
)
exclude_steps_option = click.option("--exclude-steps", metavar="LIST", help="Leave these out.")


def print_json(document: dict[str, Any]) -> None:
    """Print one JSON document to stdout."""
    show(json.dumps(document, indent=2, allow_nan=False))


def columns() -> int:
    """Return how wide the screen is; 0 where nobody says, as in a pipe, whose lines are as long as they are."""
    return shutil.get_terminal_size((0, 0)).columns


class OutputLost(Exception):
    """What a command had to say cannot be written to stdout; it has done everything else."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror)
        self.errno = error.errno


def show(text: str, *, err: bool = False) -> None:
    """Print text, which may have words of a file in it, to stdout or stderr: everything that commands print.

    Raises:
        OutputLost: stdout does not take it. Where stderr does not, nobody is told, and the command goes on.
    """
    try:
        click.echo(printable(text), err=err)
    except OSError as error:
        if not err:
            raise OutputLost(error) from None
