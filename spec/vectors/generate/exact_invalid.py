"""The invalid vectors of EXACT.md."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import reference_decoder as ref

from .chunks import states, unsized_frame, zstd_frame
from .exact_odd_streams import said
from .exact_streams import tables_raw
from .exact_tier import frame_blob, leb128
from .exact_valid import VALID
from .invalid_changes import Change, Invalid, flip, header, patch, raw, rename, tensor

NOT_HELD = [
    ("exact-segments", "none", 10, 1), ("exact-segments", "none", 100, 1), ("exact-segments", "second", 20, 2),
    ("exact-segments", "last", 80, 4), ("exact-still", "w", 2, 0), ("exact-moving", "not.held", 6, 2),
]  # fmt: skip
"""Vector, tensor, step and digest of tensors that have the bits of kind `same` there."""


def tier_of(parts: Any) -> Any:
    """The segments and frames of a file that has some."""
    return parts.tier


def segment(k: int, **values: int) -> Change:
    """Other values in the record of a segment."""
    return lambda parts: tier_of(parts).segments[k].record.update(values)


def frame(k: int, step: int, **values: Any) -> Change:
    """Another frame; step 0 stands for the tables."""

    def change(parts: Any) -> None:
        frames = tier_of(parts).segments[k].frames
        frames[step] = replace(frames[step], **values)

    return change


def index(k: int, step: int, *ends: int) -> Change:
    """Other ends in the index of a frame."""

    def edit(raw: bytearray) -> None:
        for group, end in enumerate(ends):
            struct.pack_into("<Q", raw, 12 * group, end % (1 << 64))

    return frame(k, step, edit=edit)


def blob(k: int, step: int, group: int, make: Callable[[bytes], bytes]) -> Change:
    """Another blob, made of the one that was there."""

    def change(parts: Any) -> None:
        blobs = tier_of(parts).segments[k].frames[step].blobs
        blobs[group] = make(blobs[group])

    return change


def content(make: Callable[[bytes], bytes]) -> Change:
    """Another content of the first blob of tables."""
    return blob(0, 0, 0, lambda old: zstd_frame(make(ref.unframe(old, ref.content_size(old, 0, 1 << 30)))))


def tables(*own: list[int]) -> Change:
    """Other tables of the first set."""

    def make(raw: bytes) -> bytes:
        low, sets = ref.parse_tables(raw, 2)
        return tables_raw(low, [sets[0]._replace(tables=list(own)), sets[1]])

    return content(make)


def numbers(*raw: bytes) -> Change:
    """Other lengths of streams in the frame of step 1, which has one part, than they are."""
    return blob(0, 1, 0, lambda old: frame_blob(ref.parse_frame(old, 1), raw))


def stream(name: str, step: int, make: Callable[..., bytes], source: str = "exact-small") -> Change:
    """Another stream of a part in the first segment."""

    def change(parts: Any) -> None:
        frames = VALID[source].frames
        assert frames is not None
        first = replace(frames.plans[0], made={(name, step): make})
        parts.tier = replace(frames, plans=[first, *frames.plans[1:]]).tier(parts)

    return change


def spoken(make: Callable[[bytes], bytes]) -> Callable[..., bytes]:
    """A stream made of the one that it should be."""
    return lambda part, tables, pen: make(pen.stream(tables))


def ended(*lanes: int) -> Callable[..., bytes]:
    """A stream whose lanes end otherwise."""

    def make(part: Any, tables: Any, pen: Any) -> bytes:
        return bytes(pen.stream(tables, lanes))

    return make


def moved_one(entry: str, after: str) -> Change:
    """An entry in another place."""

    def change(parts: Any) -> None:
        there = {name: own for name, own in parts.entries.items() if name != entry}
        parts.entries = {}
        for name, own in there.items():
            parts.entries[name] = own
            if name == after:
                parts.entries[entry] = bytearray(entry.encode())

    return change


def fixed(entry: str, edit: Callable[[bytearray], Any]) -> Change:
    """Other bytes of an entry, whatever the tier says."""

    def change(parts: Any) -> None:
        edit(parts.entries[entry])
        parts.tier = None

    return change


def xored(make: Callable[[bytes], bytes]) -> Change:
    """Another stream of coding 1: that of the first part in the frame of step 7."""

    def change(old: bytes) -> bytes:
        found = ref.parse_frame(old, 3)
        return bytes(frame_blob([found[0]._replace(stream=make(found[0].stream)), *found[1:]]))

    return blob(0, 7, 0, change)


def opened() -> Iterator[tuple[str, str, Change]]:
    """Name, reason and change of files that are refused when they are opened."""
    segments, frames, data = ref.EXACT
    yield "missing-segments", "frames without segments", rename(segments)
    yield "missing-frames", "segments without frames", rename(frames)
    yield "missing-data", "records without frames", rename(data)
    yield "order-records", "frames before segments", moved_one(segments, frames)
    yield "order-base", "frames before the base", moved_one(data, ref.DATA_DIRECTIONS)
    yield "segments-shape", "segments in one dimension", header(segments, shape=[96])
    yield "frames-shape", "records of 12 bytes", header(frames, shape=[10, 12])
    yield "frames-dtype", "frames of I8", header(frames, dtype="I8")
    yield "frames-fewer", "a step without a record", fixed(frames, lambda raw: raw.__delitem__(slice(96, None)))
    yield "data-dtype", "frames of I8", header(data, dtype="I8")
    yield "coverage-data", "coverage 0 of the frames", lambda p: p.coverage.update({data: 0})
    yield "coverage-frames", "coverage 1 of the frames", lambda p: p.coverage.update({frames: 1})
    yield "tensor-segment", "a segment after the last", tensor(3, 20, "I", 3)
    yield "tensor-segment-empty", "an empty tensor in a segment", tensor(2, 20, "I", 1)
    yield "tensor-segment-none", "a framed tensor that no segment holds", tensor(1, 20, "I", 0)
    yield "tensor-reserved", "reserved bytes of a tensor", tensor(0, 24, "B", 1)
    yield "tensor-first", "an index of directions that there are not", tensor(1, 4, "I", 1)


def records() -> Iterator[tuple[str, str, Change]]:
    """Those in which the records of segments and frames are wrong: nothing of the tier can be read."""
    yield "segment-gap", "a step between two segments", segment(1, before=4)
    yield "segment-overlap", "a step in two segments", segment(1, before=2)
    yield "segment-empty", "a segment without steps", segment(0, count=0)
    yield "segment-short", "a step after the last segment", one_less
    yield "segment-long", "a segment that goes on after the last step", segment(1, count=3)
    yield "segment-huge", "2^32 - 1 steps", segment(1, count=(1 << 32) - 1)
    yield "left-own", "a left end inside the segment", segment(1, left=4)
    yield "left-first", "a left end of the first segment", segment(0, left=1)
    yield "table-sets-none", "no table sets", segment(1, table_sets=0)
    yield "table-sets-many", "256 table sets", segment(1, table_sets=256)
    yield "limit-none", "groups of no words", segment(0, limit=0)
    yield "segment-reserved", "reserved bytes", reserved_bytes
    yield "frame-table-set", "a table set that the segment lacks", frame(0, 2, table_set=2)
    yield "frame-reserved", "reserved bytes", frame(1, 1, reserved=b"\1" + bytes(6))
    yield "frames-order", "frames in the order of the steps", by_step
    yield "frame-first", "the tables do not begin with their entry", frame(0, 0, ahead=b"\0")
    yield "frame-hole", "a byte between a frame and the next tables", frame(1, 0, ahead=b"\0")
    yield "frame-overlap", "a frame ends in the next one", frame(0, 1, longer=1)
    yield "frame-position", "a position beyond the file", frame(0, 1, shift=1 << 40)
    yield "frame-beyond", "the last frame ends after its entry", frame(1, 1, longer=1)
    yield "frame-tail", "a byte after the last frame", lambda p: setattr(tier_of(p), "tail", b"\0")


def blobs() -> Iterator[tuple[str, str, Change]]:
    """Those in which what is needed for the tensor `w` at the second step cannot be used."""
    yield "groups-more", "a group too many", segment(0, groups=3)
    yield "groups-fewer", "a group too few", segment(0, groups=1)
    yield "index-cut", "a frame that ends in its index", frame(0, 2, raw=bytes(23))
    yield "index-low", "a blob that ends in the index", index(0, 3, 23)
    yield "index-order", "a blob that ends before it begins", index(0, 3, 1 << 20)
    yield "index-end", "a byte after the last blob", frame(0, 1, behind=b"\0")
    yield "index-beyond", "a blob that goes on after its frame", index(0, 1, 40, 1 << 40)
    yield "index-crc", "the checksum of a blob of tables", frame(0, 0, edit=lambda raw: raw.__setitem__(8, raw[8] ^ 1))
    yield "blob-crc", "the checksum of a blob of a frame", frame(0, 3, edit=lambda raw: raw.__setitem__(9, raw[9] ^ 1))

    yield "tables-frame", "tables that are no frame", blob(0, 0, 0, lambda old: b"no frame")
    yield "tables-trailing", "a byte after the frame", blob(0, 0, 0, lambda old: old + b"\0")
    yield "tables-no-size", "a frame without a content size", blob(0, 0, 0, lambda old: unsized_frame(bytes(100)))
    yield "tables-large", "one byte more than tables can have", blob(0, 0, 0, lambda old: states(2 + 33843 * 2))
    yield "tables-huge", "a content of 2^32 - 1 bytes", blob(0, 0, 0, lambda old: states((1 << 32) - 1))
    yield "tables-small", "tables that end early", content(lambda raw: raw[: 2 * 1077])
    yield "tables-longer", "a byte after the tables", content(lambda raw: raw + b"\0")
    yield "tables-shorter", "a byte less", content(lambda raw: raw[:-1])
    yield "tables-dense", "17 dense classes", content(lambda raw: raw[:1] + b"\21" + raw[2:])
    yield "tables-table", "a table that its set lacks", content(lambda raw: raw[:5] + b"\1" + raw[6:])
    yield "tables-many", "255 tables", tables(*[[4096]] * 255)
    yield "table-empty", "a table without frequencies", tables([])
    yield "table-long", "65 frequencies", tables([63] * 64 + [64])
    yield "table-low", "a sum of 4095", tables([64] * 63 + [63])
    yield "table-wraps", "a sum of 2^16 + 4096", tables([65535, 4097])
    yield "table-last", "a last frequency 0", tables([4096, 0])

    yield "parts-cut", "digests that end early", blob(0, 1, 0, lambda old: old[:7])
    yield "number-none", "a blob without lengths", blob(0, 1, 0, lambda old: old[:8])
    yield "number-cut", "a length that ends early", blob(0, 1, 0, lambda old: old[:8] + b"\x80")
    yield "number-long", "a length of six bytes", numbers(b"\x80\x80\x80\x80\x80\1")
    yield "number-padded", "a length that could be shorter", numbers(b"\x92\0")
    yield "number-zero", "a length 0 of two bytes", numbers(b"\x80\0")
    yield "stream-beyond", "a stream that goes on after its blob", numbers(leb128(400))
    yield "stream-after", "bytes after the last stream", blob(0, 1, 0, lambda old: old + b"\0")


def streams_of_w() -> Iterator[tuple[str, str, Change]]:
    """Those in which a stream of `w` is wrong: the first frame is that of step 3; step 1 has a list."""
    count, gap, move = ref.MOVED, ref.GAP, ref.MOVE
    yield "stream-empty", "no stream, but words that differ", stream("w", 1, lambda part, tables, pen: b"")
    yield "stream-state", "a lane that ends with 2", stream("w", 3, ended(2))
    yield "stream-list-state", "a lane that ends with 0", stream("w", 1, ended(0))
    yield "stream-word", "a word too many", stream("w", 1, spoken(lambda raw: raw.ljust(8, b"\0") + bytes(4)))
    yield "stream-short", "a stream without its last byte", stream("w", 3, spoken(lambda raw: raw[:-1]))
    yield "stream-zero", "a lane 0", stream("w", 3, spoken(lambda raw: b"\0"))
    yield "moved-many", "more words moved than there are", stream("w", 3, said((count, 7), *[(gap, 0), (move, 0)] * 7))
    yield "moved-quiet", "more words moved than are quiet", stream("w", 1, listed_and((count, 6)))
    yield "gap-end", "a gap that ends after the last word", stream("w", 3, said((count, 1), (gap, 6), (move, 0)))
    two = said((count, 2), (gap, 5), (move, 0), (gap, 0), (move, 0))
    yield "gap-begin", "a gap that begins after the last word", stream("w", 3, two)
    yield "digest-middle", "a digest of the step", blob(0, 2, 0, lambda old: bytes([old[0] ^ 1]) + old[1:])


def listed_and(*takes: tuple[int, int]) -> Callable[..., bytes]:
    """The list as it should be, and then other numbers."""

    def make(part: Any, tables: Any, pen: Any) -> bytes:
        at = next(i for i, (_, context, _) in enumerate(pen.takes) if context == ref.MOVED)
        pen.takes = pen.takes[:at]
        for context, value in takes:
            pen.number(context, value)
        return bytes(pen.stream(tables))

    return make


def others() -> Iterator[tuple[str, str, float, list[tuple[str, str, Change]]]]:
    """Those that are made of other files: source, tensor and step, and what is wrong with them."""
    one = said((ref.MOVED, 1), (ref.GAP, 2), (ref.MOVE, 5))
    yield "exact-small", "w", 3, [("digest", "other bits than the digest says", stream("w", 3, one))]

    none, hidden = fixed(ref.SEGMENTS, bytearray.clear), frame(0, 1, behind=b"hidden")
    still = [("segments-none", "no segments", none), ("frame-hidden", "a frame of no groups that is not empty", hidden)]
    yield "exact-still", "w", 2, still

    limit, cut, wraps = segment(0, limit=11), segment(0, limit=9), index(0, 0, 1 << 62, 2 << 62, 3 << 62)
    groups = [("groups-limit", "fewer groups, by L, than there are", limit), ("index-wraps", "ends beyond 2^63", wraps)]
    yield "exact-groups", "a", 1, [*groups, ("groups-cut", "parts in other groups, by L, than they are", cut)]
    yield "exact-segments", "first", 10, [("frames-many", "a step that needs seven frames", deep)]

    plain: list[tuple[str, str, Callable[[bytes], bytes]]] = [
        ("size", "a content of another size", lambda raw: zstd_frame(bytes(19))),
        ("frame", "no frame", lambda raw: b"no frame"),
        ("empty", "coding 1 without a stream", lambda raw: b""),
        ("trailing", "a byte after the frame", lambda raw: raw + b"\0"),
    ]
    yield "exact-coding-1", "a", 7, [(f"xor-{name}", reason, xored(make)) for name, reason, make in plain]

    low = 1 << 32
    lanes = [
        ("short", "three lanes", spoken(lambda raw: raw[:28])),
        ("length", "a length that is no multiple of 4", spoken(lambda raw: raw + b"\0")),
        ("word", "a word of the stream too many", spoken(lambda raw: raw + bytes(4))),
        ("state", "the last lane ends with 2^32 + 1", ended(low, low, low, low + 1)),
    ]
    changed = [(f"lanes-{name}", reason, stream("just", 2, make, "exact-lanes")) for name, reason, make in lanes]
    yield "exact-lanes", "just", 2, changed

    other = raw(0, lambda raw: raw.__setitem__(0, raw[0] ^ 1))
    yield "exact-embedded", "a", 3, [("base-embedded", "other bits of the embedded base", other)]


def by_step(parts: Any) -> None:
    """The frames of the first segment in the order of their steps."""
    tier_of(parts).segments[0].order = [0, 1, 2, 3]


def invalid() -> Iterator[tuple[str, Invalid]]:
    """All invalid files."""
    exact: dict[str, Any] = {"source": "exact-small", "tier": "exact"}
    read_w: dict[str, Any] = exact | {"operation": "read", "tensor": "w", "step": 2}
    for name, reason, change in opened():
        yield f"exact-{name}", Invalid(reason, change, **exact)
    for name, reason, change in (*records(), *blobs(), *streams_of_w()):
        yield f"exact-{name}", Invalid(reason, change, **read_w)
    for name, entry in (("segments", ref.SEGMENTS), ("frames", ref.FRAMES), ("data", ref.DATA_FRAMES)):
        bend = flip(entry, 30 if name == "data" else 5)
        yield f"exact-flip-{name}", Invalid(f"one bit is wrong: {entry}", bend=bend, **exact, operation="verify")
    yield "exact-flip-read", Invalid("one bit of a blob is wrong", bend=flip(ref.DATA_FRAMES, 40), **read_w)
    yield "exact-framed-digest", Invalid(
        "a digest of a framed tensor, in another tier", blob(1, 1, 1, lambda old: bytes([old[0] ^ 1]) + old[1:]),
        **exact | {"tier": "line", "operation": "read", "tensor": "count", "step": 7},
    )  # fmt: skip

    for source, tensor_name, step, cases in others():
        own = {"source": source, "tensor": tensor_name, "step": step}
        for name, reason, change in cases:
            yield f"exact-{name}", Invalid(reason, change, **read_w | own)
    for source, name, step, digest in NOT_HELD:
        reason = f"the base's digest of {name}, which no segment holds at step {step}"
        change = patch("relex.digests", 16 * digest + 3, "B", 0)
        own = {"source": source, "tensor": name, "step": step, "error": "BaseMismatch"}
        yield f"exact-base-not-held-{name}-{step}", Invalid(reason, change, **read_w | own)

    run = {"source": "exact-steps-17", "base": "exact-steps-2", "error": "BaseMismatch"}
    for name, step in (("much", 49), ("much", 1), ("little", 25), ("still", 4)):
        reason = f"the base of another run: {name} at step {step}"
        yield f"exact-base-{name}-{step}", Invalid(reason, **read_w | run | {"tensor": name, "step": step})


def deep(parts: Any) -> None:
    """Left ends that make a step need more frames than it may."""
    tier_of(parts).segments[1].record["left"] = 1
    tier_of(parts).segments[2].record["left"] = 6


def reserved_bytes(parts: Any) -> None:
    """Reserved bytes of the second segment."""
    tier_of(parts).segments[1].reserved = b"\0\0\0\0\1\0\0\0"


def one_less(parts: Any) -> None:
    """A last segment of one step, with the frame of one step; the step after it has a record."""
    last = tier_of(parts).segments[-1]
    last.count, last.frames = 1, {0: last.frames[0], 1: last.frames[2]}
    tier_of(parts).records = bytes(24)
