"""A run whose first steps a `.relex` file restores and whose further steps are checkpoints: what appending encodes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from relex_codec.checkpoints.base_model import BaseReader
from relex_codec.checkpoints.checkpoint import Checkpoint, TensorInfo
from relex_codec.checkpoints.series import CheckpointSeries
from relex_codec.core.dtypes import Bits, bits_dtype
from relex_codec.core.text import quote
from relex_codec.decoding.stored_pieces import embedded_file
from relex_codec.decoding.tensor_decoder import TensorDecoder
from relex_codec.decoding.tiers import StepTier
from relex_codec.errors import CheckpointError, InvalidArgument
from relex_codec.format import constants as f
from relex_codec.format.tensor_record import TensorRecord

FURTHER: Final = "further checkpoints"


class AppendedSeries(CheckpointSeries):
    """Steps of a file, then those of `further`, with the interface of a run of checkpoints on disk.

    Args:
        decoder: of a file with the exact tier.
        further: checkpoints of later steps.

    Raises:
        CheckpointError: their tensors are not those of the file.
        InvalidArgument: their steps do not come after those of the file.
    """

    def __init__(self, decoder: TensorDecoder, further: CheckpointSeries) -> None:
        index = decoder.container.index
        self._decoder, self._further = decoder, further
        self._old = len(index.steps)
        self._tensors = {tensor.name: tensor for tensor in index.tensors}
        self.steps = [int(step) for step in index.steps] + further.steps
        if further.steps[0] <= int(index.steps[-1]):
            raise InvalidArgument(
                f"step {further.steps[0]} cannot be appended to {decoder.container.source.path}, whose last step is "
                f"{index.steps[-1]}"
            )

    @property
    def names(self) -> list[str]:
        """Names of the tensors, in the order of the file."""
        return list(self._tensors)

    def info(self, name: str) -> TensorInfo:
        """Return name, dtype and shape of a tensor."""
        return self._further.info(name)

    def checkpoint(self, index: int) -> Checkpoint:
        """Return checkpoint number `index`; one of the file restores what is read."""
        if index >= self._old:
            return self._further.checkpoint(index - self._old)
        return _Restored(self, index)

    def check(self) -> None:
        """Open all further checkpoints, and compare their tensors with those of the file."""
        self._further.check()
        there = self._further.checkpoint(0).tensors
        path = self._decoder.container.source.path
        for name in self._tensors.keys() ^ there.keys():
            where, missing = (FURTHER, path) if name in there else (path, FURTHER)
            raise CheckpointError(f"tensor {quote(name)} is in {where}, but not in {missing}")
        for name, tensor in self._tensors.items():
            info = there[name]
            if (info.dtype, info.shape) != (tensor.dtype, tensor.shape):
                raise CheckpointError(
                    f"tensor {quote(name)} of step {self._further.steps[0]} is {info.dtype} {list(info.shape)}, "
                    f"expected {tensor.dtype} {list(tensor.shape)} as in {path}"
                )

    def read_into(self, name: str, lo: int, out: Bits) -> None:
        """Fill the rows of `out`, [rows, elements], from element `lo` on: one row for each of the first steps."""
        self._restore(name, lo, out[: self._old])
        if len(out) > self._old:
            self._further.read_into(name, lo, out[self._old :])

    def restored(self, name: str, index: int, lo: int, hi: int) -> Bits:
        """Return the bits of elements lo .. hi at step number `index`, from 0 on, of the file."""
        tensor = self._decoder.container.index.tensor(name)
        return self._decoder.read(tensor, StepTier(float(self.steps[index]), "exact"), lo, hi)

    def _restore(self, name: str, lo: int, out: Bits) -> None:
        from relex_codec.exact.replay import replay_parts

        if not out.size:
            return
        tier = self._decoder.exact
        hi = lo + out.shape[1]
        for part in tier.pieces(self._decoder.container.index.tensor(name).number, lo // f.PIECE, -(-hi // f.PIECE)):
            start = part.piece * f.PIECE
            a, b = max(lo, start), min(hi, start + part.elements)
            found = replay_parts(tier, [part], range(1, len(out) + 1), self._decoder.part_origin)
            for row, (_, (bits,)) in zip(out, found, strict=True):
                row[a - lo : b - lo] = bits[a - start : b - start]


class _Restored(Checkpoint):
    """One step of a file as a checkpoint: only reading tensors works."""

    def __init__(self, run: AppendedSeries, index: int) -> None:
        self._run, self._index = run, index
        self.step = run.steps[index]

    def info(self, name: str) -> TensorInfo:
        """Return name, dtype and shape of a tensor."""
        return self._run.info(name)

    def read_into(self, name: str, lo: int, out: Bits) -> None:
        """Fill `out`, one-dimensional, with the bits from element `lo` on."""
        out[:] = self._run.restored(name, self._index, lo, lo + out.size)


class EmbeddedBase(Checkpoint):
    """The base that a file embeds, as a checkpoint."""

    def __init__(self, decoder: TensorDecoder) -> None:
        self._decoder = decoder
        index = decoder.container.index
        manifest = index.manifest
        self.path, self.step, self.indexed = decoder.container.source.path, None, manifest.indexed
        self.shards = manifest.shards
        self.side_files = [file.name for file in manifest.files]
        self.tensors = {
            tensor.name: TensorInfo(tensor.name, tensor.origin_dtype, tensor.shape, tensor.shard, 0, _bytes(tensor))
            for tensor in index.tensors
            if tensor.origin == f.IN_BASE
        }

    def read_into(self, name: str, lo: int, out: Bits) -> None:
        """Fill `out`, one-dimensional, with the bits from element `lo` on."""
        hi = lo + out.size
        start, end = lo // f.PIECE * f.PIECE, min(-(-hi // f.PIECE) * f.PIECE, self.tensors[name].size)
        tensor = self._decoder.container.index.tensor(name)
        out[:] = self._decoder.origins.read_span(tensor, start, end)[lo - start : hi - start]

    def read_files(self, names: Sequence[str]) -> Iterable[bytes]:
        """Return the bytes of several of `side_files`."""
        return (b"".join(embedded_file(self._decoder.container, self.side_files.index(name))) for name in names)


def _bytes(tensor: TensorRecord) -> int:
    return tensor.size * bits_dtype(tensor.origin_dtype).itemsize


class CheckedBase(Checkpoint):
    """A base whose every read checks the digests of a file."""

    def __init__(self, reader: BaseReader) -> None:
        found = reader.checkpoint
        self._reader = reader
        self.path, self.step, self.indexed, self.shards = found.path, None, found.indexed, found.shards
        self.side_files, self.tensors = found.side_files, found.tensors

    def read_into(self, name: str, lo: int, out: Bits) -> None:
        """Fill `out`, one-dimensional, with the bits from element `lo` on.

        Raises:
            BaseMismatch: they are not those that the file was made from.
        """
        out[:] = self._reader.read(name, lo, lo + out.size)

    def read_files(self, names: Sequence[str]) -> Iterable[bytes]:
        """Return the bytes of several of `side_files`."""
        return self._reader.checkpoint.read_files(names)
