"""Tensors that are copies of one another at every step: tied embeddings above all. As little as can be is read.

A few elements of the first step tell most tensors apart. What they do not tell apart is compared piece by piece, over
all steps where both are there, until something differs: so only true copies are read to the end.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import Final

from relex_codec.checkpoints.checkpoint import CheckpointSeries, TensorReader
from relex_codec.checkpoints.name_matching import Sources
from relex_codec.core.threads import IO_THREADS, parallel_map

from .origin import Origin
from .run_plan import Key, PlannedTensor

SAMPLE: Final = 64
"""Elements from the middle of a tensor that are looked at first."""
COMPARED: Final = 1 << 20
"""Elements of a step that are compared at a time."""
STEPS_AT_A_TIME: Final = 16


def find_copies(
    run: CheckpointSeries,
    planned: Sequence[PlannedTensor],
    base: TensorReader | None,
    sources: Sources,
    *,
    first: int = 0,
    kept_as_they_are: Container[Key] = (),
) -> dict[Key, Key]:
    """Return which tensors are copies of which others: of equal bits at every step that has both, and in the base.

    Matrices of floats only: of norms and biases many are equal, and mean nothing by it.

    Args:
        run: gives the checkpoint of each step.
        planned: tensors of the file; those that have a target already are not looked at.
        base: where both of a pair start from it, they have to be equal there too. None: whatever they are there.
        sources: what each tensor starts from in the base, by name.
        first: the number of the first step that is looked at.
        kept_as_they_are: tensors that are no copies, whatever they are equal to.

    Returns:
        By the key of each copy the tensor that is kept: one that the base has, and most steps.
    """
    groups: dict[tuple[str, tuple[int, ...]], list[PlannedTensor]] = {}
    for tensor in planned:
        if tensor.target is None and len(tensor.shape) > 1 and tensor.info.size and "F" in tensor.key.dtype:
            groups.setdefault((tensor.key.dtype, tensor.shape), []).append(tensor)
    alike = [tensor for group in groups.values() if len(group) > 1 for tensor in group]
    samples = dict(
        zip(
            (one.key for one in alike),
            parallel_map(lambda one: _sample(run, one, first), alike, IO_THREADS),
            strict=True,
        )
    )
    found: dict[Key, Key] = {}
    for group in groups.values():
        group.sort(key=lambda one: _rank(one, sources))
        kept: list[PlannedTensor] = []
        for tensor in group if len(group) > 1 else ():
            mine = samples[tensor.key]
            if tensor.key in kept_as_they_are:
                kept.append(tensor)
                continue
            if mine is not None and len(set(mine[1])) == 1:
                continue  # of one value, as far as can be seen
            like = (one for one in kept if _may_be_equal(mine, samples[one.key]))
            original = next((one for one in like if _equal(run, one, tensor, first, base, sources)), None)
            if original is None:
                kept.append(tensor)
            else:
                found[tensor.key] = original.key
    return found


def _rank(tensor: PlannedTensor, sources: Sources) -> tuple[bool, bool, int, bool]:
    """Order tensors of which one is kept and the others are its copies: what the base has and most steps have first."""
    name = tensor.key.name
    return name not in sources, not tensor.main, tensor.at.count(None), "embed" not in name


Sample = tuple[int, list[int]]
"""A step, and bits of a few elements there."""


def _sample(run: CheckpointSeries, tensor: PlannedTensor, first: int) -> Sample | None:
    """Return a few elements of the first step that has a tensor; None if it has none of these steps."""
    step = next((i for i in range(first, len(tensor.at)) if tensor.at[i] is not None), None)
    if step is None:
        return None
    size = tensor.info.size
    lo = max(0, size // 2 - SAMPLE // 2)
    return step, run.checkpoint(step).read(str(tensor.at[step]), lo, min(size, lo + SAMPLE)).tolist()


def _may_be_equal(one: Sample | None, other: Sample | None) -> bool:
    """Tell whether samples leave it open whether two tensors are equal."""
    return one is not None and other is not None and (one[0] != other[0] or one[1] == other[1])


def first_difference(run: CheckpointSeries, one: PlannedTensor, other: PlannedTensor, first: int) -> int | None:
    """Return the first step from `first` on at which two tensors differ; None if they are equal where both are."""
    for step, (mine, theirs) in enumerate(_pairs(run, one, other, first), first):
        if mine is not None and theirs is not None and not _same(one.info.size, [(mine, theirs)]):
            return step
    return None


def _equal(
    run: CheckpointSeries,
    one: PlannedTensor,
    other: PlannedTensor,
    first: int,
    base: TensorReader | None,
    sources: Sources,
) -> bool:
    """Tell whether two tensors are equal at all steps that have both, of which there is one at least."""
    found = _pairs(run, one, other, first)
    pairs = [(mine, theirs) for mine, theirs in found if mine is not None and theirs is not None]
    if not pairs:
        return False
    in_base, its = sources.get(one.key.name), sources.get(other.key.name)
    if base is not None and in_base and its and in_base != its:
        pairs.insert(0, (Origin.in_base(base, in_base), Origin.in_base(base, its)))
    return _same(one.info.size, pairs)


def _pairs(
    run: CheckpointSeries, one: PlannedTensor, other: PlannedTensor, first: int
) -> list[tuple[Origin | None, Origin | None]]:
    """Return what reads two tensors at each step from `first` on; None where a step lacks one."""

    def at(tensor: PlannedTensor, step: int) -> Origin | None:
        name = tensor.at[step]
        return None if name is None else Origin.in_run(run, name, step)

    return [(at(one, step), at(other, step)) for step in range(first, len(one.at))]


def _same(size: int, pairs: Sequence[tuple[Origin, Origin]]) -> bool:
    """Tell whether the two of every pair are equal."""

    def same(pair: tuple[Origin, Origin]) -> bool:
        return bool((pair[0].read(lo, hi) == pair[1].read(lo, hi)).all())

    for lo in range(0, size, COMPARED):
        hi = min(lo + COMPARED, size)
        if not all(all(parallel_map(same, batch, IO_THREADS)) for batch in _batches(pairs)):
            return False
    return True


def _batches(pairs: Sequence[tuple[Origin, Origin]]) -> Iterator[Sequence[tuple[Origin, Origin]]]:
    """Yield the first pair alone, as it tells most apart, then several at a time."""
    yield pairs[:1]
    for at in range(1, len(pairs), STEPS_AT_A_TIME):
        yield pairs[at : at + STEPS_AT_A_TIME]
