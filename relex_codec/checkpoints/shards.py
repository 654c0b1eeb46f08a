"""Shards of FSDP as verl and SkyRL leave them: a file of `torch.save` for each rank, with a part of every tensor.

``model_world_size_W_rank_R.pt`` is the state dict of rank R: DTensors (FSDP2, and FSDP1 over a mesh) or ShardedTensors
(FSDP1), and plain tensors, which all ranks have alike. What verl's ``model_merger`` joins is read here in place.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Final

from relex_codec.core.text import quote
from relex_codec.core.threads import IO_THREADS, parallel_map
from relex_codec.errors import CheckpointError
from relex_codec.storage.urls import Options, join_path, without_secrets

from .boxed import BoxedCheckpoint, Known, StoredBox, check_boxes, open_sources, shared
from .boxes import Box, Sizes, row_major
from .checkpoint import TensorInfo
from .files import list_side_files
from .model_keys import is_of_model, left_out, model_prefix
from .naming import some
from .pickled import flattened
from .torch_archive import TorchFile, open_torch_file, whole
from .torch_values import Cut, Placed, Sharded, StoredTensor, tensor_of

RANK_FILE: Final = re.compile(r"model_world_size_([0-9]{1,6})_rank_([0-9]{1,6})\.pt")
BESIDE: Final = "huggingface"
"""Where verl puts configuration and tokenizer, below the directory of the shards."""

Local = StoredTensor | Placed | Sharded


def rank_files(names: Collection[str], where: str) -> list[str]:
    """Return the files of all ranks, by rank, of those that a directory has.

    Raises:
        CheckpointError: there are those of several sizes of the group, or some are missing.
    """
    found = [match for match in map(RANK_FILE.fullmatch, names) if match]
    sizes = sorted({int(match[1]) for match in found})
    if len(sizes) != 1:
        raise CheckpointError(
            f"{where} has shards of {len(sizes)} groups of ranks, of world sizes {some(map(str, sizes))}, "
            "expected those of one; remove those that are left over"
        )
    wanted = files_of(sizes[0])
    if missing := [name for name in wanted if name not in names]:
        raise CheckpointError(f"{where} is incomplete: shard {missing[0]} is missing ({len(missing)} of {sizes[0]})")
    return wanted


def files_of(size: int) -> list[str]:
    """Return the names of the files of a group of ranks."""
    return [f"model_world_size_{size}_rank_{rank}.pt" for rank in range(size)]


def open_shards(
    path: str, options: Options = None, *, names: Collection[str] = (), known: Known | None = None
) -> BoxedCheckpoint:
    """Open a checkpoint of FSDP shards.

    Args:
        path: of the file of a rank; the others lie beside it.
        names: what the model's tensors are called, as far as that is known.
        known: tables of earlier checkpoints, which are shared and added to.

    Raises:
        CheckpointError: a file is missing or cannot be read, a tensor is not whole, or placed as is not read.
        Truncated: a file ends early.
    """
    folder, _, name = path.rpartition("/")
    folder, where = folder or ".", f"checkpoint {without_secrets(path.rpartition('/')[0] or '.')}"
    match = RANK_FILE.fullmatch(name)
    if match is None:
        raise CheckpointError(f"{where}: {quote(name)} is not the shard of a rank")
    size = int(match[1])
    sources = open_sources([join_path(folder, file) for file in files_of(size)], options)
    files = parallel_map(lambda rank: open_torch_file(sources[rank], rank, shards=True), range(size), IO_THREADS)
    states = list(parallel_map(_tensors, files, IO_THREADS))
    prefix = model_prefix(states[0][0], names, where)
    infos: dict[str, TensorInfo] = {}
    boxes: dict[str, Sequence[StoredBox]] = {}
    copies: dict[str, Sequence[StoredBox]] = {}
    for key in states[0][0]:
        if not is_of_model(key, prefix, names):
            continue
        parts = [(file, state[key]) for file, (state, _) in zip(files, states, strict=True) if key in state]
        try:
            info, found, same = _joined(key, key[len(prefix) :], parts, size)
        except ValueError as e:
            raise CheckpointError(f"{where}: tensor {quote(key)} {e}") from None
        infos[info.name], boxes[info.name] = info, found
        if same:
            copies[info.name] = same
    if lost := next((key for state, _ in states for key in state if key not in states[0][0]), None):
        raise CheckpointError(f"{where}: tensor {quote(lost)} is not in the shard of rank 0; save it again")
    table = infos, boxes
    check_boxes(where, table)
    rest = [(key, 0) for key in states[0][0] if not is_of_model(key, prefix, names)]
    others = [(key, 0) for _, found_others in states for key in found_others]
    notes = [left_out(prefix, rest, "tensors"), left_out(prefix, others, "values")]
    return BoxedCheckpoint(
        without_secrets(folder), shared(table, known), sources, copies=copies,
        side_files=list_side_files(join_path(folder, BESIDE), options), storage_options=options,
        notes=list(filter(None, notes)),
    )  # fmt: skip


def _tensors(file: TorchFile) -> tuple[dict[str, Local], list[str]]:
    """Return the tensors of a rank's state dict by key, and the keys of what is none."""
    tensors: dict[str, Local] = {}
    others: list[str] = []
    for key, value in flattened(file.value, file.where):
        try:
            tensor = tensor_of(value)
        except ValueError as e:
            raise CheckpointError(f"{file.where}: {quote(key)} {e}") from None
        if tensor is None:
            others.append(key)
        else:
            tensors[key] = tensor
    return tensors, others


