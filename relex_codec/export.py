"""Writing a step out as the Hugging Face checkpoint that the base is (FORMAT.md section 10)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from .atomic import AtomicDirectory
from .checkpoint import Checkpoint
from .decoder import Decoder
from .dtypes import ITEMSIZE
from .header import build
from .layouts import INDEX
from .manifest import TensorEntry, file_allowed
from .paths import PathLike


def export(
    decoder: Decoder,
    output: PathLike,
    step: float,
    tier: str,
    base: Callable[[], Checkpoint] | None,
    on_tensor: Callable[[TensorEntry], Any] = lambda _: None,
) -> None:
    """Write one step to the directory `output`, tensor by tensor; it appears when it is complete.

    Args:
        tier: as `decoder.choose_tier` returns it.
        base: where the base's other files come from; None for the embedded ones.
        on_tensor: called after each tensor.

    Raises:
        InvalidArgument: `output` is not empty or cannot be written.
    """
    manifest = decoder.container.index.manifest
    with AtomicDirectory(output) as directory:
        weight_map: dict[str, str] = {}
        total = 0
        for number, shard in enumerate(manifest.shards):
            tensors = [tensor for tensor in manifest.tensors if tensor.shard == number]
            if not tensors:
                continue
            entries = [(t.name, t.dtype, t.shape, t.size * ITEMSIZE[t.dtype]) for t in tensors]
            with directory.file(shard) as out:
                out.write(build(entries, {"format": "pt"}))
                for tensor in tensors:
                    out.write(decoder.read(tensor.name, step, tier).data)
                    weight_map[tensor.name] = shard
                    total += tensor.size * ITEMSIZE[tensor.dtype]
                    on_tensor(tensor)
        if manifest.indexed:
            document = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            _write(directory, INDEX, (json.dumps(document, indent=2) + "\n").encode())
        if base is None:
            for i, file in enumerate(manifest.files):
                with directory.file(file.name) as out:
                    for data in decoder.read_file(i):
                        out.write(data)
        else:
            checkpoint = base()
            for name in checkpoint.side_files:
                if file_allowed(name):
                    _write(directory, name, checkpoint.read_file(name))


def _write(directory: AtomicDirectory, name: str, data: bytes) -> None:
    with directory.file(name) as out:
        out.write(data)
