"""What lies in spec/ and belongs to no package: the reference decoder, and the package that makes the vectors."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SPEC = Path(__file__).parents[2] / "spec"
VECTORS = SPEC / "vectors"
for folder in (SPEC, VECTORS):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))

import reference_decoder as ref  # noqa: E402  (found by the lines above)

MANIFEST: dict[str, Any] = json.loads((VECTORS / "manifest.json").read_text())
VALID: list[dict[str, Any]] = MANIFEST["valid"]
INVALID: list[dict[str, Any]] = MANIFEST["invalid"]


def named(entry: dict[str, Any]) -> str:
    """Return the name of a vector."""
    return Path(entry["path"]).stem


def data_of(entry: dict[str, Any]) -> bytes:
    """Return the bytes of a vector."""
    return (VECTORS / entry["path"]).read_bytes()


def base_of(entry: dict[str, Any]) -> Path | None:
    """Return where the base of a vector is."""
    base = entry["base"]
    return None if base is None else VECTORS / (base if isinstance(base, str) else base["path"])


def package_base(entry: dict[str, Any]) -> Path | None:
    """Return the base of a vector as the package takes it: the directory of one that has other files."""
    base = base_of(entry)
    return base.parent if base is not None and base.name == "model.safetensors" else base


def base_files(entry: dict[str, Any]) -> Any:
    """Return what gives the other files of a vector's base, as the reference decoder takes it."""
    base = base_of(entry)
    if base is None:
        return None
    return lambda name: path.read_bytes() if (path := base.parent / name).exists() else None


def given_base(entry: dict[str, Any]) -> Any:
    """Return the base of a vector as the reference decoder takes it."""
    base = base_of(entry)
    return None if base is None else ref.read_safetensors(base)


__all__ = [
    "INVALID",
    "MANIFEST",
    "SPEC",
    "VALID",
    "VECTORS",
    "base_files",
    "base_of",
    "data_of",
    "given_base",
    "named",
    "package_base",
    "ref",
]
