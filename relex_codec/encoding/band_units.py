"""The units of a tensor that is too large for one: bands of its pieces, which are read and framed, and what follows.

A band returns what it has summed up, piece by piece, so that the sums over the tensor are those of one process to the
last bit. When all bands of a tensor are there, `FinishUnit` finds its directions and lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace

from relex_codec.core.digests import DIGEST
from relex_codec.core.dtypes import ITEMSIZE
from relex_codec.engines.protocol import Place
from relex_codec.engines.unit_files import OpenFiles, UnitFile, UnitWriter
from relex_codec.format.constants import PIECE

from .delta_sums import forget_working_arrays
from .frames import FrameRange, coder_of
from .gathered import Gathered, Summed
from .run_source import RunSource, opened
from .unit import encode_tensor, history_of
from .unit_results import put_groups, put_tensor
from .units import (
    THREAD_MEMORY,
    UNIT_MEMORY,
    Settings,
    TensorSpec,
    frames_memory,
    frames_of,
    read_missing,
    room_of,
    workplace,
)


@dataclass(frozen=True)
class BandUnit:
    """Some pieces of one tensor over all steps, and the groups of frames that begin with them.

    Attributes:
        source, steps, settings: as of `units.TensorsUnit`.
        tensor: the tensor.
        first, end: numbers of the pieces.
        frames: the groups; None: none.
        extra: tensors, parts of which are in the last group though the band does not have them.
    """

    source: RunSource
    steps: int
    settings: Settings
    tensor: TensorSpec
    first: int
    end: int
    frames: FrameRange | None = None
    extra: tuple[TensorSpec, ...] = ()
    needs: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Numbers of the tensor, and of its first piece."""
        return f"band-{self.tensor.number:06}-{self.first:06}"

    @property
    def job(self) -> str:
        """Units of one job are done by the same machine."""
        return f"tensor-{self.tensor.number:06}"

    @property
    def input_bytes(self) -> int:
        """Bytes of the pieces at all steps."""
        info = self.tensor.planned.info
        elements = min(self.end * PIECE, info.size) - self.first * PIECE
        return elements * ITEMSIZE[info.dtype] * self.steps

    def memory(self, threads: int) -> int:
        """Return how many bytes of memory it needs at least."""
        info = self.tensor.planned.info
        frames = frames_memory(info.dtype, info.size, self.steps) if self.tensor.frames else 0
        return UNIT_MEMORY + threads * THREAD_MEMORY + frames

    def run(self, place: Place, out: UnitWriter) -> None:
        """Read the pieces; the result has what was summed up, and a row for each group."""
        run = opened(self.source)
        spec = self.tensor
        with ExitStack() as stack:
            stack.callback(forget_working_arrays)
            coder = coder_of(self.frames, place.directory, stack, out)
            task = spec.task(run, self.settings)
            frames = frames_of(spec, task, coder, self.frames) if spec.frames else None
            where = stack.enter_context(workplace(task, place, replace(room_of(task, place), size=0, held=False)))
            found = history_of(task, where, frames).gather(self.first, self.end)
            if coder is not None:
                read_missing(coder, [(one, one.task(run, self.settings)) for one in self.extra])
            out.document["tensors"] = []
            out.document["groups"] = put_groups(out, coder.groups if coder is not None else [])
            out.document["sums"] = {
                "grams": out.array(found.grams),
                "squares": out.array(found.squares),
                "infinite": out.array(found.infinite),
                "digests": out.data(b"".join(found.digests)),
                "norms": out.array(found.norms),
                "moved": found.moved,
            }


def gathered(unit: UnitFile) -> Gathered:
    """Return what a band has summed up."""
    row = unit.document["sums"]
    digests = unit.data(row["digests"])
    return Gathered(
        unit.array(row["grams"]),
        unit.array(row["squares"]),
        unit.array(row["infinite"]),
        [digests[at : at + DIGEST] for at in range(0, len(digests), DIGEST)],
        unit.array(row["norms"]),
        row["moved"],
    )


@dataclass(frozen=True)
class FinishUnit:
    """A tensor whose bands are done: its directions, coefficients and line.

    Attributes:
        source, steps, settings: as of `units.TensorsUnit`.
        tensor: the tensor.
        needs: keys of its bands, in order.
        sums: what these have summed up, all together; known when they are done.
    """

    source: RunSource
    steps: int
    settings: Settings
    tensor: TensorSpec
    needs: tuple[str, ...]
    sums: Summed | None = field(default=None, repr=False)

    @property
    def key(self) -> str:
        """Number of the tensor."""
        return f"finish-{self.tensor.number:06}"

    @property
    def job(self) -> str:
        """Units of one job are done by the same machine."""
        return f"tensor-{self.tensor.number:06}"

    @property
    def input_bytes(self) -> int:
        """None: bands stand for its bytes."""
        return 0

    def memory(self, threads: int) -> int:
        """Return how many bytes of memory it needs at least."""
        return UNIT_MEMORY + threads * THREAD_MEMORY

    def given(self, paths: Mapping[str, str]) -> FinishUnit:
        """Return it with what its bands have found out.

        Args:
            paths: of the results of units.
        """
        with closing(OpenFiles()) as files:
            return replace(self, sums=Summed.of(gathered(UnitFile(paths[key], files)) for key in self.needs))

    def run(self, place: Place, out: UnitWriter) -> None:
        """Encode the tensor; the result has a row for it."""
        assert self.sums is not None
        run = opened(self.source)
        with ExitStack() as stack:
            stack.callback(forget_working_arrays)
            task = self.tensor.task(run, self.settings)
            frames = frames_of(self.tensor, task, None, None) if self.tensor.frames else None
            where = stack.enter_context(workplace(task, place, room_of(task, place, in_bands=True)))
            row = put_tensor(out, encode_tensor(task, where, frames, self.sums))
            out.document["tensors"] = [{"number": self.tensor.number, **row}]
            out.document["groups"] = []
