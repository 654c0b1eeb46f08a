"""Files of `torch.save`, opened without loading anything: their structure, and where the bytes of each storage lie.

Two kinds: zip archives, which torch writes since 1.6, and the sequence of pickles before that. Storages are read in
ranges from both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from relex_codec.core.dtypes import ITEMSIZE
from relex_codec.core.text import quote
from relex_codec.errors import CheckpointError, Truncated
from relex_codec.format.safetensors_header import LFS_POINTER, lfs_pointer
from relex_codec.storage.source import Source

from .boxed import Place, Storage, StoredBox
from .boxes import Box, row_major
from .checkpoint import TensorInfo
from .records import Global, Pairs
from .torch_values import (
    StorageKey,
    StoredTensor,
    allowed_of_shards,
    allowed_of_tensors,
    check_in_storage,
    storage_of,
    tensor_of,
)
from .unpickling import LIMIT, unpickle
from .zip_directory import LOCAL_HEADER, TAIL, Member, Read, data_begin, read_directory

HEAD: Final = 4 << 10
"""Bytes of an archive with one tensor that are read from each of its ends: what describes it fits."""
_LEGACY: Final = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""The pickle that files of torch before 1.6 begin with, or of ``_use_new_zipfile_serialization=False``."""
_LEGACY_FIRST: Final = 1 << 20
_PICKLE: Final = "/data.pkl"


class TorchFile(NamedTuple):
    """What a file of `torch.save` holds.

    Attributes:
        value: what was saved, as `unpickle` returns it.
        storages: where each storage lies, by its key.
        where: what to call it in messages.
    """

    value: Any
    storages: dict[str, Storage]
    where: str

    def box(self, tensor: StoredTensor, box: Box, name: str) -> StoredBox:
        """Return where a tensor lies, as a box of a tensor called `name`.

        Raises:
            CheckpointError: it does not lie within its storage.
        """
        storage = self.storages.get(tensor.storage.key)
        if storage is None:
            raise CheckpointError(f"{self.where} lacks storage {quote(tensor.storage.key)} of {quote(name)}")
        try:
            check_in_storage(tensor, ITEMSIZE[tensor.dtype], storage.size)
        except ValueError as e:
            raise CheckpointError(f"{self.where}: tensor {quote(name)} {e}") from None
        plain = tensor.strides == row_major(tensor.shape)
        return StoredBox(box, storage, tensor.first, None if plain and box.sizes == tensor.shape else tensor.strides)


def open_torch_file(source: Source, number: int, *, shards: bool = False) -> TorchFile:
    """Open a file of `torch.save`.

    Args:
        number: of the file, for `Storage.file`.
        shards: whether its tensors may be parts of others.

    Raises:
        CheckpointError: it is none, or holds what is not read.
        Truncated: it ends early.
    """
    allowed = allowed_of_shards if shards else allowed_of_tensors
    start = source.read_cached(0, min(source.size, HEAD))
    if start.startswith(LFS_POINTER):
        raise CheckpointError(lfs_pointer(source.path))
    if start.startswith(_LEGACY):
        return _open_legacy(source, number, allowed)
    if not start.startswith(b"PK\x03\x04"):
        raise CheckpointError(f"{source.path} is no file of torch.save, expected one; it begins with {start[:8]!r}")
    return _open_zip(source.read_cached, Storage(number, 0, source.size), source.path, allowed)


def _open_zip(read: Read, place: Storage, where: str, allowed: Callable[[Global], bool], tail: int = TAIL) -> TorchFile:
    """Open an archive, which `read` reads from its beginning on."""
    members = read_directory(read, place.size, where, tail)
    pickles = [name for name in members if name.endswith(_PICKLE) and name.count("/") == 1]
    if len(pickles) != 1 or any(name.endswith("/constants.pkl") for name in members):
        what = "a TorchScript archive" if pickles else f"a zip archive without {_PICKLE[1:]}"
        raise CheckpointError(f"{where} is {what}, expected what torch.save writes of a state dict")
    root = pickles[0].removesuffix(_PICKLE)
    if members[pickles[0]].size > LIMIT:
        raise CheckpointError(f"{where} has a pickle of {members[pickles[0]].size} bytes, at most {LIMIT} are read")
    order = members.get(f"{root}/byteorder")
    if order is not None and order.size < 100 and (found := _read_member(read, order, where)) != b"little":
        raise CheckpointError(
            f"{where} has byte order {quote(found)}, expected little; save it again on another machine"
        )
    storages: dict[str, Storage] = {}

    def persistent(identifier: Any) -> StorageKey:
        storage = storage_of(identifier)
        member = members.get(f"{root}/data/{storage.key}")
        nbytes = storage.count * (1 if storage.dtype is None else ITEMSIZE[storage.dtype])
        if member is None or member.size < nbytes:
            there = "lacks it" if member is None else f"has {member.size}"
            raise ValueError(f"refers to storage {quote(storage.key)} of {nbytes} bytes, the archive {there}")
        storages[storage.key] = Storage(place.file, place.begin + member.header, nbytes, member.name_length)
        return storage

    raw = _read_member(read, members[pickles[0]], where)
    value, _ = unpickle(raw, where, allowed=allowed, persistent=persistent)
    return TorchFile(value, storages, where)


