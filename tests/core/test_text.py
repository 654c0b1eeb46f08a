"""What terminals are shown of text that others wrote."""

from __future__ import annotations

import pytest

from relex_codec.core.text import on_one_line, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07\x1b[2J", r"\x1b]0;title\x07\x1b[2J"),
        ("a\r\x08\tb\x7f\x9b31m", r"a\r\x08\tb\x7f\x9b31m"),
        ("gpj.\u202eexe \u2066\u200b\ufeff\u2028", r"gpj.\u202eexe \u2066\u200b\ufeff\u2028"),
        ("not utf-8: \udcff", r"not utf-8: \udcff"),
        ("größer, 模型, C:\\new 'x' \"y\"", "größer, 模型, C:\\new 'x' \"y\""),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == on_one_line(text) == shown


def test_lines_stay_where_they_are_ours() -> None:
    assert printable("a\n\x1bb") == "a\n\\x1bb"
    assert on_one_line("a\n\x1bb") == "a\\n\\x1bb"