def _joined(
    key: str, name: str, parts: list[tuple[TorchFile, Local]], size: int
) -> tuple[TensorInfo, list[StoredBox], list[StoredBox]]:
    """Return a tensor of all ranks, where its boxes lie, and further copies of it.

    Args:
        key: what the files call it.
        name: what the model calls it.
        parts: of the ranks that have it, in their order.
        size: how many ranks there are.

    Raises:
        ValueError: its parts do not fit together; the message is what follows its name.
    """
    first = parts[0][1]
    if any(type(part) is not type(first) for _, part in parts) or (len(parts) != size and not _is_sharded(first)):
        raise ValueError(f"is not of one kind on all {size} ranks; save it again")
    if isinstance(first, StoredTensor):
        plain = [(file, part) for file, part in parts if isinstance(part, StoredTensor)]
        return _same_on_all(key, name, plain)
    if isinstance(first, Sharded):
        listed = [(file, part) for file, part in parts if isinstance(part, Sharded)]
        return _of_listed_parts(key, name, listed)
    placed = [(file, part) for file, part in parts if isinstance(part, Placed)]
    return _of_placed_parts(key, name, placed, size)


def _is_sharded(part: Local) -> bool:
    return isinstance(part, Sharded)


def _same_on_all(
    key: str, name: str, parts: list[tuple[TorchFile, StoredTensor]]
) -> tuple[TensorInfo, list[StoredBox], list[StoredBox]]:
    """A plain tensor: a buffer, or a parameter that no rank shards."""
    tensor = parts[0][1]
    if any((part.dtype, part.shape) != (tensor.dtype, tensor.shape) for _, part in parts):
        raise ValueError("is not sharded and has other shapes on other ranks, expected one; save it again")
    found = [file.box(part, whole(part), key) for file, part in parts]
    return TensorInfo(name, tensor.dtype, tensor.shape), found[:1], found[1:]


def _of_listed_parts(
    key: str, name: str, parts: list[tuple[TorchFile, Sharded]]
) -> tuple[TensorInfo, list[StoredBox], list[StoredBox]]:
    """A ShardedTensor: each part says where it belongs; what a rank holds beyond that is padding."""
    shape, dtype = parts[0][1].shape, next((p[2].dtype for _, part in parts for p in part.parts), None)
    if dtype is None:
        raise ValueError("has no part on any rank; save it again")
    boxes = []
    for file, part in parts:
        if part.shape != shape:
            raise ValueError(f"is {list(shape)} on one rank and {list(part.shape)} on another; save it again")
        for offsets, sizes, local in part.parts:
            boxes.append(_cut(file, key, local, Box(offsets, sizes), dtype))
    return TensorInfo(name, dtype, shape), boxes, []


