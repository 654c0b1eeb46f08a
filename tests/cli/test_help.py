"""Help: examples that are whole, a screen of the usual options, all of it on request, and the page made of it."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from relex_codec.cli.help import Command
from relex_codec.cli.main import COMMANDS, group

REPOSITORY = Path(__file__).resolve().parents[2]


def command(name: str) -> Command:
    found = group.get_command(click.Context(group), name)
    assert isinstance(found, Command)
    return found


def shown(name: str, option: str) -> str:
    done = CliRunner(env={"COLUMNS": "80"}).invoke(group, [name, option], prog_name="relex-codec")
    assert done.exit_code == 0
    return done.output


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_short_and_help_all_has_everything(name: str) -> None:
    short, everything = shown(name, "--help"), shown(name, "--help-all")
    for text in (short, everything):
        assert max(map(len, text.splitlines())) <= 80
        described = text[text.index("\n") : text.index("Examples:")]
        assert "  " not in described.replace("\n  ", "\n"), "indents of the docstring are in the text"
        assert "Examples:" in text and text.count("# ") == len(command(name).examples)
    assert len(short.splitlines()) <= 32
    for parameter in command(name).params:
        if isinstance(parameter, click.Option):
            assert parameter.opts[-1] in everything
            assert (f" {parameter.opts[-1]} " in short.replace(",", " ")) is (parameter.name not in command(name).rare)


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_commands_with_options_that_there_are(name: str) -> None:
    known = {option for parameter in command(name).params for option in parameter.opts}
    for what, line in command(name).examples:
        assert what
        words = shlex.split(line.replace("\\\n", " "), comments=True)
        assert words[:2] == ["relex-codec", name]
        assert {word for word in words if re.fullmatch(r"--?[a-z-]+", word)} <= known


def test_a_command_cannot_hide_what_it_does_not_have() -> None:
    with pytest.raises(ValueError, match="no parameters"):
        Command("x", params=[], examples=[("one", "relex-codec x")], rare=["y"])


def test_long_examples_are_folded_as_one_would_type_them() -> None:
    line = "relex-codec x --first aaaaaaaaaaaaaaaaaaaaaaaaa --second bbbbbbbbbbbbbbbbbbbbbbbb --third cccccccc"
    made = Command("x", params=[], examples=[("long", line)], help="X.")
    text = CliRunner(env={"COLUMNS": "60"}).invoke(made, ["--help"], prog_name="x").output
    (found,) = re.findall(r"# long\n((?:.*\\\n)+.*)\n", text)
    assert shlex.split(found.replace("\\\n", " ")) == line.split()
    assert max(map(len, found.splitlines())) <= 60


def test_the_page_of_commands_is_what_they_say() -> None:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "tools" / "cli_page.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
