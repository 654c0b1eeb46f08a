"""torch.distributed.checkpoint in one process, with whatever release of torch there is."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Final

import pytest
import torch
import torch.distributed.checkpoint as dcp

ALONE: Final[dict[str, Any]] = {"no_dist": True} if "no_dist" in inspect.signature(dcp.save).parameters else {}
"""What says that there are no other ranks; torch 2.6 has no word for it, and finds out."""


def slices_writer(folder: Path) -> Any:
    """Return what writes slices of safetensors into a folder; skips the test where torch has no such thing."""
    if not hasattr(dcp, "HuggingFaceStorageWriter"):
        pytest.skip(f"torch {torch.__version__} has no HuggingFaceStorageWriter")
    return dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)


QUIET: Final = pytest.mark.filterwarnings(
    "ignore:torch.distributed is (disabled|unavailable)",  # said where there is one process
    "ignore:TypedStorage is deprecated",  # torch 2.6 warns of itself
)
"""Mark of tests that save and load in one process."""
