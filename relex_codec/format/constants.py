"""Constants and record layouts of FORMAT.md: what is on the wire, in one place."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

VERSION: Final = 1
READER: Final = "0.1.0"
"""The first release that reads what this one writes."""
FEATURES: Final = frozenset[str]()
"""Names in ``requires`` that this release knows."""

MAGIC: Final = b"RELEX\r\n\x1a"
HEADER_LIMIT: Final = 25_000_000
PIECE: Final = 1 << 18
"""Elements in a piece, and in what one digest of the base covers."""
CHUNK_LIMIT: Final = 1 << 21
"""Raw bytes in a chunk."""
BLOCK: Final = 4096
"""Bytes in a full block of radix-packed codes."""
STEP_LIMIT: Final = 1 << 53
"""The largest step: every step is exact in float64."""

ROOT: Final = "relex.root"
STEPS: Final = "relex.steps"
MANIFEST: Final = "relex.manifest"
TENSORS: Final = "relex.tensors"
DIRECTIONS: Final = "relex.directions"
DIGESTS: Final = "relex.digests"
CHUNKS: Final = "relex.chunks"
COEFFICIENTS: Final = "relex.coefficients"
ERRORS: Final = "relex.errors"
NORMS: Final = "relex.norms"
DATA_DIRECTIONS: Final = "relex.data.directions"
DATA_BASE: Final = "relex.data.base"
DATA: Final = (DATA_DIRECTIONS, DATA_BASE)
ENTRIES: Final = (ROOT, STEPS, MANIFEST, TENSORS, DIRECTIONS, DIGESTS, CHUNKS, COEFFICIENTS, ERRORS, NORMS, *DATA)
"""Every entry that a file of version 1 has, in the order of their data."""
SEGMENTS: Final = "relex.exact.segments"
FRAMES: Final = "relex.exact.frames"
DATA_FRAMES: Final = "relex.data.frames"
FRAME_ENTRIES: Final = (SEGMENTS, FRAMES, DATA_FRAMES)
"""The entries of the frames, after all others; a file has all of them or none."""
COVERED_ELSEWHERE: Final = frozenset({COEFFICIENTS, *DATA, DATA_FRAMES})
"""Entries whose parts carry checksums of their own."""

SAME, MOVING, FRAMED, TIED = 0, 1, 2, 3
"""Kinds of tensor: its origin at every step, directions, step by step in frames, or another name of a tensor."""
IN_BASE, STORED = 0, 1
"""Origins of a tensor."""
CODEC_STORED, CODEC_ZSTD, CODEC_FILL = 0, 1, 2

ROOT_HEAD: Final = np.dtype([("magic", "S8"), ("version", "<u4"), ("header_crc", "<u4"), ("size", "<u8"),
                             ("entries", "<u4"), ("reserved", "<u4")])  # fmt: skip
ROOT_ROW: Final = np.dtype([("crc", "<u4"), ("coverage", "u1"), ("reserved", "u1", 3)])
ROOT_TAIL: Final = np.dtype([("crc", "<u4"), ("reserved", "<u4")])
TENSOR_RECORD: Final = np.dtype([
    ("kind", "u1"), ("origin", "u1"), ("directions", "<u2"), ("first", "<u4"), ("digest", "<u4"),
    ("chunk", "<u4"), ("offset", "<u4"), ("segment", "<u4"), ("reserved", "u1", 8),
])  # fmt: skip
DIRECTION_RECORD: Final = np.dtype([
    ("slope", "<f8"), ("intercept", "<f8"), ("scale", "<f4"), ("shift", "<f4"), ("rank", "<u2"), ("packing", "u1"),
    ("reserved0", "u1"), ("chunk", "<u4"), ("offset", "<u4"), ("coefficients_crc", "<u4"), ("explained", "<f4"),
    ("r2", "<f4"), ("error_line", "<f4"), ("error_stored", "<f4"), ("factor_chunk", "<u4"), ("factor_offset", "<u4"),
])  # fmt: skip
CHUNK_RECORD: Final = np.dtype([
    ("position", "<u8"), ("stored", "<u4"), ("raw", "<u4"), ("crc", "<u4"), ("codec", "u1"),
    ("fill", "u1"), ("reserved", "u1", 2),
])  # fmt: skip

SEGMENT_RECORD: Final = np.dtype([
    ("first", "<u4"), ("count", "<u4"), ("left", "<u4"), ("table_sets", "<u4"), ("groups", "<u4"), ("limit", "<u4"),
    ("position", "<u8"), ("length", "<u8"), ("reserved", "u1", 8),
])  # fmt: skip
FRAME_RECORD: Final = np.dtype([("position", "<u8"), ("length", "<u8"), ("table_set", "u1"), ("reserved", "u1", 7)])
BLOB_RECORD: Final = np.dtype([("end", "<u8"), ("crc", "<u4")])


class Packing(NamedTuple):
    """How the codes of a remainder become bytes (FORMAT.md section 7)."""

    id: int
    name: str
    per_byte: int
    """K: codes in a byte; 0 where the pieces are planes or nothing."""
    radix: int
    zero: int
    """z: codes lie in -z .. z and are written as q + z."""
    planes: int
    """Planes of a piece; 0 where there is nothing, 1 for blocks."""


PACKINGS: Final = (
    Packing(0, "none", 0, 0, 0, 0),
    Packing(1, "float32", 0, 0, 0, 4),
    Packing(2, "ternary", 5, 3, 1, 1),
    Packing(3, "quinary", 3, 5, 2, 1),
    Packing(4, "nibble", 2, 16, 7, 1),
    Packing(5, "byte", 1, 256, 127, 1),
    Packing(6, "word", 0, 65536, 32767, 2),
)
NONE, FLOAT32, TERNARY, QUINARY, NIBBLE, BYTE, WORD = PACKINGS
