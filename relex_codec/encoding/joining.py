"""Joining the results of units to a file: they are copied to their places, nothing is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from relex_codec.format import constants as f
from relex_codec.format.manifest import FileEntry, Manifest
from relex_codec.format.packed_span import PendingSpan
from relex_codec.format.writer import FileWriter

from .layouts import step_entries
from .results import Results
from .surroundings import Surroundings
from .tables import EncodedTensor, tables_of

if TYPE_CHECKING:
    from relex_codec.exact.segments import SegmentShape
    from relex_codec.exact.tier_reader import ExactTier


@dataclass(slots=True)
class Contents:
    """What a file holds of files that are no weights, in the order in which they are stored."""

    files: list[bytes] = field(default_factory=list)

    def store(self, content: bytes) -> PendingSpan:
        """Take a content; what stands for it until it is in the file is its number."""
        self.files.append(content)
        return PendingSpan(len(self.files) - 1)


@dataclass(frozen=True, slots=True)
class Outline:
    """What a file says beside what its units find out.

    Attributes:
        steps: of the run.
        manifest: of the file, with numbers of `contents` in place of chunks.
        targets: for each tensor the number of the one that it is another name of, or None.
        contents: of files that are no weights.
        shape: of its new segment of frames; None where it has no frames.
    """

    steps: list[int]
    manifest: Manifest
    targets: list[int | None]
    contents: list[bytes]
    shape: SegmentShape | None

    @classmethod
    def of(
        cls, manifest: Manifest, around: Surroundings, steps: list[int], targets: list[int | None],
        contents: Contents, shape: SegmentShape | None,
    ) -> Outline:  # fmt: skip
        """Return that of a manifest that says nothing yet of what is around the tensors."""
        layouts = around.layouts
        whole = replace(
            manifest, base_uri=around.base_uri, base_shards=list(around.base_shards),
            files=[file.entry for file in around.files], layouts=layouts.layouts,
            layout=layouts.steps[manifest.observed - 1], steps=step_entries(around.directories, layouts.steps),
            left_out=list(around.left_out),
        )  # fmt: skip
        return cls(steps, whole, targets, contents.files, shape)

    def write(self, results: Results, writer: FileWriter, old: ExactTier | None = None) -> Joined:
        """Write the file.

        Args:
            results: of all units.
            old: the exact tier that the frames are appended to.
        """
        spans = [_embed(writer, content) for content in self.contents]
        tensors = list(self._tensors(results, writer))
        writer.close_chunks()
        files = [file if file.chunk is None else _placed(file, spans[file.chunk]) for file in self.manifest.files]
        tables = tables_of(tensors, np.array(self.steps, np.int64), replace(self.manifest, files=files))
        frames = None
        if self.shape is not None:
            from relex_codec.exact.tier_writer import assemble  # numba is only needed here

            frames = assemble(self.shape, results.groups(), old)
        size = writer.finish(tables, frames)
        return Joined(size, {one.entry.name: one.not_finite for one in tensors if one.not_finite})

    def _tensors(self, results: Results, writer: FileWriter) -> Iterator[EncodedTensor]:
        for number, (entry, target) in enumerate(zip(self.manifest.tensors, self.targets, strict=True)):
            if target is not None:
                yield EncodedTensor(entry, f.TIED, f.IN_BASE, target=target)
                continue
            tensor = results.tensor(number, entry)
            if tensor.span is not None:
                writer.base.put(tensor.span)
            for direction in tensor.directions:
                writer.directions.put(direction.factors)
                writer.directions.put(direction.remainder)
            yield tensor


@dataclass(frozen=True, slots=True)
class Joined:
    """What became of it.

    Attributes:
        size: of the file.
        not_finite: numbers of steps at which tensors had weights that are not finite, by name.
    """

    size: int
    not_finite: dict[str, Sequence[int]]


def _embed(writer: FileWriter, content: bytes) -> PendingSpan:
    data = np.frombuffer(content, np.uint8)
    parts = (data[lo : lo + f.PIECE] for lo in range(0, len(data), f.PIECE))
    return writer.base.add(parts, len(data), match=True)


def _placed(file: FileEntry, span: PendingSpan) -> FileEntry:
    return file._replace(chunk=span.chunk, offset=span.offset)
