"""What is said of a directory that holds no whole safetensors: what it holds instead, and what turns that into them.

Paths and texts in, one line out; no I/O. The commands write where the next attempt finds it (`naming.BELOW`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from typing import Final

from relex_codec.core.filenames import INDEX, PICKLES, SINGLE

from .naming import some

ALLOW: Final = (
    "pass --allow-pickle (allow_pickle=True) to read it as it is: pickles can run code in what loads them, here they "
    "are parsed by a list of what is allowed, and nothing in them is run"
)
"""What is said where a kind of checkpoint is read only if the user allows pickles."""
SLICES: Final = re.compile(r"shard-[0-9]+-model-.*\.safetensors")
"""Files of one rank of torch.distributed: each holds a part of every tensor."""
SHARDING_INFO: Final = "DCP_SHARDING_INFO"
"""Key of a header's metadata that says that tensors may be slices."""
_STATE: Final = re.compile(
    r"optim|(lr_)?scheduler|scaler|rng|random_states|training_args|trainer_state|data\.pt|.*dataloader|extra_state|common\.pt|"
    r"sampler|mp_rank|scalar|.*_optim_states|latest|(bf16_)?zero_pp_rank_"
)
"""Begins of names of pickles that hold what training goes on with, and no weights."""
_OTHERS: Final = frozenset({"critic", "ref", "reference", "reward", "optimizer", "optim"})
"""Directories of other models than the one that is trained, and of optimizers."""
_CACHE: Final = re.compile(r"models--(?P<org>[^/]+?)--(?P<name>[^/]+)")


def explain(paths: Collection[str], at: str, *, allow: bool = False) -> str:
    """Say what a directory without weights holds, and what to do about it.

    Args:
        paths: what lies in and below it, relative to it; directories end with ``/``.
        at: its path, for commands.
        allow: whether it would be read if the user allowed pickles, which is said then.

    Returns:
        What follows the name of the directory in a message: "has training state only (...)".
    """
    at = at.rstrip("/")
    files = sorted((path for path in paths if not path.endswith("/")), key=lambda path: (path.count("/"), path))
    own = [path for path in files if _OTHERS.isdisjoint(part.lower() for part in path.split("/")[:-1])]
    own = [path for path in own if not re.match("optimizer_[0-9]", path.rpartition("/")[0].rpartition("/")[2])]
    for tell in _KINDS:
        if (found := tell(own, at)) is not None:
            return f"{found}; or {ALLOW}" if allow else found
    if state := [path for path in files if path.endswith(PICKLES)]:
        return f"has training state only ({some(state, 2)}), expected weights: {SINGLE}, or {INDEX} and its shards"
    top = sorted({path.partition("/")[0] + ("/" if "/" in path else "") for path in paths})
    found = "found " + some((name.rstrip("/") for name in top), 4) if top else "it is empty"
    return f"has no weights: expected {SINGLE}, or {INDEX} and its shards; {found}"


def is_training_state(name: str) -> bool:
    """Tell whether a pickled file holds what training goes on with, going by its name."""
    return _STATE.match(name) is not None


def _adapter(files: list[str], at: str) -> str | None:
    found = [path for path in files if _name(path) in ("adapter_model.safetensors", "adapter_model.bin")]
    if not found:
        return None
    only = "" if any(_name(path).startswith("model_world_size_") for path in files) else " only"
    folder = _folder(found[0], at)
    return (
        f"has an adapter{only} ({found[0]}), expected whole weights; merge it into its base first: "
        f'python -c "from peft import AutoPeftModelForCausalLM as M; '
        f"M.from_pretrained('{folder}').merge_and_unload().save_pretrained('{at}/merged')\""
    )


def _slices(files: list[str], at: str) -> str | None:
    found = [path for path in files if SLICES.fullmatch(_name(path))]
    return None if not found else slices_message(some(found, 2), _folder(found[0], at))


def slices_message(what: str, folder: str) -> str:
    """Say that files hold slices of tensors, and how to join them."""
    return (
        f"has slices of tensors ({what}, {SHARDING_INFO}), expected whole ones; let the trainer save consolidated "
        "weights (NeMo: save_consolidated=true), or join them with consolidate_safetensors_files of "
        f"torch.distributed.checkpoint._consolidate_hf_safetensors into {folder}/consolidated"
    )


def _zero(files: list[str], at: str) -> str | None:
    found = [path for path in files if _name(path).startswith("zero_pp_rank_") or path.endswith("_model_states.pt")]
    if not found:
        return None
    scripts = [path for path in files if _name(path) == "zero_to_fp32.py"]
    script = f"{at}/{scripts[0]}" if scripts else "-m deepspeed.utils.zero_to_fp32"
    above = _folder(found[0], at).rpartition("/")[0] if not scripts else _folder(scripts[0], at)
    return (
        f"is a DeepSpeed ZeRO checkpoint ({found[0]}), expected {SINGLE}; gather it: "
        f"python {script} {above} {at}/merged --safe_serialization"
    )


