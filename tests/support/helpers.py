"""Small checkpoints for tests, written without the code that is tested.

A tensor is a pair of its safetensors dtype and an array of its bits (unsigned integers of the element's width) with the
tensor's shape.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch

ELSEWHERE = tempfile.gettempdir()
"""Where subprocesses start: ``python -c`` puts its working directory first on the import path, and in the checkout that
would hide the package that is installed."""
Array = np.ndarray[Any, Any]
Tensor = tuple[str, Array]
WIDTH = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip


def bf16(values: Any) -> Tensor:
    """Return a BF16 tensor: float32 values rounded to nearest even (finite values only)."""
    u = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return "BF16", ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


def f16(values: Any) -> Tensor:
    """Return an F16 tensor."""
    return "F16", np.ascontiguousarray(values, np.float16).view(np.uint16)


def f32(values: Any) -> Tensor:
    """Return an F32 tensor."""
    return "F32", np.ascontiguousarray(values, np.float32).view(np.uint32)


def random_bits(dtype: str, shape: Sequence[int], seed: int = 0) -> Tensor:
    """Return a tensor of random bits: for floats, any value including NaNs; 0 or 1 for BOOL."""
    bits = np.random.default_rng(seed).integers(0, 256, (*shape, WIDTH[dtype]), np.uint8)
    if dtype == "BOOL":
        bits &= 1
    return dtype, bits.reshape(-1).view(f"<u{WIDTH[dtype]}").reshape(tuple(shape))


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return a safetensors file that holds `tensors` in the given order."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    at = 0
    for name, (dtype, bits) in tensors.items():
        size = bits.size * WIDTH[dtype]
        header[name] = {"dtype": dtype, "shape": list(bits.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(np.ascontiguousarray(bits).tobytes() for _, bits in tensors.values())
    return len(text).to_bytes(8, "little") + text + data


def checkpoint_files(
    tensors: Mapping[str, Tensor],
    *,
    shards: int = 1,
    index: bool | None = None,
    metadata: Mapping[str, str] | None = None,
    side: Mapping[str, Any] | None = None,
) -> dict[str, bytes]:
    """Return the files of a Hugging Face checkpoint by name.

    Parameters
    ----------
    tensors
        In the order in which they are laid out; shards take consecutive ones.
    shards
        1 makes ``model.safetensors``, more make ``model-0000i-of-0000n.safetensors``.
    index
        Whether there is an index; by default if there are several shards.
    metadata
        Of the safetensors files; ``{"format": "pt"}`` by default.
    side
        Further files: bytes as they are, anything else as JSON; a small ``config.json`` by default.
    """
    metadata = {"format": "pt"} if metadata is None else metadata
    names = list(tensors)
    files: dict[str, bytes] = {}
    weight_map = {}
    for i in range(shards):
        part = names[i * len(names) // shards : (i + 1) * len(names) // shards]
        file = "model.safetensors" if shards == 1 else f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        files[file] = safetensors_bytes({name: tensors[name] for name in part}, metadata)
        weight_map.update(dict.fromkeys(part, file))
    if shards > 1 if index is None else index:
        size = sum(bits.size * WIDTH[dtype] for dtype, bits in tensors.values())
        content = {"metadata": {"total_size": size}, "weight_map": weight_map}
        files["model.safetensors.index.json"] = json.dumps(content).encode()
    for name, value in ({"config.json": {"model_type": "test"}} if side is None else side).items():
        files[name] = value if isinstance(value, bytes) else json.dumps(value).encode()
    return files


def write_checkpoint(folder: Path, tensors: Mapping[str, Tensor], **options: Any) -> Path:
    """Write a checkpoint into `folder`, which is made; options are those of `checkpoint_files`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in checkpoint_files(tensors, **options).items():
        (folder / name).write_bytes(data)
    return folder


def write_run(
    root: Path,
    steps: Sequence[int],
    at: Callable[[int], Mapping[str, Tensor]],
    *,
    layout: str = "global_step_{}",
    **options: Any,
) -> Path:
    """Write a checkpoint for each step, with the tensors that `at` returns for it."""
    for step in steps:
        write_checkpoint(root / layout.format(step), at(step), **options)
    return root


@contextmanager
def empty_memory() -> Iterator[Any]:
    """Give fsspec's memory filesystem, which all tests share, and empty it before and after."""
    filesystem = fsspec.filesystem("memory")
    try:
        filesystem.store.clear()
        filesystem.pseudo_dirs[:] = [""]
        yield filesystem
    finally:
        filesystem.store.clear()
        filesystem.pseudo_dirs[:] = [""]


def upload(filesystem: Any, folder: Path, target: str) -> None:
    """Copy a local directory to a filesystem of fsspec."""
    for path in folder.rglob("*"):
        if path.is_file():
            filesystem.pipe_file(f"{target}/{path.relative_to(folder)}", path.read_bytes())


def bits_of(tensor: torch.Tensor) -> Array:
    """The bits of a tensor as unsigned integers."""
    width = tensor.element_size()
    signed = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[width]
    return tensor.detach().contiguous().reshape(-1).view(signed).numpy().view(f"u{width}")
