"""Replaying a range of steps: every frame is read and decoded once (FORMAT.md section 13)."""

from __future__ import annotations

from collections.abc import Iterator

from .. import format as f
from ..dtypes import Bits
from .layout import PartInfo
from .tier import Blob, Blobs, ExactTier, Key, Origin


class LazyBlobs(dict[Key, Blob]):
    """Blobs that are read when they are asked for, those of all `groups` of a block together."""

    def __init__(self, tier: ExactTier, groups: dict[int, list[int]]) -> None:
        super().__init__()
        self._tier, self._groups = tier, groups

    def __missing__(self, key: Key) -> Blob:
        groups = self._groups.get(key.segment, [key.group])
        return self._tier.fetch([Key(key.segment, key.step, group) for group in groups])[key]


def groups_of(tier: ExactTier, parts: list[PartInfo]) -> dict[int, list[int]]:
    """Return the groups that hold `parts`, by segment."""
    found: dict[int, list[int]] = {}
    for number in range(len(tier.segments)):
        held = {tier.place(number, part)[0] for part in parts if tier.holds(number, part.tensor)}
        found[number] = sorted(held)
    return found


def replay(tier: ExactTier, part: PartInfo, first: int, last: int, origin: Origin, blobs: Blobs) -> Iterator[Bits]:
    """Yield the elements of a part at step numbers first .. last (from 1 on), each with its digest checked.

    Raises:
        Corrupt: a stream does not decode, or a digest differs.
    """
    kept: dict[int, Bits] = {}
    numbers = range(tier.segment_of(first), tier.segment_of(last) + 1)
    # what later segments begin from is kept when it passes by, so that no frame is decoded for it again
    wanted = {tier.segments[number].left for number in numbers}
    for number in numbers:
        segment = tier.segments[number]
        begin, end = max(first, segment.first + 1), min(last, segment.first + segment.count)
        if segment.left not in kept:
            kept[segment.left] = tier.restore(part, segment.left, origin, blobs)
        left = kept[segment.left]
        wanted_later = {tier.segments[n].left for n in numbers if n > number}
        for step in [step for step in kept if step not in wanted_later]:
            del kept[step]
        if not tier.holds(number, part.tensor):
            for step in range(begin, end + 1):
                yield left.copy()
                if step in wanted:
                    kept[step] = left
            continue
        decoder = tier.decoder(number, part, left, blobs)
        for local in decoder.replay(begin - segment.first, end - segment.first):
            step = segment.first + local
            bits = decoder.bits()
            tier.check_digest(part, step, bits, blobs)
            if step in wanted:
                kept[step] = bits.copy()
            yield bits


def all_parts(tier: ExactTier, tensor: int) -> list[PartInfo]:
    """Return a tensor as parts."""
    size = tier.container.index.manifest.tensors[tensor].size
    return tier.pieces(tensor, 0, -(-size // f.PIECE))