def _of_placed_parts(
    key: str, name: str, parts: list[tuple[TorchFile, Placed]], size: int
) -> tuple[TensorInfo, list[StoredBox], list[StoredBox]]:
    """A DTensor: each rank has the box that its place in the mesh gives; ranks with the same box are alike (HSDP)."""
    first = parts[0][1]
    shape, dtype = first.shape, first.local.dtype
    found: list[StoredBox] = []
    for rank, (file, part) in enumerate(parts):
        if (part.shape, part.cuts, part.mesh) != (shape, first.cuts, first.mesh):
            raise ValueError("is placed in other ways on other ranks; save it again")
        mesh = part.mesh or (size,)
        at = part.coordinate if part.coordinate is not None else _unravelled(rank, mesh)
        if len(at) != len(mesh) or not all(i < n for i, n in zip(at, mesh, strict=True)):
            raise ValueError(f"lies on a mesh of {list(mesh)}, in which rank {rank} has no place; save it again")
        found.append(_cut(file, key, part.local, box_of_rank(shape, part.cuts, mesh, at), dtype))
    if not first.cuts:
        return TensorInfo(name, dtype, shape), found[:1], found[1:]
    different = {stored.box: stored for stored in reversed(found) if stored.box.size}
    return TensorInfo(name, dtype, shape), sorted(different.values()) or found[:1], []


def _unravelled(rank: int, mesh: Sizes) -> Sizes:
    """Return where in a mesh a rank is, if its ranks are in their order."""
    return tuple(rank // stride % n for stride, n in zip(row_major(mesh), mesh, strict=True))


def box_of_rank(shape: Sizes, cuts: Sequence[Cut], mesh: Sizes, at: Sizes) -> Box:
    """Return which part of a tensor a rank has: along each cut one of those of `torch.chunk`, the last ones smaller.

    Raises:
        ValueError: the tensor has no such dimension.

    Examples:
        >>> [box_of_rank((5, 8), [Cut(0, 0)], (4,), (rank,)).sizes for rank in range(4)]
        [(2, 8), (2, 8), (1, 8), (0, 8)]
        >>> box_of_rank((8, 8), [Cut(0, 1), Cut(0, 0)], (2, 2), (1, 0)).offsets  # of the first half, the second one
        (2, 0)
    """
    offsets, sizes = [0] * len(shape), list(shape)
    for cut in cuts:
        if cut.dim >= len(shape) or cut.axis >= len(mesh):
            raise ValueError(f"is {list(shape)} and cut along dimension {cut.dim}; save it again")
        length = -(-sizes[cut.dim] // mesh[cut.axis])
        begin = min(at[cut.axis] * length, sizes[cut.dim])
        offsets[cut.dim] += begin
        sizes[cut.dim] = min(length, sizes[cut.dim] - begin)
    return Box(tuple(offsets), tuple(sizes))


def _cut(file: TorchFile, key: str, local: StoredTensor, box: Box, dtype: str) -> StoredBox:
    """Return where a box lies that a rank has in a tensor of at least its size: what is beyond it is padding.

    Raises:
        ValueError: the rank's tensor is smaller, or of another dtype.
    """
    same_rank = len(local.shape) == len(box.sizes)
    if local.dtype != dtype or not same_rank or any(n < m for n, m in zip(local.shape, box.sizes, strict=True)):
        raise ValueError(
            f"has a part {local.dtype} {list(local.shape)} in {file.where}, expected {dtype} {list(box.sizes)}"
        )
    stored = file.box(local, box, key)
    plain = local.strides == row_major(local.shape) and local.shape == box.sizes
    return stored if plain else stored._replace(strides=local.strides)
