"""The tables of the two texts: a file byte by byte (FORMAT.md), and the streams of a part symbol by symbol (EXACT.md).

    cd spec/vectors
    python -m generate.texts

prints them, to be put into the texts where a vector that they show has changed; the tests compare.
"""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import reference_decoder as ref

VALID = Path(__file__).parents[1] / "valid"
FORMS = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "i64": "q", "f32": "f", "f64": "d"}


class Table:
    """Rows of a table of bytes."""

    def __init__(self, data: bytes) -> None:
        """At byte 0."""
        self.data, self.at, self.rows = data, 0, list[str]()

    def row(self, size: int, meaning: str, form: str = "", text: bool = False, hexadecimal: bool = False) -> None:
        """The next `size` bytes: as text or in hexadecimal, with a value in a form."""
        raw, end = self.data[self.at : self.at + size], self.at + size
        places = f"{self.at} - {end - 1}" if size > 1 else str(self.at)
        value = ""
        if form:
            (number,) = struct.unpack("<" + FORMS[form], raw[: struct.calcsize(FORMS[form])])
            if hexadecimal:
                value = f"{form} 0x{number:08X}"
            elif form[0] == "f":
                value = f"{form} {'NaN' if math.isnan(number) else repr(number).removesuffix('.0')}"
            else:
                value = f"{form} {number}"
        self.rows.append(f"| {places} | `{raw.decode() if text else raw.hex(' ').upper()}` | {value} | {meaning} |")
        self.at = end


def appendix() -> str:
    """The table of `minimal.relex`."""
    data = (VALID / "minimal.relex").read_bytes()
    file, table = ref.RelexFile(data), Table(data)
    names, start = list(file.entries), 8 + struct.unpack_from("<Q", data)[0]
    places = {name: (entry.start, entry.end - 1) for name, entry in file.entries.items()}
    table.row(8, f"N: the header is the next {start - 8} bytes", "u64")
    header = json.loads(data[8:start])
    notes = {
        "relex.root": f"offsets count from the header's end, byte {start}",
        "relex.steps": "T = 2",
        "relex.manifest": "JSON",
        "relex.tensors": "one tensor",
        "relex.directions": "one direction",
        "relex.digests": "one digest",
        "relex.chunks": "one chunk",
        "relex.coefficients": "a row of T",
        "relex.errors": "two rows of T",
        "relex.norms": "one of the tensor, one of the direction",
        ref.DATA_DIRECTIONS: f"bytes {places[ref.DATA_DIRECTIONS][0]} and {places[ref.DATA_DIRECTIONS][1]} of the file",
        ref.DATA_BASE: "empty",
    }
    for i, (name, value) in enumerate(header.items()):
        piece = json.dumps({name: value}, separators=(",", ":"))[1:-1]
        text = ("{" if i == 0 else "") + piece + ("," if i < len(header) - 1 else "}")
        table.row(len(text), notes.get(name, "`__metadata__` (section 2)"), text=True)
    if start > table.at:
        table.row(start - table.at, "spaces after the last `}`")
    root_end = places["relex.root"][1] + 1
    table.row(8, "`relex.root` (section 3): magic")
    table.row(4, "version", "u32")
    table.row(4, f"CRC of bytes 0 to {start - 1}", "u32", hexadecimal=True)
    table.row(8, "length of the file", "u64")
    table.row(4, f"E: {len(names) - 1} entries follow the root", "u32")
    table.row(4, "reserved")
    for name in names[1:]:
        covered = data[table.at + 4] == 0
        meaning = f"CRC of `{name}`; coverage 0" if covered else f"`{name}`: no CRC; coverage 1"
        table.row(8, f"{meaning}; reserved", "u32", hexadecimal=True)
    table.row(4, f"CRC of bytes {start} to {root_end - 9}", "u32", hexadecimal=True)
    table.row(4, "reserved")
    table.row(8, "`relex.steps` (section 4): t_1", "i64")
    table.row(8, "t_2", "i64")
    manifest = data[places["relex.manifest"][0] : places["relex.manifest"][1] + 1]
    rows = {
        '"observed"': "`relex.manifest`: K = 2, no tier `exact`",
        '"base"': "the base is elsewhere, in one file",
        '"quality"': "informative",
        '"tensors"': "the tensor; its origin is BF16, all of the tensor of its name in shard 0 of the base",
        '"files"': "no other files",
        '"layouts"': "one layout: one shard, no index, tensor 0 in shard 0",
        '"layout"': "of the tiers `line` and `track`",
        '"steps"': "both steps: no directory, layout 0",
        '"left_out"': "nothing was left out",
    }
    ends = [*(manifest.index(key.encode()) for key in list(rows)[1:]), len(manifest.rstrip())]
    begin = 0
    for meaning, end in zip(rows.values(), ends, strict=True):
        table.row(end - begin, meaning, text=True)
        begin = end
    if spaces := len(manifest) - len(manifest.rstrip()):
        table.row(spaces, "spaces after the last `}`")
    table.row(1, "`relex.tensors` (section 5): kind `moving`", "u8")
    table.row(1, "origin: in the base", "u8")
    table.row(2, "one direction", "u16")
    for meaning in ("its first direction", "its first digest", "no span: chunk", "and offset", "in no segment"):
        table.row(4, meaning, "u32")
    table.row(8, "reserved")
    table.row(8, "`relex.directions`: slope", "f64")
    table.row(8, "intercept", "f64")
    table.row(4, "scale", "f32")
    table.row(4, "shift", "f32")
    table.row(2, "no factors", "u16")
    table.row(1, "packing `ternary`", "u8")
    table.row(1, "reserved")
    table.row(4, "remainder: chunk", "u32")
    table.row(4, "and offset", "u32")
    row = places["relex.coefficients"]
    table.row(4, f"CRC of the row of coefficients, bytes {row[0]} to {row[1]}", "u32", hexadecimal=True)
    for meaning in ("informative", "informative: R^2 undefined", "informative", "informative"):
        table.row(4, meaning, "f32")
    table.row(4, "no factors: chunk", "u32")
    table.row(4, "and offset", "u32")
    origin = ref.read_safetensors(VALID / "minimal.safetensors")("w")[2].hex(" ").upper()
    table.row(16, f"`relex.digests` (section 9): SHA-256 of `{origin}`, its first half")
    table.row(8, "`relex.chunks` (section 6): position in the file", "u64")
    table.row(4, "stored length", "u32")
    table.row(4, "raw length", "u32")
    codes = places[ref.DATA_DIRECTIONS]
    table.row(4, f"CRC of bytes {codes[0]} and {codes[1]}", "u32", hexadecimal=True)
    table.row(1, "codec: stored as it is", "u8")
    table.row(1, "fill byte", "u8")
    table.row(2, "reserved")
    table.row(8, "`relex.coefficients`: c_1", "f64")
    table.row(8, "c_2", "f64")
    for meaning in ("`relex.errors` (section 4): `track` at t_1, not known", "at t_2", "`line` at t_1", "at t_2"):
        table.row(4, meaning, "f32")
    table.row(8, "`relex.norms` (section 4): of the tensor, not known", "f64")
    table.row(8, "of the direction", "f64")
    table.row(1, "`relex.data.directions` (section 7): codes of elements 0, 2, 4", "u8")
    table.row(1, "codes of elements 1, 3, 5", "u8")
    assert table.at == len(data)
    return "\n".join(["| bytes | content | value | meaning |", "| --- | --- | --- | --- |", *table.rows])


