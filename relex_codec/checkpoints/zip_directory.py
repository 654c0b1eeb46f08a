"""Where the members of a zip archive lie, read in ranges. `torch.save` stores them as they are, not compressed."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from relex_codec.core.text import quote
from relex_codec.errors import CheckpointError, Truncated

TAIL: Final = 64 << 10
"""Bytes from the end that are read first: they hold the directory of usual files."""
LOCAL_HEADER: Final = 30
"""Bytes before the name of a member, where its data begin some bytes later."""
_LOCAL: Final = b"PK\x03\x04"
_ENTRY: Final = struct.Struct("<4s6H3L5H2L")
_END: Final = struct.Struct("<4s4H2LH")
_END64: Final = struct.Struct("<4sQ2H2L4Q")
_LOCATOR: Final = struct.Struct("<4sLQL")
_FULL32: Final = 0xFFFFFFFF

Read = Callable[[int, int], bytes]
"""Returns the bytes from the first up to and without the second, counted from the beginning of the archive."""


class Member(NamedTuple):
    """A member of an archive.

    Attributes:
        header: where its local header begins; its data come some bytes after that (`data_begin`).
        size: bytes of its data.
        name_length: bytes of its name.
    """

    header: int
    size: int
    name_length: int

    def likely_begin(self) -> int:
        """Where `torch.save` puts its data: at a multiple of 64."""
        return -(-(self.header + LOCAL_HEADER + self.name_length + 4) // 64) * 64


def data_begin(member: Member, header: bytes, where: str) -> int:
    """Return where the data of a member begin, by its local header, of which `header` are the first bytes.

    Raises:
        CheckpointError: there is no header.
    """
    if len(header) < LOCAL_HEADER or header[:4] != _LOCAL:
        raise CheckpointError(f"{where} is damaged: no member of its zip archive begins at byte {member.header}")
    name, extra = struct.unpack("<2H", header[26:LOCAL_HEADER])
    return member.header + LOCAL_HEADER + int(name) + int(extra)


def read_directory(read: Read, size: int, where: str, tail_size: int = TAIL) -> dict[str, Member]:
    """Return the members of an archive by name.

    Args:
        read: reads the archive.
        size: its bytes.
        where: what to call it in messages.
        tail_size: bytes from the end that are read first.

    Raises:
        Truncated: it has no directory at its end.
        CheckpointError: the directory is not one, or members are compressed.
    """
    tail_start = max(0, size - tail_size)
    tail = read(tail_start, size)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise Truncated(f"{where} has {size} bytes and no directory of a zip archive at its end: it is not complete")
    _, _, _, _, count, length, begin, _ = _END.unpack_from(tail, at)
    if at >= _LOCATOR.size and tail[at - _LOCATOR.size :].startswith(b"PK\x06\x07"):
        position = _LOCATOR.unpack_from(tail, at - _LOCATOR.size)[2]
        if not 0 <= position <= size - _END64.size:
            raise CheckpointError(f"{where} is damaged: its zip directory would end at byte {position}")
        record = read(position, position + _END64.size)
        if not record.startswith(b"PK\x06\x06"):
            raise CheckpointError(f"{where} is damaged: no zip directory ends at byte {position}")
        count, length, begin = _END64.unpack(record)[-3:]
    if begin + length > size or count * _ENTRY.size > length:
        raise CheckpointError(
            f"{where} is damaged: {count} members in {length} bytes from {begin} on do not fit into {size} bytes"
        )
    if begin >= tail_start:
        raw = tail[begin - tail_start : begin - tail_start + length]
    else:
        raw = read(begin, begin + length)
    return _parsed(raw, count, begin, where)


def _parsed(raw: bytes, count: int, limit: int, where: str) -> dict[str, Member]:
    """Return the members that a directory lists; their data end before `limit`."""
    members: dict[str, Member] = {}
    at = 0
    for _ in range(count):
        if len(raw) - at < _ENTRY.size or raw[at : at + 4] != b"PK\x01\x02":
            raise CheckpointError(f"{where} is damaged: its zip directory ends after {len(members)} of {count} members")
        entry = _ENTRY.unpack_from(raw, at)
        method, packed, size, name_length, extra, comment, header = (entry[i] for i in (4, 8, 9, 10, 11, 12, 16))
        at += _ENTRY.size
        name = str(raw[at : at + name_length], "utf-8", "replace")
        size, packed, header = _wide(raw[at + name_length : at + name_length + extra], size, packed, header)
        at += name_length + extra + comment
        if method or packed != size:
            raise CheckpointError(
                f"{where} has {quote(name)} compressed, expected an archive of torch.save, which stores tensors as "
                "they are; save it again"
            )
        if header + LOCAL_HEADER + name_length + size > limit:
            raise CheckpointError(f"{where} is damaged: {quote(name)} would end after byte {limit}")
        members[name] = Member(header, size, name_length)
    return members


def _wide(extra: bytes, size: int, packed: int, header: int) -> tuple[int, int, int]:
    """Return sizes and position, from the extra field where they do not fit into 32 bits."""
    at = 0
    while len(extra) - at >= 4:
        kind, length = struct.unpack_from("<2H", extra, at)
        body = extra[at + 4 : at + 4 + length]
        at += 4 + length
        if kind != 1:
            continue
        words = iter(struct.unpack(f"<{len(body) // 8}Q", body[: len(body) // 8 * 8]))
        size = next(words, size) if size == _FULL32 else size
        packed = next(words, packed) if packed == _FULL32 else packed
        header = next(words, header) if header == _FULL32 else header
    return size, packed, header
