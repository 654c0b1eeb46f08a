"""A journal as what the commands take: what it says of itself, checking it, and writing a step of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Final

import numpy as np

from relex_codec.checkpoints.base_model import open_base
from relex_codec.checkpoints.checkpoint import TensorInfo, TensorReader
from relex_codec.checkpoints.safetensors import SafetensorsCheckpoint
from relex_codec.core.dtypes import ITEMSIZE, Bits
from relex_codec.core.filenames import CONFIG, INDEX, PROVENANCE, file_allowed
from relex_codec.core.progress import progress_bar
from relex_codec.core.steps import spell_steps
from relex_codec.core.text import labelled, on_one_line
from relex_codec.core.threads import cpu_count, parallel_map
from relex_codec.errors import InvalidArgument
from relex_codec.format.constants import PIECE
from relex_codec.format.safetensors_header import build
from relex_codec.journal.reader import Journal
from relex_codec.journal.remote import journal_at
from relex_codec.storage.outputs import output_directory
from relex_codec.storage.urls import Options, PathLike, is_url

from .export import check_room, index_of, one_last
from .own_base import refuse_own_base
from .provenance import as_bytes, note_of_recorded

AHEAD: Final = 4
"""Pieces of a tensor in work for each processor."""


def describe(path: PathLike, storage_options: Options = None) -> dict[str, Any]:
    """Return what ``info --json`` prints of a journal."""
    with journal_at(path, storage_options, whole=False) as journal:
        return _described(journal)


def _described(journal: Journal) -> dict[str, Any]:
    last = journal.steps[-1].generation
    infos = journal.tensors.values()
    checkpoint = sum(info.size * ITEMSIZE[info.dtype] for info in infos)
    total = journal.size()
    begins = {tensor.name for tensor in journal.expected}
    return {
        "path": journal.shown,
        "journal": True,
        "base": journal.base_uri,
        "steps": journal.numbers,
        "tensors": len(journal.tensors),
        "parameters": sum(info.size for info in infos),
        "checkpoint_bytes": checkpoint,
        "ratio": round(len(journal.steps) * checkpoint / total, 1),
        "ranks": len(last.ranks),
        "recordings": len(journal.generations),
        "left_behind": journal.left_behind,
        "bytes": {"total": total, "unfinished": journal.unfinished},
        "tensor_rows": [
            {
                "name": info.name,
                "dtype": info.dtype,
                "shape": list(info.shape),
                "origin": "base" if info.name in begins else "journal",
            }
            for info in infos
        ],
    }


def text(document: dict[str, Any], tensors: bool = False, columns: int = 0) -> str:
    """Return what ``info`` prints of a journal."""
    steps, sizes = document["steps"], document["bytes"]
    count = f"{len(steps)}, {steps[0]} to {steps[-1]}" if len(steps) > 1 else f"1, {steps[0]}"
    ranks = "1 rank" if document["ranks"] == 1 else f"{document['ranks']} ranks"
    goes = document["recordings"]
    base = document["base"] or "not said; give it with --base"
    lines = [
        ("journal", document["path"]),
        ("base", base),
        ("steps", count),
        ("tensors", f"{document['tensors']}; {document['parameters']:,} parameters"),
        ("bytes", f"{sizes['total']:,}, {document['ratio']:,} times smaller than the checkpoints"),
        ("recorded", f"by {ranks}" + (f", gone on with {goes - 1} times" if goes > 1 else "")),
    ]
    if sizes["unfinished"]:
        lines.append(("unfinished", f"{sizes['unfinished']:,} bytes of steps that were not committed"))
    if document["left_behind"]:
        left = document["left_behind"]
        lines.append(("left behind", f"{len(left)} steps that were recorded again from an earlier one on"))
    shown = labelled([(name, on_one_line(str(value))) for name, value in lines], columns)
    if not tensors:
        return shown
    rows = (
        f"{on_one_line(row['name'])}  {row['dtype']}  {row['shape']}  {row['origin']}"
        for row in document["tensor_rows"]
    )
    return shown + "\n\n" + "\n".join(rows)


def verify(
    path: PathLike, base: PathLike | None = None, *, progress: bool = False, storage_options: Options = None
) -> dict[str, Any]:
    """Read and check every byte of a journal; with `base`, check that base as well.

    Returns:
        Bytes and steps.

    Raises:
        Corrupt, Truncated: it is damaged.
        BaseMismatch: the base is another one.
    """
    from relex_codec.journal.verify import check_base, check_journal  # numba is only needed here

    with journal_at(path, storage_options) as journal:
        with progress_bar("verify", len(journal.steps), unit="step", enabled=progress) as bar:
            check_journal(journal, bar.update)
        if base is not None:
            check_base(journal, open_base(base, storage_options))
        return {"bytes": journal.size(), "steps": len(journal.steps), "unfinished": journal.unfinished}


def save(
    path: PathLike,
    output: PathLike,
    step: float,
    *,
    base: PathLike | None = None,
    overwrite: bool = False,
    progress: bool = False,
    storage_options: Options = None,
) -> list[int]:
    """Write a step of a journal as a Hugging Face checkpoint, laid out as its base is.

    Args:
        output: the directory, path or URL; it must not exist or be empty.
        base: if it is not where the journal says.
        overwrite: replace files of the same names, as `Run.save`.

    Returns:
        The steps of the journal.

    Raises:
        InvalidArgument: there is no such step, or the output cannot be written.
        BaseMismatch, CheckpointError: the base is another one, or cannot be read.
        Corrupt, Truncated: the journal is damaged.
    """
    with journal_at(path, storage_options) as journal:
        steps = journal.numbers
        if step not in steps:
            raise InvalidArgument(
                f"journal {journal.shown} has no step {step:g}, it has {spell_steps(steps, steps)}; for steps between "
                "and beyond, encode it"
            )
        opened = _open_base(journal, base, storage_options)
        note = as_bytes(note_of_recorded(journal.shown, journal.base_uri, steps, int(step)))
        _save(journal, int(step), opened, output, overwrite, progress, storage_options, {PROVENANCE: note})
        return steps


def _save(
    journal: Journal,
    step: int,
    base: SafetensorsCheckpoint,
    output: PathLike,
    overwrite: bool,
    progress: bool,
    options: Options,
    notes: Mapping[str, bytes],
) -> None:
    from relex_codec.journal.series import JournalSeries  # numba is only needed here

    reader = JournalSeries(journal, base, [step]).checkpoint(0)
    total = sum(info.size * ITEMSIZE[info.dtype] for info in reader.tensors.values())
    begins = {tensor.name for tensor in journal.expected}
    with progress_bar("decode", total, enabled=progress) as bar:
        _write(reader, begins, base, output, bar.update, options, overwrite, notes)


def _open_base(journal: Journal, base: PathLike | None, options: Options) -> SafetensorsCheckpoint:
    place = journal.base_place() if base is None else os.fspath(base)
    if place is None:
        raise InvalidArgument(f"journal {journal.shown} does not say where its base is; give it with --base")
    return open_base(place, options)


def _write(
    reader: TensorReader,
    begins: Collection[str],
    base: SafetensorsCheckpoint,
    output: PathLike,
    on_bytes: Callable[[int], Any],
    options: Options,
    overwrite: bool,
    notes: Mapping[str, bytes],
) -> None:
    known = [reader.tensors[name] for name in base.tensors if name in begins]
    rest = [info for name, info in reader.tensors.items() if name not in begins]
    files: dict[str, list[TensorInfo]] = {name: [] for name in base.shards}
    for info in known + rest:
        there = base.tensors.get(info.name)
        files[base.shards[there.shard if there else -1]].append(info)
    heads = {name: _head(infos) for name, infos in files.items() if infos}
    sizes = [len(head) + sum(map(_nbytes, files[name])) for name, head in heads.items()]
    replaced = [*heads, *([INDEX] if base.indexed else [])] if overwrite else None
    if replaced is not None:
        refuse_own_base(output, replaced, base)
    with output_directory(output, options, replaced=replaced) as directory:
        place = directory.path if is_url(output) else os.path.dirname(directory.path)
        what, size = ("a file of it has", max(sizes)) if is_url(output) else ("the step has", sum(sizes))
        check_room(place, directory.shown, what, size, "choose a place with more room, or set TMPDIR to one for a URL")
        for name, head in heads.items():
            with directory.file(name) as out:
                out.write(head)
                for info in files[name]:
                    for bits in _pieces(reader, info):
                        out.write(bits.view(np.uint8).data)
                        on_bytes(bits.nbytes)
        for name, note in notes.items():
            with directory.file(name) as out:
                out.write(note)
        for name, content in one_last(INDEX if base.indexed else CONFIG, _others(base, files)):
            with directory.file(name) as out:
                for data in content:
                    out.write(data)


def _others(base: SafetensorsCheckpoint, files: dict[str, list[TensorInfo]]) -> Iterator[tuple[str, Iterable[bytes]]]:
    if base.indexed:
        place = {info.name: name for name, infos in files.items() for info in infos}
        yield INDEX, [index_of(place, sum(_nbytes(info) for infos in files.values() for info in infos))]
    names = [name for name in base.side_files if file_allowed(name)]
    for name, data in zip(names, base.read_files(names), strict=True):
        yield name, [data]


def _pieces(reader: TensorReader, info: TensorInfo) -> Iterator[Bits]:
    """Yield the elements of a tensor, several pieces of which are read at the same time."""
    begins, batch = range(0, info.size, PIECE), AHEAD * cpu_count()
    for at in range(0, len(begins), batch):
        yield from parallel_map(
            lambda lo: reader.read(info.name, lo, min(lo + PIECE, info.size)), begins[at : at + batch]
        )


def _head(infos: Iterable[TensorInfo]) -> bytes:
    return build([(info.name, info.dtype, info.shape, _nbytes(info)) for info in infos], {"format": "pt"})


def _nbytes(info: TensorInfo) -> int:
    return info.size * ITEMSIZE[info.dtype]
