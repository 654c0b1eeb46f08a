"""Reading ahead for a decoder: the plan of read_plan.py put to work by storage/prefetch.py."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from relex_codec.checkpoints.base_model import BaseReader
from relex_codec.format.constants import PIECE
from relex_codec.kernels.interface import Window
from relex_codec.kernels.windows import pieces
from relex_codec.storage.coalesce import Range
from relex_codec.storage.prefetch import PlannedRange, PrefetchingSource, prefetching, ranges_to_fetch
from relex_codec.storage.source import Source

from .read_plan import Need, Wanted, holds_origin, needs, reads_base, replay_needs
from .tensor_decoder import Decoder, Read

if TYPE_CHECKING:
    from relex_codec.exact.segments import PartInfo
    from relex_codec.exact.tier_reader import Key


def reading_ahead(
    decoder: Decoder,
    base: Callable[[], BaseReader],
    parts: Iterable[tuple[str, Sequence[Window]]],
    reads: Sequence[Read],
) -> AbstractContextManager[Any]:
    """Return a context in which windows of tensors are decoded from what was read ahead, one after another.

    Nothing is planned of local files, and of what a surrounding context has planned.

    Args:
        base: gives the reader of the base; called only if a tensor needs it.
        parts: windows by the name of their tensor.
        reads: the steps that each is read at, as `Decoder.read_window` takes them.

    Raises:
        Exception: as `Decoder.read_window`, where the base or the exact tier are opened.
    """
    index = decoder.container.index
    wanted = [one for name, found in parts for window in found for one in wanted_of(decoder, name, window, reads)]
    if decoder.plans.cover(wanted):  # what another thread has in hand of it would look as if it were still to be read
        return nullcontext()
    checkpoint = base().checkpoint if reads_base(index, wanted, decoder.use_embedded) else None
    shards = checkpoint.sources if checkpoint else []
    file = decoder.container.source
    if not any(isinstance(source, PrefetchingSource) for source in (file, *shards)):
        return nullcontext()
    planned = needs(
        index,
        wanted,
        use_embedded=decoder.use_embedded,
        base=checkpoint.tensors if checkpoint else {},
        exact=lambda: decoder.exact,
    )
    uses = ranges_to_fetch(_placed(file, shards, planned))
    return _registered(decoder, wanted, prefetching(uses)) if uses else nullcontext()


@contextmanager
def _registered(decoder: Decoder, wanted: Sequence[Wanted], ahead: AbstractContextManager[Any]) -> Iterator[Any]:
    with decoder.plans.of(wanted), ahead as running:
        yield running


def replay_plan(decoder: Decoder, numbers: Collection[int]) -> Callable[[Sequence[PartInfo]], list[PlannedRange]]:
    """Return what gives the ranges of remote files that `exact.replay.replay_parts` will read, in its order.

    Args:
        numbers: of the steps, from 1 on.
    """
    from relex_codec.exact.replay import keys_of  # numba is only needed here

    index, file = decoder.container.index, decoder.container.source
    seen: set[Key] = set()
    """Blobs, which are kept for further parts of their group."""

    def plan(parts: Sequence[PartInfo]) -> list[PlannedRange]:
        read = [part for part in parts if not holds_origin(index, part.tensor, decoder.use_embedded)]
        checkpoint = decoder.base().checkpoint if read else None
        shards = checkpoint.sources if checkpoint else []
        if not any(isinstance(source, PrefetchingSource) for source in (file, *shards)):
            return []
        needed = replay_needs(
            index, parts, use_embedded=decoder.use_embedded, base=checkpoint.tensors if checkpoint else {}
        )
        tier = decoder.exact
        blobs: list[Range] = []
        if isinstance(file, PrefetchingSource):
            keys = [key for key in keys_of(tier, parts, numbers) if key not in seen]
            seen.update(keys)
            blobs = tier.ranges_of(keys)
        return ranges_to_fetch([*_placed(file, shards, needed), *((file, *blob) for blob in blobs)])

    return plan


def _placed(file: Source, shards: Sequence[Source], found: Iterable[Need]) -> Iterator[tuple[Source, int, int]]:
    return ((file if need.shard is None else shards[need.shard], need.start, need.end) for need in found)


def wanted_of(decoder: Decoder, name: str, window: Window, reads: Sequence[Read]) -> list[Wanted]:
    """Return what `Decoder.read_window` reads: together for the steps that a kernel decodes, one by one for others."""
    number = decoder.number(name)
    spans = tuple((low * PIECE, high * PIECE) for low, high in pieces(window))
    linear = [read for read in reads if decoder.is_linear(number, read[1])]
    others = [read for read in reads if not decoder.is_linear(number, read[1])]
    return [Wanted(number, step, tier, spans) for step, tier in (*linear[:1], *others)]
