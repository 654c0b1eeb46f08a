"""All journals, and the manifest that says what they give."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import reference_decoder as ref
import reference_journal
import zstandard

from .build import Files, safetensors
from .invalid import INVALID
from .valid import VALID


def sha256(data: bytes) -> str:
    """The SHA-256 of bytes in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def write(folder: Path, files: Files) -> dict[str, str]:
    """Write a journal; return the digests of its files."""
    folder.mkdir(parents=True)
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    return {name: sha256(raw) for name, raw in sorted(files.items())}


def make(root: Path) -> None:
    """Write all journals and the manifest."""
    manifest: dict[str, Any] = {"zstandard": zstandard.__version__, "valid": [], "invalid": []}
    for name, build in VALID.items():
        files, base = build()
        files["base.safetensors"] = safetensors(base)
        digests = write(root / "valid" / name, files)
        journal = reference_journal.Journal(root / "valid" / name)
        journal.check()
        given = ref.read_safetensors(root / "valid" / name / "base.safetensors")
        steps = {
            str(one.step): {key: sha256(journal.tensor(key, one.step, given)) for key in journal.tensors}
            for one in journal.steps
        }
        manifest["valid"].append({"path": f"valid/{name}", "files": digests, "steps": steps})
    for name, source, reason, error, operation, change in INVALID:
        files, base = VALID[source]()
        files["base.safetensors"] = safetensors(base)
        change(files)
        digests = write(root / "invalid" / name, files)
        entry = {"path": f"invalid/{name}", "files": digests, "reason": reason, "error": error, "operation": operation}
        manifest["invalid"].append(entry)
    (root / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
