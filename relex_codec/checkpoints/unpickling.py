"""Pickles, read without running anything in them.

A pickle is a program for a stack machine. The one in Python's `pickle` calls whatever a file names; the one here calls
nothing at all. What a pickle would import is a `Global`, a name and no more, and only if the reader's list has it. What
it would call or construct becomes a `Made`: a record of what was to be called, and with what. Who reads the result
knows the few kinds of records that describe tensors (torch_values.py, dcp.py) and refuses every other.

Hostile pickles cost no more than their own size: lengths are compared with the bytes that are there before anything is
taken, containers are counted, and nothing is walked through that could share parts with itself.

Example:
    >>> import pickle
    >>> value, end = unpickle(pickle.dumps({"lr": 0.5, "betas": (0.9, 0.95)}), "a file", allowed=lambda name: False)
    >>> value
    [('lr', 0.5), ('betas', (0.9, 0.95))]
    >>> import os
    >>> try:
    ...     unpickle(pickle.dumps(os.system), "evil.pt", allowed=lambda name: False)
    ... except CheckpointError as error:
    ...     str(error).partition(", expected")[0]
    "evil.pt has a pickle that names 'posix.system'"
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from relex_codec.core.text import quote
from relex_codec.errors import CheckpointError

LIMIT: Final = 256 << 20
"""Bytes of the longest pickle that is read: the metadata of 100,000 chunks of tensors are some 20 MB."""
CONTAINERS: Final = 1 << 24
"""Lists, dicts, tuples and records of one pickle."""


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
        items: pairs that are set if it is a dict.
        elements: what is added if it is a list or a set.
    """

    __slots__ = ("args", "elements", "items", "state", "what")

    def __init__(self, what: Any, args: tuple[Any, ...]) -> None:
        self.what, self.args = what, args
        self.state: Any = None
        self.items = Pairs()
        self.elements: list[Any] = []

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


def unpickle(
    data: bytes,
    where: str,
    *,
    allowed: Callable[[Global], bool],
    persistent: Callable[[Any], Any] | None = None,
    start: int = 0,
) -> tuple[Any, int]:
    """Read the pickle that begins at byte `start` of `data`.

    Args:
        where: what to call the file in messages.
        allowed: tells which names may occur.
        persistent: what stands for an object that lies outside, by its identifier; ValueError says what is wrong with
            that. None: there are none.

    Returns:
        What it holds, and where it ends. Dicts are `Pairs`, sets are lists.

    Raises:
        CheckpointError: it is damaged, names something that is not allowed, or is too large.
    """
    if len(data) - start > LIMIT:
        raise CheckpointError(f"{where} has a pickle of {len(data) - start} bytes, at most {LIMIT} are read")
    machine = _Machine(data, start, allowed, persistent)
    try:
        return machine.run(), machine.at
    except _Refused as e:
        raise CheckpointError(f"{where} has a pickle that {e}") from None
    except (IndexError, KeyError, TypeError, UnicodeDecodeError, ValueError, struct.error):
        raise CheckpointError(f"{where} has a pickle that is damaged at byte {machine.at}; save it again") from None


class _Refused(Exception):
    """Why a pickle is not read."""


