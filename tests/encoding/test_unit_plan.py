"""Cutting the work into units: every tensor and every group of frames is in one, whatever their sizes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relex_codec.encoding import unit_plan
from relex_codec.encoding.unit_plan import PlannedUnit, TensorSize, plan_units, shard_of
from relex_codec.exact.segments import groups_of, parts_of
from relex_codec.format.constants import PIECE

SIZES = st.one_of(st.integers(0, 2000), st.integers(PIECE - 2, 9 * PIECE))
TENSORS = st.lists(st.tuples(SIZES, st.sampled_from(["BF16", "F32"]), st.booleans(), st.booleans()), max_size=20)


def sizes(drawn: list[tuple[int, str, bool, bool]]) -> list[TensorSize]:
    return [TensorSize(3 * i, dtype, size, framed, line) for i, (size, dtype, framed, line) in enumerate(drawn)]


@given(TENSORS, st.integers(1, 400), st.sampled_from([PIECE, 4 * PIECE, 1000 * PIECE]), st.booleans())
def test_everything_is_in_one_unit(
    drawn: list[tuple[int, str, bool, bool]], steps: int, limit: int, small: bool
) -> None:
    tensors = sizes(drawn)
    with pytest.MonkeyPatch.context() as patch:
        if small:
            for name in ("WHOLE", "SMALLEST_UNIT", "LARGEST_UNIT"):
                patch.setattr(unit_plan, name, 3 * PIECE)
        units = plan_units(tensors, steps, limit, bands=True)
    covered = [(number, piece) for unit in units for number in unit.tensors for piece in pieces(unit, number, tensors)]
    by_number = {tensor.number: tensor for tensor in tensors}
    assert covered == [(t.number, p) for t in tensors for p in range(max(1, -(-t.elements // PIECE)))]
    framed = [(t.number, t.dtype, t.elements) for t in tensors if t.framed]
    parts = parts_of(framed)
    bounds = groups_of(parts, limit) if parts else []
    expected = [tuple(parts[a:b]) for a, b in pairwise(bounds)]
    assert [group for unit in units for group in unit.groups] == expected
    for unit in units:
        own = {(number, piece) for number in unit.tensors for piece in pieces(unit, number, tensors)}
        needed = {part.tensor for group in unit.groups for part in group if part[:2] not in own}
        assert set(unit.extra) == needed
        assert all(group[0][:2] in own for group in unit.groups)
        assert unit.band is None or (by_number[unit.tensors[0]].line and len(unit.tensors) == 1)


def pieces(unit: PlannedUnit, number: int, tensors: list[TensorSize]) -> range:
    if unit.band is not None:
        return range(*unit.band)
    size = next(tensor.elements for tensor in tensors if tensor.number == number)
    return range(max(1, -(-size // PIECE)))


def test_bands_begin_where_groups_do() -> None:
    """So that nothing is read twice; but for the first one, which begins where the tensor does."""
    tensors = [TensorSize(0, "BF16", 100, True), TensorSize(1, "BF16", 3000 * PIECE, True)]
    units = plan_units(tensors, 400, 4 * PIECE, bands=True)
    bands = [unit for unit in units if unit.band is not None]
    assert len(bands) > 10
    assert not any(unit.extra for unit in bands)
    assert [unit.band[0] for unit in bands[1:] if unit.band] == [unit.groups[0][0].piece for unit in bands[1:]]


def test_large_runs_have_about_a_thousand_units_of_minutes() -> None:
    layer = [4096 * 12288] * 3 + [4096 * 4096] * 2 + [4096 * 1024] * 2 + [4096] * 2
    model = [151_936 * 4096, *(layer * 36), 151_936 * 4096]
    tensors = [TensorSize(i, "BF16", size, True) for i, size in enumerate(model)]
    units = plan_units(tensors, 400, 4 * PIECE, bands=True)
    assert 1000 < len(units) < 2500
    largest = max(
        min(unit.band[1] * PIECE, model[unit.tensors[0]]) - unit.band[0] * PIECE for unit in units if unit.band
    )
    assert largest * 2 * 400 < 8 << 30


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=40), st.integers(1, 9))
def test_shards_have_everything_once_and_about_as_much(amounts: list[int], count: int) -> None:
    shards = [shard_of(amounts, number + 1, count) for number in range(count)]
    assert sorted(unit for shard in shards for unit in shard) == list(range(len(amounts)))
    filled = [sum(amounts[unit] for unit in shard) for shard in shards]
    assert max(filled) - min(filled) <= max(amounts)
