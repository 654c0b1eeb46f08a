"""``relex-codec``: the group, errors, exit codes."""

from __future__ import annotations

import importlib
import signal
import sys
from typing import Any, NoReturn

import click

from relex_codec._version import __version__
from relex_codec.errors import RelexError

from .output import show

COMMANDS = {
    "encode": "Encode a run of checkpoints into one file.",
    "watch": "Archive checkpoints while a trainer writes them.",
    "append": "Add further checkpoints to a file with the exact tier.",
    "decode": "Write any step as a Hugging Face checkpoint.",
    "restore": "Write the stored steps back out, bit for bit.",
    "info": "Show what a file holds.",
    "verify": "Read and check every byte of a file.",
    "demo": "Train a small model, archive the run, extrapolate it.",
}


class Known(Exception):
    """An error of this package, to be printed as one line."""


class Lazy(click.Group):
    """Imports a command's module when the command is called, so that --help and errors are instant."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; click itself takes what is an EOFError, as a truncated file is, for an interruption."""
        try:
            return super().invoke(ctx)
        except RelexError as error:
            raise Known(str(error)) from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order of a newcomer's questions."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import one command."""
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"{__package__}.{name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="relex-codec")
def group() -> None:
    """One compact file for a whole RLVR training run, and any step's weights back from it.

    Every path may be a URL: s3://, gs://, az://, hf://org/name@revision, http(s):// (to read) and what else fsspec
    reaches. Credentials come from the environment, as each service's own tools take them. Files on their way to a URL
    wait in the temporary directory, which TMPDIR sets.

    A known error prints one line and exits 1; wrong usage exits 2.
    """


def main() -> None:
    """Run the command line; the entry point."""
    # A terminated encode cleans up like an interrupted one.
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = group.main(standalone_mode=False)
    except click.exceptions.Abort:
        _fail("interrupted; nothing was written", 130)
    except KeyboardInterrupt:
        _fail("interrupted; nothing was written", 130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except Known as error:
        _fail(str(error), 1)
    except BrokenPipeError:  # `relex-codec info ... | head`
        sys.stderr.close()
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> NoReturn:
    line = " ".join(message.split())
    show(f"Error: {line}", err=True)
    sys.exit(code)


def _terminate(number: int, frame: Any) -> NoReturn:
    _fail("terminated; nothing was written", 128 + number)
