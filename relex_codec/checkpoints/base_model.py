"""The base: finding it, and checking every byte used of it against digests (FORMAT.md section 9)."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from typing import NamedTuple

import numpy as np

from relex_codec.core.digests import DIGEST, Digests, digest
from relex_codec.core.dtypes import Bits, bits_dtype
from relex_codec.core.text import quote
from relex_codec.core.threads import parallel_map
from relex_codec.errors import BaseMismatch, CheckpointError, Corrupt, Truncated
from relex_codec.format.constants import PIECE
from relex_codec.storage.hub.paths import is_hub, parse_model_url
from relex_codec.storage.hub.revisions import cached_model_directory, refuse_offline, require_huggingface_hub
from relex_codec.storage.urls import Options, PathLike, is_url, local_path, normalized, options_for, without_secrets

from .checkpoint import Checkpoint, open_checkpoint


def canonical_uri(path: PathLike) -> str:
    """Return the text by which a file refers to its base: an absolute path, or the URL without user and password."""
    return without_secrets(normalized(path)) if is_url(path) else os.path.abspath(local_path(path))


def resolve(uri: PathLike, storage_options: Options = None, likely: Collection[str] = ()) -> Checkpoint:
    """Open a base: a directory or file, an fsspec URL, or ``hf://org/name[@revision]``.

    A model of the Hub is read from the local cache where its weights are there, otherwise through ranged reads. Which
    files are `likely`: see `open_checkpoint`.

    Raises
    ------
    CheckpointError
        There is no checkpoint that can be read; for the Hub the message says why and what to do.
    InvalidArgument
        The URL needs a package that is not installed.
    """
    text = os.fspath(uri)
    options = options_for(text, storage_options)
    if not is_hub(text):
        return open_checkpoint(uri, options, likely=likely)
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


class Expected(NamedTuple):
    """What a file says about a tensor of its base."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    digests: Digests
    """[pieces, 16]"""


class BaseReader:
    """Reads the base and checks the digest of every piece before any of it is returned.

    Parameters
    ----------
    checkpoint : Checkpoint
    expected : iterable of Expected
        The tensors that may be read.

    Raises
    ------
    BaseMismatch
        A tensor is missing, or has another dtype or shape.
    """

    def __init__(self, checkpoint: Checkpoint, expected: Iterable[Expected]) -> None:
        self.checkpoint = checkpoint
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

        Whole pieces are read, and hashed each time: a path may hold something else by the next read. Without `check`
        they are not hashed; then the caller checks what is made of them. `out`, for whole pieces, is memory to use.

        Raises
        ------
        BaseMismatch
            A digest differs; the message names the tensor.
        """
        info = self.checkpoint.info(name)
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

    def _pieces(self, name: str, lo: int, hi: int) -> tuple[int, int]:
        """Widen elements `lo` to `hi` to whole pieces."""
        size = self.checkpoint.info(name).size
        if not 0 <= lo <= hi <= size:
            raise ValueError(f"elements {lo} to {hi} of {quote(name)}, which has {size}")
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
