"""A run whose first steps a `.relex` file restores and whose further steps are checkpoints: what appending encodes."""

from __future__ import annotations

from relex_codec.checkpoints.checkpoint import CheckpointSeries, TensorInfo, TensorReader
from relex_codec.core.dtypes import Bits
from relex_codec.decoding.tensor_decoder import TensorDecoder
from relex_codec.decoding.tiers import StepTier
from relex_codec.errors import InvalidArgument
from relex_codec.format import constants as f
from relex_codec.format.step_layout import StepLayout
from relex_codec.format.tensor_record import TensorRecord

from .origin import Origin


class AppendedSeries(CheckpointSeries):
    """Steps of a file, then those of `further`; each has tensors of its own.

    Args:
        decoder: of a file with the exact tier.
        further: checkpoints of later steps.

    Attributes:
        old: how many steps the file has.

    Raises:
        InvalidArgument: their steps do not come after those of the file.
    """

    def __init__(self, decoder: TensorDecoder, further: CheckpointSeries) -> None:
        index = decoder.container.index
        steps = [int(step) for step in index.steps]
        if further.steps[0] <= steps[-1]:
            raise InvalidArgument(
                f"step {further.steps[0]} cannot be appended to {decoder.container.source.path}, whose last step is "
                f"{steps[-1]}"
            )
        self.steps, self.old = steps + list(further.steps), len(steps)
        self._decoder, self._further = decoder, further
        tables: dict[int, dict[str, TensorInfo]] = {}
        self._restored: list[RestoredStep] = []
        for number, step in enumerate(steps, 1):
            layout = index.layout_of(number)
            if layout.number not in tables:
                tables[layout.number] = {
                    tensor.name: TensorInfo(tensor.name, tensor.dtype, tensor.shape, layout.shard_of(tensor))
                    for tensor in layout.tensors
                }
            self._restored.append(RestoredStep(decoder, step, layout, tables[layout.number]))

    def checkpoint(self, index: int) -> TensorReader:
        """Return the checkpoint of ``steps[index]``; one of the file restores what is read."""
        if index < self.old:
            return self._restored[index]
        return self._further.checkpoint(index - self.old)

    def check(self) -> None:
        """Open all further checkpoints.

        Raises:
            CheckpointError: one cannot be read.
        """
        self._further.check()

    def read_into(self, name: str, lo: int, out: Bits) -> None:
        """Fill the rows of `out`, step by step; `replay` is faster for the steps of the file."""
        for index, row in enumerate(out):
            self.checkpoint(index).read_into(name, lo, row)

    def record(self, index: int, name: str) -> TensorRecord:
        """Return what the file holds of a tensor at one of its steps: itself, or what it is another name of."""
        file = self._decoder.container.index
        return file.target(file.tensor(name, self._restored[index].layout))

    def replay(self, record: TensorRecord, lo: int, out: Bits) -> None:
        """Fill the rows of `out` with a tensor at the first steps of the file, from element `lo` on.

        They are replayed one after another, which costs far less than restoring each by itself. Where the file does not
        have the tensor, it is whatever its frames lead to there.
        """
        from relex_codec.exact.replay import replay_parts

        if not out.size:
            return
        tier = self._decoder.exact
        hi = lo + out.shape[1]
        for part in tier.pieces(record.number, lo // f.PIECE, -(-hi // f.PIECE)):
            start = part.piece * f.PIECE
            a, b = max(lo, start), min(hi, start + part.elements)
            found = replay_parts(tier, [part], range(1, len(out) + 1), self._decoder.part_origin)
            for row, (_, (bits,)) in zip(out, found, strict=True):
                row[a - lo : b - lo] = bits[a - start : b - start]

    def origin(self, record: TensorRecord) -> Origin:
        """Return what a tensor of the file starts from, checked, wherever that is."""

        def read(lo: int, hi: int) -> Bits:
            start, end = lo // f.PIECE * f.PIECE, min(-(-hi // f.PIECE) * f.PIECE, record.size)
            return self._decoder.origins.read_span(record, start, end)[lo - start : hi - start]

        return Origin(record.origin_dtype, read)


class RestoredStep(TensorReader):
    """A stored step of a file with the exact tier: its tensors, bit for bit.

    Args:
        step: one of the file's.
        layout: of that step.
        tensors: those of the layout, one table for all steps that have it.
    """

    def __init__(self, decoder: TensorDecoder, step: int, layout: StepLayout, tensors: dict[str, TensorInfo]) -> None:
        self.path = f"step {step} of {decoder.container.source.path}"
        self.tensors, self.shards, self.indexed = tensors, layout.shards, layout.indexed
        self.layout = layout
        self._decoder, self._step = decoder, step

    def read_into(self, name: str, lo: int, out: Bits) -> None:
        """Fill `out` with the bits of a tensor from element `lo` on; see `TensorReader.read_into`."""
        self.check_range(name, lo, out.size)
        tensor = self._decoder.container.index.tensor(name, self.layout)
        out[:] = self._decoder.read(tensor, StepTier(float(self._step), "exact"), lo, lo + out.size)
