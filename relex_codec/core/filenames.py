"""Names of the files of a checkpoint: those that loaders know, and those that a `.relex` file may hold."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
CONFIG: Final = "config.json"
PICKLE: Final = "pytorch_model.bin"
PICKLE_INDEX: Final = "pytorch_model.bin.index.json"
ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
ADAPTER_CONFIG: Final = "adapter_config.json"
"""What makes a directory an adapter: allowed beside `ADAPTER_WEIGHTS` alone, as it leads a loader to another base."""
PROVENANCE: Final = "relex.json"
"""What this package writes beside weights: where they are from. A run is encoded without."""
FOLDERS: Final = ("additional_chat_templates", "custom_generate")
"""Folders beside the weights whose files belong to a checkpoint."""
SAFE_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")
"""What every name of a file in a `.relex` file looks like (FORMAT.md section 4): nothing hidden, and no
paths but for those of `FOLDERS`."""
PICKLES: Final = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
"""Ends of names of files that loaders unpickle."""
DEVICES: Final = frozenset(
    {"con", "prn", "aux", "nul"} | {f"{port}{digit}" for port in ("com", "lpt") for digit in range(10)}
)
"""What Windows takes for a device, whatever comes after a dot, in lower case."""
TEXTS: Final = (".txt", ".md", ".jinja", ".py", ".tiktoken", ".spm", ".vocab")
"""Ends of names of vocabularies, templates, code and documents, whatever they are called."""
LICENCES: Final = frozenset({"license", "licence", "notice", "copying"})
"""Whole names of files without an ending."""
JSON_WORDS: Final = frozenset({
    "config", "configuration", "id2label", "label2id", "labels", "merges", "modules", "normalizer", "params",
    "preprocessor", "processor", "tekken", "template", "templates", "tokenizer", "tokens", "vocab", "vocabulary",
})  # fmt: skip
"""Words of which the name of a ``.json`` file has one: configuration, tokenizer, templates."""
MODEL_WORDS: Final = frozenset({
    "bpe", "piece", "sentencepiece", "sp", "spiece", "spm", "tokenizer", "tokens", "unigram", "vocab", "vocabulary",
})  # fmt: skip
"""Words of which the name of a ``.model`` file has one: a tokenizer of SentencePiece."""
NEVER: Final = frozenset({"adapter", "index"})
"""Words of files that lead a loader to weights in other files, or elsewhere."""
_SEGMENT: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=+-]{0,254}")
"""A part of the path of a step's directory."""
_MODEL: Final = re.compile(r".*\.model(\.v[0-9]{1,3})?", re.DOTALL)
"""Names of tokenizers of SentencePiece: ``tokenizer.model``, ``tokenizer.model.v3``."""
STEP_FOLDER: Final = "global_step_{}"
"""What the directory of a step is called that has no name of its own."""
SEGMENTS_LIMIT: Final = 8
DIRECTORY_LIMIT: Final = 1000


def file_allowed(name: str, shards: Sequence[str] = ()) -> bool:
    """Tell whether a file beside the weights may be stored under this name, and written out again.

    One list for both, by name and ending: configuration, tokenizer, templates, code, documents, licence. What is on it
    neither is weights nor leads a loader to weights; everything else is not.

    Args:
        name: in a folder of `FOLDERS`, it begins with that and a slash.
        shards: the files of weights that it lies beside.

    Examples:
        >>> [file_allowed(name) for name in ("tokenizer_config.json", "spiece.model", "modeling_x.py", "LICENSE")]
        [True, True, True, True]
        >>> [file_allowed(name) for name in ("pytorch_model.bin.index.json", "evil.model", "x.npy", "nul.json", "a.")]
        [False, False, False, False, False]
        >>> file_allowed("custom_generate/generate.py"), file_allowed("adapter_config.json", [ADAPTER_WEIGHTS])
        (True, True)
    """
    if name == ADAPTER_CONFIG:
        return list(shards) == [ADAPTER_WEIGHTS]
    folder, _, below = name.rpartition("/")
    if folder:
        return folder in FOLDERS and file_allowed(below)
    lower = name.lower()  # some file systems see no difference
    if not _writable(name):
        return False
    if lower in LICENCES:
        return True
    words = set(re.split(r"[._-]", lower.rpartition(".")[0]))
    if words & NEVER:
        return False
    if lower.endswith(".json"):
        return bool(words & JSON_WORDS)
    if _MODEL.fullmatch(lower):
        return bool(words & MODEL_WORDS)
    return lower.endswith(TEXTS)


def is_document(name: str) -> bool:
    """Tell whether an allowed file is read by people only, so that a step may do without it.

    Examples:
        >>> [is_document(name) for name in ("README.md", "LICENSE", "config.json")]
        [True, True, False]
    """
    lower = name.lower()
    return lower in LICENCES or lower.endswith(".md")


def directory_allowed(path: str) -> bool:
    """Tell whether the directory of a step may be called so, from the directory of its run on.

    Examples:
        >>> [directory_allowed(path) for path in ("checkpoint-10", "global_step_10/actor/huggingface", "../10", "nul")]
        [True, True, False, False]
    """
    parts = path.split("/")
    if len(path) > DIRECTORY_LIMIT or len(parts) > SEGMENTS_LIMIT:
        return False
    return all(_SEGMENT.fullmatch(part) and _writable_anywhere(part) for part in parts)


def looks_like_weights(name: str) -> bool:
    """Tell whether a loader could take a file of this name for weights, or be led to some by it.

    Examples:
        >>> [looks_like_weights(name) for name in ("model.safetensors", "pytorch_model.bin.index.json", "config.json")]
        [True, True, False]
    """
    return name.lower().endswith((".safetensors", ".gguf", ".h5", ".msgpack", ".index.json", *PICKLES))


def completes(path: str) -> bool:
    """Tell whether a file makes those beside it a checkpoint that loaders take for complete."""
    return path.rpartition("/")[2] in (CONFIG, INDEX)


def shard_allowed(name: str) -> bool:
    """Tell whether a file of weights may be written under this name."""
    return _writable(name) and name.endswith(".safetensors")


def _writable(name: str) -> bool:
    """Tell whether a name means the same file on every system."""
    return bool(SAFE_NAME.fullmatch(name)) and _writable_anywhere(name)


def _writable_anywhere(name: str) -> bool:
    return not name.endswith(".") and name.lower().partition(".")[0] not in DEVICES
