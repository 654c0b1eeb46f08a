"""Writing a step out as the Hugging Face checkpoint that the base is (FORMAT.md section 10)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from relex_codec.core.dtypes import ITEMSIZE
from relex_codec.core.filenames import CONFIG, INDEX, file_allowed
from relex_codec.decoding.stored_pieces import embedded_file
from relex_codec.decoding.tensor_decoder import TensorDecoder
from relex_codec.errors import InvalidArgument
from relex_codec.format.index import Index
from relex_codec.format.safetensors_header import build
from relex_codec.format.tensor_record import TensorRecord
from relex_codec.storage.outputs import output_directory
from relex_codec.storage.urls import Options, PathLike, is_url

Weights = Callable[[Sequence[TensorRecord]], Iterator[memoryview]]
"""Gives the bytes of tensors, one after another."""


class Shard(NamedTuple):
    """A file of weights.

    Attributes:
        head: length word and header.
        tensors: in the order of their data, which follows.
    """

    name: str
    head: bytes
    tensors: list[TensorRecord]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.head) + sum(nbytes(tensor) for tensor in self.tensors)


def nbytes(tensor: TensorRecord) -> int:
    """Return the bytes of a tensor."""
    return tensor.size * ITEMSIZE[tensor.dtype]


def shards_of(index: Index) -> list[Shard]:
    """Return the files of weights that every step has; one without tensors is none."""
    found = []
    for number, name in enumerate(index.manifest.shards):
        tensors = [tensor for tensor in index.tensors if tensor.shard == number]
        if tensors:
            entries = [(t.name, t.dtype, t.shape, nbytes(t)) for t in tensors]
            found.append(Shard(name, build(entries, {"format": "pt"}), tensors))
    return found


def index_file(shards: Sequence[Shard]) -> bytes:
    """Return the content of the index, which says which file has which tensor."""
    place = {tensor.name: shard.name for shard in shards for tensor in shard.tensors}
    return index_of(place, sum(nbytes(tensor) for shard in shards for tensor in shard.tensors))


def index_of(place: Mapping[str, str], total: int) -> bytes:
    """Return the content of the index of tensors in these files, of so many bytes."""
    document = {"metadata": {"total_size": total}, "weight_map": dict(sorted(place.items()))}
    return (json.dumps(document, indent=2) + "\n").encode()


class SideFiles:
    """The base's files that are no weights (configuration, tokenizer): the embedded ones, or those of a base elsewhere.

    That base is opened when something is asked for, not before: where it is not reached, the weights that do not need
    it can still be read.
    """

    def __init__(self, decoder: TensorDecoder) -> None:
        self._container, self._base = decoder.container, decoder.base.side_files()
        self._embedded = {} if self._base else {file.name: file for file in self._container.index.manifest.files}

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each by name, without reading them."""
        if self._base is None:
            return {name: file.length for name, file in self._embedded.items()}
        return {name: size for name, size in self._base().file_sizes().items() if file_allowed(name)}

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """Return bytes `start` to `end` (default: all) of one that exists."""
        return b"".join(self.stream(name, start, end))

    def stream(self, name: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield bytes `start` to `end` (default: all) of one that exists; an embedded one by the piece."""
        if self._base is None:
            yield from embedded_file(self._container, list(self._embedded).index(name), start, end)
        else:
            yield self._base().read_file(name)[start:end]

    def read_all(self) -> Iterator[tuple[str, Iterable[bytes]]]:
        """Yield name and content of each; those of a remote base are read at the same time."""
        if self._base is None:
            for i, name in enumerate(self._embedded):
                yield name, embedded_file(self._container, i)
            return
        base = self._base()
        names = [name for name in base.side_files if file_allowed(name)]
        for name, data in zip(names, base.read_files(names), strict=True):
            yield name, [data]


def other_files(decoder: TensorDecoder, shards: Sequence[Shard]) -> Iterator[tuple[str, Iterable[bytes]]]:
    """Yield name and content of each file that is no weights: the index, and the base's other files."""
    manifest = decoder.container.index.manifest
    if manifest.indexed:
        yield INDEX, [index_file(shards)]
    yield from SideFiles(decoder).read_all()


def embedded_bytes(decoder: TensorDecoder) -> int:
    """Return the bytes of the embedded files that are written: a few bytes of a file may decode to many."""
    return sum(file.length for file in decoder.container.index.manifest.files) if decoder.base.is_embedded else 0


def check_room(place: str, shown: str, what: str, size: int, hint: str) -> None:
    """Refuse at once what would fail for lack of room after hours, or would take all that others need.

    Args:
        place: an existing directory on the disk that is written to.
        shown: what messages call the output.
        what: "the steps have".
        size: bytes to be written.
        hint: what to do about it.

    Raises:
        InvalidArgument: there is less room.
    """
    usage = shutil.disk_usage(place)
    if usage.total and usage.free < size:  # a file system that does not know says 0
        raise InvalidArgument(
            f"cannot write {shown}: {what} {size:,} bytes, {usage.free:,} are free in {place}; {hint}"
        )


def completing_last(
    indexed: bool, files: Iterable[tuple[str, Iterable[bytes]]]
) -> Iterator[tuple[str, Iterable[bytes]]]:
    """Yield `other_files`, that one last without which no library loads the weights: the index, or ``config.json``.

    At a URL files appear one by one, and what was interrupted must not look complete.
    """
    last = INDEX if indexed else CONFIG
    held = []
    for file in files:
        if file[0] == last:
            held.append(file)
        else:
            yield file
    yield from held


def export(
    decoder: TensorDecoder,
    output: PathLike,
    weights: Weights,
    on_bytes: Callable[[int], Any] = lambda _: None,
    storage_options: Options = None,
) -> None:
    """Write one step to the directory `output`, tensor by tensor.

    A local directory appears when it is complete. At a URL file after file appears, by way of a temporary directory
    here, that one last which makes them a checkpoint.

    Args:
        weights: called when the directory can be written.
        on_bytes: called with the bytes of each tensor when it is written.
        storage_options: for fsspec, if `output` is a URL.

    Raises:
        InvalidArgument: `output` is not empty or cannot be written, or there is not enough room.
    """
    shards = shards_of(decoder.container.index)
    with output_directory(output, storage_options) as directory:
        sizes = [embedded_bytes(decoder), *(shard.size for shard in shards)]
        if is_url(output):  # one file after another waits here
            hint = "set TMPDIR to a place with more room"
            check_room(directory.path, directory.shown, "a file of it has", max(sizes), hint)
        else:
            hint = "choose a place with more room"
            check_room(os.path.dirname(directory.path), directory.shown, "the step has", sum(sizes), hint)
        found = weights([tensor for shard in shards for tensor in shard.tensors])
        for shard in shards:
            with directory.file(shard.name) as out:
                out.write(shard.head)
                for tensor, values in zip(shard.tensors, found, strict=False):  # as many as the shard has
                    out.write(values)
                    on_bytes(nbytes(tensor))
        for name, content in completing_last(decoder.container.index.manifest.indexed, other_files(decoder, shards)):
            with directory.file(name) as out:
                for data in content:
                    out.write(data)
