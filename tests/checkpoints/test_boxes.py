"""Tensors in boxes: which part of which box a range of elements takes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relex_codec.checkpoints import boxed, boxes
from relex_codec.checkpoints.boxed import BoxedCheckpoint, Storage, StoredBox, check_boxes
from relex_codec.checkpoints.boxes import Box, boxes_of_range, fault_of, overlap, row_major
from relex_codec.checkpoints.checkpoint import TensorInfo
from relex_codec.errors import CheckpointError
from relex_codec.storage.source import Source

SHAPES = st.lists(st.integers(1, 6), max_size=4).map(tuple)


class InMemory(Source):
    """Bytes, and how often they were read."""

    def __init__(self, data: bytes) -> None:
        self.path, self.size, self.data = "memory", len(data), data
        self.reads: list[tuple[int, int]] = []

    def read_many(self, ranges: Any) -> list[bytes]:
        self._check(ranges)
        self.reads += ranges
        return [self.data[start:end] for start, end in ranges]


@given(SHAPES, st.data())
def test_a_range_is_its_boxes(shape: tuple[int, ...], data: st.DataObject) -> None:
    whole = np.arange(math.prod(shape)).reshape(shape)
    lo = data.draw(st.integers(0, whole.size))
    hi = data.draw(st.integers(lo, whole.size))
    found = list(boxes_of_range(shape, lo, hi))
    assert len(found) <= max(1, 2 * len(shape) - 1)
    at = 0
    for before, box in found:
        assert before == at
        index = tuple(slice(o, o + n) for o, n in zip(box.offsets, box.sizes, strict=True))
        part = whole[index].reshape(-1)
        assert np.array_equal(part, np.arange(lo + at, lo + at + box.size))
        at += box.size
    assert at == hi - lo


def cuts(shape: tuple[int, ...], data: st.DataObject) -> list[Box]:
    """A tensor cut into boxes at random, here and there one of the boxes again."""
    parts = [Box((0,) * len(shape), shape)]
    for _ in range(data.draw(st.integers(0, 5)) if shape else 0):
        box = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        axis = data.draw(st.integers(0, len(shape) - 1))
        at = data.draw(st.integers(0, box.sizes[axis]))
        for begin, size in ((0, at), (at, box.sizes[axis] - at)):
            offsets = (*box.offsets[:axis], box.offsets[axis] + begin, *box.offsets[axis + 1 :])
            parts.append(Box(offsets, (*box.sizes[:axis], size, *box.sizes[axis + 1 :])))
    return parts


@given(SHAPES, st.data())
def test_boxes_of_any_layout_are_read(shape: tuple[int, ...], data: st.DataObject) -> None:
    whole = np.random.default_rng(0).integers(0, 1 << 16, shape, np.uint16)
    parts = cuts(shape, data)
    stored, raw = [], b""
    for box in parts:
        index = tuple(slice(o, o + n) for o, n in zip(box.offsets, box.sizes, strict=True))
        order = data.draw(st.permutations(range(len(shape))))
        values = whole[index].transpose(order)  # as a transposed tensor lies in its storage
        strides = [0] * len(shape)
        for axis, stride in zip(order, row_major(values.shape), strict=True):
            strides[axis] = stride
        first = data.draw(st.integers(0, 3))
        begin, content = len(raw), b"\xff\xff" * first + np.ascontiguousarray(values).tobytes() + b"\xff\xff"
        stored.append(StoredBox(box, Storage(0, begin, len(content)), first, tuple(strides)))
        raw += content
    table = {"w": TensorInfo("w", "BF16", shape)}, {"w": stored}
    check_boxes("x", table)
    reader = BoxedCheckpoint("x", table, [InMemory(raw)])
    lo = data.draw(st.integers(0, whole.size))
    hi = data.draw(st.integers(lo, whole.size))
    assert np.array_equal(reader.read("w", lo, hi), whole.reshape(-1)[lo:hi])


def reader_of(whole: np.ndarray[Any, Any], parts: list[tuple[Box, tuple[int, ...] | None]]) -> tuple[Any, InMemory]:
    raw, stored = b"", []
    for box, strides in parts:
        index = tuple(slice(o, o + n) for o, n in zip(box.offsets, box.sizes, strict=True))
        values = whole[index]
        content = (values.T if strides else values).tobytes()
        stored.append(StoredBox(box, Storage(0, len(raw), len(content)), 0, strides))
        raw += content
    source = InMemory(raw)
    table = {"w": TensorInfo("w", "U16", whole.shape)}, {"w": stored}
    return BoxedCheckpoint("x", table, [source]), source


def test_a_slice_of_rows_costs_a_slice() -> None:
    whole = np.arange(64 * 32, dtype=np.uint16).reshape(64, 32)
    rows = [(Box((at, 0), (16, 32)), None) for at in range(0, 64, 16)]
    columns = [(Box((0, at), (64, 8)), None) for at in range(0, 32, 8)]
    for parts in (rows, columns):
        reader, source = reader_of(whole, parts)
        lo, hi = 20 * 32, 24 * 32
        assert np.array_equal(reader.read("w", lo, hi), whole.reshape(-1)[lo:hi])
        assert sum(end - start for start, end in source.reads) == 2 * (hi - lo)
        assert len(source.reads) == (1 if parts is rows else 4)


def test_a_transposed_tensor_is_read_along_its_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.arange(50 * 40, dtype=np.uint16).reshape(50, 40)
    reader, source = reader_of(whole, [(Box((0, 0), (50, 40)), (1, 50))])
    monkeypatch.setattr(boxed, "BATCH", 7)
    assert np.array_equal(reader.read("w", 80, 200), whole.reshape(-1)[80:200])
    assert sum(end - start for start, end in source.reads) == 2 * 120
    assert len(source.reads) == 40  # a stretch for each column, of three rows


@pytest.mark.parametrize(
    ("parts", "fault"),
    [
        ([((0, 0), (2, 3)), ((1, 2), (3, 1)), ((2, 0), (2, 2))], r"two parts of it overlap from \[1, 2\] on"),
        ([((0, 0), (4, 2))], "parts of it have 8 of its 12"),
        ([], "parts of it have 0 of its 12"),
        ([((0, 0), (4, 4))], r"from \[0, 0\] on of \[4, 4\] does not fit into \[4, 3\]"),
        ([((3, 0), (2, 3))], "does not fit"),
        ([((0,), (4,))], "does not fit"),
        ([((0, 0), (4, 3)), ((0, 0), (4, 3))], "overlap"),
    ],
)
def test_what_does_not_make_up_a_tensor(parts: Any, fault: str) -> None:
    stored = [StoredBox(Box(*part), Storage(0, 0, 0)) for part in parts]
    with pytest.raises(CheckpointError, match=f"x: tensor 'w' is not whole: .*{fault}.*save it again"):
        check_boxes("x", ({"w": TensorInfo("w", "U8", (4, 3))}, {"w": stored}))


def test_tensors_without_elements_and_dimensions() -> None:
    assert fault_of((), [Box((), ())]) is None
    assert fault_of((), [Box((), ())] * 2) == "parts of it have 2 of its 1 elements"
    assert fault_of((0, 3), []) is None
    assert fault_of((5,), [Box((0,), (5,)), Box((5,), (0,))]) is None
    assert overlap(Box((), ()), Box((), ())) == ((), (), ())
    with pytest.raises(CheckpointError, match="x has no tensors of a model"):
        check_boxes("x", ({}, {}))


def test_the_number_of_boxes_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boxes, "MOST_BOXES", 3)
    assert fault_of((4,), [Box((i,), (1,)) for i in range(4)]) == "it has 4 parts, at most 3 are read"
