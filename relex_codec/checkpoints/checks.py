"""What a checkpoint must be to belong to a base, and what is worth saying about it though nothing is wrong."""

from __future__ import annotations

from collections.abc import Sequence

from relex_codec.core.filenames import CONFIG, INDEX
from relex_codec.core.text import quote
from relex_codec.errors import CheckpointError
from relex_codec.format.safetensors_header import load_object

from . import unreadable
from .checkpoint import CheckpointSeries, TensorReader, is_placeholder, placeholder_message


def check_against_base(checkpoint: TensorReader, base: TensorReader, where: str) -> None:
    """Refuse a checkpoint whose tensors stand for those of the base and are not the same: placeholders, slices, gaps.

    Tensors that one of them lacks are no matter here.

    Args:
        where: what to call the checkpoint in messages.

    Raises:
        CheckpointError: a tensor is a placeholder of ZeRO-3, or a slice; an index lists a tensor that no file has and
            the other one has; or the checkpoint holds an adapter within the model.
    """
    if checkpoint.is_adapter:
        return
    there = base.tensors
    for name, info in checkpoint.tensors.items():
        wanted = there.get(name)
        if wanted is None or wanted.shape == info.shape:
            continue
        if is_placeholder(info, wanted):
            raise CheckpointError(placeholder_message(name, where))
        if is_placeholder(wanted, info):
            raise CheckpointError(placeholder_message(name, f"base {base.path}"))
        if checkpoint.may_be_slices:
            what = f"{quote(name)} is {list(info.shape)}, {list(wanted.shape)} in the base"
            raise CheckpointError(f"{where} {unreadable.slices_message(what, checkpoint.path)}")
    _check_absent(checkpoint, base, where)
    _check_absent(base, checkpoint, f"base {base.path}")
    lora = next((name for name in checkpoint.tensors if ".lora_A." in name and name not in there), None)
    if lora is not None:
        raise CheckpointError(
            f"{where} holds the model wrapped by PEFT, with its adapter beside each weight ({quote(lora)}), expected "
            "whole weights; load it with peft and save model.merge_and_unload() with save_pretrained"
        )


def _check_absent(checkpoint: TensorReader, other: TensorReader, where: str) -> None:
    """Refuse what is listed and not there, where the other one shows that the model has it."""
    for name in checkpoint.absent:
        if name in other.tensors and not (_is_output(name) and _may_be_tied(checkpoint)):
            raise CheckpointError(
                f"{where} is incomplete: {INDEX} lists tensor {quote(name)}, which none of its files has; save it again"
            )


def _is_output(name: str) -> bool:
    return name.endswith("lm_head.weight")


def _may_be_tied(checkpoint: TensorReader) -> bool:
    """Tell whether the output embeddings may be those of the input: unless its configuration says that they are not."""
    if CONFIG not in checkpoint.side_files:
        return True
    raw = checkpoint.read_file(CONFIG)
    config = load_object(raw, error=CheckpointError, where=f"{CONFIG} of {checkpoint.path}")
    inner = config.get("text_config")
    own = config if type(inner) is not dict or "tie_word_embeddings" in config else inner
    return own.get("tie_word_embeddings", True) is not False


def notes_on(series: CheckpointSeries, base: TensorReader | None = None) -> list[str]:
    """Return what to say about how checkpoints are read, a line for each thing and not for each step.

    Args:
        series: its checkpoints are opened, if they are not.
        base: said first.
    """
    lines = [f"base {base.path}: {note}" for note in _notes(base)] if base is not None else []
    steps: dict[str, list[int]] = {}
    for index, step in enumerate(series.steps):
        for note in _notes(series.checkpoint(index)):
            steps.setdefault(note, []).append(step)
    for note, found in steps.items():
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        lines.append(f"step {found[0]}{more}: {note}")
    return lines


def _notes(checkpoint: TensorReader) -> Sequence[str]:
    found = list(checkpoint.notes)
    if checkpoint.absent:
        more = f" and {len(checkpoint.absent) - 1} more" if len(checkpoint.absent) > 1 else ""
        found.append(f"{INDEX} lists {quote(checkpoint.absent[0])}{more}, which no file has")
    return found
