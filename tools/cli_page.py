"""Writes docs/cli.md, the page of all commands, from what the commands say of themselves.

usage: python tools/cli_page.py [--check]
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from relex_codec.cli.help import Command
from relex_codec.cli.main import COMMANDS, group

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
HEAD = """\
# Commands

<!-- made by tools/cli_page.py; change what the commands say instead -->

Each command has `--help`, with what most need, and `--help-all`, which is what stands here. `pip install` puts
`relex-codec` on the path; `python -m relex_codec` is the same.

"""


NOT_RUN = {
    "relex-codec merge": "tests/encoding merges parts",
    "relex-codec watch": "tests/recording watches directories",
    "relex-codec append run.relex RUN": "the run of the tests has no further steps",
    "relex-codec sweep": "docs/sweeps.md has a score",
    "relex-codec demo": "tests/demo runs it",
    "relex-codec card hf": "the Hub is not reached",
}
"""How examples begin that the tests of the pages cannot run, and why."""


def page() -> str:
    """Return the page."""
    out = [HEAD, f"{paragraphs(group.help or '')}\n"]
    out += ["| command | |", "| --- | --- |"]
    out += [f"| [`{name}`](#{name}) | {what} |" for name, what in COMMANDS.items()]
    context = click.Context(group, info_name="relex-codec")
    for name in COMMANDS:
        command = group.get_command(context, name)
        assert isinstance(command, Command), name
        out.append(f"\n{section(command, click.Context(command, info_name=name, parent=context))}")
    return "\n".join(out) + "\n"


def section(command: Command, context: click.Context) -> str:
    """Return what stands about one command."""
    usage = " ".join([*command.collect_usage_pieces(context)])
    out = [f"## {command.name}", "", f"`relex-codec {command.name} {usage}`", ""]
    out += [paragraphs("\n\n".join(command.paragraphs())), ""]
    for what, line in command.examples:
        why = next((why for begin, why in NOT_RUN.items() if line.startswith(begin)), "")
        out += [f"{what}:", "", *([f"<!-- not run: {why} -->"] if why else []), "```sh", line, "```", ""]
    out += ["| option | |", "| --- | --- |"]
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record and isinstance(parameter, click.Option) and parameter.name != "help_all":
            names, what = (re.sub(r"\s+", " ", text).strip() for text in record)
            out.append(f"| {code(names)} | {escape(what)} |")
    return "\n".join(out)


def paragraphs(text: str) -> str:
    """Return text that is wrapped for a terminal as one line a paragraph."""
    return "\n\n".join(escape(re.sub(r"\s+", " ", part).strip()) for part in text.split("\n\n") if part.strip())


def escape(text: str) -> str:
    """Return text whose signs mean nothing in Markdown, but for those of code."""
    return re.sub(r"(`[^`]*`)|([*_|<>\[\]])", lambda match: match[1] or f"\\{match[2]}", text)


def code(text: str) -> str:
    """Return names of an option as code; in a table a bar ends a cell, even there."""
    return "`" + text.replace("|", "\\|") + "`"


def main() -> None:
    """Write the page, or compare it."""
    if sys.argv[1:] == ["--check"]:
        if PAGE.read_text() != page():
            raise SystemExit("docs/cli.md is not what the commands say: python tools/cli_page.py")
    else:
        PAGE.write_text(page())


if __name__ == "__main__":
    main()
