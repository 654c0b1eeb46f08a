"""Help that fits on a screen: ``--help`` has two examples and the options that most need, ``--help-all`` has all."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

import click


class Command(click.Command):
    """A command with examples.

    Args:
        examples: command lines, each after a word or two on what it is for.
        rare: names of the parameters that only ``--help-all`` shows.
    """

    def __init__(
        self, *args: Any, examples: Sequence[tuple[str, str]], rare: Sequence[str] = (), **attributes: Any
    ) -> None:
        super().__init__(*args, **attributes)
        unknown = set(rare) - {parameter.name for parameter in self.params}
        if unknown:
            raise ValueError(f"{self.name} has no parameters {sorted(unknown)}")
        self.examples, self.rare = tuple(examples), frozenset(rare)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the parameters, ``--help-all`` before the last of them, which is ``--help``."""
        found = super().get_params(ctx)
        everything = click.Option(
            ["--help-all"], is_flag=True, is_eager=True, expose_value=False, callback=self._show, help="Show all of it."
        )
        return [*found[:-1], everything, *found[-1:]]

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what ``--help`` shows."""
        self._write(ctx, formatter, everything=False)

    def paragraphs(self) -> list[str]:
        """Return the paragraphs of the description."""
        return [part for part in inspect.cleandoc(self.help or "").split("\n\n") if part]

    def _show(self, ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            formatter = ctx.make_formatter()
            self._write(ctx, formatter, everything=True)
            click.echo(formatter.getvalue().rstrip("\n"), color=ctx.color)
            ctx.exit()

    def _write(self, ctx: click.Context, formatter: click.HelpFormatter, *, everything: bool) -> None:
        self.format_usage(ctx, formatter)
        for part in self.paragraphs()[: None if everything else 1]:
            formatter.write_paragraph()
            with formatter.indentation():
                formatter.write_text(part)
        with formatter.section("Examples"):
            indent = " " * formatter.current_indent
            for what, line in self.examples:
                formatter.write(f"{indent}# {what}\n{indent}{_folded(line, formatter.width - len(indent), indent)}\n")
        rows = [
            record
            for parameter in self.get_params(ctx)
            if isinstance(parameter, click.Option)  # click 8.5 has rows for arguments too, with nothing in them
            and (everything or parameter.name not in self.rare)
            and (record := parameter.get_help_record(ctx))
        ]
        with formatter.section("Options"):
            formatter.write_dl(rows)


def _folded(line: str, width: int, indent: str) -> str:
    """Return a command line of several lines where it is wider than the screen, as one would type it."""
    rows = [""]
    for word in re.split(r" (?=--?\w)", line):
        if rows[-1] and len(rows[-1]) + len(word) + 3 > width:
            rows.append(f"    {word}")
        else:
            rows[-1] = f"{rows[-1]} {word}".strip() if rows == [""] else f"{rows[-1]} {word}"
    return f" \\\n{indent}".join(rows)
