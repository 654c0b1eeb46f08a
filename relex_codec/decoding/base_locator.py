"""The base of an open file: found and opened when it is first needed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from relex_codec.checkpoints.base_model import BaseReader, ExpectedTensor, open_base
from relex_codec.checkpoints.checkpoint import TensorReader
from relex_codec.checkpoints.safetensors import SafetensorsCheckpoint, TensorInFile
from relex_codec.core.filenames import INDEX
from relex_codec.core.text import quote
from relex_codec.errors import CheckpointError, InvalidArgument, RelexError
from relex_codec.format import constants as f
from relex_codec.format.reader import FileReader
from relex_codec.storage.config import without_credentials
from relex_codec.storage.prefetch import prefetching, ranges_to_fetch
from relex_codec.storage.source import Source
from relex_codec.storage.urls import Options, PathLike, is_url, normalized

from .read_plan import BATCH

BASES: Final = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "http", "https", "memory"})
"""Protocols that a file may send its reader to. Others of fsspec, and chains, may run templates, or come back here."""


class BaseLocator:
    """Says where the base of a file is, and opens what reads it.

    Args:
        given: where the caller says that it is; None: where the file says, or in the file.
        storage_options: of the caller; only settings of reading go to where the file says.
    """

    def __init__(self, container: FileReader, given: PathLike | None, storage_options: Options) -> None:
        self._container, self._given, self._options = container, given, storage_options
        self._reader: BaseReader | None = None
        self._lock = threading.Lock()

    @property
    def is_embedded(self) -> bool:
        """Whether the base is what the file embeds: the caller named no other."""
        return self._given is None and self._container.index.manifest.embedded

    def reader(self) -> BaseReader:
        """Return what reads the base and checks it, also where the file embeds one.

        Raises:
            BaseMismatch: it is not the one that the run was encoded against.
            CheckpointError, InvalidArgument: it cannot be found or read.
        """
        with self._lock:
            if self._reader is None:
                self._reader = BaseReader(self._find(), self._expected())
            return self._reader

    @property
    def places(self) -> Callable[[], Mapping[str, TensorInFile]] | None:
        """What opens the base and gives where its tensors lie; None where they are read from the file."""
        return None if self.is_embedded else lambda: self.reader().checkpoint.tensors

    @property
    def sources(self) -> Sequence[Source]:
        """What reads the shards of the base; none as long as nobody has needed it."""
        reader = self._reader
        return [] if reader is None else reader.checkpoint.sources

    def side_files(self) -> Callable[[], TensorReader] | None:
        """Where a decoded checkpoint's other files come from; None for the embedded ones."""
        return None if self.is_embedded else lambda: self.reader().checkpoint

    def check(self) -> None:
        """Read the whole base and check it, as `reader`."""
        index = self._container.index
        reader = self.reader()
        used = [tensor for tensor in index.tensors if tensor.origin == f.IN_BASE]
        places = [reader.checkpoint.info(tensor.name) for tensor in used]
        with prefetching(ranges_to_fetch((reader.checkpoint.sources[at.shard], at.begin, at.end) for at in places)):
            for tensor in used:
                for lo in range(0, tensor.size, BATCH * f.PIECE):
                    reader.read(tensor.name, lo, min(lo + BATCH * f.PIECE, tensor.size))

    def _find(self) -> SafetensorsCheckpoint:
        manifest = self._container.index.manifest
        likely = [*manifest.shards, INDEX] if manifest.indexed else manifest.shards
        if self._given is not None:
            return open_base(self._given, self._options, likely)
        path, uri = self._container.source.path, manifest.base_uri
        if uri is None:
            raise InvalidArgument(f"{path} does not say where its base is; pass --base")
        if is_url(uri) and ("::" in uri or normalized(uri).partition("://")[0] not in BASES):
            raise CheckpointError(f"{path} says that its base is {quote(uri)}: not read on its word; pass --base")
        try:
            return open_base(uri, without_credentials(self._options), likely)
        except RelexError as error:
            raise CheckpointError(f"the base of {path} cannot be read: {error}; pass --base") from None

    def _expected(self) -> list[ExpectedTensor]:
        index = self._container.index
        return [
            ExpectedTensor(
                tensor.name, tensor.origin_dtype, tensor.shape,
                index.digests[tensor.digests.start : tensor.digests.stop],
            )
            for tensor in index.tensors
            if tensor.origin == f.IN_BASE
        ]  # fmt: skip
