"""Replaying the steps of one segment: parts at one step after the other, every frame decoded once."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

import numpy as np

from relex_codec.core.dtypes import Bits
from relex_codec.errors import Corrupt

from .bisection import Interval, whole_segment
from .blobs import Blob, Key, Streams
from .interval_lists import IntervalList
from .part_decoder import PartDecoder
from .segments import PartInfo
from .tier_reader import ExactTier

T = TypeVar("T")
_NOTHING: Final = IntervalList(
    np.empty(0, np.uint32), np.empty(0, np.uint8), np.empty(0, np.uint8), np.empty(0, np.uint8)
)


class SegmentReplay:
    """Parts at one step of a segment after the other.

    Args:
        left: elements of each part at the left end; let go of.
    """

    def __init__(self, tier: ExactTier, number: int, parts: Sequence[PartInfo], left: Sequence[Bits]) -> None:
        self._tier, self._number, self._parts = tier, number, parts
        self._segment = tier.segments[number]
        held = [i for i, part in enumerate(parts) if tier.holds(number, part.tensor)]
        self._still = {i: left[i] for i, part in enumerate(parts) if not tier.holds(number, part.tensor)}
        self._groups = sorted({tier.place(number, parts[i])[0] for i in held})
        self._blobs: dict[Key, Blob] = {}
        """Tables, the frame that is being decoded, and digests of those whose steps are still to come."""
        self._blobs |= tier.fetch([Key(number, 0, group) for group in self._groups])
        self._held = held
        self._decoders = [tier.decoder(number, parts[i], left[i], self._blobs) for i in held]

    def walk(self, wanted: list[int]) -> Iterator[int]:
        """Yield the steps in `wanted`, in order, when `bits` are theirs."""
        if not self._held:
            yield from wanted
            return
        count = self._segment.count
        with_first = self._decoded(count, lambda decoder, _: decoder.first_list())
        yield from self._walk(whole_segment(count), with_first, wanted, through=False)

    def bits(self, step: int, *, check: bool) -> list[Bits]:
        """Return the elements of each part at the step that was yielded last."""

        def one(i: int) -> Bits:
            bits = self._decoders[i].bits()
            if check:
                part = self._parts[self._held[i]]
                self._tier.check_digest(part, self._segment.first + step, bits, self._blobs)
            return bits

        found = self._still | {at: one(i) for i, at in enumerate(self._held)}
        for key in self._keys(step):
            del self._blobs[key]
        return [found[i] for i in range(len(self._parts))]

    def _walk(
        self, interval: Interval, lists: list[IntervalList], wanted: list[int], *, through: bool
    ) -> Iterator[int]:
        """Yield the steps in `wanted`, which are in the interval; `lists`, one for each part, are used up.

        Args:
            through: whether the words must be those of the right end afterwards.
        """
        if not wanted or wanted[0] == interval.right:
            self._each(PartDecoder.apply, lists)
            yield from wanted
            return
        cut = bisect_right(wanted, interval.middle)
        low, high = wanted[:cut], wanted[cut:]
        if not high and not through:
            halved = self._decoded(interval.middle, lambda d, listed: d.half(interval, listed, high=False), lists)
            yield from self._walk(interval.low, halved, low, through=False)
        elif not low:
            halved = self._decoded(interval.middle, lambda d, listed: d.half(interval, listed, high=True), lists)
            yield from self._walk(interval.high, halved, high, through=through)
        else:
            both = self._decoded(interval.middle, lambda d, listed: d.halves(interval, listed), lists)
            lows, highs = [pair[0] for pair in both], [pair[1] for pair in both]
            del both
            yield from self._walk(interval.low, lows, low, through=True)
            yield from self._walk(interval.high, highs, high, through=through)

    def _decoded(
        self, step: int, decode: Callable[[PartDecoder, IntervalList], T], lists: list[IntervalList] | None = None
    ) -> list[T]:
        """Read the frame of a step and call `decode` for each part; of the frame only the digests are kept."""
        keys = self._keys(step)
        self._blobs |= self._tier.fetch(keys)
        try:
            return self._each(decode, lists if lists is not None else [_NOTHING] * len(self._held))
        finally:
            for key in keys:
                blob = self._blobs[key]
                assert isinstance(blob, Streams)
                self._blobs[key] = Streams(blob.digests, [])

    def _each(self, call: Callable[[PartDecoder, IntervalList], T], lists: list[IntervalList]) -> list[T]:
        """Call `call` for each part, with its list, which is let go of as soon as it is used."""

        def one(i: int) -> T:
            listed, lists[i] = lists[i], _NOTHING
            try:
                return call(self._decoders[i], listed)
            except Corrupt as error:
                raise Corrupt(f"{self._tier.where(self._parts[self._held[i]])}: {error}") from None

        return [one(i) for i in range(len(self._held))]

    def _keys(self, step: int) -> list[Key]:
        return [Key(self._number, step, group) for group in self._groups]
