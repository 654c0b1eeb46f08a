"""Getting the bytes that a plan says: of remote files ahead of their use, in large blocks (storage/prefetch.py).

Local files are read when their bytes are asked for: nothing is won by asking earlier.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import groupby
from typing import TYPE_CHECKING, Any

from relex_codec.core.forks import new_lock
from relex_codec.format.constants import PIECE
from relex_codec.format.reader import FileReader
from relex_codec.storage.prefetch import PlannedRange, PrefetchingSource, prefetching, ranges_to_fetch

from .base_locator import BaseLocator
from .planning import plan_origin
from .read_plan import ByteRange, OriginPieces, ReadPlan

if TYPE_CHECKING:
    from relex_codec.exact.segments import PartInfo
    from relex_codec.exact.tier_reader import ExactTier, Key


class Fetcher:
    """Fetches what is planned to be read of a file and of its base."""

    def __init__(self, container: FileReader, base: BaseLocator) -> None:
        self._container, self._base = container, base
        self._under_way: Counter[Hashable] = Counter()
        self._lock = new_lock()

    def ahead(self, plan: ReadPlan) -> AbstractContextManager[Any]:
        """Return a context in which what is planned, and asked for in about this order, is read ahead.

        Nothing is read ahead of local files, nor of what is under way already: for a plan around this one, or on
        another thread. What that thread has taken would look as if it were still to be fetched.
        """
        keys = plan.keys()
        if self._all_under_way(keys):
            return nullcontext()
        uses = self._uses(plan.ranges(self._container.index))
        return self._counted(keys, uses) if uses else nullcontext()

    def replay_plan(
        self, tier: ExactTier, numbers: Collection[int]
    ) -> Callable[[Sequence[PartInfo]], list[PlannedRange]]:
        """Return what plans ahead for `exact.replay`: it gives what replaying some parts reads of remote files.

        Args:
            numbers: of the stored steps, from 1 on.
        """
        from relex_codec.exact.replay import keys_of  # numba is only needed here

        index = self._container.index
        asked: set[Key] = set()
        """Blobs, which are kept for further parts of their group."""

        def plan(parts: Sequence[PartInfo]) -> list[PlannedRange]:
            origins: list[OriginPieces] = []
            for number, group in groupby(parts, lambda part: part.tensor):
                spans = [(at, at + part.elements) for part in group for at in [part.piece * PIECE]]
                origins += plan_origin(index, index.tensors[number], spans, self._base.places)

            def ranges() -> Iterator[ByteRange]:
                for origin in origins:
                    yield from origin.ranges(index)
                if isinstance(self._container.source, PrefetchingSource):  # or the indexes of blobs are not needed yet
                    keys = [key for key in keys_of(tier, parts, numbers) if key not in asked]
                    asked.update(keys)
                    yield from (ByteRange(None, *at) for at in tier.ranges_of(keys))

            return self._uses(ranges())

        return plan

    def _uses(self, ranges: Iterable[ByteRange]) -> list[PlannedRange]:
        """Return those of some ranges that are to be fetched from remote files; the base is open if one is of it."""
        file, shards = self._container.source, self._base.sources
        if not any(isinstance(source, PrefetchingSource) for source in (file, *shards)):
            return []
        return ranges_to_fetch((file if at.shard is None else shards[at.shard], at.start, at.end) for at in ranges)

    def _all_under_way(self, keys: Iterable[Hashable]) -> bool:
        with self._lock:
            return all(self._under_way[key] for key in keys)

    @contextmanager
    def _counted(self, keys: Collection[Hashable], uses: Sequence[PlannedRange]) -> Iterator[Any]:
        with self._lock:
            self._under_way.update(keys)
        try:
            with prefetching(uses) as running:
                yield running
        finally:
            with self._lock:
                self._under_way.subtract(keys)
                self._under_way = +self._under_way
