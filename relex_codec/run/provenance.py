"""Where a decoded step comes from and how far it may be believed: what ``relex.json`` beside its weights says."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

from relex_codec._version import __version__
from relex_codec.format import constants as f
from relex_codec.format.reader import FileReader
from relex_codec.storage.urls import without_secrets
from relex_codec.trust.horizon import Trust, shown_step


def file_digest(container: FileReader) -> str:
    """Return a digest that tells a file from others: SHA-256 of its header and root, 64 hex digits.

    The root has checksums of all tables, and these of all data. Reads some kilobytes, also of a large remote file.
    """
    root = container.index.entries[f.ROOT]
    return hashlib.sha256(container.source.read_cached(0, root.end)).hexdigest()


def remarks(container: FileReader, step: float, tier: str) -> list[str]:
    """Return what a user should know of a step that is read from `tier`, beside how far its line may be believed."""
    index = container.index
    steps = [int(one) for one in index.steps]
    if tier == "base" or tier == "exact" or step in steps:
        return []
    shown = shown_step(step)
    if steps[0] < step < steps[-1] and index.has_exact:
        before, after = max(one for one in steps if one < step), min(one for one in steps if one > step)
        return [
            f"step {shown} lies between the stored steps {before} and {after}: not bit for bit, but from tier {tier}"
        ]
    if 0 < step < steps[0]:
        return [f"step {shown} lies before the first stored one, {steps[0]}: it is read from the line"]
    return []


def note(
    container: FileReader, step: float, tier: str, along: str, trust: Trust | None, words: list[str]
) -> dict[str, Any]:
    """Return what ``relex.json`` says.

    Args:
        along: the curve or way that the step was read along, where `tier` is ``line``.
        trust: where it lies beyond the observed steps.
        words: all that was said of it.
    """
    known = _of_file(container)
    first, last = known["observed"]
    return known | {
        "step": step,
        "tier": tier,
        "along": along if tier == "line" else None,
        "extrapolated": tier != "base" and tier != "exact" and not first <= step <= last,
        "trust": None if trust is None else trust.as_dict(),
        "notes": words,
    }


def note_of_recorded(path: str, base: str | None, recorded: Sequence[int], step: int) -> dict[str, Any]:
    """Return what ``relex.json`` beside a step of a journal says; a journal grows, so it has no digest.

    Args:
        path: of the journal.
        base: what it says of its base.
        recorded: all its steps.
    """
    span = [recorded[0], recorded[-1]]
    known: dict[str, Any] = {"producer": f"relex-codec {__version__}", "file": _last_part(path), "digest": None}
    known |= {"observed": span, "stored": span, "base": None if base is None else without_secrets(base)}
    told = {"step": step, "tier": "exact", "along": None, "extrapolated": False, "trust": None, "notes": []}
    return known | told


def note_of_restored(container: FileReader, steps: Sequence[int]) -> dict[str, Any]:
    """Return what ``relex.json`` beside restored steps says.

    Args:
        steps: that were restored.
    """
    return _of_file(container) | {"steps": list(steps), "tier": "exact", "extrapolated": False}


def _of_file(container: FileReader) -> dict[str, Any]:
    index = container.index
    steps, observed = [int(one) for one in index.steps], index.manifest.observed
    base = index.manifest.base_uri
    return {
        "producer": f"relex-codec {__version__}",
        "file": _last_part(container.source.path),
        "digest": file_digest(container),
        "observed": [steps[0], steps[observed - 1]],
        "stored": [steps[0], steps[-1]],
        "base": None if base is None else without_secrets(base),
    }


def _last_part(path: str) -> str:
    """Return the name of a file, and not where somebody keeps it."""
    return re.split(r"[/\\]", without_secrets(path).rstrip("/\\"))[-1]


def as_bytes(document: dict[str, Any]) -> bytes:
    """Return the document as it is written."""
    return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()
