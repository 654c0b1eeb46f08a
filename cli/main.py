"""``relex-codec``: the group, errors, exit codes."""

from __future__ import annotations

import errno
import importlib
import sys
from typing import Any

import click

from relex_codec._version import __version__
from relex_codec.errors import RelexError

from .ending import drop_stdout, ended_by_signals, open_standard_streams, shortage
from .output import OutputLost, show

COMMANDS = {
    "encode": "Encode a run of checkpoints into one file.",
    "merge": "Join the parts of a file that several machines encoded.",
    "watch": "Archive checkpoints while a trainer writes them.",
    "append": "Add further checkpoints to a file with the exact tier.",
    "decode": "Write any step as a Hugging Face checkpoint.",
    "restore": "Write the stored steps back out, bit for bit.",
    "adapter": "Write any step as a LoRA adapter of PEFT.",
    "sweep": "Score steps with a command of yours, or find the best one.",
    "info": "Show what a file holds.",
    "compare": "Compare steps, a step with a checkpoint, or two runs.",
    "plot": "Draw a run: coefficients, errors, what moved where.",
    "report": "Write one page about a run, to open in a browser.",
    "card": "Print a model card for the Hub.",
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

    A known error prints one line and exits 1; wrong usage exits 2. Ctrl-C, SIGTERM and SIGHUP clean up (130, 143, 129);
    the second of them ends at once.
    """


def main() -> None:
    """Run the command line; the entry point."""
    open_standard_streams()
    with ended_by_signals() as ended:
        try:
            code = group.main(standalone_mode=False)
        except BaseException as error:  # also one that cleaning up after a signal met: a terminal that has gone
            code = _fail(ended.message, 128 + ended.number) if ended.number else _code_of(error)
    sys.exit(code if isinstance(code, int) else 0)


def _code_of(error: BaseException) -> int:
    """Print what is to be said of an error, and return the exit code; what nobody expected is raised again."""
    if isinstance(error, click.exceptions.Abort | KeyboardInterrupt):
        return _fail("interrupted; nothing incomplete was left", 130)
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, Known):
        return _fail(str(error), 1)
    if isinstance(error, BrokenPipeError) or (isinstance(error, OutputLost) and error.errno == errno.EPIPE):
        drop_stdout()  # `relex-codec info ... | head`
        return 1
    if isinstance(error, OutputLost):
        drop_stdout()
        return _fail(f"stdout: {error}; all the rest is done", 1)
    if (message := shortage(error)) is not None:
        drop_stdout()
        return _fail(message, 1)
    raise error


def _fail(message: str, code: int) -> int:
    show(f"Error: {' '.join(message.split())}", err=True)
    return code
