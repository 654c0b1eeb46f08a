"""Reading ahead for a decoder: the plan of what it will decode (needs.py) put to work (ahead.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from .ahead import AheadSource, ReadAhead, Use
from .base import BaseReader
from .decoder import Decoder
from .needs import Wanted, needs, reads_base


def reading_ahead(
    decoder: Decoder,
    base: Callable[[], BaseReader],
    names: Iterable[str],
    step: float,
    tier: str,
    lo: int = 0,
    hi: int | None = None,
) -> AbstractContextManager[Any]:
    """Return a context in which `names` are decoded from what was read ahead, one after another.

    Nothing is planned of local files, and of what a surrounding context has planned.

    Args:
        base: gives the reader of the base; called only if a tensor needs it.
        tier: as `decoder.choose_tier` returns it.
        lo, hi: elements of each tensor; all by default.

    Raises:
        Exception: as `Decoder.read`, where the base or the exact tier are opened.
    """
    index = decoder.container.index
    wanted = []
    for name in names:
        number = decoder.number(name)
        size = index.manifest.tensors[number].size
        wanted.append(Wanted(number, step, tier, lo, size if hi is None else hi))
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
    return ReadAhead(uses) if uses else nullcontext()
