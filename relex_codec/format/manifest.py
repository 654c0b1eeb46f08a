"""The manifest: what the index says in JSON (FORMAT.md section 4), as values and as bytes; manifest_parser.py reads it.

What a run has of tensors, files and checkpoints, in four lists:

    tensors   what there is of weights, each once: name, dtype, shape, and where in the base it starts from
    files     what there is beside weights, each once: name, digest, and where its bytes are
    layouts   what a checkpoint may be made of: which tensors in which shards, which files
    steps     which layout each step has, and what its directory is called
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from relex_codec.core.left_out import LeftOut

SIZE_LIMIT: Final = 1 << 48
LEFT_OUT_LIMIT: Final = 1000
"""Rows of what the run's directory holds and the file does not."""


class BaseRange(NamedTuple):
    """Elements `first` to ``first + elements`` of a tensor of the base, in row-major order: a source of an origin.

    Attributes:
        shard: number of the file of the base that had it when the run was encoded, in `Manifest.base_shards`.
        name, shape: of the base's tensor, all of it.
    """

    shard: int
    name: str
    shape: tuple[int, ...]
    first: int
    elements: int


class TensorEntry(NamedTuple):
    """What the manifest says about one tensor.

    Attributes:
        origin_dtype: of what it starts from; for one that is stored or tied its own.
        sources: what it starts from, one after another; empty where that is stored in the file, or for a tied tensor.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    origin_dtype: str
    sources: tuple[BaseRange, ...] = ()

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def whole_tensor(shard: int, name: str, shape: tuple[int, ...]) -> tuple[BaseRange]:
    """Return the sources of a tensor that starts from all of one of the base."""
    return (BaseRange(shard, name, shape, 0, math.prod(shape)),)


class FileEntry(NamedTuple):
    """A file of a checkpoint that is no weights.

    Attributes:
        name: from the directory of the step on.
        digest: 32 hexadecimal digits; None for a document that is taken as it is.
        chunk, offset: the span of its bytes; None, both, where it is only in the base, under the same name.
    """

    name: str
    length: int
    digest: str | None
    chunk: int | None = None
    offset: int | None = None

    @property
    def stored(self) -> bool:
        """Whether the file holds its bytes."""
        return self.chunk is not None


@dataclass(frozen=True, slots=True)
class Layout:
    """What the checkpoint of a step is made of.

    Attributes:
        shards: names of its files of weights, sorted.
        indexed: whether it has an index, which says what is in which shard.
        tensors: for each tensor of the manifest the number of its shard; None if such a checkpoint lacks it.
        files: numbers of its other files in `Manifest.files`.
    """

    shards: list[str]
    indexed: bool
    tensors: list[int | None]
    files: list[int] = field(default_factory=list)


class StepEntry(NamedTuple):
    """A step of the run.

    Attributes:
        directory: of its checkpoint, from that of the run on; None if nobody knows.
        layout: number of its layout.
    """

    directory: str | None
    layout: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """The manifest's content; attributes are its keys.

    Attributes:
        exact: whether the file offers tier ``exact``: its frames hold every tensor that changes.
        base_shards: names of the files of weights of the base.
        layout: number of the layout of tiers ``line`` and ``track``, and of the origin: that of the last observed step.
    """

    observed: int
    exact: bool
    base_uri: str | None
    embedded: bool
    base_shards: list[str]
    quality: str
    growth: float | None
    tensors: list[TensorEntry]
    files: list[FileEntry]
    layouts: list[Layout]
    layout: int
    steps: list[StepEntry]
    left_out: list[LeftOut] = field(default_factory=list)

    def to_bytes(self) -> bytes:
        """Return the JSON text."""
        document = {
            "observed": self.observed,
            "exact": self.exact,
            "base": {"uri": self.base_uri, "embedded": self.embedded, "shards": self.base_shards},
            "quality": {"name": self.quality, "growth": self.growth},
            "tensors": [_tensor_row(entry) for entry in self.tensors],
            "files": self.files,
            "layouts": [
                {"shards": one.shards, "indexed": one.indexed, "tensors": one.tensors, "files": one.files}
                for one in self.layouts
            ],
            "layout": self.layout,
            "steps": self.steps,
            "left_out": self.left_out,
        }
        return json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _tensor_row(entry: TensorEntry) -> list[Any]:
    sources: list[Any] = [
        source.shard if source == (source.shard, entry.name, entry.shape, 0, entry.size) else source
        for source in entry.sources
    ]
    return [entry.name, entry.dtype, entry.shape, [entry.origin_dtype, sources] if sources else None]
