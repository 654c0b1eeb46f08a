"""The base: finding it, and checking every byte used of it against digests (FORMAT.md section 9)."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from relex_codec.core.digests import DIGEST, Digests, digest
from relex_codec.core.dtypes import Bits, bits_dtype
from relex_codec.core.text import quote
from relex_codec.core.threads import parallel_map
from relex_codec.errors import BaseMismatch, CheckpointError, Corrupt, MissingCheckpoint, Truncated
from relex_codec.format.constants import PIECE
from relex_codec.format.manifest import BaseRange, whole_tensor
from relex_codec.storage.hub.paths import is_hub, parse_model_url
from relex_codec.storage.hub.revisions import cached_model_directory, refuse_offline, require_huggingface_hub
from relex_codec.storage.remote import CONCURRENT_REQUESTS
from relex_codec.storage.urls import Options, PathLike, options_for

from .checkpoint import TensorReader
from .safetensors import SafetensorsCheckpoint, open_checkpoint

_MODEL_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*")


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


class OriginPart(NamedTuple):
    """Elements of an origin that are side by side in the base.

    Attributes:
        name: of the tensor of the base.
        first: element of that tensor.
        at: place of that element, counted from the first one that was asked for.
    """

    name: str
    first: int
    at: int
    elements: int


def parts_of(sources: Sequence[BaseRange], start: int, end: int) -> Iterator[OriginPart]:
    """Yield where elements `start` to `end` of an origin lie in the base, in order.

    Examples:
        >>> sources = [BaseRange(0, "gate", (4,), 0, 4), BaseRange(0, "up", (4,), 0, 4)]
        >>> [(part.name, part.first, part.at, part.elements) for part in parts_of(sources, 3, 6)]
        [('gate', 3, 0, 1), ('up', 0, 1, 2)]
    """
    begin = 0
    for source in sources:
        low, high = max(start, begin), min(end, begin + source.elements)
        if low < high:
            yield OriginPart(source.name, source.first + low - begin, low - start, high - low)
        begin += source.elements


class _Place(NamedTuple):
    """Elements `first` to `end` of a tensor of the base: they are in an origin, from its element `at` on."""

    first: int
    end: int
    origin: int
    at: int


class ExpectedTensor(NamedTuple):
    """What a file says about what one of its tensors starts from: elements of its base, one after another.

    Attributes:
        name: of the tensor.
        shape: of the tensor.
        digests: uint8 [pieces, 16].
        sources: in the base; empty: all of the tensor of the same name.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    digests: Digests
    sources: tuple[BaseRange, ...] = ()

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class BaseReader(TensorReader):
    """The base of a file: the digest of every piece is checked before any of it is returned.

    All that the checkpoint has is in `tensors`; those that the file does not expect cannot be read. What digests are of
    is an origin, that is what a tensor of the file starts from: mostly a tensor of the base, or else parts of several.

    Args:
        checkpoint: what was opened as the base.
        expected: the origins that may be read.

    Raises:
        BaseMismatch: a tensor is missing, or has another dtype or shape.
        Corrupt: a tensor has too few digests, or too many.
    """

    def __init__(self, checkpoint: SafetensorsCheckpoint, expected: Iterable[ExpectedTensor]) -> None:
        self.checkpoint = checkpoint
        self.path, self.tensors, self.shards = checkpoint.path, checkpoint.tensors, checkpoint.shards
        self.indexed, self.side_files = checkpoint.indexed, checkpoint.side_files
        self._expected: list[ExpectedTensor] = []
        self._places: dict[str, list[_Place]] = {}
        """Where in origins the elements of each tensor of the base are."""
        for tensor in expected:
            self._expect(tensor)

    def _expect(self, tensor: ExpectedTensor) -> None:
        if not tensor.sources:
            tensor = tensor._replace(sources=whole_tensor(0, tensor.name, tuple(tensor.shape)))
        number, at = len(self._expected), 0
        self._expected.append(tensor)
        for source in tensor.sources:
            wanted = f"{tensor.dtype} {list(source.shape)}"
            info = self.checkpoint.tensors.get(source.name)
            if info is None:
                raise self._mismatch(source.name, f"is missing ({wanted} expected)")
            if (info.dtype, info.shape) != (tensor.dtype, tuple(source.shape)):
                raise self._mismatch(source.name, f"is {info.dtype} {list(info.shape)} ({wanted} expected)")
            self._places.setdefault(source.name, []).append(
                _Place(source.first, source.first + source.elements, number, at)
            )
            at += source.elements
        if tensor.digests.shape != (pieces := -(-tensor.size // PIECE), DIGEST):
            raise Corrupt(f"tensor {quote(tensor.name)} has {len(tensor.digests)} digests, expected {pieces}")

    def read(self, name: str, lo: int = 0, hi: int | None = None) -> Bits:
        """Return the bits of elements `lo` to `hi` (default: all) of a tensor of the base, one-dimensional.

        Raises:
            BaseMismatch: a digest differs; the message names the tensor.
            ValueError: the tensor has no such elements, or the file has no digests of them.
        """
        info = self.info(name)
        hi = info.size if hi is None else hi
        self.check_range(name, lo, hi - lo)
        places = self._places.get(name)
        if places is None:
            raise ValueError(f"{quote(name)} is not one of the {len(self._places)} tensors that can be checked")
        for place in places:
            if place.first <= lo and hi <= place.end:
                return self.read_origin(place.origin, place.at + lo - place.first, place.at + hi - place.first)
        found: Bits = np.empty(hi - lo, bits_dtype(info.dtype))
        at = lo
        while at < hi:
            here = [one for one in places if one.first <= at < one.end]
            if not here:
                raise ValueError(f"element {at} of {quote(name)} is not one of those that can be checked")
            place = max(here, key=lambda one: one.end)
            end = min(hi, place.end)
            begin = place.at - place.first
            found[at - lo : end - lo] = self.read_origin(place.origin, begin + at, begin + end)
            at = end
        return found

    def read_origin(
        self, number: int, lo: int, hi: int, *, check: bool = True, out: Bits | None = None
    ) -> Bits:  # fmt: skip
        """Return the bits of elements `lo` to `hi` of an origin, one-dimensional.

        Whole pieces are read, and hashed each time: a path may hold something else by the next read.

        Args:
            number: of the origin among those that are expected.
            check: False: pieces are not hashed, and the caller checks what is made of them.
            out: memory to use, where `lo` and `hi` are ends of pieces.

        Raises:
            BaseMismatch: a digest differs; the message names the tensor.
        """
        origin = self._expected[number]
        start = lo // PIECE * PIECE
        end = min(origin.size, -(-hi // PIECE) * PIECE) if hi > lo else start
        bits: Bits = np.empty(end - start, bits_dtype(origin.dtype)) if out is None else out
        local = self.checkpoint.is_local
        if not local:  # one request for each source, or stretches of what was read ahead
            parts = list(parts_of(origin.sources, start, end))
            parallel_map(lambda part: self._read_part(part, bits), parts, CONCURRENT_REQUESTS)

        def piece(at: int) -> None:
            part = bits[at : at + PIECE]
            if local:
                self._read_parts(origin, start + at, part)
            if check:
                self._checked(origin, start + at, part)

        if local or check:
            parallel_map(piece, range(0, bits.size, PIECE))
        return bits[lo - start : hi - start]

    def _read_parts(self, origin: ExpectedTensor, start: int, out: Bits) -> None:
        for part in parts_of(origin.sources, start, start + out.size):
            self._read_part(part, out)

    def _read_part(self, part: OriginPart, out: Bits) -> None:
        self.checkpoint.read_into(part.name, part.first, out[part.at : part.at + part.elements])

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

    def _checked(self, origin: ExpectedTensor, lo: int, piece: Bits) -> None:
        """Check a piece, which begins at element `lo`; if it is wrong, once more as it is fetched anew."""
        found, wanted = digest(piece), origin.digests[lo // PIECE].tobytes()
        if found != wanted:
            parts = list(parts_of(origin.sources, lo, lo + piece.size))
            if sum(self.checkpoint.forget(part.name, part.first, part.elements) for part in parts):  # all are forgotten
                self._read_parts(origin, lo, piece)
                found = digest(piece)
        if found != wanted:
            digests = f"digest {found.hex()[:12]}... found, {wanted.hex()[:12]}... expected"
            raise self._mismatch(origin.name, f"differs ({digests})")

    def _mismatch(self, name: str, what: str) -> BaseMismatch:
        return BaseMismatch(
            f"base {self.checkpoint.path} does not match: tensor {quote(name)} {what}; "
            "pass --base with the base that the run was trained from"
        )
