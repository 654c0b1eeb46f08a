"""The base of an open file: found and opened when it is first needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from relex_codec.checkpoints.base_model import BaseReader, ExpectedTensor, open_base
from relex_codec.checkpoints.base_uri import is_relative, place_of_base
from relex_codec.checkpoints.checkpoint import TensorInfo, TensorReader
from relex_codec.checkpoints.safetensors import SafetensorsCheckpoint, TensorInFile
from relex_codec.core.dtypes import ITEMSIZE, Bits
from relex_codec.core.filenames import INDEX
from relex_codec.core.forks import new_lock
from relex_codec.core.text import quote
from relex_codec.core.threads import parallel_map
from relex_codec.errors import BaseMismatch, CheckpointError, InvalidArgument, RelexError
from relex_codec.format import constants as f
from relex_codec.format.reader import FileReader
from relex_codec.format.tensor_record import TensorRecord
from relex_codec.storage.config import without_credentials
from relex_codec.storage.prefetch import prefetching, ranges_to_fetch
from relex_codec.storage.remote import CONCURRENT_REQUESTS
from relex_codec.storage.source import Source
from relex_codec.storage.urls import Options, PathLike, is_url, normalized, without_secrets

from .planning import plan_origin
from .read_plan import BATCH, OriginPieces

BASES: Final = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "memory"})
"""Protocols that a file may send its reader to: stores whose addresses are not in the URL.

An address of the web may be one behind the reader's firewall. Other protocols of fsspec, and chains, may run templates,
or come back here.
"""


class BaseLocator:
    """Says where the base of a file is, and opens what reads it.

    Args:
        given: where the caller says that it is; None: where the file says, or in the file.
        storage_options: of the caller; only settings of reading go to where the file says.
    """

    def __init__(self, container: FileReader, given: PathLike | None, storage_options: Options) -> None:
        self._container, self._given, self._options = container, given, storage_options
        self._reader: BaseReader | None = None
        self._recognised = given is not None
        self._lock = new_lock()
        based = [tensor.number for tensor in container.index.tensors if tensor.in_base]
        self._origins = {number: i for i, number in enumerate(based)}
        """Places of tensors among those that `_expected` returns."""

    @property
    def is_given(self) -> bool:
        """Whether the caller says where the base is."""
        return self._given is not None

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
                expected, checkpoint = self._expected(), self._find()
                try:
                    self._reader = BaseReader(checkpoint, expected)
                except BaseMismatch:
                    if not checkpoint.forget_headers():
                        raise
                    self._reader = BaseReader(self._find(), expected)
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

    def read_origin(
        self, tensor: TensorRecord, start: int, end: int, *, check: bool = True, out: Bits | None = None
    ) -> Bits:
        """Return elements of what a tensor starts from, read from the base; otherwise as `BaseReader.read_origin`."""
        return self.reader().read_origin(self._origins[tensor.number], start, end, check=check, out=out)

    def files(self) -> TensorReader:
        """Return the base, for those of its files beside the weights of which there are digests."""
        return self.reader().checkpoint

    def documents(self) -> TensorReader:
        """Return the base, for those of its files beside the weights of which there are no digests.

        They are taken from a base that the caller named, or whose weights are those that the file was made from: a file
        could say that its base is a directory that its reader would not publish.

        Raises:
            BaseMismatch: it is neither.
        """
        reader = self.reader()
        if not self._recognised:
            self._recognise(reader)
            self._recognised = True
        return reader.checkpoint

    def _recognise(self, reader: BaseReader) -> None:
        """Check a piece of the largest tensor in each shard of the base, most of which the file must know.

        Raises:
            BaseMismatch: one differs, or the file does not know enough of the base to tell it from others.
        """
        tensors = reader.checkpoint.tensors
        known: dict[str, tuple[int, int]] = {}
        """Where each tensor of the base that the file knows first comes: in which origin, and from which element on."""
        for number, origin in enumerate(self._expected()):
            at = 0
            for source in origin.sources:
                if source.elements:
                    known.setdefault(source.name, (number, at))
                at += source.elements

        def nbytes(info: TensorInfo) -> int:
            return info.size * ITEMSIZE[info.dtype]

        largest: dict[int, TensorInfo] = {}
        for info in tensors.values():
            if info.name in known:
                largest[info.shard] = max(info, largest.get(info.shard, info), key=nbytes)
        if 2 * sum(nbytes(tensors[name]) for name in known) < sum(map(nbytes, tensors.values())) or not largest:
            raise BaseMismatch(
                f"{self._container.source.path} knows {len(known)} of the {len(tensors)} tensors of {reader.path}, too "
                "few to tell that it is its base: no files beside the weights are taken from there; pass --base"
            )
        found = [known[info.name] for info in largest.values()]
        parallel_map(lambda one: reader.read_origin(one[0], one[1], one[1] + 1), found, CONCURRENT_REQUESTS)

    def check(self) -> None:
        """Read the whole base and check it, as `reader`."""
        index = self._container.index
        reader = self.reader()
        sources, places = reader.checkpoint.sources, reader.checkpoint.tensors
        planned: list[OriginPieces] = []
        for tensor in index.tensors:
            if tensor.in_base:
                starts = range(0, tensor.size, BATCH * f.PIECE)
                spans = [(lo, min(lo + BATCH * f.PIECE, tensor.size)) for lo in starts]
                planned += plan_origin(index, tensor, spans, lambda: places)
        ranges = (at for pieces in planned for at in pieces.in_base)
        with prefetching(ranges_to_fetch((sources[at.shard or 0], at.start, at.end) for at in ranges)):
            for pieces in planned:
                self.read_origin(pieces.tensor, pieces.start, pieces.end)

    def _find(self) -> SafetensorsCheckpoint:
        manifest = self._container.index.manifest
        likely = [*manifest.base_shards, INDEX] if len(manifest.base_shards) > 1 else manifest.base_shards
        if self._given is not None:
            return open_base(self._given, self._options, likely)
        path, uri = self._container.source.path, manifest.base_uri
        if uri is None:
            raise InvalidArgument(f"{path} does not say where its base is; pass --base")
        place = place_of_base(uri, path)
        if not _may_be_followed(place) or (is_relative(uri) and is_url(path) and not _same_store(place, path)):
            raise CheckpointError(f"{path} says that its base is {quote(uri)}: not read on its word; pass --base")
        try:
            return open_base(place, without_credentials(self._options), likely)
        except RelexError as error:
            raise CheckpointError(f"the base of {path} cannot be read: {error}; pass --base") from None

    def _expected(self) -> list[ExpectedTensor]:
        index = self._container.index
        return [
            ExpectedTensor(
                tensor.name, tensor.origin_dtype, tensor.shape,
                index.digests[tensor.digests.start : tensor.digests.stop], tensor.sources,
            )
            for tensor in index.tensors
            if tensor.in_base
        ]  # fmt: skip


def _may_be_followed(place: str) -> bool:
    """Tell whether a place is read on a file's word: a path, or a store of `BASES` without a user in its URL."""
    if is_url(place):
        return "::" not in place and normalized(place).partition("://")[0] in BASES and without_secrets(place) == place
    return not place.startswith(("//", "\\\\"))  # of another machine, to which Windows would log in


def _same_store(place: str, path: str) -> bool:
    """Tell whether two URLs are of one bucket, or of one repository of the Hub."""
    parts = 4 if normalized(path).startswith("hf://") else 3
    return place.split("/")[:parts] == path.split("/")[:parts] and ".." not in place.split("/")