class _Machine:
    """The stack machine; methods are the instructions."""

    def __init__(
        self,
        data: bytes,
        start: int,
        allowed: Callable[[Global], bool],
        persistent: Callable[[Any], Any] | None,
    ) -> None:
        self.data, self.at = data, start
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.containers = 0
        self._allowed, self._persistent = allowed, persistent
        self._globals: dict[Global, Global] = {}

    def run(self) -> Any:
        while True:
            code = self.data[self.at]
            self.at += 1
            if code == _STOP:
                (value,) = self.stack
                return value
            instruction = _INSTRUCTIONS.get(code)
            if instruction is None:
                raise _Refused(f"has instruction {code:#04x}, which files of weights do not need")
            instruction(self)

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        if not 0 <= count <= len(self.data) - self.at:
            raise _Refused(f"ends early: {count} bytes declared, {len(self.data) - self.at} left")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, layout: str) -> int:
        """Return the next bytes as a number."""
        (value,) = struct.unpack(layout, self.take(struct.calcsize(layout)))
        return int(value)

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def container(self, value: Any) -> None:
        """Push a container."""
        self.containers += 1
        if self.containers > CONTAINERS:
            raise _Refused(f"has more than {CONTAINERS} containers")
        self.stack.append(value)

    def since_mark(self) -> list[Any]:
        """Pop what was pushed since the last mark."""
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def pop(self) -> Any:
        if self.marks and len(self.stack) <= self.marks[-1]:
            raise IndexError
        return self.stack.pop()

    # ---- constants ----

    def proto(self) -> None:
        if self.number("<B") > 5:
            raise _Refused("is of a protocol after 5")

    def frame(self) -> None:
        self.number("<Q")

    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def pop_mark(self) -> None:
        self.since_mark()

    def text(self, layout: str) -> None:
        self.push(str(self.take(self.number(layout)), "utf-8", "surrogatepass"))

    def raw(self, layout: str) -> None:
        self.push(self.take(self.number(layout)))

    def integer(self, layout: str) -> None:
        self.push(int.from_bytes(self.take(self.number(layout)), "little", signed=True))

    def real(self) -> None:
        self.push(struct.unpack(">d", self.take(8))[0])

    # ---- containers ----

    def tuple_of(self, count: int) -> None:
        values = [self.pop() for _ in range(count)]
        self.container(tuple(reversed(values)))

    def dict_of_marked(self) -> None:
        self.container(_paired(self.since_mark()))

    def add_elements(self, values: Sequence[Any]) -> None:
        target = self.stack[-1]
        if type(target) is Made:
            target.elements.extend(values)
        elif type(target) is list:
            target.extend(values)
        else:
            raise TypeError

    def append(self) -> None:
        value = self.pop()
        self.add_elements([value])

    def add_pairs(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is Made:
            target.items.extend(_paired(values))
        elif type(target) is Pairs:
            target.extend(_paired(values))
        else:
            raise TypeError

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.add_pairs([key, value])

    # ---- what would be imported and called ----

    def line(self) -> str:
        end = self.data.index(b"\n", self.at, self.at + 1000)
        return str(self.take(end + 1 - self.at)[:-1], "utf-8")

    def imported(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise TypeError
        found = Global(module, name)
        if found not in self._globals:
            if not self._allowed(found):
                raise _Refused(
                    f"names {quote(str(found))}, expected only what describes tensors; nothing of it was run: if it "
                    "is not hostile, let the trainer save plain tensors, or convert it where you trust it"
                )
            self._globals[found] = found
        self.push(self._globals[found])

    def imported_from_line(self) -> None:
        module = self.line()
        self.imported(module, self.line())

    def imported_from_stack(self) -> None:
        name, module = self.pop(), self.pop()
        self.imported(module, name)

    def called(self) -> None:
        args, what = self.pop(), self.pop()
        if type(args) is not tuple or type(what) not in (Global, Made):
            raise TypeError
        self.container(Made(what, args))

    def called_with_names(self) -> None:
        names = self.pop()
        if type(names) is not Pairs or names:
            raise _Refused("constructs with names, which files of weights do not need")
        self.called()

    def build(self) -> None:
        state, target = self.pop(), self.stack[-1]
        if type(target) is not Made:
            raise TypeError
        target.state = state

    def outside(self) -> None:
        identifier = self.pop()
        if self._persistent is None:
            raise _Refused("refers to what lies outside of it")
        try:
            self.push(self._persistent(identifier))
        except ValueError as e:
            raise _Refused(str(e)) from None

    # ---- memo ----

    def store(self, number: int) -> None:
        self.memo[number] = self.stack[-1]

    def fetch(self, number: int) -> None:
        self.push(self.memo[number])


def _paired(values: list[Any]) -> Pairs:
    return Pairs(zip(values[::2], values[1::2], strict=True))


_STOP: Final = ord(".")
_M = _Machine
_INSTRUCTIONS: Final[dict[int, Callable[[_Machine], Any]]] = {
    code[0]: instruction
    for code, instruction in {
        b"\x80": _M.proto, b"\x95": _M.frame, b"(": _M.mark, b"0": _M.pop, b"1": _M.pop_mark,
        b"2": lambda m: m.push(m.stack[-1]),
        b"N": lambda m: m.push(None), b"\x88": lambda m: m.push(True), b"\x89": lambda m: m.push(False),
        b"J": lambda m: m.push(m.number("<i")), b"K": lambda m: m.push(m.number("<B")),
        b"M": lambda m: m.push(m.number("<H")), b"\x8a": lambda m: m.integer("<B"), b"\x8b": lambda m: m.integer("<i"),
        b"G": _M.real,
        b"X": lambda m: m.text("<I"), b"\x8c": lambda m: m.text("<B"), b"\x8d": lambda m: m.text("<Q"),
        b"T": lambda m: m.text("<i"), b"U": lambda m: m.text("<B"),
        b"B": lambda m: m.raw("<I"), b"C": lambda m: m.raw("<B"), b"\x8e": lambda m: m.raw("<Q"),
        b"\x96": lambda m: m.raw("<Q"),
        b"]": lambda m: m.container([]), b"a": _M.append, b"e": lambda m: m.add_elements(m.since_mark()),
        b"l": lambda m: m.container(m.since_mark()),
        b")": lambda m: m.push(()), b"t": lambda m: m.container(tuple(m.since_mark())),
        b"\x85": lambda m: m.tuple_of(1), b"\x86": lambda m: m.tuple_of(2), b"\x87": lambda m: m.tuple_of(3),
        b"}": lambda m: m.container(Pairs()), b"d": _M.dict_of_marked, b"s": _M.set_item,
        b"u": lambda m: m.add_pairs(m.since_mark()),
        b"\x8f": lambda m: m.container([]), b"\x90": lambda m: m.add_elements(m.since_mark()),
        b"\x91": lambda m: m.container(m.since_mark()),
        b"c": _M.imported_from_line, b"\x93": _M.imported_from_stack,
        b"R": _M.called, b"\x81": _M.called, b"\x92": _M.called_with_names, b"b": _M.build, b"Q": _M.outside,
        b"q": lambda m: m.store(m.number("<B")), b"r": lambda m: m.store(m.number("<I")),
        b"\x94": lambda m: m.store(len(m.memo)),
        b"h": lambda m: m.fetch(m.number("<B")), b"j": lambda m: m.fetch(m.number("<I")),
    }.items()
}  # fmt: skip
"""What is understood: protocols 2 to 5, without what only objects with code of their own need."""
