"""One checkpoint on disk: its files, its tensors, slices of them.

Only safetensors files are read; nothing is ever unpickled. The rules on names are in checkpoints/naming.py.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from relex_codec.core.cancellation import CancelScope
from relex_codec.core.dtypes import ITEMSIZE, Bits, bits_dtype
from relex_codec.core.filenames import INDEX, SAFE_NAME, SINGLE
from relex_codec.core.text import quote
from relex_codec.core.threads import parallel_map
from relex_codec.errors import CheckpointError
from relex_codec.format.safetensors_header import WORD, header_length, load_object, parse
from relex_codec.storage.coalesce import FIRST_READ
from relex_codec.storage.hub.revisions import pinned_to_commit
from relex_codec.storage.open import Item, list_directory, open_source
from relex_codec.storage.remote import CONCURRENT_REQUESTS
from relex_codec.storage.source import LocalSource, Source
from relex_codec.storage.urls import Options, PathLike, is_url, join_path, local_path, without_secrets

from . import naming


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor of a checkpoint; `shard` indexes its files, `begin` and `end` are positions in that file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: int
    begin: int
    end: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return (self.end - self.begin) // ITEMSIZE[self.dtype]


Tensors = dict[str, TensorInfo]


class Checkpoint:
    """One checkpoint, opened by `open_checkpoint`: headers are in memory, data are read when asked for.

    Methods may be called from several threads. No file stays open between calls.

    Attributes
    ----------
    path : str
        For messages.
    step : int or None
    tensors : dict of str to TensorInfo
        In the order of the shards by name, and of the data in them.
    shards : list of str
        File names, sorted.
    indexed : bool
        Whether ``model.safetensors.index.json`` exists.
    side_files : list of str
        Names of the other files that a Hugging Face checkpoint carries.
    """

    def __init__(
        self,
        path: str,
        step: int | None,
        tensors: Tensors,
        sources: dict[str, Source],
        indexed: bool,
        side_files: dict[str, SideFile],
        storage_options: Options,
    ) -> None:
        self.path, self.step, self.tensors, self.indexed = path, step, tensors, indexed
        self.shards = list(sources)
        self.side_files = list(side_files)
        self._sources = list(sources.values())
        self._sides, self._options = side_files, storage_options

    @property
    def is_local(self) -> bool:
        """Whether reading in many small ranges costs no requests."""
        return all(isinstance(source, LocalSource) for source in self._sources)

    @property
    def sources(self) -> list[Source]:
        """What reads each shard."""
        return self._sources

    def info(self, name: str) -> TensorInfo:
        """Return what is known of a tensor, or raise CheckpointError."""
        try:
            return self.tensors[name]
        except KeyError:
            raise CheckpointError(f"{self.path} has no tensor {quote(name)}") from None

    def read(self, name: str, lo: int = 0, hi: int | None = None) -> Bits:
        """Return the bits of elements `lo` to `hi` (default: all) of a tensor, one-dimensional."""
        info = self.info(name)
        out: Bits = np.empty((info.size if hi is None else hi) - lo, bits_dtype(info.dtype))
        self.read_into(name, lo, out)
        return out

    def read_into(self, name: str, lo: int, out: Bits) -> None:
        """Fill `out`, one-dimensional and contiguous, with the bits from element `lo` on."""
        info = self.info(name)
        if not 0 <= lo <= lo + out.size <= info.size:
            raise ValueError(f"elements {lo} to {lo + out.size} of {quote(name)}, which has {info.size}")
        if out.size:
            width = ITEMSIZE[info.dtype]
            self._sources[info.shard].read_into(info.begin + lo * width, out.view(np.uint8).data)

    def read_file(self, name: str) -> bytes:
        """Return the bytes of one of `side_files`."""
        return next(iter(self.read_files([name])))

    def read_files(self, names: Sequence[str]) -> Iterable[bytes]:
        """Return the bytes of several of `side_files`; remote ones are read at the same time."""
        return (
            map(self._read_side, names) if self.is_local else parallel_map(self._read_side, names, CONCURRENT_REQUESTS)
        )

    def file_sizes(self) -> dict[str, int]:
        """Return the bytes of each of `side_files` by number, without reading them."""

        def size(side: SideFile) -> int:
            if side.size is not None:
                return side.size
            with open_source(side.path, self._options, keep_open=False, error=CheckpointError) as source:
                return source.size

        return dict(zip(self._sides, parallel_map(size, self._sides.values(), CONCURRENT_REQUESTS), strict=True))

    def _read_side(self, name: str) -> bytes:
        side = self._sides[name]
        with open_source(side.path, self._options, keep_open=False, error=CheckpointError) as source:
            if side.size not in (None, source.size):
                raise CheckpointError(
                    f"{source.path} has {source.size} bytes, its directory listed it with {side.size}: it was changed "
                    "since; open the checkpoint again when nothing writes it"
                )
            return source.read(0, source.size)


def open_checkpoint(
    path: PathLike,
    storage_options: Options = None,
    *,
    step: int | None = None,
    known: dict[bytes, Tensors] | None = None,
    likely: Collection[str] = (),
) -> Checkpoint:
    """Open a checkpoint: a directory, or a single ``.safetensors`` file, local or on an fsspec URL.

    Parameters
    ----------
    path : str or path
    storage_options : dict, optional
        For fsspec.
    step : int, optional
        Kept in the result.
    known : dict, optional
        Parsed headers by their hash. The checkpoints of a run have the same headers byte for byte, as a rule: with one
        dict for all of them, headers are parsed once and 500 checkpoints share one table in memory.
    likely : collection of str, optional
        Names of files that a directory probably has. Remote ones are opened while it is listed, and not used if it
        does not have them: that saves the time of a request.

    Raises
    ------
    CheckpointError
        No weights, missing or ambiguous shards, tensors that an index or another shard contradicts, broken headers.
    Truncated
        A file is shorter than its header says.
    """
    where = f"checkpoint {without_secrets(path)}"
    files, opened = _open_files(_at_one_commit(path, storage_options), storage_options, where, likely)
    fingerprint = hashlib.sha256(repr(sorted((files.weight_map or {}).items())).encode())
    for shard, (source, raw) in zip(files.shards, opened, strict=True):
        fingerprint.update(f"\n{shard} {source.size} {len(raw)}\n".encode() + raw)
    tensors = known.get(fingerprint.digest()) if known is not None else None
    if tensors is None:
        tensors = _tensors(files, opened, where)
        if known is not None:
            known[fingerprint.digest()] = tensors
    sources = dict(zip(files.shards, (source for source, _ in opened), strict=True))
    indexed = files.weight_map is not None
    return Checkpoint(without_secrets(path), step, tensors, sources, indexed, files.sides, storage_options)


def _at_one_commit(path: PathLike, options: Options) -> PathLike:
    """Return a directory of the Hub at the commit that its revision means now: what is in it is read one by one."""
    return path if without_secrets(path).endswith(".safetensors") else pinned_to_commit(path, options)


def _open_files(
    path: PathLike, options: Options, where: str, likely: Collection[str]
) -> tuple[Files, list[tuple[Source, bytes]]]:
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
            read_index = scope.bind(lambda: _read_all(join_path(path, INDEX), options))
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


class SideFile(NamedTuple):
    """A file beside the weights, as the listing of its directory has it."""

    path: str
    size: int | None
    """None where the listing does not say."""


class Files(NamedTuple):
    """The files of a checkpoint that matter here."""

    shards: dict[str, str]
    """Path of each weight file, by its name."""
    weight_map: dict[str, str] | None
    """Of the index, if there is one."""
    sides: dict[str, SideFile]
    """The other files that a checkpoint carries, by name."""


def find_files(
    path: PathLike,
    options: Options,
    where: str,
    items: list[Item] | None = None,
    index: Callable[[], bytes] | None = None,
) -> Files:
    """Choose the files of a checkpoint, which is enough to see whether any is missing.

    Args:
        items: what the directory holds, if it was listed already.
        index: gives the content of its index, if that is read already; only called if the directory has one.
    """
    text = os.fspath(path)
    if without_secrets(text).endswith(".safetensors") if is_url(path) else os.path.isfile(local_path(path)):
        name = os.path.basename(without_secrets(text))
        if not name.endswith(".safetensors"):
            raise CheckpointError(f"{where} is a file that is not called .safetensors, expected one or a directory")
        return Files({_safe(name, where): text}, None, {})
    if items is None:
        items = list_directory(path, options, error=CheckpointError)
    sizes = {item.name: item.size for item in items if not item.is_dir}
    weight_map = None
    if INDEX in sizes:
        raw = index() if index else _read_all(join_path(path, INDEX), options)
        weight_map = load_object(raw, error=CheckpointError, where=f"{INDEX} of {where}").get("weight_map")
        shards = naming.shards_of_index(weight_map, sizes, where)
    else:
        shards = naming.shards_without_index(sizes, where)
    return Files(
        {_safe(name, where): join_path(path, name) for name in shards},
        weight_map,
        {name: SideFile(join_path(path, name), sizes[name]) for name in naming.side_files(sizes)},
    )


def _safe(name: str, where: str) -> str:
    if not SAFE_NAME.fullmatch(name):
        raise CheckpointError(f"{where} has weights in {quote(name)}; rename it to {SINGLE}")
    return name


def _tensors(files: Files, opened: list[tuple[Source, bytes]], where: str) -> Tensors:
    """Parse the headers of all shards and check them against each other and the index."""
    tensors: Tensors = {}
    names = list(files.shards)
    for shard, (source, raw) in enumerate(opened):
        for entry in parse(raw, source.size, error=CheckpointError, where=source.path)[1]:
            if entry.name in tensors:
                other = names[tensors[entry.name].shard]
                raise CheckpointError(f"{where} has tensor {quote(entry.name)} twice: in {other} and {names[shard]}")
            info = TensorInfo(entry.name, entry.dtype, entry.shape, shard, entry.begin, entry.end)
            tensors[entry.name] = info
    for name, file in (files.weight_map or {}).items():
        if name not in tensors or names[tensors[name].shard] != file:
            raise CheckpointError(f"{where}: its index says that tensor {quote(name)} is in {file}, where it is not")
    if not tensors:
        raise CheckpointError(f"{where} has no tensors")
    return tensors


def _raw_header(source: Source) -> bytes:
    head = source.read_cached(0, min(source.size, FIRST_READ))
    end = WORD + header_length(head, source.size, error=CheckpointError, where=source.path)
    if end > len(head):
        head += source.read_cached(len(head), end)
    return head[WORD:end]


def _read_all(path: str, options: Options) -> bytes:
    with open_source(path, options, keep_open=False, error=CheckpointError) as source:
        return source.read(0, source.size)
