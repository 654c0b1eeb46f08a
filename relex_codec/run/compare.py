"""Comparing two steps of a run, a step with a checkpoint, and two runs of one base, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from relex_codec.checkpoints.checkpoint import TensorInfo, TensorReader
from relex_codec.core.dtypes import F32
from relex_codec.core.text import quote
from relex_codec.decoding.tensor_decoder import TensorDecoder
from relex_codec.decoding.tiers import StepTier, layout_at
from relex_codec.errors import InvalidArgument
from relex_codec.format.tensor_record import TensorRecord

from .coefficients import read_coefficients
from .directions import direction_parts, parts_of
from .places import place_of
from .sums import PairSums, cosine, sums_of

BASE = StepTier(0.0, "base")


def compare_steps(
    decoder: TensorDecoder, shared: Sequence[TensorRecord], first: StepTier, second: StepTier
) -> Iterator[tuple[str, PairSums]]:
    """Yield the sums over each of some tensors at two steps.

    Raises:
        BaseMismatch, CheckpointError: the base cannot be used.
        Corrupt, Truncated: the file is damaged.
    """
    for tensor in shared:
        sums = PairSums()
        for _, (origin, a, b) in _read(decoder, tensor, [BASE, first, second]):
            sums += sums_of(origin, a, b, tensor.dtype)
        yield tensor.name, sums


def compare_with_checkpoint(
    decoder: TensorDecoder, shared: Sequence[TensorRecord], step: StepTier, checkpoint: TensorReader
) -> Iterator[tuple[str, PairSums]]:
    """Yield the sums over each of some tensors, those of the file at a step first.

    Raises:
        BaseMismatch, CheckpointError: base or checkpoint cannot be read.
        Corrupt, Truncated: the file is damaged.
    """
    for tensor in shared:
        sums = PairSums()
        for lo, (origin, a) in _read(decoder, tensor, [BASE, step]):
            sums += sums_of(origin, a, checkpoint.read(tensor.name, lo, lo + len(a)), tensor.dtype)
        yield tensor.name, sums


Kinds = Mapping[str, tuple[str, tuple[int, ...]]]
"""Dtype and shape of tensors by name."""


def at_step(decoder: TensorDecoder, step: StepTier) -> list[TensorRecord]:
    """Return the tensors that there are at a step."""
    return layout_at(decoder.container.index, step).tensors


def shared_tensors(tensors: Sequence[TensorRecord], others: Kinds) -> tuple[list[TensorRecord], list[str]]:
    """Return the tensors that both sides have in one dtype and shape, and the names of all others.

    Raises:
        InvalidArgument: they share none.
    """
    found = [tensor for tensor in tensors if others.get(tensor.name) == (tensor.dtype, tensor.shape)]
    if not found:
        raise InvalidArgument("the two share no tensor: none has the same name, dtype and shape in both")
    shared = {tensor.name for tensor in found}
    return found, [name for name in dict.fromkeys([*(t.name for t in tensors), *others]) if name not in shared]


def kinds_of(tensors: Iterable[TensorRecord | TensorInfo]) -> Kinds:
    """Return dtype and shape of tensors by name."""
    return {tensor.name: (tensor.dtype, tensor.shape) for tensor in tensors}


def _read(
    decoder: TensorDecoder, tensor: TensorRecord, steps: list[StepTier]
) -> Iterator[tuple[int, list[np.ndarray[Any, Any]]]]:
    plan = decoder.plan([(tensor, parts_of(tensor.size))], steps)
    with decoder.fetcher.ahead(plan):
        for window in plan.tensors[0].windows:
            yield window.window.lo, [bits.reshape(-1) for bits in decoder.decode_window(window, steps)]


def compare_runs(one: TensorDecoder, other: TensorDecoder) -> Iterator[tuple[str, PairSums]]:
    """Yield the sums over what two runs of one base have moved at their last observed steps, by their directions.

    Only tensors that move in both are compared; a and b are coefficient times direction, summed over directions.

    Raises:
        InvalidArgument: the runs have different bases, or no tensor moves in both.
        BaseMismatch, CheckpointError: a base cannot be used.
        Corrupt, Truncated: a file is damaged.
    """
    check_one_base(one, other)
    pairs = []
    for tensor in one.container.index.layout.tensors:
        twin = _twin(other, tensor)
        if tensor.directions and twin is not None and twin.directions:
            pairs.append((tensor, twin))
    if not pairs:
        raise InvalidArgument(f"no tensor moves in both {one.container.source.path} and {other.container.source.path}")
    ends = [_last(decoder) for decoder in (one, other)]
    for tensor, twin in pairs:
        sums = PairSums()
        sides = [
            _moved(decoder, record, end)
            for decoder, record, end in zip((one, other), (tensor, twin), ends, strict=True)
        ]
        for a, b in zip(*sides, strict=True):
            x, y = a.astype(np.float64), b.astype(np.float64)
            gap = y - x
            sums += PairSums(
                len(a), a=float(x @ x), b=float(y @ y), product=float(x @ y), difference=float(gap @ gap)
            )  # fmt: skip
        yield tensor.name, sums


def _last(decoder: TensorDecoder) -> np.ndarray[Any, np.dtype[np.float64]]:
    found = read_coefficients(decoder).values
    return np.asarray(found[:, decoder.container.index.manifest.observed - 1])


def _moved(decoder: TensorDecoder, tensor: TensorRecord, last: np.ndarray[Any, np.dtype[np.float64]]) -> Iterator[F32]:
    g = last[tensor.directions.start : tensor.directions.stop].astype(np.float32)
    for _, directions in direction_parts(decoder, tensor):
        yield g @ directions


def _twin(decoder: TensorDecoder, tensor: TensorRecord) -> TensorRecord | None:
    found = decoder.container.index.layout.get(tensor.name)
    return found if found is not None and found.shape == tensor.shape else None


def check_one_base(one: TensorDecoder, other: TensorDecoder) -> None:
    """Check by their digests that two files were made from one base.

    Raises:
        InvalidArgument: a tensor of the base differs.
    """
    for tensor in one.container.index.layout.tensors:
        twin = _twin(other, tensor)
        if twin is None or not tensor.in_base or not twin.in_base:
            continue
        if tensor.origin_dtype != twin.origin_dtype or not np.array_equal(
            one.container.index.digests[tensor.digests.start : tensor.digests.stop],
            other.container.index.digests[twin.digests.start : twin.digests.stop],
        ):
            raise InvalidArgument(
                f"{one.container.source.path} and {other.container.source.path} were made from different bases: tensor "
                f"{quote(tensor.name)} differs; directions are compared of runs of one base"
            )


def table(rows: Iterable[tuple[str, PairSums]], say: Callable[[PairSums], dict[str, Any]]) -> dict[str, Any]:
    """Return comparisons in all, by kind of tensor, by layer, and tensor by tensor, as plain values.

    Args:
        say: what is said of sums.
    """
    total, tensors = PairSums(), []
    by_kind: dict[str, PairSums] = {}
    by_layer: dict[int | None, PairSums] = {}
    for name, sums in rows:
        place = place_of(name)
        for group in (by_kind.setdefault(place.kind, PairSums()), by_layer.setdefault(place.layer, PairSums()), total):
            group += sums
        tensors.append({"name": name, "layer": place.layer, "kind": place.kind, **say(sums)})
    kinds = [{"kind": kind, **say(sums)} for kind, sums in by_kind.items()]
    order = sorted(by_layer, key=lambda layer: (layer is None, layer or 0))
    layers = [{"layer": layer, **say(by_layer[layer])} for layer in order]
    return {"total": say(total), "by_kind": kinds, "by_layer": layers, "tensors": tensors}


def said_of_runs(sums: PairSums) -> dict[str, Any]:
    """Return what is said of two runs: how far each has moved, and the cosine of the two ways."""
    return {
        "weights": sums.elements,
        "moved_a": float(np.sqrt(sums.a)),
        "moved_b": float(np.sqrt(sums.b)),
        "cosine": cosine(sums.product, sums.a, sums.b),
    }