def _verl(files: list[str], at: str) -> str | None:
    found = [path for path in files if re.match(r"model_world_size_.*\.pt", _name(path))]
    if not found:
        return None
    folder = _folder(found[0], at)
    how = f"python -m verl.model_merger merge --backend fsdp --local_dir {folder} --target_dir {folder}/huggingface"
    skyrl = ", or let SkyRL export it (trainer.hf_save_interval)" if found[0].startswith("policy/") else ""
    return _pickled(found, f"merge it with `{how}`{skyrl}")


def _megatron(files: list[str], at: str) -> str | None:
    found = [path for path in files if re.search(r"(^|/)dist_ckpt/", path)]
    if not found:
        return None
    folder = f"{at}/{found[0]}".partition("/dist_ckpt/")[0]
    return (
        f"is a checkpoint of Megatron ({found[0].partition('dist_ckpt/')[0]}dist_ckpt), expected {SINGLE}; merge it "
        f"with `python -m verl.model_merger merge --backend megatron --local_dir {folder} --target_dir "
        f"{folder}/huggingface`"
    )


def _distributed(files: list[str], at: str) -> str | None:
    found = [path for path in files if path.endswith(".distcp")]
    if not found:
        return None
    folder, below = _folder(found[0], at), found[0].rpartition("/")[0]
    what, how = (
        "torch.distributed checkpoint",
        (
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} {at}/weights.pt, then load "
            "that into the model and call its save_pretrained"
        ),
    )
    if (below + "/common.pt").lstrip("/") in files:
        what, how = (
            "torch.distributed checkpoint of Megatron",
            (
                'with Megatron-Bridge, python -c "from megatron.bridge import AutoBridge as B; B.from_hf_pretrained('
                f"'BASE').export_ckpt('{folder}', '{at}/merged')\", or with slime, python "
                f"tools/convert_torch_dist_to_hf.py --input-dir {folder} --output-dir {at}/merged --origin-hf-dir BASE"
            ),
        )
    elif "pytorch_model_fsdp" in below:
        how = f"accelerate merge-weights {folder} {at}/merged, or {how}"
    elif below.startswith("policy/weights"):
        how = (
            f"with NeMo-RL, examples/converters/convert_dcp_to_hf.py --config={at}/config.yaml "
            f"--dcp-ckpt-path={folder} --hf-ckpt-path={at}/merged, or {how}"
        )
    return f"is a {what} ({found[0]}), expected {SINGLE}; convert it first: {how}"


def _pickles(files: list[str], at: str) -> str | None:
    found = [path for path in files if path.endswith(PICKLES) and not is_training_state(_name(path))]
    if not found:
        return None
    how = "load it with the library that wrote it and save it with save_pretrained(..., safe_serialization=True)"
    hugging_face = [path for path in found if _name(path).startswith("pytorch_model")]
    if hugging_face:
        folder = _folder(hugging_face[0], at)
        how = (
            f'python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{folder}', dtype='auto').save_pretrained('{folder}')\""
        )
    return _pickled(hugging_face or found, how)


def _pickled(found: Iterable[str], how: str) -> str:
    return f"has pickled files only ({some(found, 2)}), expected {SINGLE}; nothing is unpickled here: {how}"


_KINDS: Final[tuple[Callable[[list[str], str], str | None], ...]] = (
    _adapter, _slices, _zero, _verl, _megatron, _distributed, _pickles,
)  # fmt: skip
"""Each tells its own kind of checkpoint, or nothing."""


def cache_root(path: str, folders: Collection[str]) -> str | None:
    """Say what to give instead of the directory of a model in the cache of the Hub, if it is one.

    Examples:
        >>> cache_root("/cache/models--Qwen--Qwen3-8B", ["blobs", "refs", "snapshots"])
        'is the cache of Qwen/Qwen3-8B, not a checkpoint: give hf://Qwen/Qwen3-8B, or a directory in its snapshots/'
    """
    match = _CACHE.fullmatch(path.rstrip("/").rpartition("/")[2])
    if match is None or "snapshots" not in folders:
        return None
    model = f"{match['org']}/{match['name']}"
    return f"is the cache of {model}, not a checkpoint: give hf://{model}, or a directory in its snapshots/"


def dangling_link(path: str, target: str) -> str:
    """Say that a link leads nowhere."""
    return f"{path} is a link to {target}, which does not exist; restore that, or fetch the checkpoint again"


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _folder(path: str, at: str) -> str:
    below = path.rpartition("/")[0]
    return f"{at}/{below}" if below else at
