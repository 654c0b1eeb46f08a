"""The rules of FORMAT.md on the tables of a file, checked before any of them is used."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from relex_codec.core.dtypes import FLOATS
from relex_codec.core.text import quote
from relex_codec.errors import Corrupt

from . import constants as f
from .index import Index, _span


def check(index: Index, file_size: int) -> None:
    """Check the tables against each other (FORMAT.md sections 4 to 6): one place for all structural rules.

    Spans of tensors are checked here as well, so that no size that a file declares is believed before its bytes exist.

    Raises:
        Corrupt
    """
    _check_steps(index.steps)
    _check_chunks(index)
    _check_directions(index)
    _check_tensors(index)
    _check_tiling(index)


def _check_steps(steps: npt.NDArray[np.int64]) -> None:
    if not len(steps) or int(steps[0]) < 0 or int(steps[-1]) > f.STEP_LIMIT or not (steps[1:] > steps[:-1]).all():
        raise Corrupt(f"{f.STEPS}: the steps are not increasing numbers from 0 on")


def _check_chunks(index: Index) -> None:
    chunks = index.chunks
    raw, stored = chunks["raw"], chunks["stored"]
    if not ((raw >= 1) & (raw <= f.CHUNK_LIMIT) & (stored >= 1) & (chunks["codec"] <= f.CODEC_FILL)).all():
        raise Corrupt(f"{f.CHUNKS}: a length or a codec is out of bounds")
    if (stored != raw)[chunks["codec"] == f.CODEC_STORED].any():
        raise Corrupt(f"{f.CHUNKS}: a chunk that is stored as it is has two lengths")
    if chunks["fill"][chunks["codec"] != f.CODEC_FILL].any():
        raise Corrupt(f"{f.CHUNKS}: a fill byte without its codec")
    ends = chunks["position"] + stored
    number = 0
    for name in f.DATA:
        entry = index.entries[name]
        index.first_chunk[name] = number
        count = int(np.searchsorted(chunks["position"][number:], entry.end))
        begins = chunks["position"][number : number + count]
        expected = np.concatenate([[entry.begin], ends[number : number + count]]).astype(np.uint64)
        if (begins != expected[:-1]).any() or int(expected[-1]) != entry.end:
            raise Corrupt(f"{f.CHUNKS}: the chunks do not tile {name}")
        number += count
    if number != len(chunks):
        raise Corrupt(f"{f.CHUNKS}: a chunk lies outside of the data")


def _check_directions(index: Index) -> None:
    records = index.directions
    if (records["packing"] >= len(f.PACKINGS)).any():
        raise Corrupt(f"{f.DIRECTIONS}: an unknown packing")
    if not all(np.isfinite(records[field]).all() for field in ("slope", "intercept", "step", "shift")):
        raise Corrupt(f"{f.DIRECTIONS}: a number is not finite")
    if np.signbit(records["step"]).any():
        raise Corrupt(f"{f.DIRECTIONS}: a negative step")
    plain = records["packing"] <= f.FLOAT32.id
    if _bits(records["step"])[plain].any() or _bits(records["shift"])[plain].any():
        raise Corrupt(f"{f.DIRECTIONS}: a step or shift without codes")
    if (records["rank"][records["packing"] == f.NONE.id] == 0).any():
        raise Corrupt(f"{f.DIRECTIONS}: a direction of nothing")


def _bits(values: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    return np.ascontiguousarray(values).view(np.uint32)


def _check_tensors(index: Index) -> None:
    manifest, steps = index.manifest, len(index.steps)
    if len(index.tensors) != len(manifest.tensors):
        raise Corrupt(f"{f.TENSORS} has {len(index.tensors)} records, the manifest {len(manifest.tensors)} tensors")
    directions = series = digests = shard = 0
    stored_seen = False
    for record, tensor in zip(index.tensors, manifest.tensors, strict=True):
        kind, origin, k = int(record["kind"]), int(record["origin"]), int(record["directions"])
        in_base = origin == f.IN_BASE
        first = {f.MOVING: directions, f.EXACT_SERIES: series}.get(kind, 0)
        segment, spanned = int(record["segment"]), kind == f.EXACT_SERIES and not index.has_exact
        ok = (
            kind <= f.EXACT_SERIES
            and origin <= f.NO_ORIGIN
            and (k > 0) == (kind == f.MOVING)
            and record["first"] == first
            and record["digest"] == (digests if in_base else 0)
            and (_span(record) == (0, 0) or origin == f.STORED or (in_base and manifest.embedded))
            and (in_base or tensor.origin_dtype == tensor.dtype)
            and (origin != f.NO_ORIGIN or spanned)
            and not (spanned and origin == f.STORED)
            and segment <= index.segments
            and not (segment and tensor.size == 0)
            and (segment > 0 or kind != f.EXACT_SERIES or spanned or tensor.size == 0)
        )
        floats = tensor.dtype in FLOATS and tensor.origin_dtype in FLOATS
        ok = ok and (floats and tensor.size > 0 if kind == f.MOVING else floats or tensor.dtype == tensor.origin_dtype)
        if in_base:
            ok = ok and not stored_seen and tensor.shard >= shard
            shard = tensor.shard
            digests += -(-tensor.size // f.PIECE)
            ok = ok and digests <= len(index.digests)
        else:
            stored_seen = True
        if kind == f.MOVING:
            ok = ok and directions + k <= len(index.directions)
            most = min(tensor.shape[-2:]) if len(tensor.shape) > 1 else 0
            ok = ok and bool((index.directions["rank"][directions : directions + k] <= most).all())
            directions += k
        elif spanned:
            series += steps
        if not ok:
            raise Corrupt(f"{f.TENSORS}: the record of {quote(tensor.name)} breaks the rules")
    for name, used, there in (
        (f.DIRECTIONS, directions, len(index.directions)),
        (f.SERIES, series, len(index.series)),
        (f.DIGESTS, digests, len(index.digests)),
    ):
        if used != there:
            raise Corrupt(f"{name} has {there} records, the tensors use {used}")


def _check_tiling(index: Index) -> None:
    """Every raw byte of every chunk belongs to exactly one piece."""
    parts = [part for _, found in index.all_parts() for part in found]
    table = np.array(parts, np.int64).reshape(-1, 3)
    table = table[np.lexsort((table[:, 1], table[:, 0]))]
    chunk, offset, end = table[:, 0], table[:, 1], table[:, 1] + table[:, 2]
    begins = np.concatenate([[True], chunk[1:] != chunk[:-1]]) if len(table) else np.zeros(0, bool)
    expected = np.where(begins, 0, np.concatenate([[0], end[:-1]]) if len(table) else 0)
    lasts = np.concatenate([begins[1:], [True]]) if len(table) else begins
    if (
        (offset != expected).any()
        or int(begins.sum()) != len(index.chunks)
        or (end[lasts] != index.chunks["raw"][chunk[lasts]]).any()
    ):
        raise Corrupt(f"{f.CHUNKS}: the spans do not tile the chunks")
