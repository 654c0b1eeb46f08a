"""The files beside the weights that a step is written with: its own, and of the base's what it needs besides."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from relex_codec.checkpoints.checkpoint import TensorReader
from relex_codec.core.digests import digest
from relex_codec.core.dtypes import FLOATS
from relex_codec.core.filenames import CONFIG
from relex_codec.errors import CheckpointError
from relex_codec.format.safetensors_header import load_object

TOKENIZER: Final = frozenset({
    "added", "bpe", "chat", "merges", "piece", "sentencepiece", "sp", "special", "spiece", "spm", "tekken", "tiktoken",
    "tokenizer", "tokens", "unigram", "vocab", "vocabulary",
})  # fmt: skip
PROCESSOR: Final = frozenset({"preprocessor", "processor"})
"""Words of names of files that belong together: those of one checkpoint do not go with those of another."""
_TORCH_DTYPES: Final = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def files_from_base(own: Iterable[str], base: Iterable[str]) -> list[str]:
    """Return which files of the base a step is written with besides its own.

    All that it lacks, but nothing of a tokenizer or of a processor of which it has files itself.

    Example:
        >>> files_from_base(["config.json"], ["config.json", "tokenizer.json", "chat_template.jinja"])
        ['chat_template.jinja', 'tokenizer.json']
        >>> files_from_base(["config.json", "vocab.json"], ["tokenizer.json", "generation_config.json", "LICENSE"])
        ['LICENSE', 'generation_config.json']
    """
    own = list(own)
    there = {name.lower() for name in own}
    groups = {_group(name) for name in own} - {None}
    return sorted(name for name in base if name.lower() not in there and _group(name) not in groups)


def _group(name: str) -> str | None:
    words = set(re.split(r"[._/-]", name.lower()))
    if words & PROCESSOR:
        return "processor"
    return "tokenizer" if words & TOKENIZER else None


def fitted_config(raw: bytes, dtypes: Mapping[str, int], where: str) -> bytes:
    """Return the base's configuration for a run that has none, without what does not hold any more.

    Args:
        raw: ``config.json`` of the base.
        dtypes: elements of the run's tensors of each dtype.
        where: what to call the base in messages.

    Returns:
        `raw` itself if all of it holds: a run without codes has no ``quantization_config``, and its ``dtype`` is that
        of most of its weights.

    Example:
        >>> fitted_config(b'{"dtype": "bfloat16", "quantization_config": {}}', {"F32": 9}, "base")
        b'{\\n  "dtype": "float32"\\n}\\n'
    """
    config = load_object(raw, error=CheckpointError, where=f"{CONFIG} of {where}")
    changed = False
    floats = {dtype: count for dtype, count in dtypes.items() if dtype in FLOATS}
    coded = sum(dtypes.values()) > 2 * sum(floats.values()) or any(dtype.startswith("F8") for dtype in dtypes)
    if not coded and config.pop("quantization_config", None) is not None:
        changed = True
    if floats and not coded:
        most = _TORCH_DTYPES[max(floats, key=floats.__getitem__)]
        for part in (config, *(value for value in config.values() if isinstance(value, dict))):
            for key in ("dtype", "torch_dtype"):
                if isinstance(part.get(key), str) and part[key] != most:
                    part[key], changed = most, True
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode() if changed else raw


Edit = Callable[[bytes], bytes]
"""Makes of the base's configuration that of a run that has none."""


class StoredFile(NamedTuple):
    """A file of the run that is no weights.

    Attributes:
        digest: of its content.
        span: where the file has it; None: it is in the base only.
    """

    name: str
    length: int
    digest: bytes
    span: Any


class FileStore:
    """The files of all steps, each content once.

    Args:
        base: whose files are referred to where a step has the same ones.
        base_files: names of those that a file may hold.
        store: writes a content to the file; returns where it is.
        embed: write the base's too.
    """

    def __init__(
        self, base: TensorReader, base_files: Collection[str], store: Callable[[bytes], Any], embed: bool
    ) -> None:
        self._base, self._names, self._store, self._embed = base, sorted(base_files), store, embed
        self._content: dict[str, bytes] = {}
        self._numbers: dict[tuple[str, bytes], int] = {}
        self.files: list[StoredFile] = []

    def of_step(self, names: Sequence[str], read: Callable[[Sequence[str]], Iterable[bytes]], edit: Edit) -> list[int]:
        """Return the numbers of the files that a step is written with.

        Args:
            names: of its own ones.
            read: gives their content.
            edit: for a step without a configuration.
        """
        found = [self._add(name, content) for name, content in zip(names, read(names), strict=True)]
        for name in files_from_base(names, self._names):
            content = self._of_base(name)
            found.append(self._add(name, edit(content) if name == CONFIG else content))
        return sorted(found)

    def _of_base(self, name: str) -> bytes:
        if name not in self._content:
            self._content[name] = self._base.read_file(name)
        return self._content[name]

    def _add(self, name: str, content: bytes) -> int:
        key = name, digest(content)
        if key not in self._numbers:
            in_base = name in self._names and self._of_base(name) == content
            stored = None if in_base and not self._embed else self._store(content)
            self._numbers[key] = len(self.files)
            self.files.append(StoredFile(name, len(content), key[1], stored))
        return self._numbers[key]
