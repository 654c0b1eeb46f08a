"""Whether a run began at the base that was given, before any work is done: a rule on distances, and a sample for it.

Nothing says which model a run was trained from. But steps lie close to each other, and the first one lies about as
close to the base as steps that are as many training steps apart: a base that is far beyond that is another model.
Lossless as the file would be, its lines would begin where the run never was.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np

from relex_codec.checkpoints.checkpoint import CheckpointSeries, TensorInfo, TensorReader
from relex_codec.checkpoints.name_matching import compatible
from relex_codec.core.dtypes import F32, FLOATS, ITEMSIZE, as_dtype, to_float32
from relex_codec.core.text import quote
from relex_codec.core.threads import IO_THREADS, parallel_map
from relex_codec.errors import InvalidArgument

FARTHER: Final = 10.0
"""How many times farther than steps explain a base may be."""
PLACES: Final = 12
"""Parts of tensors that are looked at, spread evenly over the bytes of the model."""
ELEMENTS: Final = 1 << 15
"""Elements of each: 64 KB of a BF16 tensor, so that seven checkpoints take 5 MB and 84 requests."""
SMALL: Final = 100
"""Tensors that are so many times smaller than the largest one are not looked at."""
TOO_FEW: Final = 4096
"""Elements, all places together, below which distances are not compared."""
FIRST: Final = 4
LAST: Final = 2
"""Steps at either end that are looked at."""


class Gap(NamedTuple):
    """How far two steps are from each other.

    Attributes:
        steps: training steps between them.
        distance: norm of the difference.
    """

    steps: int
    distance: float


class Place(NamedTuple):
    """A part of a tensor: elements `lo` to `hi`."""

    name: str
    lo: int
    hi: int


class Distances(NamedTuple):
    """What was measured in one place.

    Attributes:
        weights: norm of the base.
        from_base: how far the first step is from it.
        gaps: between steps.
    """

    place: Place
    weights: float
    from_base: float
    gaps: Sequence[Gap]


def reach(first: int, gaps: Iterable[Gap]) -> float:
    """Return how far step `first` may be from the base, going by how far steps are from each other.

    In `n` training steps weights go between sqrt(n) times (a random walk) and n times (a straight line) as far as in
    one. So from a gap of `g` steps over a distance d, the base is expected within ``d max(r, sqrt(r))``, r = first / g.
    Step 0 is the base, or what one training step has made of it where a trainer counts from 0.

    Examples:
        >>> reach(300, [Gap(10, 0.5)]), reach(10, [Gap(1000, 0.5)])
        (15.0, 0.05)
    """
    shares = ((max(first, 1) / gap.steps, gap.distance) for gap in gaps)
    return max((distance * max(share, math.sqrt(share)) for share, distance in shares), default=0.0)


def too_far(first: int, measured: Sequence[Distances]) -> list[Distances]:
    """Return the places in which the base is too far from step `first`; none, if they are less than half of all.

    Places in which nothing differs say nothing, and neither does a run in which steps do not differ anywhere.
    """
    told = [one for one in measured if one.from_base > 0 or any(gap.distance > 0 for gap in one.gaps)]
    if not any(gap.distance > 0 for one in told for gap in one.gaps):
        return []
    far = [one for one in told if one.from_base > FARTHER * reach(first, one.gaps)]
    return far if 2 * _elements(far) > _elements(told) else []


def check_base(series: CheckpointSeries, base: TensorReader) -> None:
    """Look at a few steps in a few places, and refuse a base that the run did not begin at.

    Raises:
        InvalidArgument: it is too far from the first step.
    """
    steps = list(series.steps)
    looked = sorted({*range(len(steps))[:FIRST], *range(len(steps))[-LAST:]})
    first, *others = (series.checkpoint(index).tensors for index in looked)
    everywhere = [name for name in base.tensors if name in first and all(name in table for table in others)]
    infos = [first[name] for name in everywhere]
    places = choose_places(info for info in infos if info.dtype in FLOATS and is_of_base(info, base.tensors))
    if len(steps) < 2 or sum(place.hi - place.lo for place in places) < TOO_FEW:
        return  # nothing to compare with
    readers = [base, *(series.checkpoint(index) for index in looked)]
    read = parallel_map(
        lambda pair: _weights(pair[0], pair[1], first[pair[0].name].dtype),
        [(place, reader) for place in places for reader in readers],
        IO_THREADS,
    )
    rows = [read[at : at + len(readers)] for at in range(0, len(read), len(readers))]
    numbers = {index: steps[index] for index in looked}
    measured = [_distances(place, numbers, found) for place, found in zip(places, rows, strict=True)]
    if far := too_far(steps[0], measured):
        raise InvalidArgument(_message(base.path, steps[:2], far, len(measured)))


def check_new_tensors(infos: Sequence[TensorInfo], base: TensorReader, matched: Container[str] = ()) -> None:
    """Refuse a run most bytes of which are in tensors that the base does not have.

    A base that has them as codes of FP8 has them: a run of such a base is often trained in BF16.

    Args:
        matched: names of those that start from the base under other names.

    Raises:
        InvalidArgument: they are. That there is nothing in common at all is said elsewhere.
    """
    new = [
        info
        for info in infos
        if info.name not in matched and not is_of_base(info, base.tensors) and not _as_codes(info, base.tensors)
    ]
    there, total = _bytes(new), _bytes(infos)
    if 2 * there <= total or len(new) == len(infos):
        return
    largest = sorted(new, key=lambda info: -info.size * ITEMSIZE[info.dtype])[:3]
    named = ", ".join(f"{quote(info.name)} ({_why_new(info, base.tensors)})" for info in largest)
    more = f" and {len(new) - len(largest)} more" if len(new) > len(largest) else ""
    raise InvalidArgument(
        f"{100 * there / total:.0f} % of the run's bytes are in tensors that base {base.path} does not have: {named}"
        f"{more}; give the model that training started from, or store them whole with --allow-new-tensors"
    )


def is_of_base(info: TensorInfo, there: Mapping[str, TensorInfo]) -> bool:
    """Tell whether a tensor of the run starts from the one of its name in the base."""
    origin = there.get(info.name)
    if origin is None or origin.shape != info.shape:
        return False
    return compatible(origin, info)


def _as_codes(info: TensorInfo, there: Mapping[str, TensorInfo]) -> bool:
    origin = there.get(info.name)
    return origin is not None and origin.shape == info.shape and origin.dtype.startswith("F8_")


def choose_places(infos: Iterable[TensorInfo]) -> list[Place]:
    """Return the middles of so many equal shares of the model, in large tensors only, from all layers."""
    infos = list(infos)
    largest = max((info.size for info in infos), default=0)
    infos = [info for info in infos if info.size * SMALL >= largest]
    total, found, at = sum(info.size for info in infos), [], 0
    middles = [(2 * i + 1) * total // (2 * PLACES) for i in range(PLACES)]
    for info in infos:
        for middle in middles:
            if at <= middle < at + info.size:
                lo = max(0, min(middle - at - ELEMENTS // 2, info.size - ELEMENTS))
                found.append(Place(info.name, lo, min(lo + ELEMENTS, info.size)))
        at += info.size
    return list(dict.fromkeys(found))


def _weights(place: Place, reader: TensorReader, dtype: str) -> F32:
    """What a checkpoint has there, rounded to the run's dtype, as float32."""
    bits = as_dtype(reader.read(place.name, place.lo, place.hi), reader.info(place.name).dtype, dtype)
    return to_float32(bits, dtype)


