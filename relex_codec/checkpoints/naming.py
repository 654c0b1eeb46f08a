"""What runs look like on disk: what trainers call the directory of a step, and where its weights lie below it. No I/O.

`STEPS`, `SECOND_CHOICE`, `ABOVE`, `BELOW` and `MARKERS` are the whole list of what is understood; listings go in,
decisions come out. Which files of a directory are the weights is in weight_files.py, what is said of a directory that
has none in unreadable.py.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from itertools import pairwise
from typing import Final, NamedTuple

from relex_codec.core.filenames import SAFE_NAME
from relex_codec.core.text import quote
from relex_codec.errors import CheckpointError
from relex_codec.format.constants import STEP_LIMIT

STEPS: Final = {
    "global_step_N": r"global_step_([0-9]+)",  # verl, SkyRL
    "checkpoint-N": r"checkpoint-([0-9]+)",  # transformers, TRL, ROLL, ms-swift
    "step_N": r"step_([0-9]+)",  # prime-rl, NeMo-RL
    "step-N": r"step-([0-9]+)",  # torchtitan
    "global_stepN_hf": r"global_step([0-9]+)_hf",  # OpenRLHF
    "iter_N": r"iter_([0-9]+)",  # slime, Megatron
    "checkpoint_N": r"checkpoint_([0-9]+)",  # trlx, accelerate
    "epoch_N": r"epoch_([0-9]+)",  # torchtune
    "epochEepochstepSglobalstepN": r"epoch[0-9]+epochstep[0-9]+globalstep([0-9]+)",  # AReaL
    "ckpt-N": r"ckpt-([0-9]+)",
    "stepN": r"step([0-9]+)",
    "global_step_N_merged": r"global_step_([0-9]+)_merged",  # what scripts around verl's merger write
    "best_global_stepN_hf": r"best_global_step([0-9]+)_hf",  # OpenRLHF
    "best_global_stepN": r"best_global_step([0-9]+)",
    "global_stepN": r"global_step([0-9]+)",  # DeepSpeed
    "N": r"([0-9]+)",
}
"""How the directory of step N may be called."""
SECOND_CHOICE: Final = ("global_step_N_merged", "best_global_stepN_hf", "best_global_stepN", "global_stepN", "N")
"""Layouts that lie beside those of others, or are no more than a number: the first of them, if there is no other."""
ABOVE: Final = ("weights", "broadcasts", "safetensors", "_actor_hf", "checkpoints")
"""Where the directories of steps may lie below the directory of the run, in order of preference: prime-rl, cosmos-rl,
OpenRLHF. After these, any directory that is the only one with steps in it."""
BELOW: Final = (
    "actor/huggingface",  # verl
    "actor/model/huggingface",  # verl, Megatron
    "huggingface",
    "actor",
    "policy/weights/model/consolidated",  # NeMo-RL
    "policy/weights/consolidated",
    "policy/huggingface",  # SkyRL
    "policy/weights/model",
    "policy/weights",
    "policy",
    "model/consolidated",  # NeMo Automodel
    "consolidated",
    "hf_model",  # trlx
    "hf_converted_checkpoint",  # fms-hf-tuning
    "actor_train",  # ROLL
    "trainer",  # prime-rl
    "pytorch_model_fsdp_0",  # accelerate, TRL
    "weights",
    "model",
    "hf",
    "merged",
)
"""Where the weights of a step may lie below its directory, in order of preference."""
ADAPTERS_BELOW: Final = ("", "lora_adapter", "actor/lora_adapter", "lora_adapters")
"""Where an adapter may lie below the directory of a step: in it (TRL, prime-rl), verl, prime-rl with whole weights."""
MARKERS: Final = ("STABLE", ".complete")
"""Files that trainers put into the directory of a step when it is complete: prime-rl, slime."""
PLACEHOLDER: Final = "{step}"
"""Stands for the step in the path of a run whose checkpoints are not below one directory: branches of a repository."""

_STEP: Final = "(?:" + "|".join(pattern.replace("(", "(?:") for pattern in STEPS.values()) + ")"
_INCOMPLETE: Final = re.compile(
    rf"(?:tmp|temp|partial|incomplete)[-_.]?(?P<a>{_STEP})(?:[-_.].*)?|(?P<b>{_STEP})[-_.](?:tmp|temp|part|incomplete).*",
    re.IGNORECASE,
)


class StepName(NamedTuple):
    """A directory of a run whose name says which step it is."""

    step: int
    name: str
    layout: str


def step_names(names: Iterable[str]) -> tuple[list[StepName], list[StepName]]:
    """Sort directory names into those of steps and those that say that they are incomplete; drop the rest.

    Examples:
        >>> complete, incomplete = step_names(["checkpoint-20", "tmp-checkpoint-30", "runs"])
        >>> complete[0].step, incomplete[0].name
        (20, 'tmp-checkpoint-30')
    """
    complete: list[StepName] = []
    incomplete: list[StepName] = []
    for name in sorted(names):
        half = _INCOMPLETE.fullmatch(name)
        inner = (half["a"] or half["b"]).lower() if half else name
        for layout, pattern in STEPS.items():
            if match := re.fullmatch(pattern, inner):
                (incomplete if half else complete).append(StepName(int(match[1]), name, layout))
                break
    return sorted(complete), sorted(incomplete)


def of_one_layout(found: Iterable[StepName], where: str) -> list[StepName]:
    """Return the directories of the layout that the run has.

    Raises:
        CheckpointError: it has several, none of which is a second choice.
    """
    first: dict[str, str] = {}
    for entry in found:
        first.setdefault(entry.layout, entry.name)
    layouts = [layout for layout in first if layout not in SECOND_CHOICE]
    if len(layouts) > 1:
        raise CheckpointError(
            f"{where} is ambiguous: it has checkpoints of several layouts ({some(map(first.__getitem__, layouts))}); "
            "put those of one run into a directory of their own"
        )
    layouts += [layout for layout in SECOND_CHOICE if layout in first]
    return [entry for entry in found if entry.layout == layouts[0]]


def check_steps(found: Collection[StepName], where: str) -> None:
    """Raise CheckpointError if two of the directories that are wanted are the same step, or a number is too large."""
    for a, b in pairwise(sorted(found)):
        if a.step == b.step:
            raise CheckpointError(
                f"{where} has step {a.step} twice: {a.name} and {b.name}; remove one, or choose other steps"
            )
    for entry in found:
        if entry.step > STEP_LIMIT:
            raise CheckpointError(f"{where}: step {entry.step} is above the limit of {STEP_LIMIT}")


def match_steps(names: Iterable[str], template: str) -> list[StepName]:
    """Return the steps among names that are ``template`` with digits for ``{step}``; `name` is the digits.

    Examples:
        >>> match_steps(["m-007", "m-8", "n"], "m-{step}")[0]
        StepName(step=7, name='007', layout='m-{step}')
    """
    pattern = re.escape(template).replace(re.escape(PLACEHOLDER), "([0-9]{1,18})", 1)
    pattern = pattern.replace(re.escape(PLACEHOLDER), r"\1")
    matches = (re.fullmatch(pattern, name) for name in names)
    return sorted(StepName(int(match[1]), match[1], template) for match in matches if match)


def suggest_template(names: Iterable[str]) -> str | None:
    """Return the name with ``{step}`` in it that most of these directories have, if any has a number.

    Examples:
        >>> suggest_template(["m-1-hf", "m-20-hf", "logs"])
        'm-{step}-hf'
    """
    found: dict[str, int] = {}
    for name in sorted(names):
        for match in re.finditer("[0-9]+", name):
            template = f"{name[: match.start()]}{PLACEHOLDER}{name[match.end() :]}"
            found[template] = found.get(template, 0) + 1
    return max(found, key=found.__getitem__, default=None)


def some(names: Iterable[str], limit: int = 6) -> str:
    """Return a few names for a message, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    plain = (all(map(SAFE_NAME.fullmatch, name.split("/"))) for name in names)
    return ", ".join(name if ok else quote(name) for name, ok in zip(names[:limit], plain, strict=False)) + more
