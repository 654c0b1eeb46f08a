"""The stack machine of pickles, one that calls nothing: what would be imported or called becomes a record.

Which instructions there are, and what each does to stack and memo; unpickling.py is what others use.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

from relex_codec.core.text import quote

from .records import Global, Made, Pairs

CONTAINERS: Final = 1 << 24
"""Lists, dicts, tuples and records of one pickle."""
DAMAGE: Final = (IndexError, KeyError, TypeError, UnicodeDecodeError, ValueError, struct.error)
"""What instructions run into that do not fit what came before."""


class Refused(Exception):
    """Why a pickle is not read."""


class Machine:
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

    def run(self) -> None:
        """Go on until the pickle ends; what it holds is the stack then.

        What metadata of distributed checkpoints are made of is done here, and all else by the methods: 25,600 chunks
        are 1.8 million instructions, and calling something costs more than what most of them do.
        """
        data, stack, marks, memo = self.data, self.stack, self.marks, self.memo
        push, at = stack.append, self.at
        try:
            while True:
                code = data[at]
                at += 1
                if code == 0x94:  # MEMOIZE
                    memo[len(memo)] = stack[-1]
                elif code == 0x6A:  # LONG_BINGET
                    push(memo[_U32(data, at)[0]])
                    at += 4
                elif code == 0x68:  # BINGET
                    push(memo[data[at]])
                    at += 1
                elif code == 0x4B:  # BININT1
                    push(data[at])
                    at += 1
                elif code == 0x28:  # MARK
                    marks.append(len(stack))
                elif code == 0x29:  # EMPTY_TUPLE
                    push(())
                elif code == 0x75:  # SETITEMS
                    self.add_pairs(self.since_mark())
                elif code == 0x7D:  # EMPTY_DICT
                    self.container(Pairs())
                elif code == 0x86:  # TUPLE2
                    if marks and len(stack) - 2 < marks[-1]:
                        raise IndexError
                    last = stack.pop()
                    stack[-1] = (stack[-1], last)
                    self.containers += 1
                elif code == 0x4D:  # BININT2
                    push(data[at] | data[at + 1] << 8)
                    at += 2
                elif code == 0x4A:  # BININT
                    push(_I32(data, at)[0])
                    at += 4
                elif (instruction := _INSTRUCTIONS[code]) is not None:
                    self.at = at
                    instruction(self)
                    at = self.at
                elif code == _STOP:
                    return
                else:
                    raise Refused(f"has instruction {code:#04x}, which files of weights do not need")
        finally:
            self.at = at

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        if not 0 <= count <= len(self.data) - self.at:
            raise Refused(f"ends early: {count} bytes declared, {len(self.data) - self.at} left")
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
            raise Refused(f"has more than {CONTAINERS} containers")
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
            raise Refused("is of a protocol after 5")

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
        if len(self.stack) - count < (self.marks[-1] if self.marks else 0):
            raise IndexError
        values = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.container(values)

    def dict_of_marked(self) -> None:
        self.container(paired(self.since_mark()))

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
            target.items.extend(paired(values))
        elif type(target) is Pairs:
            target.extend(paired(values))
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
                raise Refused(
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
        if what == _SIZE and len(args) == 1 and type(args[0]) is tuple:
            self.push(args[0])
        else:
            self.container(Made(what, args))

    def called_with_names(self) -> None:
        names = self.pop()
        if type(names) is not Pairs or names:
            raise Refused("constructs with names, which files of weights do not need")
        self.called()

    def build(self) -> None:
        state, target = self.pop(), self.stack[-1]
        if type(target) is not Made:
            raise TypeError
        target.state = state

    def outside(self) -> None:
        identifier = self.pop()
        if self._persistent is None:
            raise Refused("refers to what lies outside of it")
        try:
            self.push(self._persistent(identifier))
        except ValueError as e:
            raise Refused(str(e)) from None

    # ---- memo ----

    def store(self, number: int) -> None:
        self.memo[number] = self.stack[-1]

    def fetch(self, number: int) -> None:
        self.push(self.memo[number])


def paired(values: list[Any]) -> Pairs:
    """Return keys and values that follow one another as pairs."""
    return Pairs(zip(values[::2], values[1::2], strict=True))


_STOP: Final = ord(".")
_SIZE: Final = Global("torch", "Size")
"""A tuple of another class: what is made of one is the tuple, as half of the records of metadata would be these."""
_U32: Final = struct.Struct("<I").unpack_from
_I32: Final = struct.Struct("<i").unpack_from
_M = Machine
_KNOWN: Final[dict[int, Callable[[Machine], Any]]] = {
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
_INSTRUCTIONS: Final = [_KNOWN.get(code) for code in range(256)]
"""What is understood: protocols 2 to 5, without what only objects with code of their own need."""
