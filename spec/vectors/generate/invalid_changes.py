"""What an invalid vector is, and the changes that make one out of a valid one."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import reference_decoder as ref

from .chunks import zstd_frame
from .parts import Parts, align, compact, packed
from .recipe import AUTO

Change = Callable[[Parts], Any]
Bend = Callable[[bytes], bytes]


@dataclass
class Invalid:
    """A file that breaks one rule, and how a reader notices it.

    That is by `open`, by `read` of a tensor, by reading a `file` of a step, or by `verify`.
    """

    reason: str
    change: Change | None = None
    bend: Bend | None = None  # of the finished file
    source: str = "embedded"
    error: str = "Corrupt"
    operation: str = "open"
    tensor: str | None = None
    """What is read: with `file` the name of that."""
    step: float = 10
    tier: str = AUTO
    base: str | None = None
    """The vector whose base is given, if it is not `source`; `none` for none."""

    def build(self, valid: Callable[[str], bytes]) -> bytes:
        """The file; `valid` gives a valid one."""
        data = valid(self.source)
        if self.change is not None:
            parts = Parts.taken_from(data)
            self.change(parts)
            data = parts.build()
        return data if self.bend is None else self.bend(data)


def flip(entry: str, offset: int = 0) -> Bend:
    """One bit of an entry."""

    def bend(data: bytes) -> bytes:
        end = ref.header_length(data, 1 << 25)
        header = json.loads(data[8:end])
        at: int = end + header[entry]["data_offsets"][0] + offset
        return flip_at(data, at)

    return bend


def flip_at(data: bytes, at: int) -> bytes:
    """One bit of a file."""
    return data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]


def cut(where: Callable[[Any], int]) -> Bend:
    """The file up to a position."""
    return lambda data: data[: where(ref.RelexFile(data))]


def patch(entry: str, offset: int, form: str, *values: Any) -> Change:
    """Another value in a table."""
    return lambda parts: parts.patch(entry, offset, form, *values)


def root(offset: int, form: str, *values: Any) -> Change:
    """Another value in the root."""
    return lambda parts: setattr(parts, "edit_root", lambda raw: struct.pack_into("<" + form, raw, offset, *values))


def header(entry: str, **values: Any) -> Change:
    """Other values in the header."""
    return lambda parts: setattr(parts, "edit_header", lambda head: head[entry].update(values))


def header_text(old: bytes, new: bytes) -> Change:
    """Other bytes of the header."""
    return lambda parts: setattr(parts, "edit_text", lambda text: text.rstrip(b" ").replace(old, new))


def manifest(**values: Any) -> Change:
    """Other values in the manifest."""
    return lambda parts: parts.manifest.update(values)


def manifest_text(old: str, new: str) -> Change:
    """Other text in the manifest."""

    def change(parts: Parts) -> None:
        text = compact(parts.manifest)
        assert text.count(old) == 1, (old, text)
        parts.text = align(text.replace(old, new))

    return change


def in_frame(
    bend: Bend = bytes, after: int = 0, spaces: int = 0, twice: bool = False, frame: Bend = zstd_frame
) -> Change:  # fmt: skip
    """The manifest packed in a `frame`, and changed."""

    def change(parts: Parts) -> None:
        text = compact(parts.manifest).encode() + b" " * spaces
        parts.text = bend(packed(packed(text) if twice else text, after, frame))

    return change


def beside(text: str) -> Change:
    """One more key of the manifest."""
    return manifest_text('"indexed":true', '"indexed":true,' + text)


def around(before: bytes, after: bytes) -> Change:
    """Bytes around the manifest."""

    def change(parts: Parts) -> None:
        parts.text = before + align(json.dumps(parts.manifest)) + after

    return change


def file_name(name: str) -> Change:
    """Another name of an embedded file."""
    return lambda parts: parts.manifest["files"][0].__setitem__(0, name)


def base(**values: Any) -> Change:
    """Other values in the manifest's base."""
    return lambda parts: parts.manifest["base"].update(values)


def layout(number: int, **values: Any) -> Change:
    """Other values in a layout."""
    return lambda parts: parts.manifest["layouts"][number].update(values)


def shards(*names: Any) -> Change:
    """Other names of the shards, of the base and of the steps."""
    return both(base(shards=list(names)), layout(0, shards=list(names)))


def step(number: int, *values: Any) -> Change:
    """Another row in the manifest's steps."""
    return lambda parts: parts.manifest["steps"].__setitem__(number, list(values))


def file_row(number: int, column: int, *values: Any) -> Change:
    """Other values in a row of the manifest's files."""
    return lambda parts: parts.manifest["files"][number].__setitem__(slice(column, column + len(values)), values)


def origin_dtype(tensor: int, value: Any) -> Change:
    """Another dtype of a tensor's origin."""
    return lambda parts: parts.manifest["tensors"][tensor][3].__setitem__(0, value)


def sources(tensor: int, *values: Any) -> Change:
    """Other sources of a tensor's origin."""
    return lambda parts: parts.manifest["tensors"][tensor][3].__setitem__(1, list(values))


def row(tensor: int, column: int, value: Any) -> Change:
    """Another value in a row of the manifest's tensors."""
    return lambda parts: parts.manifest["tensors"][tensor].__setitem__(column, value)


def tensor(index: int, offset: int, form: str, *values: Any) -> Change:
    """Another value in a tensor's record."""
    return patch("relex.tensors", 32 * index + offset, form, *values)


def direction(index: int, offset: int, form: str, *values: Any) -> Change:
    """Another value in a direction's record."""
    return patch("relex.directions", 64 * index + offset, form, *values)


def chunk(index: int, **values: Any) -> Change:
    """Other values of a chunk."""
    return lambda parts: parts.chunks.__setitem__(index, replace(parts.chunks[index], **values))


def stored(index: int, codec: int, make: Callable[[bytes], bytes]) -> Change:
    """Other stored bytes of a chunk, made of its raw ones."""

    def change(parts: Parts) -> None:
        parts.chunks[index] = replace(parts.chunks[index], stored=make(parts.raw[index]), codec=codec)

    return change


def raw(index: int, edit: Callable[[bytearray], Any]) -> Change:
    """Other raw bytes of a chunk."""

    def change(parts: Parts) -> None:
        data = bytearray(parts.raw[index])
        edit(data)
        parts.set_raw(index, bytes(data))

    return change


def both(*changes: Change) -> Change:
    """Several changes."""
    return lambda parts: [change(parts) for change in changes]


def without(key: str) -> Change:
    """A key of `__metadata__` is missing."""
    return lambda parts: parts.metadata.pop(key)


def rename(entry: str) -> Change:
    """A file in which an entry has a name that no reader knows."""

    def change(parts: Parts) -> None:
        parts.entries = {"other" if name == entry else name: data for name, data in parts.entries.items()}
        parts.dtypes["other"] = parts.dtypes[entry]

    return change


def unknown_coverage(value: int) -> Change:
    """Another coverage of an entry that no reader knows."""
    return lambda parts: parts.coverage.update({"org.example": value})
