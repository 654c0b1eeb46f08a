"""What ``tensor[index]`` chooses: boxes of tensors. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from types import EllipsisType
from typing import Any

from relex_codec.errors import InvalidArgument

from .text import quote

TensorIndex = int | slice | EllipsisType | tuple[int | slice | EllipsisType, ...]
"""What chooses a box of a tensor: as in ``tensor[index]``, with steps of 1."""
Box = tuple[tuple[int, int], ...]
"""For each dimension where the box begins and ends."""


def box_of(shape: Sequence[int], index: TensorIndex) -> tuple[Box, tuple[int, ...]]:
    """Return the box that `index` chooses of a tensor, and the shape that indexing gives it: integers drop a dimension.

    Raises:
        InvalidArgument: too many indices, an integer out of range, or a slice with another step than 1.
    """
    indices = list(index) if isinstance(index, tuple) else [index]
    if not all(map(_is_plain, indices)):
        raise InvalidArgument(f"an index is {quote(index, 80)}, expected integers, slices between them, or ...")
    if indices.count(...) > 1 or len(indices) - indices.count(...) > len(shape):
        raise InvalidArgument(f"index {index} has too many dimensions for the shape {list(shape)}")
    if ... not in indices:
        indices.append(...)
    at = indices.index(...)
    rest = len(shape) - (len(indices) - 1)
    full: list[Any] = [*indices[:at], *[slice(None)] * rest, *indices[at + 1 :]]
    box, result_shape = [], []
    for chosen, size in zip(full, shape, strict=True):
        if isinstance(chosen, slice):
            lo, hi, step = chosen.indices(size)
            if step != 1:
                raise InvalidArgument(f"slice step {step} in {index}, expected 1")
            box.append((lo, max(lo, hi)))
            result_shape.append(max(lo, hi) - lo)
        else:
            row = chosen + size if chosen < 0 else chosen
            if not 0 <= row < size:
                raise InvalidArgument(f"index {chosen} is out of range for the shape {list(shape)}")
            box.append((row, row + 1))
    return tuple(box), tuple(result_shape)


def split_index(index: Any) -> tuple[TensorIndex, Any]:
    """Return an index of a box, as `box_of` takes it, and the index that is left to apply to that: together `index`.

    Slices may have any positive step. What is neither integers, slices nor ``...`` is left for afterwards altogether.

    Raises:
        ValueError: a step that is not positive.
    """
    indices = index if isinstance(index, tuple) else (index,)
    if indices.count(...) > 1 or not all(map(_is_plain, indices)):
        return ..., index
    box: list[Any] = []
    rest: list[Any] = []
    for chosen in indices:
        if isinstance(chosen, slice):
            if chosen.step is not None and chosen.step < 1:
                raise ValueError(f"slice step {chosen.step} is not positive")
            box.append(slice(chosen.start, chosen.stop))
            rest.append(slice(None, None, chosen.step))
        else:
            box.append(chosen)
            rest += [] if isinstance(chosen, int) else [chosen]
    return tuple(box), tuple(rest)


def _is_plain(index: Any) -> bool:
    """Whether an index is an integer, ``...``, or a slice between integers."""
    if isinstance(index, slice):
        return all(end is None or hasattr(end, "__index__") for end in (index.start, index.stop, index.step))
    return isinstance(index, int | EllipsisType) and not isinstance(index, bool)
