"""slime's disk deltas, read as a run: `weight_vNNNNNN/`, each a whole checkpoint or what changed since the last one.

A delta is laid out as a checkpoint: an index whose metadata say ``version``, ``base_version``, ``delta_encoding``,
``compression_format`` and ``checksum_format``, and safetensors files with a zstd frame for each tensor that changed,
and the checksum of what it becomes in their metadata. Under ``xor`` the frame is the XOR of the bytes; under
``overwrite`` it is a u32 count, so many u32 positions of bytes, and the bytes. Version 0 is the base. miles and
SGLang's ``/pull_weights`` have the same layout.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, Final, NamedTuple

import numpy as np
import zstandard

from relex_codec.checkpoints.checkpoint import TensorReader
from relex_codec.checkpoints.files import read_whole
from relex_codec.checkpoints.safetensors import SafetensorsCheckpoint, open_checkpoint
from relex_codec.core.dtypes import Bits, Bytes
from relex_codec.core.filenames import INDEX
from relex_codec.core.text import quote
from relex_codec.core.threads import parallel_map
from relex_codec.errors import CheckpointError, Corrupt, InvalidArgument
from relex_codec.format.chunks import decompress
from relex_codec.format.constants import CODEC_ZSTD
from relex_codec.format.safetensors_header import WORD, load_object
from relex_codec.storage.urls import PathLike, local_path

from .boxes import Box
from .difference import encode_difference
from .format import CHUNK, Head, Part
from .origin import digests_of
from .reader import DELTA_FOLDER
from .writer import RankWriter, make_journal

_HASHES: Final = {"xxh3-128": ("xxhash", "xxh3_128"), "blake3": ("blake3", "blake3")}
"""Checksums that a package has: its name, and that of the function."""


class Version(NamedTuple):
    """A version of the weights.

    Attributes:
        metadata: of a delta's index; None: it is a whole checkpoint.
    """

    number: int
    folder: str
    metadata: dict[str, Any] | None


def find_versions(path: PathLike) -> list[Version]:
    """Return the versions in a directory, in order.

    Raises:
        CheckpointError: an index cannot be read, or one of them does not follow the one before.
    """
    root, found = local_path(path), []
    names = sorted((int(match[1]), match[0]) for match in map(DELTA_FOLDER.fullmatch, os.listdir(root)) if match)
    last: int | None = 0
    for number, name in names:
        folder = os.path.join(root, name)
        metadata = _metadata(folder)
        if metadata is not None:
            says, base = (_integer(metadata.get(key)) for key in ("version", "base_version"))
            if says != number:
                raise CheckpointError(f"{folder} says that it is version {says}, expected {number} by its name")
            if base != last:
                raise CheckpointError(
                    f"{folder} builds on version {base}, expected {last}: a version is missing; a run is read from its "
                    "base, or from a whole checkpoint, on"
                )
        found.append(Version(number, folder, metadata))
        last = number
    return found


def record_deltas(path: PathLike, journal: PathLike, base: SafetensorsCheckpoint) -> list[int]:
    """Write what a directory of versions has as a journal; each version is a step.

    What is in memory is the tensors that change, once.

    Args:
        journal: where to make it.
        base: what the versions begin with.

    Returns:
        The steps.

    Raises:
        CheckpointError: a version cannot be read, or gives something else than its checksums say.
        InvalidArgument: a checksum needs a package that is not installed.
    """
    versions = find_versions(path)
    parts = [Part(info.name, info.dtype, Box.whole(info.shape), info.dtype) for info in base.tensors.values()]
    folder = make_journal(journal, None)
    writer = RankWriter(folder, Head(0, 0, 1, None, parts), digests_of(base, parts))
    held: dict[str, Bits] = {}

    def change(version: Version) -> Iterator[list[bytes]]:
        changed = _Changed(version, base)
        for part in parts:
            if not changed.has(part.name):
                yield [b""] * part.chunks
                continue
            old = held[part.name] if part.name in held else base.read(part.name)
            new = changed.apply(part, old)
            yield parallel_map(
                lambda lo, old=old, new=new, dtype=part.dtype: encode_difference(  # type: ignore[misc]
                    old[lo : lo + CHUNK], new[lo : lo + CHUNK], dtype
                ),
                range(0, len(old), CHUNK),
            )
            held[part.name] = new

    try:
        for version in versions:
            writer.write(version.number, change(version))
    finally:
        writer.close()
    return [version.number for version in versions]


class _Changed:
    """The tensors that a version changes."""

    def __init__(self, version: Version, base: TensorReader) -> None:
        self._version = version
        self._whole: SafetensorsCheckpoint | None = None
        self._frames: dict[str, Bytes] = {}
        self._checksums: dict[str, str] = {}
        if version.metadata is None:
            self._whole = open_checkpoint(version.folder)
            tensors = self._whole.tensors
        elif any(name.endswith(".safetensors") for name in os.listdir(version.folder)):
            if version.metadata.get("compression_format") != "zstd":
                raise CheckpointError(f"{version.folder}: compression_format is not zstd")
            delta = open_checkpoint(version.folder)
            tensors = delta.tensors
            self._frames = {name: delta.read(name).view(np.uint8) for name in tensors}
            for shard in delta.shards:
                self._checksums |= _checksums(os.path.join(version.folder, shard))
        else:
            return  # nothing changed
        for name in tensors:
            if name not in base.tensors:
                raise CheckpointError(f"{version.folder} changes tensor {quote(name)}, which the base does not have")

    def has(self, name: str) -> bool:
        """Tell whether it changes a tensor."""
        return name in self._frames if self._whole is None else name in self._whole.tensors

    def apply(self, part: Part, old: Bits) -> Bits:
        """Return what a tensor becomes."""
        if self._whole is not None:
            info = self._whole.info(part.name)
            if (info.dtype, info.shape) != (part.dtype, part.box.shape):
                raise CheckpointError(f"tensor {quote(part.name)} of {self._whole.path} is not as in the base")
            return self._whole.read(part.name)
        where = f"tensor {quote(part.name)} of {self._version.folder}"
        metadata = self._version.metadata or {}
        frame, encoding = self._frames[part.name].tobytes(), metadata.get("delta_encoding")
        new = old.copy()
        raw = new.view(np.uint8)
        try:
            if encoding == "xor":
                raw ^= decompress(frame, len(raw), CODEC_ZSTD) if len(raw) else raw
            elif encoding == "overwrite":
                _overwrite(raw, frame)
            else:
                raise CheckpointError(f"{where}: delta_encoding is {quote(encoding)}, expected xor or overwrite")
        except Corrupt as error:
            raise CheckpointError(f"{where} cannot be decoded: {error}") from None
        wanted = self._checksums.get(part.name)
        if _checksum(metadata.get("checksum_format"))(raw) != wanted:
            raise CheckpointError(f"{where} does not give what its checksum says; is the base the stream's?")
        return new


def _overwrite(raw: Bytes, frame: bytes) -> None:
    try:
        size = zstandard.get_frame_parameters(frame).content_size
    except zstandard.ZstdError as error:
        raise Corrupt(str(error)) from None
    if not 4 <= size <= 4 + 5 * len(raw):
        raise Corrupt(f"its frame has {size} bytes")
    delta = decompress(frame, size, CODEC_ZSTD)
    count = int.from_bytes(delta[:4].tobytes(), "little")
    if size != 4 + 5 * count:
        raise Corrupt(f"it has {size} bytes for {count} changes")
    positions = delta[4 : 4 + 4 * count].view("<u4")
    if count and int(positions.max()) >= len(raw):
        raise Corrupt("a position is beyond the tensor")
    raw[positions] = delta[4 + 4 * count :]


def _checksum(name: object) -> Callable[[Bytes], str]:
    if name == "adler32":
        return lambda raw: f"{zlib.adler32(raw.data):08x}"
    if name not in _HASHES:
        raise CheckpointError(f"a checksum_format is {quote(name)}, expected adler32, xxh3-128 or blake3")
    package, function = _HASHES[str(name)]
    try:
        make = getattr(import_module(package), function)
    except ImportError:
        raise InvalidArgument(
            f"checksums of this stream are {name}, which needs the package {package}: pip install {package}"
        ) from None
    return lambda raw: str(make(raw.data).hexdigest())


def _checksums(path: str) -> dict[str, str]:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(WORD), "little")
        header = load_object(file.read(length), error=CheckpointError, where=f"the header of {path}")
    found: dict[str, str] = header.get("__metadata__") or {}
    return found


def _metadata(folder: str) -> dict[str, Any] | None:
    """Return the metadata of a delta's index; None: it is a whole checkpoint."""
    path = os.path.join(folder, INDEX)
    if not os.path.exists(path):
        return None
    found = load_object(read_whole(path, None), error=CheckpointError, where=path).get("metadata")
    return found if isinstance(found, dict) and "delta_encoding" in found else None


def _integer(value: object) -> int | None:
    text = str(value)
    return int(text) if re.fullmatch(r"[0-9]{1,15}", text) else None
