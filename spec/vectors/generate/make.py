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

from . import (
    exact_invalid,
    exact_valid,
    invalid_container,
    invalid_data,
    invalid_layouts,
    invalid_tables,
    valid_arithmetic,
    valid_files,
    valid_layouts,
)  # fmt: skip
from .invalid_changes import Invalid
from .recipe import Recipe

VALID: dict[str, Recipe] = valid_files.VALID | valid_layouts.VALID | valid_arithmetic.VALID | exact_valid.VALID


@cache
def built(name: str) -> bytes:
    """A valid file."""
    return VALID[name].build()


def invalid() -> Iterator[tuple[str, Invalid]]:
    """All invalid files."""
    return itertools.chain.from_iterable(
        module.invalid() for module in (invalid_container, invalid_tables, invalid_layouts, invalid_data, exact_invalid)
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
            "tensors": {name: sha256(file.tensor(name, step, tier, given)) for name in names_at(file, step, tier)},
        }
        for step, tier in reads
    ]


def names_at(file: ref.RelexFile, step: float, tier: str) -> list[str]:
    """The tensors of a step."""
    return list(ref.names_of(file, file.layout_at(*file.at(step, tier))))


def made_of(data: bytes, files: dict[str, bytes], step: float, tier: str) -> dict[str, Any]:
    """What a step is made of, with the digests of its files; null for a document that the base does not have."""
    file = ref.RelexFile(data)
    found = file.checkpoint(step, tier)
    digests = {name: file.file(name, step, tier, files.get) for name in found.files}
    return {
        "directory": found.directory,
        "shards": found.shards,
        "indexed": found.indexed,
        "files": {name: None if content is None else sha256(content) for name, content in digests.items()},
    }


def check(recipe: Recipe, reads: Sequence[dict[str, Any]]) -> None:
    """Tier exact gives what the recipe has."""
    if recipe.frames is None:
        return
    rows = recipe.frames.rows
    for found in reads:
        if found["tier"] != "exact":
            continue
        number = recipe.steps.index(found["step"])
        places = [0] * len(recipe.tensors)
        if recipe.layouts:
            places = recipe.layouts[recipe.rows[number][1]]["tensors"]
        for tensor, place in zip(recipe.tensors, places, strict=True):
            target = recipe.tensors[tensor.target] if tensor.origin == "tied" else tensor
            key = recipe.frames.key([target.name, target.dtype])
            if place is not None and key in rows:
                assert found["tensors"][tensor.name] == sha256(rows[key][number + 1].tobytes()), (key, number)


def make(folder: Path) -> None:
    """Write all files into a directory."""
    for part in ("valid", "invalid"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {"zstandard": zstandard.__version__, "valid": [], "invalid": []}
    bases: dict[str, str] = {}
    for name, recipe in VALID.items():
        data, base, path = built(name), recipe.base(), None
        entry: dict[str, Any] = {"path": f"valid/{name}.relex", "sha256": sha256(data), "base": None}
        (folder / entry["path"]).write_bytes(data)
        if base is not None:
            place = f"{name}/model.safetensors" if recipe.base_files else f"{name}.safetensors"
            entry["base"] = {"path": f"valid/{place}", "sha256": sha256(base)}
            path = folder / entry["base"]["path"]
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(base)
            bases[name] = entry["base"]["path"]
        for file, content in recipe.base_files.items():
            if file not in recipe.gone:
                own = folder / "valid" / name / file
                own.parent.mkdir(exist_ok=True)
                own.write_bytes(content)
        entry["reads"] = read(data, path, recipe.reads)
        if recipe.checkpoints:
            left = {file: content for file, content in recipe.base_files.items() if file not in recipe.gone}
            for one in entry["reads"]:
                one["checkpoint"] = made_of(data, left, one["step"], one["tier"])
        check(recipe, entry["reads"])
        document["valid"].append(entry)
    for name, wrong in invalid():
        data = wrong.build(built)
        entry = {"path": f"invalid/{name}.relex", "sha256": sha256(data), "base": None, "reason": wrong.reason}
        entry |= {"error": wrong.error, "operation": wrong.operation}
        if wrong.operation in ("read", "file"):
            what = "tensor" if wrong.operation == "read" else "file"
            entry |= {what: wrong.tensor, "step": wrong.step, "tier": wrong.tier}
            entry["base"] = bases.get(wrong.base or wrong.source)
        path = folder / entry["path"]
        assert entry["path"] not in [other["path"] for other in document["invalid"]], name
        path.write_bytes(data)
        document["invalid"].append(entry)
    text = json.dumps(document, indent=1, ensure_ascii=True)
    (folder / "manifest.json").write_text(text + "\n", newline="\n")
