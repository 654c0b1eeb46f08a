"""The files beside the weights that a step is written with: its own, and of the base's what it needs besides."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from relex_codec.checkpoints.checkpoint import TensorReader
from relex_codec.core.digests import digest
from relex_codec.core.dtypes import FLOATS
from relex_codec.core.filenames import CONFIG, file_allowed, is_document
from relex_codec.errors import CheckpointError
from relex_codec.format.manifest import FileEntry
from relex_codec.format.packed_span import PendingSpan
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

    Examples:
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

    Examples:
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


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of the run that is no weights.

    Attributes:
        digest: of its content; None for a document that is whatever the base has under its name.
        span: where the file has it; None: it is in the base only.
        kept: what the manifest says of it, if it stays where it was.
    """

    name: str
    length: int
    digest: bytes | None
    span: PendingSpan | None
    kept: FileEntry | None = None

    @property
    def entry(self) -> FileEntry:
        """What the manifest says of it; after all chunks are closed."""
        if self.kept is not None:
            return self.kept
        known = None if self.digest is None else self.digest.hex()
        return FileEntry(self.name, self.length, known, *((None, None) if self.span is None else self.span.resolved()))


class FileStore:
    """The files of all steps, each content once.

    Args:
        store: writes a content to the file; returns where it is.
    """

    def __init__(self, store: Callable[[bytes], PendingSpan]) -> None:
        self._store = store
        self._numbers: dict[tuple[str, bytes | None], int] = {}
        self.files: list[StoredFile] = []

    def add(self, name: str, content: bytes) -> int:
        """Return the number of a file, which is stored if it is not known."""
        known = digest(content)
        if (name, known) not in self._numbers:
            self._put(StoredFile(name, len(content), known, self._store(content)))
        return self._numbers[name, known]

    def refer(self, name: str, length: int, known: bytes | None) -> int:
        """Return the number of a file that is in the base only, where it has this digest."""
        if (name, known) not in self._numbers:
            self._put(StoredFile(name, length, known, None))
        return self._numbers[name, known]

    def keep(self, entry: FileEntry) -> int:
        """Return the number of a file that another one has, and that stays where it is."""
        known = None if entry.digest is None else bytes.fromhex(entry.digest)
        self._put(StoredFile(entry.name, entry.length, known, None, entry))
        return self._numbers[entry.name, known]

    def _put(self, file: StoredFile) -> None:
        self._numbers[file.name, file.digest] = len(self.files)
        self.files.append(file)


class BaseFiles:
    """The files of a base, which steps are written with where they lack them, or have the same.

    Args:
        base: the base.
        embed: whether the file holds them; otherwise it refers to them.
        dtypes: elements of the run's tensors of each dtype.
    """

    def __init__(self, base: TensorReader, store: FileStore, embed: bool, dtypes: Mapping[str, int]) -> None:
        self._base, self._store, self._embed, self._dtypes = base, store, embed, dtypes
        self.names = [name for name in base.side_files if file_allowed(name)]

    @cached_property
    def _contents(self) -> dict[str, bytes]:
        """All of them, which are small; those of a remote base are read at the same time."""
        return dict(zip(self.names, self._base.read_files(self.names), strict=True))

    def number(self, name: str) -> int:
        """Return the number of a file of the base, for a step that lacks it."""
        content = self._contents[name]
        if name == CONFIG:
            fitted = fitted_config(content, self._dtypes, f"base {self._base.path}")
            if fitted != content:
                return self._store.add(name, fitted)
        return self._add(name, content)

    def own(self, name: str, content: bytes) -> int:
        """Return the number of a file of a step, which may be the base's."""
        if name in self.names and self._contents[name] == content:
            return self._add(name, content)
        return self._store.add(name, content)

    def _add(self, name: str, content: bytes) -> int:
        if self._embed:
            return self._store.add(name, content)
        return self._store.refer(name, len(content), None if is_document(name) else digest(content))


def files_of_step(
    step: TensorReader, own: Callable[[str, bytes], int], names: Iterable[str], number: Callable[[str], int]
) -> list[int]:
    """Return the numbers of the files that a step is written with, sorted.

    Args:
        step: has files of its own.
        own: takes one of them.
        names: of files of the base, or of another step.
        number: takes one of these, where the step lacks it.
    """
    mine = [name for name in step.side_files if file_allowed(name, step.shards)]
    contents = dict(zip(mine, step.read_files(mine), strict=True))
    # in the order of their names, so that what a step has of the base's makes no difference to the file
    both = sorted([*mine, *files_from_base(mine, names)])
    return sorted(own(name, contents[name]) if name in contents else number(name) for name in both)
