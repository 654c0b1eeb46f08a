"""The base: finding it, and checking every byte used of it against digests (FORMAT.md section 9)."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np

from relex_codec.core.digests import DIGEST, Digests, digest
from relex_codec.core.dtypes import Bits, bits_dtype
from relex_codec.core.text import quote
from relex_codec.core.threads import parallel_map
from relex_codec.errors import BaseMismatch, CheckpointError, Corrupt, MissingCheckpoint, Truncated
from relex_codec.format.constants import PIECE
from relex_codec.storage.hub.paths import is_hub, parse_model_url
from relex_codec.storage.hub.revisions import cached_model_directory, refuse_offline, require_huggingface_hub
from relex_codec.storage.urls import Options, PathLike, is_url, local_path, normalized, options_for, without_secrets

from .checkpoint import TensorReader
from .safetensors import SafetensorsCheckpoint, open_checkpoint

_MODEL_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*")


def canonical_uri(path: PathLike) -> str:
    """Return the text by which a file refers to its base: an absolute path, or the URL without user and password."""
    return without_secrets(normalized(path)) if is_url(path) else os.path.abspath(local_path(path))


def open_base(uri: PathLike, storage_options: Options = None, likely: Collection[str] = ()) -> SafetensorsCheckpoint:
    """Open a base: a directory or file, an fsspec URL, or ``hf://org/name[@revision]``.

    A model of the Hub is read from the local cache where its weights are there, otherwise through ranged reads.

    Args:
        storage_options: for fsspec, for all URLs, or by protocol.
        likely: names of files that a directory probably has; see `open_checkpoint`.

    Raises:
        CheckpointError: there is no checkpoint that can be read; for the Hub the message says why and what to do.
        InvalidArgument: the URL needs a package that is not installed.
    """
    text = os.fspath(uri)
    options = options_for(text, storage_options)
    if not is_hub(text):
        try:
            return open_checkpoint(uri, options, likely=likely)
        except MissingCheckpoint as e:
            if not _MODEL_NAME.fullmatch(text) or os.path.exists(text):
                raise
            raise MissingCheckpoint(f"{e}; for the model of the Hub, give hf://{text}") from None
    require_huggingface_hub(text)
    model = parse_model_url(text)
    folder = cached_model_directory(model) if model is not None else None
    if folder is not None:
        try:
            found = open_checkpoint(folder)
        except (CheckpointError, Truncated):  # only some shards were downloaded
            pass
        else:
            found.path = text
            return found
    refuse_offline(text)
    return open_checkpoint(text, options, likely=likely)


class ExpectedTensor(NamedTuple):
    """What a file says about a tensor of its base.

    Attributes:
        digests: uint8 [pieces, 16].
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    digests: Digests


class BaseReader(TensorReader):
    """The base of a file: the digest of every piece is checked before any of it is returned.

    All that the checkpoint has is in `tensors`; those that the file does not expect cannot be read.

    Args:
        checkpoint: what was opened as the base.
        expected: the tensors that may be read.

    Raises:
        BaseMismatch: a tensor is missing, or has another dtype or shape.
        Corrupt: a tensor has too few digests, or too many.
    """

    def __init__(self, checkpoint: SafetensorsCheckpoint, expected: Iterable[ExpectedTensor]) -> None:
        self.checkpoint = checkpoint
        self.path, self.tensors, self.shards = checkpoint.path, checkpoint.tensors, checkpoint.shards
        self.indexed, self.side_files = checkpoint.indexed, checkpoint.side_files
        self._expected = {tensor.name: tensor for tensor in expected}
        for tensor in self._expected.values():
            wanted = f"{tensor.dtype} {list(tensor.shape)}"
            info = checkpoint.tensors.get(tensor.name)
            if info is None:
                raise self._mismatch(tensor.name, f"is missing ({wanted} expected)")
            if (info.dtype, info.shape) != (tensor.dtype, tuple(tensor.shape)):
                raise self._mismatch(tensor.name, f"is {info.dtype} {list(info.shape)} ({wanted} expected)")
            if tensor.digests.shape != (pieces := -(-info.size // PIECE), DIGEST):
                raise Corrupt(f"tensor {quote(tensor.name)} has {len(tensor.digests)} digests, expected {pieces}")

    def read(
        self, name: str, lo: int = 0, hi: int | None = None, *, check: bool = True, out: Bits | None = None
    ) -> Bits:
        """Return the bits of elements `lo` to `hi` (default: all) of a tensor, one-dimensional.

        Whole pieces are read, and hashed each time: a path may hold something else by the next read.

        Args:
            check: False: pieces are not hashed, and the caller checks what is made of them.
            out: memory to use, where `lo` and `hi` are ends of pieces.

        Raises:
            BaseMismatch: a digest differs; the message names the tensor.
            ValueError: the tensor has no such elements.
        """
        info = self.info(name)
        if name not in self._expected:
            raise ValueError(f"{quote(name)} is not one of the {len(self._expected)} tensors that can be checked")
        hi = info.size if hi is None else hi
        start, end = self._pieces(name, lo, hi)
        bits: Bits = np.empty(end - start, bits_dtype(info.dtype)) if out is None else out
        local = self.checkpoint.is_local
        if not local:  # one request, or one stretch of what was read ahead
            self.checkpoint.read_into(name, start, bits)

        def piece(at: int) -> None:
            part = bits[at : at + PIECE]
            if local:
                self.checkpoint.read_into(name, start + at, part)
            if check:
                self._check(name, (start + at) // PIECE, part)

        if local or check:
            parallel_map(piece, range(0, bits.size, PIECE))
        return bits[lo - start : hi - start]

    def read_into(self, name: str, lo: int, out: Bits) -> None:
        """Fill `out` with the bits of a tensor from element `lo` on; see `TensorReader.read_into`.

        Raises:
            BaseMismatch: they are not those that the file was made from.
        """
        out[:] = self.read(name, lo, lo + out.size)

    def read_files(self, names: Sequence[str]) -> Iterable[bytes]:
        """Return the bytes of several of `side_files`."""
        return self.checkpoint.read_files(names)

    def file_sizes(self) -> dict[str, int]:
        """Return the bytes of each of `side_files` by name, without reading them."""
        return self.checkpoint.file_sizes()

    def _pieces(self, name: str, lo: int, hi: int) -> tuple[int, int]:
        """Widen elements `lo` to `hi` to whole pieces."""
        size = self.check_range(name, lo, hi - lo).size
        start = lo // PIECE * PIECE
        return start, min(size, -(-hi // PIECE) * PIECE) if hi > lo else start

    def _check(self, name: str, number: int, piece: Bits) -> None:
        found, wanted = digest(piece), self._expected[name].digests[number].tobytes()
        if found != wanted:
            digests = f"digest {found.hex()[:12]}... found, {wanted.hex()[:12]}... expected"
            raise self._mismatch(name, f"differs ({digests})")

    def _mismatch(self, name: str, what: str) -> BaseMismatch:
        return BaseMismatch(
            f"base {self.checkpoint.path} does not match: tensor {quote(name)} {what}; "
            "pass --base with the base that the run was trained from"
        )
