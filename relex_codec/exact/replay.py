"""Replaying: several steps of several parts, every frame read and decoded once (EXACT.md section 13)."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from itertools import accumulate, pairwise
from typing import Any, Final

import numpy as np

from relex_codec.core.cancellation import Cancelled, CancelScope
from relex_codec.core.dtypes import Bits, bits_dtype
from relex_codec.core.threads import cpu_count, prefetched
from relex_codec.format import constants as f
from relex_codec.storage.prefetch import PREFETCH_BYTES, PlannedRange, prefetching

from . import segments
from .bisection import replay_order
from .blobs import Key
from .segment_replay import SegmentReplay
from .segments import PartInfo
from .tier_reader import ExactTier, Origin

Plan = Callable[[Sequence[PartInfo]], list[PlannedRange]]
BATCH_WORDS: Final = 1 << 20
"""Words that `batches` puts together at most."""
LANE_WORDS: Final = 1 << 18
"""Words that are worth a thread of their own."""
LOT: Final = PREFETCH_BYTES
"""Bytes of remote files that are read together: of each frame the blobs of some batches that lie side by side."""


def replay_parts(
    tier: ExactTier,
    parts: Sequence[PartInfo],
    steps: Collection[int],
    origin: Origin,
    lanes: int | None = None,
) -> Iterator[tuple[int, list[Bits]]]:
    """Yield the number of each step in order, and the elements that each part has there, with their digests checked.

    Frames that none of the steps needs are neither read nor decoded. In memory are, for each part, its words and their
    order (6 bytes a BF16 element), a list of the words that differ at the ends of each interval that the steps still
    to come lie in (9 bytes a word), and its elements at each step that a later segment begins from.

    Parts are shared out to threads, which go from step to step on their own, a step or two ahead of the caller: handing
    over each frame would take longer than decoding that of a small model. Each thread holds its elements of those
    steps besides.

    The arrays may come again at another step: they are to be read, not to be written to.

    Args:
        steps: numbers, from 1 on.
        origin: called once for each part, from several threads.
        lanes: how many threads there may be. Default: one a processor.

    Raises:
        Corrupt: a blob is damaged, a stream does not decode, or a digest differs.
    """
    own, *others = _shares(parts, cpu_count() if lanes is None else lanes)
    with ExitStack() as stack:
        replayed = [_replay_share(tier, own, steps, origin)]
        for share in others:
            replayed.append(stack.enter_context(closing(prefetched(_replay_share(tier, share, steps, origin), 1))))
        for found in zip(*replayed, strict=True):
            yield found[0][0], [bits for _, share in found for bits in share]
            del found


def _shares(parts: Sequence[PartInfo], lanes: int) -> list[Sequence[PartInfo]]:
    """Cut parts into up to so many lists of about as many words, of at least `LANE_WORDS` each; at least one list."""
    ends = list(accumulate(part.words for part in parts))
    total = ends[-1] if ends else 0
    lanes = max(1, min(lanes, total // LANE_WORDS))
    cuts = [bisect_left(ends, total * lane // lanes) for lane in range(1, lanes)]
    return [parts[begin:end] for begin, end in pairwise([0, *cuts, len(parts)])]


def _replay_share(
    tier: ExactTier, parts: Sequence[PartInfo], steps: Collection[int], origin: Origin
) -> Iterator[tuple[int, list[Bits]]]:
    """Do what `replay_parts` says on one thread."""
    wanted = frozenset(steps)
    needed = _needed(tier, wanted)
    last_use = {tier.segments[number].left: number for number in needed}
    known = {0: [origin(part) for part in parts]}
    for number, local in needed.items():
        segment = tier.segments[number]
        left = known[segment.left]
        known = {step: bits for step, bits in known.items() if last_use[step] > number}
        replayed = SegmentReplay(tier, number, parts, left)
        del left
        for at in replayed.walk(local):
            step = segment.first + at
            bits = replayed.bits(at, check=step in wanted)
            if step in last_use:
                known[step] = bits
            if step in wanted:
                yield step, bits
            del bits


def keys_of(tier: ExactTier, parts: Sequence[PartInfo], steps: Collection[int]) -> Iterator[Key]:
    """Yield the blobs that `replay_parts` reads, in the order in which it reads them."""
    for number, local in _needed(tier, frozenset(steps)).items():
        held = [part for part in parts if tier.holds(number, part.tensor)]
        groups = sorted({tier.place(number, part)[0] for part in held})
        if groups:
            for frame in (0, *replay_order(local, tier.segments[number].count)):
                yield from (Key(number, frame, group) for group in groups)


def _needed(tier: ExactTier, wanted: Iterable[int]) -> dict[int, list[int]]:
    """Return which steps of which segments are to be restored, both in order: `wanted`, and what those begin from.

    Steps of a segment are counted from its left end.
    """
    found: list[set[int]] = [set() for _ in tier.segments]
    for step in wanted:
        found[tier.segment_of(step)].add(step)
    for number in reversed(range(len(found))):
        left = tier.segments[number].left
        if found[number] and left:
            found[tier.segment_of(left)].add(left)
    return {
        number: [step - tier.segments[number].first for step in sorted(steps)]
        for number, steps in enumerate(found)
        if steps
    }


def replay_tensors(
    tier: ExactTier,
    steps: Collection[int],
    origin: Origin,
    tensors: Mapping[int, Collection[int]],
    plan: Plan = lambda _: [],
) -> Iterator[tuple[int, dict[int, Bits]]]:
    """Yield the number of each step in order, and tensors there by their numbers: new arrays, one-dimensional.

    Other arguments, memory and errors are those of `replay_parts` and `replay_all`.

    Args:
        tensors: numbers of those that are wanted at each of `steps`.
    """
    entries = tier.container.index.tensors
    numbers = sorted({number for wanted in tensors.values() for number in wanted})
    parts = [part for number in numbers for part in all_parts(tier, number)]
    with prefetching(plan(parts)):
        for step, found in replay_parts(tier, parts, steps, origin):
            whole: dict[int, Bits] = {
                number: np.empty(entries[number].size, bits_dtype(entries[number].dtype)) for number in tensors[step]
            }
            for part, bits in zip(parts, found, strict=True):
                if part.tensor in whole:
                    start = part.piece * f.PIECE
                    whole[part.tensor][start : start + part.elements] = bits
            del found
            yield step, whole
            del whole


def all_parts(tier: ExactTier, tensor: int) -> list[PartInfo]:
    """Return a tensor as parts."""
    size = tier.container.index.tensors[tensor].size
    return tier.pieces(tensor, 0, -(-size // f.PIECE))


def batches(tier: ExactTier, tensors: Collection[int] | None = None) -> Iterator[list[PartInfo]]:
    """Cut tensors into lists of parts that are best replayed together: where it is possible, those of a group.

    Args:
        tensors: numbers of those that are wanted. Default: all.
    """
    every = (tensor.number for tensor in tier.container.index.tensors if tensor.target is None)
    wanted = frozenset(every if tensors is None else tensors)
    last = len(tier.segments) - 1
    held, _, _ = tier.parts(last)  # a later segment holds what an earlier one does
    longest = max(range(last + 1), key=lambda number: tier.segments[number].count)
    cuts = segments.groups_of(held, min(int(tier.segment_records[longest]["limit"]), BATCH_WORDS))
    for begin, end in pairwise(cuts):
        if parts := [part for part in held[begin:end] if part.tensor in wanted]:
            yield parts
    for tensor in sorted(wanted):
        if not tier.holds(last, tensor):
            for part in all_parts(tier, tensor):
                yield [part]


def replay_all(
    tier: ExactTier,
    steps: Collection[int],
    origin: Origin,
    use: Callable[[list[PartInfo], int, list[Bits]], Any] = lambda parts, number, bits: None,
    on_bytes: Callable[[int], Any] = lambda _: None,
    tensors: Collection[int] | None = None,
    plan: Plan = lambda _: [],
    *,
    found: Iterable[list[PartInfo]] | None = None,
    threads: int | None = None,
) -> None:
    """Replay all tensors, a batch of parts after the other, one on each thread, or on several if there are fewer.

    Memory is that of `replay_parts` for as many batches as there are threads, whatever the size of the model, and
    what is read ahead: of remote files, the bytes of as many batches as `LOT` allows.

    Args:
        use: called with parts, number of the step, and elements of each part there; from several threads.
        on_bytes: called with the bytes of those elements afterwards, by one thread at a time.
        tensors: numbers of those that are replayed. Default: all.
        plan: gives what replaying parts will read, in order, if that shall be read ahead.
        found: some of the batches, instead of all those of `tensors`.
        threads: default: one a processor.

    Raises:
        Corrupt: as `replay_parts`; and whatever `use` raises.
    """
    scope, lock = CancelScope(), threading.Lock()
    failures: list[BaseException] = []

    def one(parts: list[PartInfo]) -> None:
        try:
            for number, bits in replay_parts(tier, parts, steps, origin, lanes):
                if scope.is_cancelled():
                    return
                use(parts, number, bits)
                with lock:
                    on_bytes(sum(piece.nbytes for piece in bits))
        except BaseException as e:
            if not scope.is_cancelled():
                failures.append(e)
            scope.cancel()
            raise

    every = list(batches(tier, tensors) if found is None else found)
    threads = threads or cpu_count()
    lanes = max(1, threads // max(1, len(every)))
    with ThreadPoolExecutor(threads) as pool:
        try:
            for lot, uses in _lots(every, plan):
                with prefetching(uses):
                    for _ in pool.map(scope.bind(one), lot):
                        pass
        except BaseException as e:
            scope.cancel()  # the pool waits for what is under way
            if isinstance(e, Cancelled) and failures:  # results come in order, failures do not
                raise failures[0] from None
            raise


def _lots(found: Iterable[list[PartInfo]], plan: Plan) -> Iterator[tuple[list[list[PartInfo]], list[PlannedRange]]]:
    """Gather batches that are read together; all of them, if nothing is to be read ahead."""
    lot: list[list[PartInfo]] = []
    uses: list[PlannedRange] = []
    size = 0
    for parts in found:
        more = plan(parts)
        length = sum(use.end - use.start for use in more)
        if lot and size + length > LOT:
            yield lot, uses
            lot, uses, size = [], [], 0
        lot.append(parts)
        uses += more
        size += length
    if lot:
        yield lot, uses
