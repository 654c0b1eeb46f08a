"""Copying a step into the parameters of a live module."""

from __future__ import annotations

from typing import Any

import torch

from relex_codec.core.torch_dtypes import DTYPES

from .module_targets import Names, check_dtypes, match
from .run_reader import RunReader


def load_module(
    reader: RunReader, module: torch.nn.Module, step: float, tier: str, names: Names, prefix: str, device: Any
) -> None:
    """Copy a step into a module; arguments are those of `Run.load_into`."""
    index = reader.decoder.container.index
    entries = reader.layout(step, tier).tensors
    tied = {entry.name: index.target(entry).number for entry in entries}
    targets = match({entry.name: entry.shape for entry in entries}, module, names, prefix, tied)
    check_dtypes(targets, {entry.name: DTYPES[entry.dtype] for entry in entries})
    (decoded,) = reader.tensors({target.name: ... for target in targets}, [step], tier, device)
    with torch.no_grad():
        for target in targets:
            target.tensor.copy_(decoded[target.name])
