"""What `torch.save` writes for a tensor, understood without torch: names, storages, placements of shards. No I/O.

Records of unpickling.py come in; what is not a tensor of a kind known here is refused by its name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from relex_codec.core.text import quote
from relex_codec.format.safetensors_header import DIMENSIONS_LIMIT, ELEMENTS_LIMIT

from .boxes import Sizes
from .records import Global, Made, Pairs

DTYPES: Final = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "uint32": "U32", "int32": "I32",
    "uint64": "U64", "int64": "I64", "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64",
    "complex64": "C64", "float8_e4m3fn": "F8_E4M3", "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2": "F8_E5M2",
    "float8_e5m2fnuz": "F8_E5M2FNUZ", "float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip
"""Dtypes of torch by their safetensors names."""
STORAGES: Final = {
    "BoolStorage": "BOOL", "ByteStorage": "U8", "CharStorage": "I8", "ShortStorage": "I16", "IntStorage": "I32",
    "LongStorage": "I64", "HalfStorage": "F16", "BFloat16Storage": "BF16", "FloatStorage": "F32",
    "DoubleStorage": "F64", "ComplexFloatStorage": "C64",
}  # fmt: skip
"""Dtypes of the storages of torch, which tensors take over."""
_UNTYPED: Final = frozenset({"UntypedStorage", "_UntypedStorage"})
_OTHER_DTYPES: Final = frozenset({
    "complex32", "complex128", "quint8", "qint8", "qint32", "float4_e2m1fn_x2", "half", "float", "double", "long",
    "int", "short", "ComplexDoubleStorage",
})  # fmt: skip
_REBUILD: Final = frozenset({"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"})
_ALLOWED: Final[dict[str, frozenset[str]]] = {
    "collections": frozenset({"OrderedDict"}),
    "torch": frozenset({*DTYPES, *STORAGES, *_OTHER_DTYPES, "Size", "device", "strided"}),
    "torch.storage": frozenset({*_UNTYPED, "TypedStorage", "_TypedStorage"}),
    "torch.serialization": frozenset({"_get_layout"}),
    "torch._tensor": frozenset({"_rebuild_from_type_v2"}),
    "torch._utils": _REBUILD
    | {"_rebuild_parameter", "_rebuild_parameter_with_state", "_rebuild_wrapper_subclass"},
    "torch.nn.parameter": frozenset({"Parameter"}),
}  # fmt: skip
_OF_SHARDS: Final = frozenset({
    "DTensor", "DTensorSpec", "TensorMeta", "ShardOrderEntry", "DeviceMesh", "_MeshLayout", "_FlatLayout", "Shard",
    "_StridedShard", "Replicate", "Partial", "_Partial", "ShardedTensor", "ShardMetadata", "ShardedTensorMetadata",
    "TensorProperties", "MEM_FORMAT_ENCODING", "ChunkShardingSpec", "EnumerableShardingSpec", "_remote_device",
})  # fmt: skip
"""Of ``torch.distributed``, whose modules have other names in each release."""


def allowed_of_tensors(name: Global) -> bool:
    """Tell whether a name may occur in a file of plain tensors."""
    return name.name in _ALLOWED.get(name.module, ())


def allowed_of_shards(name: Global) -> bool:
    """Tell whether a name may occur in a file of tensors that are parts of others."""
    if allowed_of_tensors(name) or (name.module.startswith("torch.distributed.") and name.name in _OF_SHARDS):
        return True
    # ShardedTensor names the class of its group of ranks by ``getattr``, which is recorded like everything else
    return name in (Global("__builtin__", "getattr"), Global("builtins", "getattr"))


@dataclass(frozen=True, slots=True)
class StorageKey:
    """A storage that a pickle refers to.

    Attributes:
        key: its name in the file.
        dtype: of its elements; None: bytes, whose tensors say what they are.
        count: of elements, or of bytes.
    """

    key: str
    dtype: str | None
    count: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as a part of a storage.

    Attributes:
        first: element of the storage that its first element is.
        strides: in elements.
    """

    dtype: str
    shape: Sizes
    storage: StorageKey
    first: int
    strides: Sizes


