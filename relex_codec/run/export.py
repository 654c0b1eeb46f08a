"""Writing a step out as a Hugging Face checkpoint, laid out as it was (FORMAT.md section 10)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from relex_codec.core.dtypes import ITEMSIZE
from relex_codec.core.filenames import ADAPTER_CONFIG, CONFIG, INDEX
from relex_codec.decoding.tensor_decoder import TensorDecoder
from relex_codec.errors import InvalidArgument
from relex_codec.format.safetensors_header import build
from relex_codec.format.step_layout import StepLayout
from relex_codec.format.tensor_record import TensorRecord
from relex_codec.storage.outputs import output_directory
from relex_codec.storage.urls import Options, PathLike, is_url

from .own_base import needed_base, refuse_own_base
from .side_files import SideFiles

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


def shards_of(layout: StepLayout) -> list[Shard]:
    """Return the files of weights of a step; one without tensors is none."""
    found = []
    for number, name in enumerate(layout.shards):
        tensors = [tensor for tensor in layout.tensors if layout.shard_of(tensor) == number]
        if tensors:
            entries = [(t.name, t.dtype, t.shape, nbytes(t)) for t in tensors]
            found.append(Shard(name, build(entries, {"format": "pt"}), tensors))
    return found


def weight_files(layout: StepLayout, shards: Sequence[Shard]) -> list[str]:
    """Return the names of a step's files that loaders read weights from, or find them by."""
    return [*(shard.name for shard in shards), *([INDEX] if layout.indexed else [])]


def index_file(shards: Sequence[Shard]) -> bytes:
    """Return the content of the index, which says which file has which tensor."""
    place = {tensor.name: shard.name for shard in shards for tensor in shard.tensors}
    return index_of(place, sum(nbytes(tensor) for shard in shards for tensor in shard.tensors))


def index_of(place: Mapping[str, str], total: int) -> bytes:
    """Return the content of the index of tensors in these files, of so many bytes."""
    document = {"metadata": {"total_size": total}, "weight_map": dict(sorted(place.items()))}
    return (json.dumps(document, indent=2) + "\n").encode()


def other_files(
    decoder: TensorDecoder, layout: StepLayout, shards: Sequence[Shard]
) -> Iterator[tuple[str, Iterable[bytes]]]:  # fmt: skip
    """Yield name and content of each file of a step that is no weights: the index, and its other files."""
    if layout.indexed:
        yield INDEX, [index_file(shards)]
    yield from SideFiles(decoder, layout).read_all()


def stored_bytes(layout: StepLayout) -> int:
    """Return the bytes of the files that are written from the file: a few bytes of it may decode to many."""
    return sum(file.length for _, file in layout.files.values() if file.stored)


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
    layout: StepLayout, files: Iterable[tuple[str, Iterable[bytes]]]
) -> Iterator[tuple[str, Iterable[bytes]]]:
    """Yield `other_files`, that one last without which no library loads the weights: the index, or ``config.json``.

    At a URL files appear one by one, and what was interrupted must not look complete.
    """
    return one_last(INDEX if layout.indexed else ADAPTER_CONFIG if ADAPTER_CONFIG in layout.files else CONFIG, files)


def one_last(last: str, files: Iterable[tuple[str, Iterable[bytes]]]) -> Iterator[tuple[str, Iterable[bytes]]]:
    """Yield name and content of files, those of the name `last` after the others."""
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
    layout: StepLayout,
    weights: Weights,
    on_bytes: Callable[[int], Any] = lambda _: None,
    storage_options: Options = None,
    notes: Mapping[str, bytes] | None = None,
    overwrite: bool = False,
) -> None:
    """Write one step to the directory `output`, tensor by tensor.

    A local directory appears when it is complete. At a URL file after file appears, by way of a temporary directory
    here, that one last which makes them a checkpoint.

    Args:
        layout: of the step.
        weights: called when the directory can be written.
        on_bytes: called with the bytes of each tensor when it is written.
        storage_options: for fsspec, if `output` is a URL.
        notes: further files by name, written after the weights.
        overwrite: replace files of the same names, as `Run.save`.

    Raises:
        InvalidArgument: `output` is not empty or cannot be written, or there is not enough room.
    """
    shards = shards_of(layout)
    replaced = weight_files(layout, shards) if overwrite else None
    if replaced is not None:
        refuse_own_base(output, replaced, needed_base(decoder))
    with output_directory(output, storage_options, replaced=replaced) as directory:
        sizes = [stored_bytes(layout), *(shard.size for shard in shards)]
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
        for name, note in (notes or {}).items():
            with directory.file(name) as out:
                out.write(note)
        for name, content in completing_last(layout, other_files(decoder, layout, shards)):
            with directory.file(name) as out:
                for data in content:
                    out.write(data)
