"""Later versions: what holds in all of them is checked first, then the version, then what holds in this one."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from relex_codec import Corrupt, Truncated, Unsupported
from relex_codec.format.reader import FileReader
from support.plain import MAGIC, File
from support.sources import Held

Header = dict[str, Any]
ROOT = 40 + 8 * 14
"""Bytes of the root of a file with frames."""


def parts_of(path: Path) -> tuple[Header, bytes]:
    """The header of a file, and its data."""
    raw = path.read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def built(header: Header, data: bytes, version: int, *, entries: int | None = None) -> bytes:
    """A file of another version: any header, a root that fits it, and data behind it."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    head = struct.pack("<Q", len(text)) + text
    count = (ROOT - 40) // 8 if entries is None else entries
    body = struct.pack("<8sIIQII", MAGIC, version, zlib.crc32(head), len(head) + len(data), count, 7)
    body += data[32 : 32 + 8 * count]
    root = body + struct.pack("<II", zlib.crc32(body), 9)  # reserved fields may mean something in another version
    return head + root + data[len(root) :]


@pytest.fixture(scope="module")
def made(zoo_file: Callable[..., Path]) -> tuple[Header, bytes]:
    header, data = parts_of(zoo_file("default"))
    assert FileReader(Held(zoo_file("default").read_bytes())).index.entries["relex.root"].shape == (ROOT,)
    header["__metadata__"] |= {"relex_version": "2", "reader": "3.1.4"}
    return header, data


def changed(header: Header, name: str, **fields: Any) -> Header:
    return header | {name: header[name] | fields}


def without(fields: Header, *names: str) -> Header:
    return {name: value for name, value in fields.items() if name not in names}


LATER: dict[str, Callable[[Header], Header]] = {
    "nothing else": lambda header: header,
    "a dtype of half bytes": lambda header: changed(header, "relex.steps", dtype="F4"),
    "a shape of text": lambda header: changed(header, "relex.tensors", shape="many"),
    "a hole": lambda header: changed(header, "relex.steps", data_offsets=[1 << 20, 1 << 21]),
    "an entry without fields": lambda header: changed(header, "relex.chunks") | {"relex.chunks": {}},
    "no producer": lambda header: header | {"__metadata__": without(header["__metadata__"], "producer")},
    "numbers in the metadata": lambda header: changed(header, "__metadata__", written=2027),
    "no entry of version 1": lambda header: {name: header[name] for name in ("__metadata__", "relex.root")},
    "entries in another order": lambda header: (
        {name: header[name] for name in ("__metadata__", "relex.root")} | dict(reversed(header.items()))
    ),
    "negative numbers": lambda header: header | {"x": [-1, -0.5, -0.0, {"y": 1e99}]},
}


@pytest.mark.parametrize("change", LATER)
@pytest.mark.parametrize("where", ["root", "metadata", "both", "requires"])
def test_a_later_version_is_named_whatever_else_is_new(made: tuple[Header, bytes], change: str, where: str) -> None:
    header, data = made
    header = LATER[change](header)
    metadata = header["__metadata__"]
    if where in ("root", "requires"):
        metadata = metadata | {"relex_version": "1"}
    if where == "requires":
        metadata = metadata | {"requires": "teleport,time-travel"}
    file = built(header | {"__metadata__": metadata}, data, 2 if where in ("root", "both") else 1)
    what = "feature 'teleport'" if where == "requires" else "version '2'"
    with pytest.raises(Unsupported, match=rf"needs {what}; install relex-codec '3\.1\.4' or later"):
        FileReader(Held(file))


ALWAYS: dict[str, Callable[[Header], Header]] = {
    "another format": lambda header: changed(header, "__metadata__", format="pt"),
    "no metadata": lambda header: without(header, "__metadata__") | {"x": 1},
    "metadata that are a list": lambda header: header | {"__metadata__": ["relex"]},
    **{
        f"no {key}": lambda header, key=key: header | {"__metadata__": without(header["__metadata__"], key)}
        for key in ("format", "relex_version", "requires", "reader")
    },
    "a version that is a number": lambda header: changed(header, "__metadata__", relex_version=2),
    "another first entry": lambda header: (
        {name: header[name] for name in ("__metadata__", "relex.steps")} | without(header, "relex.steps")
    ),
    "no root": lambda header: without(header, "relex.root") | {"relex.roof": header["relex.root"]},
    "a root that is a number": lambda header: header | {"relex.root": 128},
    "a root of other numbers": lambda header: changed(header, "relex.root", dtype="I8"),
    "a root of two dimensions": lambda header: changed(header, "relex.root", shape=[8, ROOT // 8]),
    "a root without a shape": lambda header: header | {"relex.root": without(header["relex.root"], "shape")},
    "a root further on": lambda header: changed(header, "relex.root", data_offsets=[8, ROOT + 8]),
    "a root at False": lambda header: changed(header, "relex.root", data_offsets=[False, ROOT]),
    "a longer root": lambda header: changed(header, "relex.root", shape=[1000], data_offsets=[0, 1000]),
    "a shorter root": lambda header: changed(header, "relex.root", shape=[8], data_offsets=[0, 8]),
    "a root of half a byte more": lambda header: changed(
        header, "relex.root", shape=[ROOT + 0.5], data_offsets=[0, ROOT + 0.5]
    ),
    "a number that exceeds f64": lambda header: header | {"x": 10**400},
}


@pytest.mark.parametrize("change", ALWAYS)
def test_what_holds_in_all_versions_comes_first(made: tuple[Header, bytes], change: str) -> None:
    header, data = made
    with pytest.raises(Corrupt):
        FileReader(Held(built(ALWAYS[change](header), data, 2)))


def test_checksums_and_lengths_come_before_the_version(made: tuple[Header, bytes]) -> None:
    header, data = made
    good = built(header, data, 2)
    start = 8 + int.from_bytes(good[:8], "little")

    def flipped(at: int) -> bytes:
        return good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]

    with pytest.raises(Unsupported, match=r"version '2'.*3\.1\.4"):
        FileReader(Held(good))
    with pytest.raises(Truncated, match="expected"):
        FileReader(Held(good[:-1]))
    with pytest.raises(Corrupt, match="expected"):
        FileReader(Held(good + b"\0"))
    with pytest.raises(Corrupt, match="magic"):
        FileReader(Held(flipped(start)))
    with pytest.raises(Corrupt, match=r"checksum of relex\.root"):
        FileReader(Held(flipped(start + 8)))  # the version itself
    with pytest.raises(Corrupt, match="checksum of the header"):
        FileReader(Held(flipped(good.index(b"3.1.4"))))
    with pytest.raises(Corrupt, match="lists 1048576 entries"):
        FileReader(Held(built(header, data, 2, entries=1 << 20)))
    long = changed(header, "relex.root", shape=[1 << 40], data_offsets=[0, 1 << 40])
    with pytest.raises(Truncated):
        FileReader(Held(built(long, data, 2)))


def test_version_1_checks_the_rest(made: tuple[Header, bytes], zoo_file: Callable[..., Path]) -> None:
    """The same changes are errors in a file of version 1: it is no reader of anything."""
    header, data = made
    header = changed(header, "__metadata__", relex_version="1")
    for name, change in LATER.items():
        with pytest.raises((Corrupt, Truncated)):
            FileReader(Held(built(change(header), data, 1)))
        assert name
    file = File(zoo_file("default"))
    del file.metadata["producer"]
    with pytest.raises(Corrupt, match="lack producer"):
        FileReader(Held(file.rebuilt({})))
