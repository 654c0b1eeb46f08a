"""The pieces of tensors on their way to the exact tier: a unit codes whole groups of frames.

Which parts a group has follows from which tensors the segment holds (EXACT.md section 13), so a unit can be told by
name the groups that begin with its tensors. The last of them may reach over the end of these: then the pieces of the
next tensors that it needs are read too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from relex_codec.core.digests import part_digest
from relex_codec.core.dtypes import Bits
from relex_codec.core.text import quote
from relex_codec.errors import CheckpointError
from relex_codec.format.constants import PIECE

if TYPE_CHECKING:
    from relex_codec.engines.unit_files import UnitWriter
    from relex_codec.exact.segment_writer import Blobs
    from relex_codec.exact.segments import PartInfo, SegmentShape


@dataclass(frozen=True)
class FrameRange:
    """The groups that a unit codes.

    Attributes:
        shape: of the segment.
        groups: their parts.
    """

    shape: SegmentShape
    groups: tuple[tuple[PartInfo, ...], ...]

    @property
    def parts(self) -> list[PartInfo]:
        """All of them, in order."""
        return [part for group in self.groups for part in group]


class FrameCoder:
    """Takes pieces in the order of the file, and codes those that are in its groups.

    Args:
        wanted: the groups.
        scratch: opens a file for symbols.
        out: takes the blobs of groups.
    """

    def __init__(self, wanted: FrameRange, scratch: Callable[[], IO[bytes]], out: UnitWriter) -> None:
        from relex_codec.exact.segment_writer import GroupCoder  # numba is only needed here

        self.shape = wanted.shape
        self._parts, self._at = wanted.parts, 0
        self._ends, end = set(), 0
        for group in wanted.groups:
            end += len(group)
            self._ends.add(end)
        self._coder, self._out = GroupCoder(scratch, wanted.shape.count), out
        self.groups: list[tuple[int, Blobs]] = []
        """Where the groups that are complete begin, and what is known of their blobs."""

    @property
    def missing(self) -> list[PartInfo]:
        """Parts that have not come yet."""
        return self._parts[self._at :]

    def add(self, number: int, piece: int, left: Bits, new: Bits) -> None:
        """Take a piece of a tensor; others than those of the groups are passed over.

        Args:
            left: its elements at the left end of the segment.
            new: at the steps of the segment: [n, elements].
        """
        if self._at >= len(self._parts) or self._parts[self._at][:2] != (number, piece):
            return
        part = self._parts[self._at]
        if any((row != left).any() for row in new):
            self._coder.add(part, [left, *new])
        else:
            self._coder.add_still(part, part_digest(left))
        self._at += 1
        if self._at in self._ends:
            self.groups.append((self._out.at, self._coder.close(self._out.write)))


def coder_of(wanted: FrameRange | None, folder: str, stack: ExitStack, out: UnitWriter) -> FrameCoder | None:
    """Return what codes the groups of a unit, if it has any.

    Args:
        folder: where symbols wait that are too many for memory.
        stack: closes their file.
        out: takes the blobs of groups.
    """
    if wanted is None:
        return None
    return FrameCoder(wanted, lambda: stack.enter_context(tempfile.TemporaryFile(dir=folder)), out)


class TensorFrames:
    """The pieces of one tensor on their way to a `FrameCoder`.

    Args:
        coder: takes them; None where the unit codes none of its groups.
        shape: of the segment; None where nothing is appended to anything.
        number, name: of the tensor.
        segment: the ``segment`` field of its record; 0: it stands still, and the segment does not have it.
        before: whether earlier segments have it.
        as_in_file: makes of the first element of a piece, the piece at the origin and at all steps, what a file that
            is appended to has at its steps; None where both are the same.
    """

    def __init__(
        self,
        coder: FrameCoder | None,
        shape: SegmentShape | None,
        number: int,
        name: str,
        segment: int,
        before: bool,
        as_in_file: Callable[[int, Bits, Bits], Bits] | None = None,
    ) -> None:
        self._coder, self._shape, self._number, self._name = coder, shape, number, name
        self._segment, self._before, self._as_in_file = segment, before, as_in_file

    @property
    def left(self) -> int:
        """Number of the step at the left end of the segment; 0 is the origin."""
        return self._shape.left if self._shape is not None else 0

    def add(self, piece: int, origin: Bits, bits: Bits) -> None:
        """Take the next piece.

        Args:
            origin: its elements at the origin, in the tensor's dtype.
            bits: at all steps of the run, those before the segment included: [T, elements].
        """
        if self._as_in_file is not None:
            bits = self._as_in_file(piece * PIECE, origin, bits)
        left = bits[self.left - 1] if self.left and self._before else origin  # earlier segments do not have it
        self.add_later(piece, left, bits[self._shape.first if self._shape is not None else 0 :])

    def add_later(self, piece: int, left: Bits, new: Bits) -> None:
        """Take the next piece of a run whose first steps are in earlier segments.

        Args:
            left: its elements at the left end, in the tensor's dtype.
            new: at the steps of the segment: [n, elements].

        Raises:
            CheckpointError: it stood still when the run was looked at, and moves.
        """
        if not self._segment:
            if any((row != left).any() for row in new):
                raise CheckpointError(
                    f"tensor {quote(self._name)} changed while it was read: wait until nothing writes to the run, and "
                    "encode it again"
                )
        elif self._coder is not None:
            self._coder.add(self._number, piece, left, new)

    def end(self) -> int:
        """Return the ``segment`` field of the tensor's record."""
        return self._segment
