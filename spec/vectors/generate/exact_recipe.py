"""How the segments and frames of a vector are coded."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import reference_decoder as ref

from .chunks import zstd_frame
from .exact_streams import Bits, Counts, Pen, by_family, fit, flat, lowest, planes, say, tables_raw
from .exact_tier import Frame, Segment, Tier, frame_blob

Stream = Callable[[Any, Any, Pen | None], bytes]


@dataclass
class Plan:
    """How a segment is coded."""

    count: int
    left: int = 0
    limit: int = 1 << 20
    table_sets: int = 1
    table_set: Callable[[int, int], int] = lambda step, level: 0
    """Gives the table set of a step whose frame is in a level; the first frame's level is 0."""
    dense: Sequence[int] = (0,)
    key: Callable[[int], int] | None = by_family
    """See `fit`; None: flat tables."""
    own: Any = None
    """The table set that is used instead of fitted ones."""
    low: int | None = None
    xored: Sequence[tuple[str, int]] = ()
    """Name and step of parts in coding 1."""
    made: dict[tuple[str, int], Stream] = field(default_factory=dict)
    """Streams of a name and step that are made by hand: from the part (`Segmented`), the table set, and the pen."""


@dataclass
class Exact:
    """The frames of a recipe."""

    rows: dict[str, list[Bits]]
    """Of the tensors in segments: the bits of kind `same`, and those at each step."""
    plans: list[Plan]
    since: dict[str, int] = field(default_factory=dict)
    """The first segment that holds a tensor; 1 unless it is given."""

    def add(self, parts: Any) -> None:
        """Add the three entries to a file, and the segments to its tensors."""
        for i, row in enumerate(parts.manifest["tensors"]):
            if (key := self.key(row)) in self.rows and parts.entries["relex.tensors"][32 * i] != ref.TIED:
                parts.patch("relex.tensors", 32 * i + 20, "I", self.since.get(key, 1))
        parts.tier = self.tier(parts)
        for name, raw in parts.tier.entries(0).items():
            parts.entries[name], parts.dtypes[name] = bytearray(raw), "U8"

    def key(self, row: Sequence[Any]) -> str:
        """What a tensor is called in `rows`: its name, with its dtype where there are several of that name."""
        return f"{row[0]} {row[1]}" if f"{row[0]} {row[1]}" in self.rows else row[0]

    def tier(self, parts: Any) -> Tier:
        """Segments and frames."""
        file: Any = SimpleNamespace(segments=self.plans, steps=len(parts.entries["relex.steps"]) // 8)
        file.manifest = [ref.to_named(row) for row in parts.manifest["tensors"]]
        kinds = parts.entries["relex.tensors"][::32]
        held = [
            self.since.get(self.key(named), 1) if self.key(named) in self.rows and kind != ref.TIED else 0
            for named, kind in zip(file.manifest, kinds, strict=True)
        ]
        file.tensors = [SimpleNamespace(segment=segment) for segment in held]
        result, before = [], 0
        for k, plan in enumerate(self.plans):
            groups = ref.groups_of(file, k)
            frames = {step: Frame([]) for step in range(plan.count + 1)}
            for group in groups:
                self._group(file, plan, before, group, frames)
            result.append(Segment(before, plan.count, plan.left, plan.table_sets, len(groups), plan.limit, frames))
            before += plan.count
        return Tier(result)

    def _group(self, file: Any, plan: Plan, before: int, parts: Sequence[Any], frames: dict[int, Frame]) -> None:
        """Append the blobs of a group to the tables and frames of a segment."""
        dtype = file.manifest[parts[0].tensor].dtype
        sources = [self._bits(file, part, plan.left) for part in parts]
        low = lowest(b"".join(sources), dtype) if plan.low is None else plan.low
        cut = [ref.Segmented(bits, dtype, low) for bits in sources]
        numbers = {step: plan.table_set(step, level) for step, level in levels(plan.count).items()}
        pens, texts = [], []
        for part, one in zip(parts, cut, strict=True):
            bits = {step: self._bits(file, part, before + step) for step in numbers}
            spoken, xors = say(one, plan.count, bits, plan.dense[numbers[plan.count] % len(plan.dense)])
            pens.append(spoken)
            texts.append((bits, xors))
        sets = []
        for number in range(plan.table_sets):
            counts: Counts = defaultdict(lambda: defaultdict(int))
            for spoken in pens:
                for step, pen in spoken.items():
                    for _, context, value in pen.takes if pen and numbers[step] == number else ():
                        if context is not None:
                            counts[context][value] += 1
            dense = plan.dense[number % len(plan.dense)]
            sets.append(plan.own or (flat(dense) if plan.key is None else fit(counts, dense, plan.key)))
        frames[0].blobs.append(zstd_frame(tables_raw(low, sets)))
        for step, number in numbers.items():
            frames[step].table_set = number
            found = []
            for part, one, spoken, (bits, xors) in zip(parts, cut, pens, texts, strict=True):
                name, pen = file.manifest[part.tensor].name, spoken[step]
                coding, stream = 0, pen.stream(sets[number]) if pen else b""
                if (name, step) in plan.xored:
                    coding, stream = 1, zstd_frame(b"".join(plane.tobytes() for plane in planes(xors[step], dtype)))
                if (name, step) in plan.made:
                    stream = plan.made[name, step](one, sets[number], pen)
                found.append(ref.Coded(hashlib.sha256(bits[step]).digest()[:8], coding, stream))
            frames[step].blobs.append(frame_blob(found))

    def _bits(self, file: Any, part: Any, number: int) -> bytes:
        """The elements of a part at the step of a number."""
        named = file.manifest[part.tensor]
        rows = self.rows[self.key(named)]
        whole = rows[number]
        assert whole.size == named.n and len(rows) == file.steps + 1, named.name
        result: bytes = whole[part.start : part.stop].tobytes()
        return result


def levels(count: int) -> dict[int, int]:
    """The level of the frame of each step; 0 for the first frame."""
    return {step: needed - 1 for step, needed in ref.frame_order(count)}
