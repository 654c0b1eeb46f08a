"""Invalid vectors of sections 2 and 3: bytes that are missing or damaged, header, root, versions."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import reference_decoder as ref

from .invalid_changes import (
    Change,
    Invalid,
    both,
    cut,
    flip,
    flip_at,
    header,
    header_text,
    rename,
    root,
    unknown_coverage,
    without,
)  # fmt: skip
from .parts import Parts

E = 14
"""Entries after the root of the vector `embedded`."""


def reorder(parts: Parts) -> None:
    """Two entries in the wrong order."""
    parts.entries = dict(sorted(parts.entries.items(), key=lambda item: item[0] == "relex.steps"))


def figures_turned(parts: Parts) -> None:
    """The two entries of figures in the wrong order."""
    names = list(parts.entries)
    names.insert(names.index("relex.errors"), names.pop(names.index("relex.norms")))
    parts.entries = {name: parts.entries[name] for name in names}


def fewer_entries(parts: Parts) -> None:
    """A root that is complete, but for one entry less."""

    def edit(raw: bytearray) -> None:
        struct.pack_into("<I", raw, 24, E - 1)
        struct.pack_into("<II", raw, 24 + 8 * E, zlib.crc32(raw[: 24 + 8 * E]), 0)

    parts.edit_root = edit


def swap_header(parts: Parts) -> None:
    """The same entries, listed in another order than that of their data."""
    parts.edit_header = lambda head: head.update({"relex.steps": head.pop("relex.steps")})


def future(parts: Parts) -> None:
    """A later version, in which everything may be different but what holds in all versions."""
    parts.version, parts.metadata["relex_version"], parts.metadata["reader"] = 2, "2", "9.8"


def feature(parts: Parts) -> None:
    """A feature that no reader knows."""
    parts.metadata["requires"], parts.metadata["reader"] = "time-travel", "3.1"


def another(parts: Parts) -> None:
    """Another entry before all others, and a manifest that is none."""
    parts.entries = {"relex.new": bytearray(b"\1\2\3"), **parts.entries}
    parts.dtypes["relex.new"] = "U8"
    parts.text = b"\0not JSON"


def alone(parts: Parts) -> None:
    """Nothing but the root."""
    parts.edit_header = lambda head: [head.pop(name) for name in list(head)[2:]]


def versions() -> Iterator[tuple[str, Invalid]]:
    """A later version or a feature comes before all that holds in version 1 only, and after what holds in all."""
    for name, reason, change in (
        ("version", "version 2 in the root", lambda p: setattr(p, "version", 2)),
        ("version-metadata", "version 2 in __metadata__", lambda p: p.metadata.update(relex_version="2", reader="2.0")),
        ("requires", "a feature that no reader knows", feature),
        ("later", "a later version in both places", future),
        ("later-feature", "a later version that needs a feature", both(future, feature)),
    ):
        yield name, Invalid(reason, change, error="Unsupported")
    rules: list[tuple[str, str, Change]] = [
        ("dtype", "a dtype F4", header("relex.coefficients", dtype="F4")),
        ("dtype-number", "a dtype that is no string", header("relex.chunks", dtype=4)),
        ("hole", "a hole between entries", header(ref.DATA_BASE, data_offsets=[0, 16])),
        ("entry-list", "an entry that is a list", lambda p: setattr(p, "edit_header", lambda h: h.update(x=[1]))),
        ("order", "another order of the entries", swap_header),
        ("producer", "no producer", without("producer")),
        ("metadata-number", "a number in __metadata__", header("__metadata__", note=1)),
        ("entry", "another entry, and a manifest that is no JSON", another),
        ("alone", "no entry but the root", alone),
        ("entries", "E is not the number of entries", lambda p: setattr(p, "edit_header", lambda h: h.popitem())),
        ("reserved", "reserved bytes of the root", root(28, "I", 1)),
        ("row", "the coverage of an entry", root(36, "B", 7)),
        ("entry-crc", "the CRC of an entry", root(32, "I", 1)),
    ]
    for name, reason, change in rules:
        yield f"later-{name}", Invalid(f"a later version with {reason}", both(future, change), error="Unsupported")
        if name in ("dtype", "hole", "producer", "reserved"):
            yield (
                f"requires-{name}",
                Invalid(f"an unknown feature, and {reason}", both(feature, change), error="Unsupported"),
            )
    broken: list[tuple[str, str, Change]] = [
        ("json", "a name that occurs twice in the header", header_text(b'"relex.chunks"', b'"relex.digests"')),
        ("format", "another format", lambda p: p.metadata.update(format="pt")),
        *[(key, f"no {key}", without(key)) for key in ("reader", "requires")],
        ("reader-number", "a number as the reader", header("__metadata__", reader=2)),
        ("root-second", "an entry before the root", lambda p: setattr(p, "edit_header", root_second)),
        ("root-dtype", "a root of I8", header("relex.root", dtype="I8")),
        ("root-dimensions", "a root of two dimensions", header("relex.root", shape=[(40 + 8 * E) // 8, 8])),
        ("root-offset", "a root that is not where the data begin", header("relex.root", data_offsets=[8, 48 + 8 * E])),
        ("magic", "another magic", root(0, "B", 0x72)),
        ("header-crc", "the header's CRC", root(12, "I", 1)),
        ("length", "a file that is longer than its root says", root(16, "Q", 1000)),
    ]
    for name, reason, change in broken:
        yield f"later-{name}", Invalid(f"in all versions: {reason}", both(future, change))
    yield "later-root-crc", Invalid("in all versions: the root's CRC", future, flip("relex.root", 32 + 8 * E))
    shorter = both(future, root(16, "Q", 99999))
    yield "later-short", Invalid("in all versions: the file's length", shorter, error="Truncated")
    yield "root-length-long", Invalid("a shorter file than its root says", root(16, "Q", 99999), error="Truncated")


def root_second(head: dict[str, Any]) -> None:
    """The root after another entry in the header."""
    head["relex.steps"], head["relex.root"] = head.pop("relex.steps"), head.pop("relex.root")


def damaged() -> Iterator[tuple[str, Invalid]]:
    """Files that are cut, and files with one wrong bit."""
    for name, where in (
        ("empty", lambda f: 0),
        ("length-word", lambda f: 5),
        ("header", lambda f: 700),
        ("root", lambda f: f.entries["relex.root"].start + 20),
        ("root-rows", lambda f: f.entries["relex.root"].end - 3),
        ("manifest", lambda f: f.entries["relex.manifest"].start + 9),
        ("tables", lambda f: f.entries["relex.chunks"].start),
        ("data", lambda f: f.entries[ref.DATA_BASE].start + 3),
        ("last-byte", lambda f: len(f.data) - 1),
    ):
        yield f"truncated-{name}", Invalid(f"cut: {name}", bend=cut(where), error="Truncated")
    yield "extra-byte", Invalid("a byte follows the file's end", bend=lambda data: data + b"\0")
    yield "header-length-huge", Invalid("N above 25,000,000", bend=lambda data: struct.pack("<Q", 1 << 62) + data[8:])

    for name, bend, operation in (
        ("header", lambda data: flip_at(data, 300), "open"),
        ("root", flip("relex.root", 13), "open"),
        ("root-rows", flip("relex.root", 41), "open"),
        ("root-crc", flip("relex.root", 32 + 8 * E), "open"),
        ("steps", flip("relex.steps", 1), "open"),
        ("manifest", flip("relex.manifest", 30), "open"),
        ("tensors", flip("relex.tensors", 25), "open"),
        ("directions", flip("relex.directions", 50), "open"),
        ("digests", flip("relex.digests", 4), "open"),
        ("chunks", flip("relex.chunks", 17), "open"),
        ("coefficients", flip("relex.coefficients", 3), "verify"),
        ("errors", flip("relex.errors", 3), "verify"),
        ("norms", flip("relex.norms", 3), "verify"),
        ("data-directions", flip(ref.DATA_DIRECTIONS, 25), "verify"),
        ("data-base", flip(ref.DATA_BASE, 60), "verify"),
    ):
        yield f"flip-{name}", Invalid(f"one bit is wrong: {name}", bend=bend, operation=operation)
    yield (
        "flip-data-read",
        Invalid("one bit of a chunk is wrong", bend=flip(ref.DATA_DIRECTIONS, 2), operation="read", tensor="a.weight"),
    )
    yield "flip-unknown", Invalid(
        "one bit of an entry that is ignored is wrong",
        bend=flip("org.example", 2), source="unknown-entries", operation="verify",
    )  # fmt: skip


def invalid() -> Iterator[tuple[str, Invalid]]:
    """All of them."""
    yield from damaged()
    yield from versions()
    opened: list[tuple[str, str, Change]] = [
        # section 3
        ("root-magic", "the magic", root(0, "B", 0x72)),
        ("root-header-crc", "the header's CRC", root(12, "I", 1)),
        ("root-length-short", "a longer file than its root says", root(16, "Q", 1000)),
        ("root-entries", "E is not the number of entries", fewer_entries),
        ("root-reserved", "reserved bytes of the root", root(28, "I", 1)),
        ("root-row-reserved", "reserved bytes of a row of the root", root(38, "B", 1)),
        ("root-end-reserved", "reserved bytes at the root's end", root(36 + 8 * E, "I", 1)),
        ("coverage-table", "coverage 1 of relex.chunks", lambda p: p.coverage.update({"relex.chunks": 1})),
        ("coverage-data", "coverage 0 of relex.data.base", lambda p: p.coverage.update({ref.DATA_BASE: 0})),
        ("coverage-2", "coverage 2", root(36 + 8 * 9, "B", 2)),
        ("coverage-crc", "a CRC beside coverage 1", root(32 + 8 * 9, "I", 1)),
        ("entry-crc", "the CRC of relex.steps", root(32, "I", 1)),
        # section 2
        ("header-leading-space", "the header does not begin with {", header_text(b'{"__meta', b' {"__meta')),
        ("header-newline", "a newline after the header's }", header_text(b"}}", b"}}\n")),
        ("header-duplicate", "a name occurs twice in the header", header_text(b'"relex.chunks"', b'"relex.digests"')),
        ("header-utf8", "the header is not UTF-8", header_text(b"spec/vectors", b"spec\xffvectors")),
        ("header-order", "the header lists entries in another order than their data", swap_header),
        ("header-hole", "a hole between entries", header(ref.DATA_BASE, data_offsets=[0, 16])),
        ("header-shape", "a shape that does not give the bytes", header("relex.digests", shape=[2, 16])),
        ("header-dtype", "an unknown dtype", header("relex.data.base", dtype="U9")),
        ("format", "format is not relex", lambda p: p.metadata.update(format="pt")),
        *[
            (f"metadata-{key}", f"no {key} in __metadata__", without(key))
            for key in ("reader", "requires", "relex_version")
        ],
        ("metadata-producer", "no producer in __metadata__", without("producer")),
        (
            "metadata-none",
            "no __metadata__",
            lambda p: setattr(p, "edit_header", lambda head: head.pop("__metadata__")),
        ),
        ("metadata-number", "a number in __metadata__", header("__metadata__", note=1)),
        ("entry-order", "relex.steps at the end", reorder),
        ("entry-missing", "relex.digests is missing", rename("relex.digests")),
        ("steps-dtype", "relex.steps is U64", header("relex.steps", dtype="U64")),
        ("root-shape", "relex.root has two dimensions", header("relex.root", shape=[16, 8])),
        ("coefficients-shape", "[D, T] turned round", header("relex.coefficients", shape=[3, 2])),
        ("digests-shape", "digests of 8 bytes", header("relex.digests", shape=[8, 8])),
        ("errors-shape", "relex.errors is [T, 2]", header("relex.errors", shape=[3, 2])),
        ("errors-missing", "relex.errors is missing", rename("relex.errors")),
        ("norms-dtype", "relex.norms is I64", header("relex.norms", dtype="I64")),
        ("norms-missing", "relex.norms is missing", rename("relex.norms")),
        ("norms-many", "a norm too many", lambda p: p.entries["relex.norms"].extend(bytes(8))),
        ("figures-order", "relex.norms before relex.errors", figures_turned),
    ]
    for name, reason, change in opened:
        yield name, Invalid(reason, change)
    unknown = Invalid("coverage 1 of an unknown entry", unknown_coverage(1), source="unknown-entries")
    yield "coverage-unknown", unknown
