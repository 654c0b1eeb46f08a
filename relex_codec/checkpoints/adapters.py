"""Adapters: what PEFT saves of a LoRA run, ``adapter_model.safetensors`` and ``adapter_config.json``.

The tensors of such a run are those of the adapter. The base is not among them: it is only needed to merge
(run/merged_adapter.py).
"""

from __future__ import annotations

from relex_codec.core.filenames import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from relex_codec.errors import CheckpointError
from relex_codec.storage.urls import Options, without_secrets

from .boxed import Known
from .checkpoint import TensorReader
from .files import list_side_files
from .pickled import open_pickled
from .safetensors import open_checkpoint


def open_adapter(path: str, options: Options = None, *, known: Known | None = None) -> TensorReader:
    """Open an adapter.

    Args:
        path: of its weights, ``adapter_model.safetensors`` or ``adapter_model.bin``; local or an fsspec URL.
        known: tables of earlier adapters, which are shared and added to.

    Raises:
        CheckpointError: it has no configuration, or cannot be read.
        Truncated: a file ends early.
    """
    folder = path.rpartition("/")[0] or "."
    side_files = list_side_files(folder, options, [ADAPTER_WEIGHTS])
    if ADAPTER_CONFIG not in side_files:
        raise CheckpointError(f"adapter {without_secrets(folder)} is incomplete: it has no {ADAPTER_CONFIG}")
    if path.endswith(".safetensors"):
        whole = open_checkpoint(path, options, known=known)
        whole.take_side_files(side_files)
        return whole
    pickled = open_pickled(path, options, known=known)
    pickled.take_side_files(side_files)
    pickled.shards = [ADAPTER_WEIGHTS]
    return pickled
