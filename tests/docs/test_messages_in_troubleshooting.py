"""Every message that the page on troubleshooting quotes is one that the program can say."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import relex_codec
from support.public_names import REPOSITORY

HOLE = "\0"
"""What stands in a message for a value."""


def messages() -> list[str]:
    """Every text in the sources, with holes where values go."""
    found = []
    root = Path(relex_codec.__file__).parent
    for path in (*root.rglob("*.py"), *(root / "cli").glob("*.py")):  # which in a checkout is a link
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else HOLE for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def quoted() -> list[str]:
    """The messages in the first columns of the page's tables."""
    page = (REPOSITORY / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`.*?) \|", page, re.M)
    return [message for cell in cells for message in re.findall(r"`([^`]+)`", cell)]


def pattern(message: str) -> re.Pattern[str]:
    """Return what a text must be like: words in capitals and dots stand for values, or more text."""
    parts = re.split(r"\s*(?:\.\.\.|(?<![\w-])[A-Z]+(?![\w-]))\s*", message)
    return re.compile(".*".join(re.escape(part) for part in parts), re.S)


def test_each_is_one_that_is_said() -> None:
    known, asked = messages(), quoted()
    assert len(asked) > 25
    assert [one for one in asked if not any(pattern(one).search(text) for text in known)] == []


def test_one_that_is_not_said_is_found() -> None:
    assert pattern("FILE has N bytes, expected M").search("\0 has \0 bytes, expected \0: copy it again")
    assert not pattern("FILE has N bytes, expected M").search("\0 has \0 bits, expected \0")
