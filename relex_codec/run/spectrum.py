"""How much of what a run has changed adapters of low rank would keep."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from relex_codec.core.progress import progress_bar
from relex_codec.decoding.tiers import StepTier
from relex_codec.errors import InvalidArgument

from .adapter import changes_of
from .run_reader import RunReader
from .truncation import mixed, singular_values

RANKS: Final = (1, 2, 4, 8, 16, 32, 64)


def kept_by_rank(reader: RunReader, step: float | None = None, *, progress: bool = False) -> list[dict[str, Any]]:
    """Return which share of the squared change up to a step of the line matrices of each rank keep.

    Norms and biases, which adapters have only whole, count as not kept. Reads all directions, not the base.

    Args:
        step: default: the last observed one. With one direction a tensor the shares are nearly the same at all steps.
        progress: show a bar on stderr, or a line a minute where that is no terminal.

    Returns:
        ``rank`` and ``kept``, from 0 to 1, for each of `RANKS`; empty where nothing moves.

    Raises:
        InvalidArgument: the step is too far out.
        Corrupt, Truncated: the file is damaged.
    """
    reader.check_open()
    container, decoder = reader.container, reader.decoder
    index = container.index
    at = StepTier(float(index.steps[index.manifest.observed - 1]) if step is None else float(step), "line")
    if not np.isfinite(at.step):
        raise InvalidArgument(f"step is {at.step}, expected a finite number")
    kept, total = np.zeros(len(RANKS)), 0.0
    moving = [tensor for tensor in index.layout.tensors if tensor.directions]
    with progress_bar("ranks", len(moving), unit="tensor", enabled=progress) as bar:
        for tensor in moving:
            _, mix = mixed(decoder.coefficients(tensor, [at]))
            for changes in changes_of(container, tensor, mix):
                total += changes.energy
                if len(tensor.shape) >= 2:
                    found = np.cumsum(singular_values(changes, max(RANKS)) ** 2)
                    kept += found[np.minimum(RANKS, len(found)) - 1]
            bar.update()
    shares: list[float] = np.minimum(kept / total, 1.0).tolist() if total else []
    return [{"rank": rank, "kept": float(f"{share:.6g}")} for rank, share in zip(RANKS, shares, strict=False)]


def ranks_text(rows: list[dict[str, Any]]) -> str:
    """Return what `kept_by_rank` found in words."""
    if not rows:
        return "nothing moves"
    shares = ", ".join(f"{row['rank']} keeps {100 * row['kept']:.3g} %" for row in rows)
    return f"of the squared change, an adapter of rank {shares}"
