"""All vectors, and the manifest that says what they should give."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import reference_decoder as ref
import zstandard

from . import exact_invalid, exact_valid, invalid_container, invalid_data, invalid_tables, valid_arithmetic, valid_files
from .invalid_changes import Invalid
from .recipe import Recipe

VALID: dict[str, Recipe] = valid_files.VALID | valid_arithmetic.VALID | exact_valid.VALID


@cache
def built(name: str) -> bytes:
    """A valid file."""
    return VALID[name].build()


def invalid() -> Iterator[tuple[str, Invalid]]:
    """All invalid files."""
    return itertools.chain.from_iterable(
        module.invalid() for module in (invalid_container, invalid_tables, invalid_data, exact_invalid)
    )


def sha256(data: bytes) -> str:
    """The SHA-256 of bytes in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def read(data: bytes, base: Path | None, reads: Sequence[tuple[float, str]]) -> list[dict[str, Any]]:
    """What the reference decoder gives."""
    file = ref.RelexFile(data)
    file.check_all()
    given = None if base is None else ref.read_safetensors(base)
    return [
        {
            "step": step,
            "tier": tier,
            "tensors": {name: sha256(file.tensor(name, step, tier, given)) for name in file.index},
        }
        for step, tier in reads
    ]


def check(recipe: Recipe, reads: Sequence[dict[str, Any]]) -> None:
    """Tier exact gives what the recipe has."""
    for found in reads:
        for name, rows in recipe.frames.rows.items() if recipe.frames and found["tier"] == "exact" else ():
            number = recipe.steps.index(found["step"]) + 1
            assert found["tensors"][name] == sha256(rows[number].tobytes()), (name, number)


def make(folder: Path) -> None:
    """Write all files into a directory."""
    for part in ("valid", "invalid"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {"zstandard": zstandard.__version__, "valid": [], "invalid": []}
    bases = set()
    for name, recipe in VALID.items():
        data, base, path = built(name), recipe.base(), None
        entry: dict[str, Any] = {"path": f"valid/{name}.relex", "sha256": sha256(data), "base": None}
        (folder / entry["path"]).write_bytes(data)
        if base is not None:
            entry["base"] = {"path": f"valid/{name}.safetensors", "sha256": sha256(base)}
            path = folder / entry["base"]["path"]
            path.write_bytes(base)
            bases.add(name)
        entry["reads"] = read(data, path, recipe.reads)
        check(recipe, entry["reads"])
        document["valid"].append(entry)
    for name, wrong in invalid():
        data = wrong.build(built)
        entry = {"path": f"invalid/{name}.relex", "sha256": sha256(data), "base": None, "reason": wrong.reason}
        entry |= {"error": wrong.error, "operation": wrong.operation}
        if wrong.operation == "read":
            entry |= {"tensor": wrong.tensor, "step": wrong.step, "tier": wrong.tier}
            base_name = wrong.base or wrong.source
            if base_name in bases:
                entry["base"] = f"valid/{base_name}.safetensors"
        path = folder / entry["path"]
        assert entry["path"] not in [other["path"] for other in document["invalid"]], name
        path.write_bytes(data)
        document["invalid"].append(entry)
    text = json.dumps(document, indent=1, ensure_ascii=True)
    (folder / "manifest.json").write_text(text + "\n", newline="\n")
