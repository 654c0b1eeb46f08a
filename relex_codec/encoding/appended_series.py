"""A run whose first steps a `.relex` file restores and whose further steps are checkpoints: what appending encodes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from relex_codec.checkpoints.checkpoint import CheckpointSeries, TensorInfo, TensorReader, check_same_tensors
from relex_codec.core.dtypes import Bits
from relex_codec.decoding.stored_pieces import embedded_file
from relex_codec.decoding.tensor_decoder import TensorDecoder
from relex_codec.decoding.tiers import StepTier
from relex_codec.errors import InvalidArgument
from relex_codec.format import constants as f


class AppendedSeries(CheckpointSeries):
    """Steps of a file, then those of `further`.

    Args:
        decoder: of a file with the exact tier.
        further: checkpoints of later steps.

    Raises:
        InvalidArgument: their steps do not come after those of the file.
    """

    def __init__(self, decoder: TensorDecoder, further: CheckpointSeries) -> None:
        index = decoder.container.index
        old = [int(step) for step in index.steps]
        if further.steps[0] <= old[-1]:
            raise InvalidArgument(
                f"step {further.steps[0]} cannot be appended to {decoder.container.source.path}, whose last step is "
                f"{old[-1]}"
            )
        self.steps = old + list(further.steps)
        self._decoder, self._further = decoder, further
        layout = index.layout
        tensors = {
            tensor.name: TensorInfo(tensor.name, tensor.dtype, tensor.shape, layout.shard_of(tensor))
            for tensor in layout.tensors
        }
        self._restored = [RestoredStep(decoder, step, tensors) for step in old]

    def checkpoint(self, index: int) -> TensorReader:
        """Return the checkpoint of ``steps[index]``; one of the file restores what is read."""
        if index < len(self._restored):
            return self._restored[index]
        return self._further.checkpoint(index - len(self._restored))

    def check(self) -> None:
        """Open all further checkpoints, and compare their tensors with those of the file.

        Raises:
            CheckpointError: one cannot be read, or they are not the same.
        """
        self._further.check()
        path = self._decoder.container.source.path
        found = self._further.checkpoint(0).tensors
        check_same_tensors(found, f"step {self._further.steps[0]}", self._restored[0].tensors, path)

    def read_into(self, name: str, lo: int, out: Bits) -> None:
        """Fill the rows of `out` from element `lo` on; see `CheckpointSeries.read_into`.

        The steps of the file are replayed one after another, which costs far less than restoring each by itself.
        """
        old = len(self._restored)
        self._replay(name, lo, out[:old])
        if len(out) > old:
            self._further.read_into(name, lo, out[old:])

    def _replay(self, name: str, lo: int, out: Bits) -> None:
        from relex_codec.exact.replay import replay_parts

        if not out.size:
            return
        tier = self._decoder.exact
        hi = lo + out.shape[1]
        index = self._decoder.container.index
        number = index.target(index.tensor(name)).number
        for part in tier.pieces(number, lo // f.PIECE, -(-hi // f.PIECE)):
            start = part.piece * f.PIECE
            a, b = max(lo, start), min(hi, start + part.elements)
            found = replay_parts(tier, [part], range(1, len(out) + 1), self._decoder.part_origin)
            for row, (_, (bits,)) in zip(out, found, strict=True):
                row[a - lo : b - lo] = bits[a - start : b - start]


class RestoredStep(TensorReader):
    """A stored step of a file with the exact tier: its tensors, bit for bit.

    Args:
        step: one of the file's.
        tensors: those of the file, one table for all its steps.
    """

    def __init__(self, decoder: TensorDecoder, step: int, tensors: dict[str, TensorInfo]) -> None:
        index = decoder.container.index
        layout = index.layout_of(int(np.searchsorted(index.steps, step)) + 1)
        self.path = f"step {step} of {decoder.container.source.path}"
        self.tensors, self.shards, self.indexed = tensors, layout.shards, layout.indexed
        self._decoder, self._step, self._files = decoder, step, layout.files
        self.side_files = list(layout.files) if self.is_adapter else ()

    def read_into(self, name: str, lo: int, out: Bits) -> None:
        """Fill `out` with the bits of a tensor from element `lo` on; see `TensorReader.read_into`."""
        self.check_range(name, lo, out.size)
        tensor = self._decoder.container.index.tensor(name)
        out[:] = self._decoder.read(tensor, StepTier(float(self._step), "exact"), lo, lo + out.size)

    def read_files(self, names: Sequence[str]) -> Iterable[bytes]:
        """Return the bytes of several of `side_files`: those of an adapter, which the file holds."""
        return (b"".join(embedded_file(self._decoder.container, self._files[name][0])) for name in names)

    def file_sizes(self) -> dict[str, int]:
        """Return the bytes of each of `side_files` by name."""
        return {name: self._files[name][1].length for name in self.side_files}


class EmbeddedBase(TensorReader):
    """The base that a file embeds, and the files beside it; digests are checked.

    Args:
        decoder: of a file that embeds its base.
    """

    def __init__(self, decoder: TensorDecoder) -> None:
        index = decoder.container.index
        self.path = decoder.container.source.path
        self.shards, self.indexed = index.manifest.base_shards, index.layout.indexed
        self.side_files = list(index.layout.files)
        self.tensors = {
            tensor.name: TensorInfo(tensor.name, tensor.origin_dtype, tensor.shape, tensor.sources[0].shard)
            for tensor in index.tensors
            if tensor.in_base
        }
        self._decoder = decoder

    def read_into(self, name: str, lo: int, out: Bits) -> None:
        """Fill `out` with the bits of a tensor from element `lo` on; see `TensorReader.read_into`."""
        size, hi = self.check_range(name, lo, out.size).size, lo + out.size
        start, end = lo // f.PIECE * f.PIECE, min(-(-hi // f.PIECE) * f.PIECE, size)
        tensor = self._decoder.container.index.tensor(name)
        out[:] = self._decoder.origins.read_span(tensor, start, end)[lo - start : hi - start]

    def read_files(self, names: Sequence[str]) -> Iterable[bytes]:
        """Return the bytes of several of `side_files`."""
        files = self._decoder.container.index.layout.files
        return (b"".join(embedded_file(self._decoder.container, files[name][0])) for name in names)

    def file_sizes(self) -> dict[str, int]:
        """Return the bytes of each of `side_files` by name."""
        return {name: file.length for name, (_, file) in self._decoder.container.index.layout.files.items()}