class Cut(NamedTuple):
    """A dimension of a tensor that is cut, and the dimension of the mesh whose ranks have the parts."""

    dim: int
    axis: int


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor of which this file has a part, as a DTensor.

    Attributes:
        cuts: one after another, which dimension of the tensor is cut between the ranks along which dimension of the
            mesh; along the others it is the same on all.
        mesh: lengths of the mesh of ranks.
        coordinate: of the rank in the mesh; None where the file does not say.
    """

    shape: Sizes
    local: StoredTensor
    cuts: tuple[Cut, ...]
    mesh: Sizes
    coordinate: Sizes | None


@dataclass(frozen=True, slots=True)
class Sharded:
    """A tensor of which this file has some boxes, as a ShardedTensor: where each begins, its shape, its storage."""

    shape: Sizes
    parts: tuple[tuple[Sizes, Sizes, StoredTensor], ...]


def storage_of(identifier: Any) -> StorageKey:
    """Return what a persistent identifier refers to.

    Raises:
        ValueError: it is no storage, or one of a dtype that cannot be stored.
    """
    if type(identifier) is not tuple or len(identifier) < 5 or identifier[0] not in ("storage", b"storage"):
        raise ValueError("refers to something outside that is no storage")
    _, kind, key, _, count = identifier[:5]
    if type(kind) is not Global or type(key) is not str or not _is_size(count):
        raise ValueError("refers to a storage that is none")
    if len(identifier) > 5 and identifier[5] is not None:
        raise ValueError("has a storage that is a view of another, which only torch before 0.4 wrote")
    if kind.name in _UNTYPED:
        return StorageKey(key, None, count)
    if kind.name not in STORAGES:
        raise ValueError(f"has a storage of {quote(kind.name)}, whose dtype cannot be stored")
    return StorageKey(key, STORAGES[kind.name], count)


def tensor_of(value: Any) -> StoredTensor | Placed | Sharded | None:
    """Return the tensor that a record makes; None if it makes none.

    Raises:
        ValueError: it makes a tensor of a kind that is not read; the message is what follows its name.
    """
    value = _unwrapped(value)
    if type(value) is Made and value.name == "_rebuild_from_type_v2" and len(value.args) == 4:
        what, kind, _, state = value.args
        if type(what) is Global and what.name == "_rebuild_wrapper_subclass":
            if type(kind) is Global and kind.name == "DTensor":
                return _placed(state)
            if type(kind) is Global and kind.name == "ShardedTensor":
                return _sharded(state)
            raise ValueError(f"is of class {_label(kind)}, expected a plain tensor, DTensor or ShardedTensor")
    return _plain_of(value)


def _unwrapped(value: Any) -> Any:
    """Return the tensor within parameters."""
    while type(value) is Made and value.name in ("_rebuild_parameter", "_rebuild_parameter_with_state") and value.args:
        value = value.args[0]
    return value


def _plain_of(value: Any) -> StoredTensor | None:
    """Return a plain tensor, of a subclass too; None if it is none."""
    value = _unwrapped(value)
    if type(value) is not Made:
        return None
    if value.name in _REBUILD:
        return _plain(value.name, value.args)
    if value.name == "_rebuild_from_type_v2" and len(value.args) == 4:
        what, _, inner, _ = value.args
        if type(what) is Global and what.name in _REBUILD and type(inner) is tuple:
            return _plain(what.name, inner)
        raise ValueError("is a tensor of a kind that is not read")
    return None


def _plain(name: str, args: tuple[Any, ...]) -> StoredTensor:
    if len(args) < 4 or type(args[0]) is not StorageKey or not _is_size(args[1]):
        raise ValueError("is no tensor: it has no storage")
    storage, first, shape, strides = args[0], args[1], sizes_of(args[2]), sizes_of(args[3])
    if shape is None or strides is None or len(shape) != len(strides):
        raise ValueError("has a shape that is none")
    dtype = storage.dtype
    if name == "_rebuild_tensor_v3":
        dtype = dtype_of(args[6] if len(args) > 6 else None)
    if dtype is None:
        raise ValueError("has bytes for a storage and no dtype")
    if len(shape) > DIMENSIONS_LIMIT or max(shape, default=0) > ELEMENTS_LIMIT or math.prod(shape) > ELEMENTS_LIMIT:
        raise ValueError(f"has shape {quote(list(shape))}, more than {ELEMENTS_LIMIT} elements")
    return StoredTensor(dtype, shape, storage, first, strides)


def _placed(state: Any) -> Placed:
    attributes = attributes_of(state)
    spec = attributes.get("_spec")
    local = _plain_of(attributes.get("_local_tensor"))
    if type(spec) is not Made or local is None:
        raise ValueError("is a DTensor without a local tensor")
    of_spec = spec.attributes()
    meta, mesh, placements = of_spec.get("tensor_meta"), of_spec.get("mesh"), of_spec.get("placements")
    shape = sizes_of(meta.args[0]) if type(meta) is Made and meta.args else None
    if shape is None or type(mesh) is not Made or type(placements) is not tuple:
        raise ValueError("is a DTensor whose placement is not told")
    lengths, coordinate = _mesh(mesh.attributes(), len(placements))
    return Placed(shape, local, _cuts(placements, of_spec.get("shard_order"), lengths), lengths, coordinate)


def _cuts(placements: tuple[Any, ...], order: Any, mesh: Sizes) -> tuple[Cut, ...]:
    """Return the cuts of a tensor in their order: that of the mesh, but where placements or the order say otherwise.

    ``_StridedShard`` is a cut of what later dimensions of the mesh have cut before, as FSDP is over tensor parallelism.
    """
    found: list[Cut] = []
    for axis, placement in reversed(list(enumerate(placements))):
        name = placement.name if type(placement) is Made else ""
        if name == "Replicate":
            continue
        attributes = placement.attributes() if name in ("Shard", "_StridedShard") else {}
        dim = attributes.get("dim", placement.args[0] if attributes == {} and name and placement.args else None)
        if name not in ("Shard", "_StridedShard") or type(dim) is not int or dim < 0:
            raise ValueError(f"is a DTensor placed as {_label(placement)}, expected Shard or Replicate")
        if name == "Shard":
            found.insert(0, Cut(dim, axis))
            continue
        later = [mesh[cut.axis] for cut in found if cut.dim == dim] if mesh else []
        if attributes.get("split_factor") != math.prod(later) or not mesh:
            raise ValueError(
                f"is a DTensor placed as _StridedShard({dim}, split_factor={quote(attributes.get('split_factor'))}) "
                f"on a mesh of {list(mesh)}, which is not read; let the trainer save whole tensors"
            )
        found.append(Cut(dim, axis))
    if type(order) is tuple and not any(type(p) is Made and p.name == "_StridedShard" for p in placements):
        said = [Cut(entry.args[0], axis) for entry in order if type(entry) is Made and len(entry.args) == 2
                for axis in sizes_of(entry.args[1]) or ()]  # fmt: skip
        if sorted(said) != sorted(found):
            raise ValueError("is a DTensor whose placement and order of cuts do not agree; save it again")
        return tuple(said)
    return tuple(found)


def _mesh(attributes: dict[str, Any], dimensions: int) -> tuple[Sizes, Sizes | None]:
    """Return the lengths of a mesh, () where they are not told, and where in it the rank is that saved."""
    lengths: Sizes = ()
    layout, tensor = attributes.get("_layout"), attributes.get("mesh")
    if type(layout) is Made:  # torch 2.9 and later
        axes = layout.attributes().get("axes")
        if type(axes) is tuple:
            shapes = [axis.attributes().get("shape") if type(axis) is Made else None for axis in axes]
        else:
            whole = layout.attributes().get("shape", layout.args[0] if layout.args else None)
            shapes = list(whole) if type(whole) is tuple else [whole]
        flat = [sizes_of(shape if type(shape) is tuple else (shape,)) for shape in shapes]
        if None not in flat:
            lengths = tuple(math.prod(shape) for shape in flat if shape is not None)
    elif (found := _plain_of(tensor)) is not None:
        lengths = found.shape
    return lengths if len(lengths) == dimensions else (), sizes_of(attributes.get("_coordinate_on_dim"))


def _sharded(state: Any) -> Sharded:
    if type(state) is not tuple or len(state) < 2 or type(state[0]) is not list or type(state[1]) is not Made:
        raise ValueError("is a ShardedTensor whose parts are not told")
    shape = sizes_of(state[1].attributes().get("size"))
    parts: list[tuple[Sizes, Sizes, StoredTensor]] = []
    for shard in state[0]:
        attributes = shard.attributes() if type(shard) is Made else {}
        metadata, local = attributes.get("metadata"), _plain_of(attributes.get("tensor"))
        of_shard = metadata.attributes() if type(metadata) is Made else {}
        offsets, sizes = sizes_of(of_shard.get("shard_offsets")), sizes_of(of_shard.get("shard_sizes"))
        if offsets is None or sizes is None or local is None:
            raise ValueError("is a ShardedTensor with a part that is none")
        parts.append((offsets, sizes, local))
    if shape is None:
        raise ValueError("is a ShardedTensor without a shape")
    return Sharded(shape, tuple(parts))


def dtype_of(value: Any) -> str:
    """Return the safetensors name of a dtype of torch.

    Raises:
        ValueError: it is none that can be stored.
    """
    if type(value) is not Global or value.module != "torch" or value.name not in DTYPES:
        raise ValueError(f"has dtype {_label(value)}, which is not supported")
    return DTYPES[value.name]


def sizes_of(value: Any) -> Sizes | None:
    """Return a tuple, list or ``torch.Size`` of sizes; None if it is none."""
    if type(value) is Made and value.name == "Size" and len(value.args) <= 1:
        value = value.args[0] if value.args else ()
    if type(value) not in (tuple, list) or not all(map(_is_size, value)):
        return None
    return tuple(value)


def attributes_of(state: Any) -> dict[str, Any]:
    """Return the attributes that a state sets."""
    record = Made(None, ())
    record.state = state
    return record.attributes()


def state_dict_of(value: Any) -> dict[str, Any] | None:
    """Return a state dict by name: a dict, or an OrderedDict; None if it is neither."""
    if type(value) is Pairs:
        return value.by_name()
    if type(value) is Made and value.name == "OrderedDict":
        initial = value.args[0] if value.args else []
        listed = [tuple(pair) for pair in initial if type(pair) in (tuple, list) and len(pair) == 2]
        return Pairs([*listed, *value.items]).by_name()
    return None


def _label(value: Any) -> str:
    """Return what to call a value in a message: its own text could be as long as it likes."""
    if type(value) is Made:
        value = value.what
    return quote(str(value)) if type(value) is Global else type(value).__name__


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def check_in_storage(tensor: StoredTensor, width: int, nbytes: int) -> None:
    """Check that a tensor lies within the bytes of its storage, each element in a place of its own.

    Raises:
        ValueError: it does not.
    """
    count = math.prod(tensor.shape)
    reach = extent(tensor.shape, tensor.strides) if count else 0
    if (tensor.first + reach) * width > nbytes:
        raise ValueError(f"needs {tensor.first + reach} elements of a storage of {nbytes} bytes")
    if count > reach:
        raise ValueError(f"shares memory with itself: {count} elements in {reach} places; save it contiguous")


def extent(sizes: Sequence[int], strides: Sequence[int]) -> int:
    """Return how many elements of a storage a box spans, from its first to its last."""
    return 1 + sum((n - 1) * stride for n, stride in zip(sizes, strides, strict=True))
