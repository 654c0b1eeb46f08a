"""The rules of FORMAT.md on the tables of a file, checked before any of them is used."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from relex_codec.core.dtypes import FLOATS
from relex_codec.core.text import quote
from relex_codec.errors import Corrupt

from . import constants as f
from .index import Index
from .tensor_record import TensorRecord


def check(index: Index, file_size: int) -> None:
    """Check the tables against each other (FORMAT.md sections 4 to 6): one place for all structural rules.

    Spans of tensors are checked here as well, so that no size that a file declares is believed before its bytes exist.

    Raises:
        Corrupt
    """
    _check_steps(index.steps)
    _check_chunks(index)
    _check_directions(index)
    _check_frames(index)
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
    if not all(np.isfinite(records[field]).all() for field in ("slope", "intercept", "scale", "shift")):
        raise Corrupt(f"{f.DIRECTIONS}: a number is not finite")
    if np.signbit(records["scale"]).any():
        raise Corrupt(f"{f.DIRECTIONS}: a negative scale")
    plain = records["packing"] <= f.FLOAT32.id
    if _bits(records["scale"])[plain].any() or _bits(records["shift"])[plain].any():
        raise Corrupt(f"{f.DIRECTIONS}: a scale or shift without codes")
    if (records["rank"][records["packing"] == f.NONE.id] == 0).any():
        raise Corrupt(f"{f.DIRECTIONS}: a direction of nothing")


def _bits(values: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    return np.ascontiguousarray(values).view(np.uint32)


def _check_frames(index: Index) -> None:
    framed = any(tensor.kind == f.FRAMED and tensor.size for tensor in index.tensors)
    if index.has_frames != (index.has_exact or framed):
        what = "has no frames, which its tensors need" if framed or index.has_exact else "has frames of nothing"
        raise Corrupt(f"{index.path} {what}")


def _check_tensors(index: Index) -> None:
    directions = digests = 0
    for tensor in index.tensors:
        if not (_tied(index, tensor) if tensor.kind == f.TIED else _untied(index, tensor, directions, digests)):
            raise Corrupt(f"{f.TENSORS}: the record of {quote(tensor.name)} breaks the rules")
        directions, digests = directions + len(tensor.directions), digests + len(tensor.digests)
    for name, used, there in (
        (f.DIRECTIONS, directions, len(index.directions)),
        (f.DIGESTS, digests, len(index.digests)),
    ):
        if used != there:
            raise Corrupt(f"{name} has {there} records, the tensors use {used}")


def _tied(index: Index, tensor: TensorRecord) -> bool:
    """Tell whether a tensor is another name of one, and nothing else."""
    if tensor.target is None or tensor.target >= len(index.tensors):
        return False
    other = index.tensors[tensor.target]
    return (
        other.kind != f.TIED
        and (other.dtype, other.shape) == (tensor.dtype, tensor.shape)
        and not tensor.sources
        and tensor.origin == tensor.digests.start == tensor.segment == len(tensor.directions) == 0
        and tensor.origin_span == (0, 0)
    )


def _untied(index: Index, tensor: TensorRecord, directions: int, digests: int) -> bool:
    """Tell whether a tensor keeps the rules whose first direction and digest have these numbers, if it has any."""
    moving, framed = tensor.kind == f.MOVING, tensor.kind == f.FRAMED
    k = len(tensor.directions)
    ok = (
        tensor.kind <= f.FRAMED
        and tensor.origin <= f.STORED
        and bool(tensor.sources) == tensor.in_base
        and (k > 0) == moving
        and tensor.directions.start == (directions if moving else 0)
        and tensor.digests.start == (digests if tensor.in_base else 0)
        and digests + len(tensor.digests) <= len(index.digests)
        and directions + k <= len(index.directions)
        and (tensor.origin_held or tensor.origin_span == (0, 0))
        and tensor.segment <= index.segments
        and (tensor.size > 0 or not tensor.segment)
        and (tensor.segment > 0 or not framed or not tensor.size)
        and (framed or index.has_exact or not tensor.segment)
    )
    floats = tensor.dtype in FLOATS and tensor.origin_dtype in FLOATS
    most = min(tensor.shape[-2:]) if len(tensor.shape) > 1 else 0
    return (
        ok
        and (floats and tensor.size > 0 if moving else floats or tensor.dtype == tensor.origin_dtype)
        and bool((index.directions["rank"][directions : directions + k] <= most).all())
    )


def _check_tiling(index: Index) -> None:
    """Every raw byte of every chunk belongs to exactly one piece."""
    places = [part for _, found in index.all_places() for part in found]
    table = np.array(places, np.int64).reshape(-1, 3)
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
