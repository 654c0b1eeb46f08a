"""Memory budgets as a user writes them, and the examples of what parses a user's words."""

from __future__ import annotations

import doctest
from types import ModuleType

import pytest

from relex_codec.core import sizes, steps
from relex_codec.core.sizes import SMALLEST_MEMORY, parse_memory
from relex_codec.errors import InvalidArgument


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GB", 4 * 10**9), ("4G", 4 * 10**9), ("4 gb", 4 * 10**9), ("512MiB", 512 << 20), ("512Mi", 512 << 20),
        ("1.5GiB", 3 << 29), ("1tb", 10**12), ("100000KB", 10**8), ("64000000", 64 * 10**6),
        (SMALLEST_MEMORY, SMALLEST_MEMORY), (" 64MB ", 64 * 10**6), ("1e8", 10**8),
    ],
)  # fmt: skip
def test_sizes(text: str | int, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "4XB", "4GBB", "four", "4 4GB", "inf", "nan", "-4GB", "63.9MB", 0, SMALLEST_MEMORY - 1]
)
def test_sizes_that_are_refused(text: str | int) -> None:
    with pytest.raises(InvalidArgument, match=r"memory is .*, expected"):
        parse_memory(text)


@pytest.mark.parametrize("module", [sizes, steps], ids=lambda module: module.__name__)
def test_the_examples_run(module: ModuleType) -> None:
    failed, tried = doctest.testmod(module)
    assert failed == 0
    assert tried >= 1