def _read_member(read: Read, member: Member, where: str) -> bytes:
    """Return the data of a small member."""
    likely = member.likely_begin()
    raw = read(member.header, likely + member.size)
    begin = data_begin(member, raw[:LOCAL_HEADER], where)
    if begin <= likely:
        return raw[begin - member.header : begin - member.header + member.size]
    return read(begin, begin + member.size)


def open_archive_of_one(source: Source, storage: Storage, info: TensorInfo, box: Box) -> Place:
    """Find the tensor in an archive that lies within a file and has one tensor in it; see `boxed.OpenArchive`.

    Raises:
        CheckpointError: it is not the box that its metadata say.
    """
    size = storage.size
    spans = [(0, min(HEAD, size)), (max(0, size - HEAD), size)] if size > 4 * HEAD else [(0, size)]
    held = source.read_many([(storage.begin + a, storage.begin + b) for a, b in spans])

    def read(start: int, end: int) -> bytes:
        for (begin, stop), data in zip(spans, held, strict=True):
            if begin <= start and end <= stop:
                return data[start - begin : end - begin]
        return source.read(storage.begin + start, storage.begin + end)

    where = f"{source.path} from byte {storage.begin} on"
    file = _open_zip(read, Storage(storage.file, 0, size), where, allowed_of_tensors, HEAD)
    try:
        tensor = tensor_of(file.value)
    except ValueError as e:
        raise CheckpointError(f"{where}: {quote(info.name)} {e}") from None
    if not isinstance(tensor, StoredTensor) or (tensor.dtype, tensor.shape) != (info.dtype, box.sizes):
        found = f"{tensor.dtype} {list(tensor.shape)}" if isinstance(tensor, StoredTensor) else "something else"
        raise CheckpointError(f"{where} has {found}, expected {info.dtype} {list(box.sizes)} of {quote(info.name)}")
    stored = file.box(tensor, box, info.name)
    begin = data_begin(stored.storage.member, read(stored.storage.begin, stored.storage.begin + LOCAL_HEADER), where)
    if begin + stored.storage.size > size:
        raise CheckpointError(f"{where} is damaged: {quote(info.name)} would end after its archive")
    return Place(storage.begin + begin + stored.first * ITEMSIZE[info.dtype], tensor.strides)


def _open_legacy(source: Source, number: int, allowed: Callable[[Global], bool]) -> TorchFile:
    """Open a file of pickles one after another, and then the storages: for each its count, and its elements."""
    length, limit = _LEGACY_FIRST, min(source.size, LIMIT)
    while True:
        length = min(length, limit)
        data = source.read_cached(0, length)
        keys: dict[str, StorageKey] = {}

        def persistent(identifier: Any, keys: dict[str, StorageKey] = keys) -> StorageKey:
            storage = storage_of(identifier)
            keys.setdefault(storage.key, storage)
            return storage

        try:
            at = len(_LEGACY)
            parts = []
            for _ in range(4):  # version of the protocol, byte order, what was saved, keys of storages
                value, at = unpickle(data, source.path, allowed=allowed, persistent=persistent, start=at)
                parts.append(value)
            break
        except CheckpointError:
            if length == limit:
                raise
            length *= 4
    _, system, value, order = parts
    if type(system) is not Pairs or system.by_name().get("little_endian") is not True:
        raise CheckpointError(f"{source.path} is not of little-endian byte order; save it again on another machine")
    if type(order) is not list or not all(type(key) is str for key in order) or len(set(order)) != len(order):
        raise CheckpointError(f"{source.path} does not say where its storages lie; save it again")
    storages: dict[str, Storage] = {}
    for key in order:
        at += 8
        size = keys[key].count * ITEMSIZE[keys[key].dtype or "U8"] if key in keys else -1
        if size < 0:
            raise CheckpointError(f"{source.path} has storage {quote(key)}, which no tensor has; save it again")
        storages[key] = Storage(number, at, size)
        at += size
    if at > source.size:
        raise Truncated(f"{source.path} has {source.size} bytes, its tensors need {at}")
    if at < source.size:
        raise CheckpointError(f"{source.path} has {source.size} bytes, its tensors need {at}: extra bytes at the end")
    return TorchFile(value, storages, source.path)


def whole(tensor: StoredTensor) -> Box:
    """Return the box that is all of a tensor."""
    return Box((0,) * len(tensor.shape), tensor.shape)


def nbytes_of(tensor: StoredTensor) -> int:
    """Return the bytes of the elements of a tensor."""
    return math.prod(tensor.shape) * ITEMSIZE[tensor.dtype]
