"""Which of the tensors that a trainer saved are the model's, and what they are called there. Pure functions.

Trainers save more than the model, under keys of their own: ``app.model.model.layers.0...`` beside
``app.optimizers.state...``. The names of the base's tensors tell which prefix is the model's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from relex_codec.core.text import quote
from relex_codec.errors import CheckpointError

from .naming import some

OTHERS: Final = frozenset({
    "optimizer", "optimizers", "optim", "optims", "optimizer_state", "optimizer_states", "optim_state", "scheduler",
    "schedulers", "lr_scheduler", "lr_schedulers", "dataloader", "train_state", "progress", "rng", "rng_state",
    "scaler",
    "ema", "ema_model", "critic", "ref", "ref_model", "reference", "reward", "reward_model", "teacher",
})  # fmt: skip
"""First parts of keys of what is not the model that is trained."""


def model_prefix(keys: Collection[str], expected: Collection[str], where: str) -> str:
    """Return the prefix under which the model's tensors are; none where no name is known.

    Args:
        keys: of all tensors.
        expected: names of the model's tensors, as far as they are known.
        where: what to call the checkpoint in messages.

    Raises:
        CheckpointError: as many of them are under two prefixes.

    Examples:
        >>> model_prefix(["app.model.norm.weight", "app.optimizers.norm.weight"], ["norm.weight"], "x")
        'app.model.'
        >>> model_prefix(["model.norm.weight", "lm_head.weight"], ["model.norm.weight"], "x")
        ''
    """
    votes: dict[str, int] = {}
    for key in keys:
        cut = 0
        while True:
            if key[cut:] in expected and not _is_other(key[:cut]):
                votes[key[:cut]] = votes.get(key[:cut], 0) + 1
            cut = key.find(".", cut) + 1
            if not cut:
                break
    if not votes:
        return ""
    most = max(votes.values())
    best = sorted((prefix for prefix in votes if votes[prefix] == most), key=lambda prefix: (len(prefix), prefix))
    if len(best) > 1:
        raise CheckpointError(
            f"{where} has the model {len(best)} times, under {quote(best[0])} and {quote(best[1])}: which one was "
            "trained cannot be told; save one of them"
        )
    return best[0]


def is_of_model(key: str, prefix: str, expected: Collection[str]) -> bool:
    """Tell whether a key is one of the model's."""
    return key.startswith(prefix) and (key[len(prefix) :] in expected or not _is_other(key[len(prefix) :]))


def _is_other(key: str) -> bool:
    return not OTHERS.isdisjoint(key.split(".")[:-1])


def left_out(prefix: str, keys: Iterable[tuple[str, int]], what: str = "entries") -> str | None:
    """Return a note on what a checkpoint holds besides the model, with its bytes, if there is anything.

    Args:
        keys: key and bytes of each.
        what: to call them.
    """
    listed = list(keys)
    if not listed:
        return None
    parts = sorted({_part(key) for key, _ in listed})
    size = sum(nbytes for _, nbytes in listed)
    return f"not read: {len(listed)} {what} that are not the model's, {size:,} bytes, of {some(parts, 4)}"


def _part(key: str) -> str:
    """Return the beginning of a key that says what it is of."""
    parts = key.split(".")
    at = next((i for i, part in enumerate(parts) if part in OTHERS), 0)
    return ".".join(parts[: at + 1])