class Spoken(ref.Stream):
    """A stream that notes what is taken from it."""

    rows: list[str]

    def symbol(self, context: int) -> int:
        """A symbol."""
        before = self.lanes[self.lane]
        value = super().symbol(context)
        taken = f"| {before} | context {context}: slot {before % 4096}, symbol {value}"
        self.rows.append(f"{taken} | {self.lanes[self.lane]} |")
        return value

    def raw(self, bits: int) -> int:
        """Raw bits."""
        before = self.lanes[self.lane]
        value = super().raw(bits)
        kind = "raw bit" if bits == 1 else "raw bits"
        self.rows.append(f"| {before} | {bits} {kind}: {value} | {self.lanes[self.lane]} |")
        return value


def streams() -> Iterator[tuple[int, str, list[str]]]:
    """Step, bytes and rows of each frame of `exact-worked.relex`, in the order of the frames."""
    file = ref.RelexFile((VALID / "exact-worked.relex").read_bytes())
    base = ref.read_safetensors(VALID / "exact-worked.safetensors")
    low, sets = ref.read_tables(file, 0, 0)
    part = ref.Segmented(base("w")[2], "BF16", low)
    notes: list[tuple[int, str, list[str]]] = []

    def coded(step: int) -> tuple[ref.Coded, ref.TableSet]:
        found = ref.read_frame(file, 0, 0, step)[0]
        Spoken.rows = []
        notes.append((step, found.stream.hex(" ").upper(), Spoken.rows))
        return found, sets[0]

    plain, ref.Stream = ref.Stream, Spoken  # type: ignore[misc]  # the same class, with notes
    try:
        part.restore(3, 2, coded)
    finally:
        ref.Stream = plain  # type: ignore[misc]
    yield from notes


if __name__ == "__main__":
    lines = [appendix()]
    for step, raw, rows in streams():
        lines += ["", f"step {step}: `{raw}`", "", "| lane before | taken | lane after |", "| --- | --- | --- |", *rows]
    sys.stdout.write("\n".join(lines) + "\n")
