"""Reading ahead for a decoder: the plan of what it will decode (needs.py) put to work (ahead.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from .ahead import AheadSource, ReadAhead, Use
from .base import BaseReader
from .decoder import Decoder, Read
from .format import PIECE
from .kernels import Window
from .needs import Wanted, needs, reads_base
from .source import Source
from .windows import pieces


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
    if not any(isinstance(source, AheadSource) for source in (file, *shards)):
        return nullcontext()
    planned = needs(
        index,
        wanted,
        use_embedded=decoder.use_embedded,
        base=checkpoint.tensors if checkpoint else {},
        exact=lambda: decoder.exact,
    )
    uses = []
    for shard, start, end in planned:
        source = file if shard is None else shards[shard]
        if isinstance(source, AheadSource) and not source.at_hand(start, end):
            uses.append(Use(source, start, end))
    return _registered(decoder, wanted, ReadAhead(uses)) if uses else nullcontext()


@contextmanager
def _registered(decoder: Decoder, wanted: Sequence[Wanted], ahead: AbstractContextManager[Any]) -> Iterator[None]:
    with decoder.plans.of(wanted), ahead:
        yield


def ahead_of(uses: Iterable[tuple[Source, int, int]]) -> AbstractContextManager[Any]:
    """Return a context in which these ranges of remote files, asked for in about this order, are read ahead."""
    planned = [Use(source, start, end) for source, start, end in uses if isinstance(source, AheadSource)]
    return ReadAhead(planned) if planned else nullcontext()


def wanted_of(decoder: Decoder, name: str, window: Window, reads: Sequence[Read]) -> list[Wanted]:
    """Return what `Decoder.read_window` reads: together for the steps that a kernel decodes, one by one for others."""
    number = decoder.number(name)
    spans = tuple((low * PIECE, high * PIECE) for low, high in pieces(window))
    linear = [read for read in reads if decoder.is_linear(number, read[1])]
    others = [read for read in reads if not decoder.is_linear(number, read[1])]
    return [Wanted(number, step, tier, spans) for step, tier in (*linear[:1], *others)]
