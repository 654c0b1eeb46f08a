"""Small checkpoints and runs on disk, written without the code that is tested."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .tensors import WIDTH, Tensor


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

    Args:
        tensors: in the order in which they are laid out; shards take consecutive ones.
        shards: 1 makes ``model.safetensors``, more make ``model-0000i-of-0000n.safetensors``.
        index: whether there is an index; by default if there are several shards.
        metadata: of the safetensors files; ``{"format": "pt"}`` by default.
        side: further files: bytes as they are, anything else as JSON; a small ``config.json`` by default.
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
