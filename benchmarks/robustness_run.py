"""What benchmarks/robustness.py works on: a small run with its base and archive, the right bits, and a tally."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import relex_codec
from relex_codec.storage.leftovers import BESIDE
from support.checkpoints import write_checkpoint, write_run
from support.tensors import bf16, f32

STEPS = (10, 20, 30, 40)
SIDE = {"config.json": {"model_type": "test"}, "tokenizer.json": b"{}"}


@dataclass
class Tally:
    """What came of the cases of one kind."""

    name: str
    cases: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def add(self, outcome: str, wrong: str | None = None) -> None:
        """Count a case; `wrong` says what should not have been."""
        self.cases += 1
        self.outcomes[outcome] += 1
        if wrong is not None:
            self.wrong.append(wrong)

    def line(self) -> str:
        """Return one line of the table, and one for each of the first wrong cases."""
        found = ", ".join(f"{count:,} {name}" for name, count in self.outcomes.most_common())
        shown = "".join(f"\n    WRONG: {text[:300]}" for text in self.wrong[:5])
        return f"{self.name:44} {self.cases:6,} cases  {len(self.wrong):3} wrong   {found}{shown}"

    def as_dict(self) -> dict[str, Any]:
        """Return it as it is in the results."""
        return {"name": self.name, "cases": self.cases, "outcomes": dict(self.outcomes), "wrong": self.wrong}


@dataclass(frozen=True)
class Made:
    """A run in a directory, its base, ``old.relex`` of the first three steps and ``all.relex`` of all."""

    root: Path
    sums: dict[tuple[int, str], str]
    """What `sums_of` gives for ``all.relex``."""

    @property
    def run(self) -> Path:
        """Where the checkpoints are."""
        return self.root / "run"

    @property
    def base(self) -> Path:
        """Where the base is."""
        return self.root / "base"


def tensors(step: int) -> dict[str, Any]:
    """Return the tensors of a step."""
    rng = np.random.default_rng(3)
    start, drift = rng.standard_normal((24, 32)), rng.standard_normal((24, 32))
    return {"w": bf16(start + 0.002 * step * drift), "norm": f32(np.ones(32) + step * 1e-3), "still": bf16(start[0])}


def make_run(root: Path) -> Made:
    """Write base, run and files."""
    write_checkpoint(root / "base", tensors(0), shards=2, side=SIDE)
    write_checkpoint(root / "single", tensors(0), side=SIDE)
    write_run(root / "run", STEPS, tensors)
    common: dict[str, Any] = {"base": root / "base", "base_uri": str(root / "base"), "exact": True}
    relex_codec.encode(root / "run", root / "old.relex", steps="10:30", **common)
    relex_codec.encode(root / "run", root / "all.relex", **common)
    with relex_codec.open(root / "all.relex") as run:
        sums = sums_of(run)
        run.resident().state_dict(25)  # everything is compiled and imported before processes are forked
        run.save(root / "warm", 20)
        run.restore(root / "warm-run")
    return Made(root, sums)


def sums_of(run: relex_codec.Run) -> dict[tuple[int, str], str]:
    """Return a digest of all weights of some steps from each tier."""
    found = {}
    for step, tier in ((20, "exact"), (40, "exact"), (25, "track"), (80, "line")):
        state = run.state_dict(step, tier=tier)
        digest = hashlib.sha256()
        for name in sorted(state):
            digest.update(name.encode() + state[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        found[step, tier] = digest.hexdigest()
    return found


def leftovers(folder: Path) -> list[str]:
    """Return what is below a directory under temporary names."""
    return [str(path) for path in folder.rglob("*") if BESIDE.fullmatch(path.name)]


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the files below a directory by name, temporary ones left out."""

    def walk() -> Iterator[tuple[str, bytes]]:
        for path in sorted(folder.rglob("*")):
            names = path.relative_to(folder).parts
            if path.is_file() and not any(BESIDE.fullmatch(name) for name in names):
                yield "/".join(names), path.read_bytes()

    return dict(walk())
