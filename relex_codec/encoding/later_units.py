"""The units of appending: what each does is in later_tensor.py, here is how it is described and what it writes."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from relex_codec.core.dtypes import ITEMSIZE
from relex_codec.engines.protocol import Place
from relex_codec.engines.unit_files import UnitFile, UnitWriter
from relex_codec.format import constants as f
from relex_codec.format.tensor_record import TensorRecord

from .delta_sums import forget_working_arrays
from .frames import FrameCoder, FrameRange, TensorFrames, coder_of
from .later_tensor import LaterTensor, add_piece, project_tensor
from .run_source import RunSource, opened
from .unit_results import put_groups
from .units import THREAD_MEMORY, UNIT_MEMORY


@dataclass(frozen=True)
class LaterSpec:
    """A tensor of a file, and how it is framed at further steps.

    Attributes:
        number: of the tensor.
        name: of it.
        bytes: of it at one step.
        frames: whether the new segment looks at it.
        segment: the ``segment`` field of its record.
        before: whether earlier segments have it.
    """

    number: int
    name: str
    bytes: int
    frames: bool
    segment: int
    before: bool

    @classmethod
    def of(cls, tensor: TensorRecord, *, frames: bool, segment: int) -> LaterSpec:
        """Return that of a tensor."""
        size = tensor.size * ITEMSIZE[tensor.dtype]
        return cls(tensor.number, tensor.name, size, frames, segment, tensor.segment > 0)


@dataclass(frozen=True)
class LaterUnit:
    """Some tensors of a file at further steps, one after another, and the groups of frames that begin with them.

    Attributes:
        source: of file and steps.
        steps: how many further ones there are.
        tensors: in the order of the file.
        frames: the groups; None: none.
        extra: further tensors, parts of which are in the last group.
    """

    source: RunSource
    steps: int
    tensors: tuple[LaterSpec, ...]
    frames: FrameRange | None = None
    extra: tuple[LaterSpec, ...] = ()

    @property
    def key(self) -> str:
        """Numbers of the first tensor and of the last one."""
        return f"later-{self.tensors[0].number:06}-{self.tensors[-1].number:06}"

    @property
    def input_bytes(self) -> int:
        """Bytes of the tensors at the further steps."""
        return sum(spec.bytes for spec in self.tensors) * self.steps

    def memory(self, threads: int) -> int:
        """Return how many bytes of memory it needs at least."""
        piece = 8 * (self.steps + 4) * f.PIECE
        widest = max((spec.bytes for spec in (*self.tensors, *self.extra)), default=0)
        return UNIT_MEMORY + threads * THREAD_MEMORY + min(piece, 4 * (self.steps + 4) * widest)

    def run(self, place: Place, out: UnitWriter) -> None:
        """Go through the tensors; the result has a row for each, and one for each group."""
        run = opened(self.source)
        assert run.file is not None and run.further is not None
        decoder, rows = run.file.decoder, []
        with ExitStack() as stack:
            stack.callback(forget_working_arrays)
            coder = coder_of(self.frames, place.directory, stack, out)
            for spec in self.tensors:
                tensor = decoder.container.index.tensors[spec.number]
                frames = self._frames(spec, coder) if spec.frames else None
                rows.append({"number": spec.number, **_put(out, project_tensor(decoder, tensor, run.further, frames))})
            if coder is not None:
                by_number = {spec.number: spec for spec in self.extra}
                for part in coder.missing:
                    frames = self._frames(by_number[part.tensor], coder)
                    add_piece(decoder, decoder.container.index.tensors[part.tensor], run.further, part.piece, frames)
            out.document["tensors"] = rows
            out.document["groups"] = put_groups(out, coder.groups if coder is not None else [])

    def _frames(self, spec: LaterSpec, coder: FrameCoder | None) -> TensorFrames:
        shape = self.frames.shape if self.frames is not None else None
        return TensorFrames(coder, shape, spec.number, spec.name, spec.segment, spec.before)


def _put(out: UnitWriter, found: LaterTensor) -> dict[str, Any]:
    return {
        "coefficients": out.array(found.coefficients),
        "segment": found.segment,
        "misses": out.array(found.misses),
        "squares": out.array(found.squares),
        "moves": found.moves,
    }


def later_tensor(unit: UnitFile, row: dict[str, Any]) -> LaterTensor:
    """Return what a unit has found out about a tensor."""
    arrays = (unit.array(row[name]) for name in ("coefficients", "misses", "squares"))
    coefficients, misses, squares = arrays
    return LaterTensor(coefficients, row["segment"], misses, squares, row["moves"])
