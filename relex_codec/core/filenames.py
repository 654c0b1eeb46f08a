"""Names of the files of a checkpoint: those that loaders know, and those that a `.relex` file may hold."""

from __future__ import annotations

import re
from typing import Final

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
CONFIG: Final = "config.json"
SAFE_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")
"""File names that a `.relex` file may hold (FORMAT.md section 4)."""
PICKLES: Final = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
"""Ends of names of files that a `.relex` file may not bring along: loaders may unpickle them."""


def file_allowed(name: str) -> bool:
    """Tell whether a file of a base may be embedded under this name, and written out again."""
    lower = name.lower()  # some file systems see no difference
    return bool(SAFE_NAME.fullmatch(name)) and not lower.endswith((".safetensors", *PICKLES)) and lower != INDEX