def _distances(place: Place, steps: Mapping[int, int], found: Sequence[F32]) -> Distances:
    """Measure the base and steps, in this order; elements that are not finite everywhere are left out.

    Args:
        steps: by their place in the run; only between neighbours there are gaps.
    """
    with np.errstate(invalid="ignore"):  # signalling NaNs
        rows = np.array(found, np.float64)
    base, *weights = rows[:, np.isfinite(rows).all(axis=0)]
    by_index = dict(zip(steps, weights, strict=True))
    gaps = [
        Gap(steps[b] - steps[a], float(np.linalg.norm(by_index[b] - by_index[a])))
        for a, b in pairwise(steps)
        if b == a + 1
    ]
    return Distances(place, float(np.linalg.norm(base)), float(np.linalg.norm(weights[0] - base)), gaps)


def _message(path: str, steps: Sequence[int], far: Sequence[Distances], looked: int) -> str:
    first, second = steps
    size = math.hypot(*(one.weights for one in far)) or 1.0

    def share(values: Iterable[float]) -> str:
        return f"{100 * math.hypot(*values) / size:.2g} %"

    worst = max(far, key=lambda one: one.from_base)
    apart = share(one.gaps[0].distance for one in far)
    explained = share(reach(first, one.gaps) for one in far)
    return (
        f"the run did not begin at base {path}: step {first} is {share(one.from_base for one in far)} of the weights "
        f"away from it, steps {first} and {second} are {apart} apart, and at their pace it would be within "
        f"{explained} (in {len(far)} of {looked} samples, most in {quote(worst.place.name)}); give the model that "
        "training started from, or go on with --allow-any-base"
    )


def _elements(measured: Iterable[Distances]) -> int:
    return sum(one.place.hi - one.place.lo for one in measured)


def _bytes(infos: Iterable[TensorInfo]) -> int:
    return sum(info.size * ITEMSIZE[info.dtype] for info in infos)


def _why_new(info: TensorInfo, there: Mapping[str, TensorInfo]) -> str:
    origin = there.get(info.name)
    if origin is None:
        return "it has none of that name"
    if origin.shape != info.shape:
        return f"{list(info.shape)}, there {list(origin.shape)}"
    return f"{info.dtype}, there {origin.dtype}"
