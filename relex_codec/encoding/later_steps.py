"""Further steps of a file at the cost of these steps: directions and lines stay, everything that is there is copied.

What happens to one tensor is in later_tensor.py; here are the tables, the chunks that are copied, and the new segment.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from relex_codec.checkpoints.checkpoint import CheckpointSeries, TensorInfo, check_same_tensors
from relex_codec.core.dtypes import FLOATS, ITEMSIZE
from relex_codec.core.progress import note, progress_bar
from relex_codec.core.text import quote
from relex_codec.core.threads import parallel_map
from relex_codec.engines.choice import EngineChoice, Work
from relex_codec.engines.driver import run_units
from relex_codec.engines.unit_files import OpenFiles
from relex_codec.errors import CheckpointError, Corrupt, InvalidArgument
from relex_codec.format import constants as f
from relex_codec.format.index import Index
from relex_codec.format.packed_span import ChunkRow, PendingSpan
from relex_codec.format.tensor_record import TensorRecord
from relex_codec.format.writer import ChunkWriter, FileWriter, FrameEntries, Tables
from relex_codec.run.run_reader import RunReader

from .fit import F64
from .frames import FrameRange
from .later_tensor import LaterTensor, moves_later
from .later_units import LaterSpec, LaterUnit, later_tensor
from .layouts import step_entries
from .results import Results
from .run_plan import Key
from .run_source import OpenHere, OpenRun, RunSource
from .surroundings import appended_surroundings
from .unit_plan import TensorSize, plan_units

if TYPE_CHECKING:
    from relex_codec.exact.segments import SegmentShape
    from relex_codec.exact.tier_reader import ExactTier


@dataclass(slots=True)
class StepAppender:
    """The work of appending steps to a file without fitting anything again.

    Attributes:
        run: the file, open.
        further: checkpoints of later steps.
        writer: of the new file.
        budget: bytes.
        source: of file and checkpoints, as units find them.
        engine: does the units.
    """

    run: RunReader
    further: CheckpointSeries
    writer: FileWriter
    budget: int
    source: RunSource
    engine: EngineChoice

    def write(self, base_uri: str | None, directories: Sequence[str | None], progress: bool) -> int:
        """Do everything and return the size of the file.

        Args:
            base_uri: where the base is, for the manifest.
            directories: of the further steps.
        """
        with closing(OpenFiles()) as files:
            return self._write(Results(files), base_uri, directories, progress)

    def _write(
        self, results: Results, base_uri: str | None, directories: Sequence[str | None], progress: bool
    ) -> int:  # fmt: skip
        index = self.run.container.index
        self._check_tensors()
        found = self._tensors(results, progress)
        self._tell_what_moves(found)
        self._copy_chunks()
        keys = [Key(tensor.name, tensor.dtype) for tensor in index.tensors]
        around = appended_surroundings(
            keys, self.run, self.further, self._store, base_uri, directories, copied=True
        )  # fmt: skip
        self.writer.close_chunks()
        steps = np.concatenate([index.steps, np.array(self.further.steps, np.int64)])
        layouts = around.layouts
        manifest = replace(
            index.manifest, base_uri=base_uri, files=[file.entry for file in around.files], layouts=layouts.layouts,
            layout=layouts.steps[index.manifest.observed - 1], steps=step_entries(around.directories, layouts.steps),
        )  # fmt: skip
        records, rows, coefficients = self._records(found)
        norms = np.concatenate(self.run.container.norms())
        tables = Tables(
            steps, manifest, records, rows, index.digests, coefficients, self._errors(found), norms
        )  # fmt: skip
        return self.writer.finish(tables, self._frames(results))

    def _check_tensors(self) -> None:
        """Check that the steps have the tensors of the file, and that memory suffices for the frames."""
        index = self.run.container.index
        last = index.layout_of(len(index.steps))
        if last.tensors != index.layout.tensors or not has_all_targets(index):
            raise InvalidArgument(
                f"{self.run.path} has other tensors at its last step than at those that lines were fitted on, so no "
                "coefficients can be given to steps like it: append with --refit"
            )
        expected = {tensor.name: TensorInfo(tensor.name, tensor.dtype, tensor.shape) for tensor in index.layout.tensors}
        for i, step in enumerate(self.further.steps):
            check_same_tensors(self.further.checkpoint(i).tensors, f"step {step}", expected, self.run.path)
        widest = max((min(t.size, f.PIECE) * ITEMSIZE[t.dtype] for t in index.tensors), default=0)
        need = 3 * (len(self.further.steps) + 1) * widest
        if need > self.budget:
            raise InvalidArgument(
                f"{len(self.further.steps)} steps at once need {-(-need // 10**6)} MB, memory is "
                f"{self.budget // 10**6} MB: raise --memory, or append fewer at a time"
            )

    # -- tensors -----------------------------------------------------------------------------------------------------

    def _tensors(self, results: Results, progress: bool) -> dict[int, LaterTensor]:
        """Return what is known of each tensor that is none under another name, by its number."""
        units = self._units()
        tensors = [tensor for tensor in self.run.container.index.tensors if tensor.kind != f.TIED]
        work = Work(
            self.budget, len(units), lambda threads: max((unit.memory(threads) for unit in units), default=1),
            self.writer.directory, lambda place: 0,
        )  # fmt: skip
        size = sum(unit.input_bytes for unit in units)
        with progress_bar("append", size, enabled=progress) as bar:
            if units:
                with self._engine.start(work, self.writer.working_directory()) as engine:
                    for done in run_units(engine, enumerate(units)):
                        results.add(done)
                        bar.update(done.unit.input_bytes)
        for tensor in self.run.container.index.tensors:
            if tensor.kind == f.TIED:
                self._check_tied(tensor)
        return {tensor.number: later_tensor(*results.row(tensor.number)) for tensor in tensors}

    @property
    def _engine(self) -> EngineChoice:
        tensors = self.run.container.index.tensors
        return self.engine.of(sum(one.size * ITEMSIZE[one.dtype] for one in tensors) * len(self.further.steps))

    def _units(self) -> list[LaterUnit]:
        """Return what is to be done; finds out which tensors begin to move."""
        index, steps = self.run.container.index, len(self.further.steps)
        tensors = [tensor for tensor in index.tensors if tensor.kind != f.TIED]
        still = [one for one in tensors if not one.segment and (index.has_exact or one.dtype not in FLOATS)]
        found = parallel_map(lambda tensor: moves_later(self.run.decoder, tensor, self.further), still)
        framed = {tensor.number: tensor.segment > 0 for tensor in tensors}
        framed |= {tensor.number: moved for tensor, moved in zip(still, found, strict=True)}
        sizes = [TensorSize(one.number, one.dtype, one.size, framed[one.number]) for one in tensors]
        shape = self._shape if any(framed.values()) else None
        specs = {}
        for tensor in tensors:
            segment = tensor.segment or (shape.number + 1 if shape is not None and framed[tensor.number] else 0)
            frames = index.has_exact or framed[tensor.number]
            specs[tensor.number] = LaterSpec.of(tensor, frames=frames, segment=segment)
        here = OpenHere(OpenRun(self.further, None, self.run, self.further))
        source = here if self._engine.is_local else self.source
        return [
            LaterUnit(
                source, steps, tuple(specs[number] for number in planned.tensors),
                FrameRange(shape, planned.groups) if shape is not None else None,
                tuple(specs[number] for number in planned.extra),
            )
            for planned in plan_units(sizes, steps, shape.limit if shape is not None else 0)
        ]  # fmt: skip

    @property
    def _old(self) -> ExactTier | None:
        """The segments of frames that the file has."""
        return self.run.decoder.exact if self.run.container.index.has_frames else None

    @property
    def _shape(self) -> SegmentShape:
        """Where the new segment stands."""
        from relex_codec.exact.segments import SegmentShape  # numba is only needed here

        old = self._old
        if old is None:
            return SegmentShape.after([], len(self.further.steps))
        return SegmentShape.after(old.segments, len(self.further.steps))

    def _frames(self, results: Results) -> FrameEntries | None:
        groups = results.groups()
        if not groups and not self.run.container.index.has_frames:
            return None
        from relex_codec.exact.tier_writer import assemble  # numba is only needed here

        return assemble(self._shape, groups, self._old)

    def _check_tied(self, tensor: TensorRecord) -> None:
        """Check that what is one tensor under two names is still one."""
        target = self.run.container.index.target(tensor)
        there = self.further.checkpoint(0).tensors
        if tensor.name not in there or target.name not in there:
            return
        for lo in range(0, tensor.size, f.PIECE):
            hi = min(lo + f.PIECE, tensor.size)
            if (self.further.read(tensor.name, lo, hi) != self.further.read(target.name, lo, hi)).any():
                raise CheckpointError(
                    f"tensors {quote(tensor.name)} and {quote(target.name)} are one in {self.run.path}, and differ in "
                    f"{self.further.checkpoint(0).path}: encode the whole run again"
                )

    def _tell_what_moves(self, found: dict[int, LaterTensor]) -> None:
        """Say what these steps lose: tensors that begin to move, of which a file without frames keeps nothing."""
        index = self.run.container.index
        lost = [index.tensors[number].name for number, one in found.items() if one.moves and not one.segment]
        if lost:
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            note(
                f"{quote(lost[0])}{more} stood still at the steps that lines were fitted on, and moves now: it has no "
                "line, and stays as it was; encode the whole run again to have it"
            )

    # -- the file ----------------------------------------------------------------------------------------------------

    def _store(self, content: bytes) -> PendingSpan:
        """Store a file of a further step that is no weights; after all chunks have been copied."""
        data = np.frombuffer(content, np.uint8)
        return self.writer.base.add(
            (data[lo : lo + f.PIECE] for lo in range(0, len(data), f.PIECE)), len(data), match=True
        )

    def _copy_chunks(self) -> None:
        """Copy all chunks as they are stored; their checksums are compared on the way."""
        index = self.run.container.index
        for data, chunks in zip(f.DATA, (self.writer.directions, self.writer.base), strict=True):
            low = index.first_chunk[data]
            following = f.DATA[f.DATA.index(data) + 1 :]
            high = index.first_chunk[following[0]] if following else len(index.chunks)
            for number in range(low, high):
                self._copy(index.chunks[number], chunks)

    def _copy(self, record: Any, chunks: ChunkWriter) -> None:
        begin, source = int(record["position"]), self.run.container.source
        stored = source.read(begin, begin + int(record["stored"]))
        if zlib.crc32(stored) != int(record["crc"]):
            raise Corrupt(f"{source.path}: a chunk at byte {begin} does not match its checksum: copy the file again")
        names = ("stored", "raw", "crc", "codec", "fill")
        chunks.put_stored(ChunkRow(*(int(record[name]) for name in names)), stored)

    def _records(
        self, found: dict[int, LaterTensor]
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.float64]]:
        """Return the records of tensors and directions, and all coefficients."""
        container = self.run.container
        index = container.index
        entry = index.entries[f.TENSORS]
        records = np.frombuffer(container.source.read(entry.begin, entry.end), f.TENSOR_RECORD).copy()
        rows = np.array(index.directions)
        old = container.coefficients(0, len(rows)).reshape(len(rows), len(index.steps)) if len(rows) else None
        coefficients = np.zeros((len(rows), len(index.steps) + len(self.further.steps)))
        if old is not None:
            coefficients[:, : len(index.steps)] = old
        for number, one in found.items():
            tensor = index.tensors[number]
            records[number]["segment"] = one.segment
            if one.segment and tensor.kind == f.SAME and tensor.dtype not in FLOATS:
                records[number]["kind"] = f.FRAMED
            for j, direction in enumerate(tensor.directions):
                coefficients[direction, len(index.steps) :] = one.coefficients[j]
                crc = zlib.crc32(coefficients[direction].astype("<f8").tobytes())
                rows[direction]["coefficients_crc"] = crc
        return records, rows, coefficients

    def _errors(self, found: dict[int, LaterTensor]) -> npt.NDArray[np.float32]:
        index = self.run.container.index
        moving = [one for number, one in found.items() if index.tensors[number].kind == f.MOVING]
        misses: F64 = np.sum([one.misses for one in moving], axis=0) if moving else np.full((2, 1), np.nan)
        squares: F64 = np.sum([one.squares for one in moving], axis=0) if moving else np.full(1, np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            new = np.broadcast_to(np.sqrt(misses / squares), (2, len(self.further.steps)))
        new = np.where(np.isfinite(new), new, np.nan).astype(np.float32)
        return np.concatenate([self.run.container.errors(), new], axis=1)


def has_all_targets(index: Index) -> bool:
    """Tell whether what lines were fitted on has each tensor under its own name, whatever other names it has."""
    there = index.layout
    return all(there.get(index.target(tensor).name) is index.target(tensor) for tensor in there.tensors)
