"""Adapters within what ranks save: the tensors of PEFT among those of a model that is wrapped by it, or alone.

Trainers that shard a model with its adapter save what the ranks hold: verl all of it, ``base_layer`` weights too, or
with ``save_lora_only`` those of the adapter; TRL under FSDP the adapter alone. The base stood still meanwhile, so the
adapter is what such a run is, under the names that PEFT's ``save_pretrained`` gives it. What makes it an adapter
besides is its configuration, which not all trainers write.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final

from relex_codec.core.filenames import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG
from relex_codec.core.text import quote
from relex_codec.errors import CheckpointError
from relex_codec.format.safetensors_header import load_object
from relex_codec.storage.urls import Options, join_path, without_secrets

from . import naming
from .boxed import BoxedCheckpoint
from .files import SideFile, list_names, list_side_files, read_whole

VERL_META: Final = "lora_train_meta.json"
"""What verl writes beside the shards of a model with an adapter: rank, alpha, kind of task."""
_PREFIX: Final = "base_model.model."
_LORA: Final = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))"
    r"(?:\.(?P<adapter>(?!weight$|bias$)[^.]+))?(?P<rest>\.weight|\.bias)?"
)
_SAVED: Final = re.compile(r"(?P<module>.+)\.modules_to_save\.(?P<adapter>[^.]+)\.(?P<rest>.+)")
_OF_BASE: Final = (".base_layer.", ".original_module.")
_NOT_CARRIED: Final = (CONFIG, "generation_config.json")
"""Files of the base that would make a loader look for whole weights in the directory of an adapter."""
_LEVELS: Final = 5
"""From the files up to the directory of a run."""


def has_adapter(tensors: Collection[str], expected: Collection[str]) -> str | None:
    """Return the first tensor that is an adapter's, of those that the model itself does not have.

    Examples:
        >>> has_adapter(["model.norm.weight", "base_model.model.q_proj.lora_A.default.weight"], ["model.norm.weight"])
        'base_model.model.q_proj.lora_A.default.weight'
    """
    return next((name for name in tensors if ".lora_A." in name and name not in expected), None)


def adapter_names(tensors: Iterable[str], where: str) -> dict[str, str]:
    """Return which tensors are the adapter's, by the names that PEFT saves them under.

    Raises:
        CheckpointError: there are several adapters.

    Examples:
        >>> found = adapter_names(["q_proj.base_layer.weight", "q_proj.lora_A.default.weight", "norm.weight"], "x")
        >>> found
        {'base_model.model.q_proj.lora_A.weight': 'q_proj.lora_A.default.weight'}
        >>> adapter_names(["model.base_model.model.q_proj.lora_B.weight"], "x")
        {'base_model.model.q_proj.lora_B.weight': 'model.base_model.model.q_proj.lora_B.weight'}
    """
    listed = list(tensors)
    alone = not any(part in name for name in listed for part in _OF_BASE)
    found: dict[str, str] = {}
    adapters: set[str | None] = set()
    for name in listed:
        if (match := _LORA.fullmatch(name)) is not None:
            rest = "" if match["part"] == "lora_magnitude_vector" else match["rest"] or ""
            plain = f"{match['module']}.{match['part']}{rest}"
        elif (match := _SAVED.fullmatch(name)) is not None:
            plain = f"{match['module']}.{match['rest']}"
        elif alone:
            plain = name
        else:
            continue
        if match is not None:
            adapters.add(match["adapter"])
        found[_PREFIX + plain.rpartition(_PREFIX)[2]] = name
    if len(adapters) > 1:
        raise CheckpointError(
            f"{where} has {len(adapters)} adapters ({naming.some(map(str, adapters))}), expected one; save the one "
            "that is trained by itself"
        )
    return found


def open_wrapped_adapter(reader: BoxedCheckpoint, path: str, options: Options) -> BoxedCheckpoint:
    """Return the adapter within a checkpoint that has one.

    Args:
        reader: the checkpoint with all its tensors.
        path: that it was opened by.

    Raises:
        CheckpointError: its configuration is nowhere, or says that more than the adapter was trained.
    """
    where = f"checkpoint {without_secrets(reader.path)}"
    names = adapter_names(reader.tensors, where)
    config = _config(path.rpartition("/")[0] or ".", names, options, where)
    rest = len(reader.tensors) - len(names)
    if rest:
        raw = config.content if config.content is not None else read_whole(config.path, options)
        bias = load_object(raw, error=CheckpointError, where=f"{ADAPTER_CONFIG} of {where}").get("bias", "none")
        if bias != "none":
            raise CheckpointError(
                f"{where} holds the model wrapped by PEFT, with biases that are trained ({quote(str(bias))}), which "
                "its weights do not tell from the base's; let the trainer save the adapter"
            )
    note = f"not read: {rest} tensors of the base, which an adapter leaves as they are" if rest else None
    adapter = reader.renamed(names, [note] if note else [])
    sides = {name: side for name, side in reader.own_side_files.items() if name not in _NOT_CARRIED}
    adapter.take_side_files({**sides, ADAPTER_CONFIG: config})
    adapter.shards = [ADAPTER_WEIGHTS]
    return adapter


def _config(folder: str, names: Mapping[str, str], options: Options, where: str) -> SideFile:
    """Return the configuration: of the step, of the run, or what verl says of it."""
    for above in _folders(folder):
        there = list_side_files(above, options, [ADAPTER_WEIGHTS])
        if ADAPTER_CONFIG in there:
            return there[ADAPTER_CONFIG]
        if above == folder and VERL_META in list_names(above, options):
            made = _config_of_verl(read_whole(join_path(above, VERL_META), options), names, where)
            return SideFile(join_path(above, VERL_META), len(made), made)
    *_, run = _folders(folder)
    raise CheckpointError(
        f"{where} has an adapter without its {ADAPTER_CONFIG}; write it once into {without_secrets(run)}, with the "
        'arguments of the run: python -c "from peft import LoraConfig; LoraConfig(r=..., lora_alpha=..., '
        f"target_modules=[...]).save_pretrained('{without_secrets(run)}')\""
    )


def _folders(folder: str) -> Iterator[str]:
    """Yield a directory, and those above it up to that of its run, as far as a name tells which that is."""
    above = [folder]
    for _ in range(_LEVELS):
        parent, _, name = above[-1].rpartition("/")
        if not parent:
            break
        above.append(parent)
        if naming.step_names([name])[0]:
            yield from above
            return
    yield folder


def _config_of_verl(raw: bytes, names: Mapping[str, str], where: str) -> bytes:
    """Return the configuration that verl's model_merger makes of what verl saves: LoRA without variants or biases."""
    meta: dict[str, Any] = load_object(raw, error=CheckpointError, where=f"{VERL_META} of {where}")
    r, alpha = meta.get("r"), meta.get("lora_alpha")
    if type(r) is not int or type(alpha) is not int or min(r, alpha) < 1:
        raise CheckpointError(f"{where}: {VERL_META} says no rank and alpha above 0; put an {ADAPTER_CONFIG} beside it")
    modules = sorted({match["module"].rpartition(".")[2] for name in names if (match := _LORA.fullmatch(name))})
    task = meta.get("task_type")
    config = {
        "bias": "none", "lora_alpha": alpha, "peft_type": "LORA", "r": r, "target_modules": modules,
        "task_type": task if type(task) is str else None,
    }  # fmt: skip
    return json.dumps(config, indent=2).encode()
