"""Pickles, read without running anything in them.

A pickle is a program for a stack machine. The one in Python's `pickle` calls whatever a file names; the one here calls
nothing at all. What a pickle would import is a `Global`, a name and no more, and only if the reader's list has it. What
it would call or construct becomes a `Made`: a record of what was to be called, and with what. Who reads the result
knows the few kinds of records that describe tensors (torch_values.py, dcp.py) and refuses every other.

Hostile pickles cost no more than their own size: lengths are compared with the bytes that are there before anything is
taken, containers are counted, and nothing is walked through that could share parts with itself.

Examples:
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

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from relex_codec.errors import CheckpointError

from .pickle_machine import DAMAGE, Machine, Refused, paired
from .records import Global, Made, Pairs

LIMIT: Final = 256 << 20
"""Bytes of the longest pickle that is read: the metadata of 100,000 chunks of tensors are some 20 MB."""


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
    machine = Machine(data, start, allowed, persistent)
    _run(machine, where)
    if len(machine.stack) != 1:
        raise CheckpointError(_damaged(where, machine.at))
    return machine.stack[0], machine.at


class Beginning(NamedTuple):
    """A pickle of an object with attributes, up to the name of one of them.

    Attributes:
        made: the object, its state the attributes so far.
        memo: what the rest may refer to: texts and names, which nothing can change, and None for all else.
    """

    made: Made
    memo: dict[int, Any]


def unpickle_beginning(
    data: bytes, where: str, *, allowed: Callable[[Global], bool], name: bytes
) -> tuple[Beginning, int] | None:
    """Read the pickle of an object up to where the name of an attribute stands, if it is laid out as Python does it.

    Many checkpoints of a run begin alike, and what comes after that is short: `unpickle_rest` reads it.

    Args:
        name: of the attribute; ASCII, shorter than 256 bytes.

    Returns:
        What was read, and where the name begins; None if the pickle is laid out in another way.

    Raises:
        CheckpointError: as `unpickle`.
    """
    at = data.rfind(b"\x8c" + bytes([len(name)]) + name)
    if at < 0 or len(data) > LIMIT:
        return None
    machine = Machine(data[:at] + b".", 0, allowed, None)
    _run(machine, where)
    if machine.at != at + 1 or machine.marks != [2] or len(machine.stack) % 2 or len(machine.stack) < 2:
        return None
    made, state, *attributes = machine.stack
    if type(made) is not Made or made.state is not None or type(state) is not Pairs or state:
        return None
    made.state = paired(attributes)
    memo = {n: value if type(value) in (str, Global) else None for n, value in machine.memo.items()}
    return Beginning(made, memo), at


def unpickle_rest(
    data: bytes, where: str, start: int, beginning: Beginning, *, allowed: Callable[[Global], bool]
) -> Pairs | None:
    """Read the attributes that follow on a beginning, which is that of `data` up to byte `start`.

    Returns:
        The attributes, None in place of all that is of the beginning but texts and names; None if it is laid out in
        another way, to be read as a whole then.
    """
    rest = Made(None, ())
    machine = Machine(data, start, allowed, None)
    machine.memo = beginning.memo.copy()
    machine.stack, machine.marks = [rest, Pairs()], [2]
    try:
        machine.run()
    except (Refused, *DAMAGE):
        return None
    if machine.stack != [rest] or machine.marks or machine.at != len(data) or type(rest.state) is not Pairs:
        return None
    return rest.state


def _run(machine: Machine, where: str) -> None:
    try:
        machine.run()
    except Refused as e:
        raise CheckpointError(f"{where} has a pickle that {e}") from None
    except DAMAGE:
        raise CheckpointError(_damaged(where, machine.at)) from None


def _damaged(where: str, at: int) -> str:
    return f"{where} has a pickle that is damaged at byte {at}; save it again"
