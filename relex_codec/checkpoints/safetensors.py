"""Checkpoints in safetensors files: what Hugging Face libraries save and load. Nothing is ever unpickled.

Which files belong to one is in checkpoints/files.py, what the header of one says in format/safetensors_header.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from relex_codec.core.cancellation import CancelScope
from relex_codec.core.dtypes import ITEMSIZE, Bits
from relex_codec.core.filenames import INDEX, SAFE_NAME
from relex_codec.core.text import quote
from relex_codec.core.threads import parallel_map
from relex_codec.errors import CheckpointError, Truncated
from relex_codec.format.safetensors_header import WORD, Entry, header_length, parse
from relex_codec.storage.coalesce import FIRST_READ
from relex_codec.storage.hub.revisions import pinned_to_commit
from relex_codec.storage.open import list_directory, open_source
from relex_codec.storage.remote import CONCURRENT_REQUESTS
from relex_codec.storage.source import LocalSource, Source, forget_all, read_checked
from relex_codec.storage.urls import Options, PathLike, is_url, join_path, without_secrets

from . import unreadable
from .checkpoint import TensorInfo, TensorReader
from .files import CheckpointFiles, SideFile, find_files, read_side_file, read_whole, side_file_sizes


@dataclass(frozen=True, slots=True)
class TensorInFile(TensorInfo):
    """A tensor and where it lies.

    Attributes:
        begin: first byte of it in the file number `shard`.
        end: the byte after its last one.
    """

    begin: int = 0
    end: int = 0


TensorTable = Mapping[str, TensorInFile]


class SafetensorsCheckpoint(TensorReader):
    """A checkpoint of safetensors files, opened by `open_checkpoint`: headers are in memory, weights are read when
    asked for.

    Args:
        sources: what reads each shard, by its name; sorted.
        storage_options: for fsspec, to read the files beside the weights.
        absent, notes: see `TensorReader`.
        may_be_slices: whether a header says that its tensors may be slices.

    Attributes:
        sources: what reads each shard, in the order of `shards`.
    """

    def __init__(
        self,
        path: str,
        tensors: TensorTable,
        sources: Mapping[str, Source],
        indexed: bool,
        side_files: Mapping[str, SideFile],
        storage_options: Options,
        *,
        absent: Sequence[str] = (),
        notes: Sequence[str] = (),
        may_be_slices: bool = False,
    ) -> None:
        self.path, self.indexed = path, indexed
        self.absent, self.notes, self.may_be_slices = absent, notes, may_be_slices
        self.tensors: TensorTable = tensors
        self.shards, self.sources = list(sources), list(sources.values())
        self.side_files = list(side_files)
        self._side_files, self._options = side_files, storage_options

    @property
    def is_local(self) -> bool:
        """Whether reading in many small ranges costs no requests."""
        return all(isinstance(source, LocalSource) for source in self.sources)

    def info(self, name: str) -> TensorInFile:
        """Return what is known of a tensor, or raise CheckpointError."""
        super().info(name)
        return self.tensors[name]

    def read_into(self, name: str, lo: int, out: Bits) -> None:
        """Fill `out` with the bits of a tensor from element `lo` on; see `TensorReader.read_into`."""
        self.check_range(name, lo, out.size)
        if out.size:
            info = self.tensors[name]
            begin = info.begin + lo * ITEMSIZE[info.dtype]
            self.sources[info.shard].read_into(begin, out.view(np.uint8).data)

    def place_of(self, name: str, lo: int, count: int) -> tuple[Source, int, int]:
        """Return which bytes of which file the elements of a tensor are, from `lo` on."""
        info = self.info(name)
        width = ITEMSIZE[info.dtype]
        return self.sources[info.shard], info.begin + lo * width, info.begin + (lo + count) * width

    def forget(self, name: str, lo: int, count: int) -> bool:
        """Drop what is kept of elements of a tensor, which are wrong; tell whether reading them again may help."""
        source, begin, end = self.place_of(name, lo, count)
        return source.forget(begin, end)

    def forget_headers(self) -> bool:
        """Drop what is kept of the headers, which may be wrong; tell whether opening it again may help."""
        return forget_all(map(_first_read, self.sources))

    def take_side_files(self, side_files: Mapping[str, SideFile]) -> None:
        """Let these be the files beside the weights."""
        self.side_files, self._side_files = list(side_files), side_files

    def read_files(self, names: Sequence[str]) -> Iterable[bytes]:
        """Return the bytes of several of `side_files`; remote ones are read at the same time."""
        sides = [self._side_files[name] for name in names]
        read = partial(read_side_file, options=self._options)
        return map(read, sides) if self.is_local else parallel_map(read, sides, CONCURRENT_REQUESTS)

    def file_sizes(self) -> dict[str, int]:
        """Return the bytes of each of `side_files` by name, without reading them."""
        return side_file_sizes(self._side_files, self._options)


def open_checkpoint(
    path: PathLike,
    storage_options: Options = None,
    *,
    known: dict[bytes, Any] | None = None,
    likely: Collection[str] = (),
) -> SafetensorsCheckpoint:
    """Open a checkpoint: a directory, or a single ``.safetensors`` file, local or on an fsspec URL.

    Args:
        storage_options: for fsspec.
        known: tables of tensors by the hash of the headers that they were parsed from, looked at first and added to.
            The checkpoints of a run have the same headers byte for byte, as a rule: with one dict for all of them,
            headers are parsed once, and 500 checkpoints share one table in memory.
        likely: names of files that a directory probably has. Remote ones are opened while it is listed, and not used
            if it does not have them: that saves the time of a request.

    Raises:
        CheckpointError: no weights, missing or ambiguous shards, a tensor in two of them where no index chooses, slices
            of tensors, broken headers.
        Truncated: a file is shorter than its header says.
    """
    where = f"checkpoint {without_secrets(path)}"
    place = _at_one_commit(path, storage_options)
    files, opened = _open_files(place, storage_options, where, likely)
    try:
        tensors = _tensor_table(files, opened, where, known)
    except CheckpointError:
        if not forget_all(_first_read(source) for source, _ in opened):
            raise
        opened = [(source, _raw_header(source)) for source, _ in opened]
        tensors = _tensor_table(files, opened, where, known)
    if is_url(place) and _may_be_misread(files, tensors):
        forget_all(_first_read(source) for source, _ in opened)
        read_whole(join_path(place, INDEX), storage_options, anew=True)
        files, opened = _open_files(place, storage_options, where, likely)
        tensors = _tensor_table(files, opened, where, known)
    sources = dict(zip(files.shards, (source for source, _ in opened), strict=True))
    weight_map = files.weight_map or {}
    return SafetensorsCheckpoint(
        without_secrets(path), tensors, sources, files.weight_map is not None, files.side_files, storage_options,
        absent=[name for name in weight_map if name not in tensors],
        notes=files.notes,
        may_be_slices=any(unreadable.SHARDING_INFO.encode() in raw for _, raw in opened),
    )  # fmt: skip


def _tensor_table(
    files: CheckpointFiles, opened: list[tuple[Source, bytes]], where: str, known: dict[bytes, Any] | None
) -> TensorTable:
    """Return what the headers say, parsed only if they are not `known`."""
    fingerprint = hashlib.sha256(repr(sorted((files.weight_map or {}).items())).encode())
    for shard, (source, raw) in zip(files.shards, opened, strict=True):
        fingerprint.update(f"\n{shard} {source.size} {len(raw)}\n".encode() + raw)
    tensors: TensorTable | None = known.get(fingerprint.digest()) if known is not None else None
    if tensors is None:
        tensors = _parse_headers(files, opened, where)
        if known is not None:
            known[fingerprint.digest()] = tensors
    return tensors


def _may_be_misread(files: CheckpointFiles, tensors: TensorTable) -> bool:
    """Tell whether an index lists what no file has as if a byte of it, or of a header, had come wrong.

    Then something else is there that the index does not know. Without that, tied weights were left out.
    """
    listed = files.weight_map or {}
    return any(name not in tensors for name in listed) and (
        bool(files.notes) or any(name not in listed for name in tensors)
    )


def _at_one_commit(path: PathLike, options: Options) -> PathLike:
    """Return a directory of the Hub at the commit that its revision means now: what is in it is read one by one."""
    return path if without_secrets(path).endswith(".safetensors") else pinned_to_commit(path, options)


def _open_files(
    path: PathLike, options: Options, where: str, likely: Collection[str]
) -> tuple[CheckpointFiles, list[tuple[Source, bytes]]]:
    """Find the files of a checkpoint and open its shards.

    Remote ones are opened early: while the directory is listed, if they are `likely`, or while the index is read.
    """

    def open_shard(target: str) -> tuple[Source, bytes]:
        source = open_source(target, options, keep_open=False, error=CheckpointError)
        return source, _raw_header(source)

    if not is_url(path) or without_secrets(path).endswith(".safetensors"):
        files = find_files(path, options, where)
        return files, [open_shard(target) for target in files.shards.values()]
    scope = CancelScope()
    with ThreadPoolExecutor(CONCURRENT_REQUESTS) as pool:
        opened: dict[str, Future[tuple[Source, bytes]]] = {}

        def begin(names: Iterable[str]) -> None:
            for name in names:
                if name not in opened and name.endswith(".safetensors"):
                    opened[name] = pool.submit(scope.bind(open_shard), join_path(path, name))

        try:
            likely = [name for name in likely if SAFE_NAME.fullmatch(name) or name == INDEX]
            begin(likely)
            read_index = scope.bind(lambda: read_whole(join_path(path, INDEX), options))
            read = pool.submit(read_index) if INDEX in likely else None
            items = list_directory(path, options, error=CheckpointError)
            names = {item.name for item in items if not item.is_dir}
            if INDEX in names:
                read = read or pool.submit(read_index)
                begin(name for name in names if name.startswith("model"))
            files = find_files(path, options, where, items, read.result if read else None)
            begin(files.shards)
            return files, [opened[name].result() for name in files.shards]
        finally:
            scope.cancel()  # what was opened in vain is not waited for


def _parse_headers(files: CheckpointFiles, opened: list[tuple[Source, bytes]], where: str) -> dict[str, TensorInFile]:
    """Parse the headers of all shards and check them against each other.

    As in transformers, a tensor is where a shard has it, whatever the index says; among copies the index chooses.
    """
    tensors: dict[str, TensorInFile] = {}
    names, chosen = list(files.shards), files.weight_map or {}
    for shard, (source, raw) in enumerate(opened):
        metadata, entries = parse(raw, source.size, error=CheckpointError, where=source.path)
        if _is_sliced(metadata):
            folder = source.path.rpartition("/")[0]
            raise CheckpointError(f"{where} {unreadable.slices_message(names[shard], folder)}")
        for entry in entries:
            if entry.name in tensors:
                other = names[tensors[entry.name].shard]
                if chosen.get(entry.name) not in (other, names[shard]):
                    raise CheckpointError(
                        f"{where} has tensor {quote(entry.name)} twice: in {other} and {names[shard]}; remove the one "
                        "that is not the model's"
                    )
                if chosen[entry.name] == other:
                    continue
                del tensors[entry.name]  # it goes to the end
            info = TensorInFile(entry.name, entry.dtype, entry.shape, shard, entry.begin, entry.end)
            tensors[entry.name] = info
    if not tensors:
        raise CheckpointError(f"{where} has no tensors")
    return tensors


def _first_read(source: Source) -> tuple[Source, int, int]:
    return source, 0, min(source.size, FIRST_READ)


def _is_sliced(metadata: Mapping[str, str]) -> bool:
    """Tell whether a header says that a tensor begins in the middle of the whole one."""
    try:
        described = json.loads(metadata.get(unreadable.SHARDING_INFO, "{}"))
        return any(any(tensor.get("saved_offsets", ())) for tensor in described.values())
    except (ValueError, AttributeError, TypeError):  # somebody else's words
        return False


def parsed_header(source: Source) -> tuple[dict[str, str], list[Entry]]:
    """Return what the header of a file says: metadata, and where its tensors lie.

    Raises:
        CheckpointError: it is damaged.
        Truncated: the file is shorter than it says.
    """
    return parse(_raw_header(source), source.size, error=CheckpointError, where=source.path)


def _raw_header(source: Source) -> bytes:
    """Return the header; where its length cannot be, that of bytes that are fetched anew."""
    return read_checked(lambda: _read_header(source), [_first_read(source)], (CheckpointError, Truncated))


def _read_header(source: Source) -> bytes:
    head = source.read_cached(0, min(source.size, FIRST_READ))
    end = WORD + header_length(head, source.size, error=CheckpointError, where=source.path)
    if end > len(head):
        head += source.read_cached(len(head), end)
    return head[WORD:end]
