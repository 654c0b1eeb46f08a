"""What the directory of a run holds beside what a file keeps of it: by kind, and in words. Pure functions.

Who deletes checkpoints because a file holds them deletes this too, so everybody says it in the same words: `encode`,
`info`, `restore` and `verify`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from .sizes import spell_bytes
from .text import on_one_line

OTHER_STEPS: Final = "checkpoints of other steps"
SHOWN: Final = 6
"""Kinds that are told."""
_KINDS: Final = (
    (OTHER_STEPS, re.escape(OTHER_STEPS)),
    ("optimizer states", r"(.*/)?optim.*|.*optim_states.*"),
    ("schedulers", r"(.*/)?(lr_)?scheduler.*"),
    ("random states", r"(.*/)?(rng|random)_state.*"),
    ("value heads and other models", r"(.*/)?(critic|ref|reference|reward(_model)?|ema|(value|v)_?head)([-_./].*)?"),
    ("adapters", r"(.*/)?(lora_)?adapter.*"),
    (
        "trainer's state",
        r"(.*/)?(trainer_state\.json|training_args\..*|extra_state.*|data\.pt|.*dataloader.*|scaler\..*|sampler.*|"
        r"(train|training|trainer)_?(state|progress|meta).*|latest.*|STABLE|\.complete|fsdp_config\.json|"
        r"zero_to_fp32\.py|mp_rank_.*_extra.*|common\.pt|metadata\.json|run\.scores\.json)",
    ),
    (
        "logs",
        r"(.*/)?(events\.out\.tfevents.*|(wandb|runs|logs?|tensorboard|tb|mlruns|swanlog|\.git)/.*|.*\.(log|out|err)|"
        r".*\.jsonl|.*metrics.*)",
    ),
    ("weights in other files", r".*\.(safetensors(\.index\.json)?|bin(\.index\.json)?|pt|pth|ckpt|distcp|gguf|npz)"),
)
"""Kinds by the whole name; the first that fits."""
OTHER_FILES: Final = "other files"
_PATTERNS: Final = tuple((kind, re.compile(pattern, re.IGNORECASE | re.DOTALL)) for kind, pattern in _KINDS)


class LeftOut(NamedTuple):
    """Files of a run that are not in the file.

    Attributes:
        what: their name or folder, with ``*`` for numbers, or their kind.
        files: how many.
        bytes: of all of them.
    """

    what: str
    files: int
    bytes: int


def kind_of(what: str) -> str:
    """Return what files are for, going by their name.

    Examples:
        >>> kind_of("actor/optim_world_size_*_rank_*.pt"), kind_of("trainer_state.json"), kind_of("notes.txt")
        ('optimizer states', "trainer's state", 'other files')
    """
    return next((kind for kind, pattern in _PATTERNS if pattern.fullmatch(what)), OTHER_FILES)


def summed(rows: Iterable[LeftOut]) -> list[LeftOut]:
    """Add up rows of the same name, the largest first."""
    found: dict[str, LeftOut] = {}
    for row in rows:
        before = found.get(row.what, LeftOut(row.what, 0, 0))
        found[row.what] = LeftOut(row.what, before.files + row.files, before.bytes + row.bytes)
    return sorted(found.values(), key=lambda row: (-row.bytes, -row.files, row.what))


def by_kind(rows: Iterable[LeftOut]) -> list[LeftOut]:
    """Add up rows of the same kind, the largest first."""
    return summed(row._replace(what=kind_of(row.what)) for row in rows)


def describe(rows: Sequence[LeftOut], steps: int = 0) -> str:
    """Return rows in words, by kind, the largest first; empty if there are none.

    Args:
        steps: of the run; what comes to the same number of files at each step is told by the step.

    Examples:
        >>> rows = [LeftOut("optimizer.pt", 400, 4_800_000_000), LeftOut("trainer_state.json", 400, 800_000)]
        >>> describe(rows, 400)
        "optimizer states (12 MB a step), trainer's state (2 kB a step)"
        >>> describe([LeftOut("logs/", 3, 5_120)])
        'logs (5.12 kB)'
    """
    kinds = by_kind(rows)
    told = [_in_words(kind, steps) for kind in kinds[:SHOWN]]
    if rest := kinds[SHOWN:]:
        told.append(f"and {len(rest)} more kinds ({spell_bytes(sum(kind.bytes for kind in rest))})")
    return ", ".join(told)


def _in_words(kind: LeftOut, steps: int) -> str:
    each = steps > 1 and kind.what != OTHER_STEPS and kind.files >= steps and kind.files % steps == 0
    size = spell_bytes(round(kind.bytes / steps) if each else kind.bytes)
    return f"{on_one_line(kind.what)} ({size}{' a step' if each else ''})"
