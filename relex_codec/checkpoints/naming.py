"""What runs and checkpoints look like on disk, as rules on names. No I/O: listings and texts in, decisions out.

Trainers differ in how they call the directory of a step and in where the Hugging Face checkpoint lies below it; `STEPS`
and `BELOW` are the whole list of what is understood.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from itertools import pairwise
from typing import Final, NamedTuple

from relex_codec.core.filenames import INDEX, PICKLES, SAFE_NAME, SINGLE, file_allowed, shard_allowed
from relex_codec.core.text import quote
from relex_codec.errors import CheckpointError
from relex_codec.format.constants import STEP_LIMIT

STEPS: Final = {
    "global_step_N": r"global_step_([0-9]+)",  # verl
    "checkpoint-N": r"checkpoint-([0-9]+)",  # transformers, TRL
    "step_N": r"step_([0-9]+)",  # prime-rl
    "step-N": r"step-([0-9]+)",
    "global_stepN_hf": r"global_step([0-9]+)_hf",  # OpenRLHF
    "iter_N": r"iter_([0-9]+)",  # slime, Megatron
}
"""How the directory of step N may be called."""
BELOW: Final = ("actor/huggingface", "huggingface", "actor")
"""Where the weights of a step may lie below its directory, in order of preference."""
PLACEHOLDER: Final = "{step}"
"""Stands for the step in the path of a run whose checkpoints are not below one directory: branches of a repository."""

_STEP: Final = "(?:" + "|".join(pattern.replace("(", "(?:") for pattern in STEPS.values()) + ")"
_INCOMPLETE: Final = re.compile(
    rf"(?:tmp|temp|partial|incomplete)[-_.]?(?P<a>{_STEP})(?:[-_.].*)?|(?P<b>{_STEP})[-_.](?:tmp|temp|part|incomplete).*",
    re.IGNORECASE,
)
_NUMBERED: Final = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.safetensors")
_NOT_WEIGHTS: Final = (".", "adapter", "optimizer", "scheduler", "scaler")
_NOT_SIDE: Final = frozenset({"latest_checkpointed_iteration.txt"})
"""What trainers leave beside a checkpoint under names that a `.relex` file could hold."""


def is_weights(name: str) -> bool:
    """Return whether a file holds weights of the model itself, going by its name."""
    return name.endswith(".safetensors") and not name.startswith(_NOT_WEIGHTS)


def side_files(names: Iterable[str]) -> list[str]:
    """Return the files that a checkpoint carries besides weights: configuration, tokenizer, templates, code.

    Those that a `.relex` file may hold: training state, pickles and hidden files are left out.
    """
    return sorted(name for name in names if file_allowed(name) and name not in _NOT_SIDE)


def shards_without_index(names: Collection[str], where: str) -> list[str]:
    """Return the weight files of a checkpoint that has no index, sorted.

    Raises:
        CheckpointError: there are none, or which ones belong to the model cannot be told; the message says what was
            found instead.
    """
    if SINGLE in names:
        return [SINGLE]
    found = sorted(filter(is_weights, names))
    if not found:
        raise CheckpointError(f"{where} {instead(names)}")
    if len(found) > 1:
        numbered = [match for match in map(_NUMBERED.fullmatch, found) if match]
        if len({(match[1], match[3]) for match in numbered}) != 1 or len(numbered) != len(found):
            raise CheckpointError(
                f"{where} has {len(found)} safetensors files ({some(found)}) and no {INDEX}: "
                "which ones are the model is ambiguous; keep one, or add the index"
            )
    if match := _NUMBERED.fullmatch(found[0]):
        expected = [f"{match[1]}-{i:05d}-of-{match[3]}.safetensors" for i in range(1, int(match[3]) + 1)]
        if missing := [name for name in expected if name not in names]:
            raise CheckpointError(f"{where} is incomplete: shard {missing[0]} is missing ({len(missing)} in all)")
    return found


def shards_of_index(weight_map: object, names: Collection[str], where: str) -> list[str]:
    """Return the shards that an index names, sorted; `weight_map` is its value of that key.

    Raises:
        CheckpointError: the map is not one of names to file names, a shard is missing, or there is a second set of
            weights.
    """
    if type(weight_map) is not dict or not all(type(shard) is str for shard in weight_map.values()):
        raise CheckpointError(f"{where}: {INDEX} has no weight_map from tensors to files")
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        if not shard_allowed(shard):
            raise CheckpointError(f"{where}: {INDEX} names {quote(shard)}, expected safetensors files beside it")
    if missing := [shard for shard in shards if shard not in names]:
        count = f"{len(missing)} of {len(shards)} shards"
        raise CheckpointError(f"{where} is incomplete: {INDEX} names {missing[0]}, which is missing ({count})")
    if SINGLE in names and SINGLE not in shards:
        raise CheckpointError(f"{where} has both {SINGLE} and an index of other files; remove what is not the model")
    if not shards:
        raise CheckpointError(f"{where}: {INDEX} lists no tensors")
    return shards


class StepName(NamedTuple):
    """A directory of a run whose name says which step it is."""

    step: int
    name: str
    layout: str


def step_names(names: Iterable[str]) -> tuple[list[StepName], list[StepName]]:
    """Sort directory names into those of steps and those that say that they are incomplete; drop the rest."""
    complete: list[StepName] = []
    incomplete: list[StepName] = []
    for name in sorted(names):
        half = _INCOMPLETE.fullmatch(name)
        inner = (half["a"] or half["b"]).lower() if half else name
        for layout, pattern in STEPS.items():
            if match := re.fullmatch(pattern, inner):
                (incomplete if half else complete).append(StepName(int(match[1]), name, layout))
    return sorted(complete), sorted(incomplete)


def one_layout(found: list[StepName], where: str) -> None:
    """Raise CheckpointError if directories follow several layouts, or two of them are the same step."""
    first: dict[str, str] = {}
    for entry in found:
        first.setdefault(entry.layout, entry.name)
    if len(first) > 1:
        raise CheckpointError(
            f"{where} is ambiguous: it has checkpoints of several layouts ({some(first.values())}); "
            "put those of one run into a directory of their own"
        )
    for a, b in pairwise(found):
        if a.step == b.step:
            raise CheckpointError(f"{where} has step {a.step} twice: {a.name} and {b.name}; remove one")
    for entry in found:
        if entry.step > STEP_LIMIT:
            raise CheckpointError(f"{where}: step of {quote(entry.name)} is above the limit of {STEP_LIMIT}")


def match_steps(names: Iterable[str], template: str, where: str) -> dict[int, str]:
    """Return the digits of each step among names that are ``template`` with digits for ``{step}``.

    Raises:
        CheckpointError: a step is there twice, with more zeros before it.
    """
    pattern = re.escape(template).replace(re.escape(PLACEHOLDER), "([0-9]{1,18})", 1)
    pattern = pattern.replace(re.escape(PLACEHOLDER), r"\1")
    found: dict[int, str] = {}
    for name in names:
        if match := re.fullmatch(pattern, name):
            digits = match[1]
            if int(digits) in found:
                raise CheckpointError(f"{where} has step {int(digits)} twice: {found[int(digits)]} and {digits}")
            found[int(digits)] = digits
    return found


def some(names: Iterable[str], limit: int = 6) -> str:
    """Return a few names for a message, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(name if SAFE_NAME.fullmatch(name) else quote(name) for name in names[:limit]) + more


def instead(names: Collection[str]) -> str:
    """Say what a directory without weights holds, and what to do about it."""
    if distributed := sorted(n for n in names if n.endswith(".distcp")):
        return (
            f"is a torch.distributed checkpoint ({some(distributed, 1)}), expected {SINGLE}; convert it first with "
            "torch.distributed.checkpoint.format_utils.dcp_to_torch_save and save_pretrained"
        )
    if pickles := sorted(n for n in names if n.endswith(PICKLES)):
        how = "load it with the library that wrote it and save it with save_pretrained(..., safe_serialization=True)"
        if any(n.startswith("model_world_size_") for n in pickles):
            how = "merge it with `python -m verl.model_merger merge`"
        return f"has pickled files only ({some(pickles, 2)}), expected {SINGLE}; nothing is unpickled here: {how}"
    if adapters := sorted(n for n in names if n.startswith("adapter") and n.endswith(".safetensors")):
        return f"has an adapter only ({adapters[0]}), expected whole weights; merge it into its base first"
    found = f"found {some(sorted(names), 4)}" if names else "it is empty"
    return f"has no weights: expected {SINGLE}, or {INDEX} and its shards; {found}"
