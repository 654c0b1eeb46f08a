"""What a pickle is read as (unpickling.py): names, pairs, and records of what it would make; nothing of it is run."""

from __future__ import annotations

from typing import Any, NamedTuple


class Global(NamedTuple):
    """The name of what a pickle would import."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Pairs(list[tuple[Any, Any]]):
    """A dict of a pickle, as its pairs in their order: keys may be what cannot be hashed, or what hashes badly."""

    def by_name(self) -> dict[str, Any]:
        """Return the values whose key is text, by it; of equal keys the last."""
        return {key: value for key, value in self if type(key) is str}


class Made:
    """What a pickle would make by calling something: who would be called, with what, and what is set afterwards.

    Attributes:
        what: the name; or another record, where what would be called is itself the result of a call.
        args: what it would be called with.
        state: what ``__setstate__`` would get; None if nothing is set.
    """

    __slots__ = ("_elements", "_items", "args", "state", "what")

    def __init__(self, what: Any, args: tuple[Any, ...]) -> None:
        self.what, self.args = what, args
        self.state: Any = None
        # made when they are asked for: metadata have 100,000 records, and hardly one has any
        self._items: Pairs | None = None
        self._elements: list[Any] | None = None

    @property
    def items(self) -> Pairs:
        """Pairs that are set if it is a dict."""
        if self._items is None:
            self._items = Pairs()
        return self._items

    @property
    def elements(self) -> list[Any]:
        """What is added if it is a list or a set."""
        if self._elements is None:
            self._elements = []
        return self._elements

    @property
    def name(self) -> str:
        """The last part of the name of what would be called; empty where that is no name."""
        return self.what.name if type(self.what) is Global else ""

    def attributes(self) -> dict[str, Any]:
        """Return what would be its attributes, of state as the default ``__setstate__`` takes it."""
        states = self.state if type(self.state) is tuple and len(self.state) == 2 else (self.state,)
        found: dict[str, Any] = {}
        for state in states:
            if type(state) is Pairs:
                found.update(state.by_name())
        return found
