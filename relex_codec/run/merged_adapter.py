"""Adapters merged into their base: whole weights, as PEFT's ``merge_and_unload`` gives them on a CPU.

Low-rank updates only (LoRA, rsLoRA), with whole modules and biases beside them; what an adapter's configuration asks
for besides is refused by name. W + scaling (B A): scaling is alpha / r, or alpha / sqrt(r) with rsLoRA; the product is
made in float32, and the sum rounded to the base's dtype.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch

from relex_codec.checkpoints.checkpoint import TensorInfo, TensorReader
from relex_codec.core.dtypes import ITEMSIZE, bits_dtype
from relex_codec.core.filenames import ADAPTER_CONFIG, ADAPTER_WEIGHTS, INDEX, file_allowed
from relex_codec.core.progress import progress_bar
from relex_codec.core.text import quote
from relex_codec.core.torch_dtypes import as_tensor, bytes_of
from relex_codec.decoding.tiers import StepTier
from relex_codec.errors import BaseMismatch, InvalidArgument, Unsupported
from relex_codec.format.safetensors_header import build
from relex_codec.storage.outputs import output_directory
from relex_codec.storage.urls import Options, PathLike

from .export import Weights
from .own_base import refuse_own_base
from .run_reader import RunReader

_IGNORED: Final = frozenset({
    "auto_mapping", "base_model_name_or_path", "ephemeral_gpu_offload", "exclude_modules", "inference_mode",
    "layers_pattern", "layers_to_transform", "lora_dropout", "megatron_config", "megatron_core", "modules_to_save",
    "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type",
})  # fmt: skip
"""Keys of a configuration that say nothing about merging: which tensors there are says which modules are meant."""
_USED: Final = frozenset({
    "alpha_pattern", "bias", "fan_in_fan_out", "init_lora_weights", "lora_alpha", "peft_type", "r", "rank_pattern",
    "use_rslora",
})  # fmt: skip
_INITS: Final = (True, False, None, "gaussian", "orthogonal", "eva")
"""Ways of initialising that leave the base as it was."""
_PREFIX: Final = "base_model.model."
_PARTS: Final = re.compile(r"(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<part>[AB])(\.weight)?")
_PLAIN: Final = re.compile(r"[A-Za-z0-9_.]+")


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What a configuration says about merging.

    Attributes:
        rank_pattern, alpha_pattern: other ranks and alphas, by the end of a module's name.
        transposed: whether weights of the base are [in, out].
    """

    r: int
    alpha: float
    rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    transposed: bool

    @classmethod
    def parse(cls, raw: bytes, where: str) -> AdapterConfig:
        """Read ``adapter_config.json``.

        Raises:
            Unsupported: it is no configuration of LoRA, or asks for what is not merged here; the message names that.
        """
        try:
            config = json.loads(raw)
            kind = config["peft_type"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise Unsupported(f"{where}: adapter_config.json says no peft_type; merge the adapter with peft") from None
        if kind != "LORA":
            raise Unsupported(f"{where} is an adapter of kind {quote(kind)}, only LORA is merged; merge it with peft")
        more = sorted(key for key, value in config.items() if value and key not in _IGNORED | _USED)
        if more:
            shown = ", ".join(f"{quote(key)}: {quote(config[key], 40)}" for key in more[:3])
            raise Unsupported(f"{where} is an adapter with {shown}, which is not merged here; merge it with peft")
        init = config.get("init_lora_weights", True)
        if init not in _INITS:
            raise Unsupported(
                f"{where} is an adapter initialised by {quote(init)}, which changes the base's own weights; merge it "
                "with peft"
            )
        r, alpha = config.get("r", 8), config.get("lora_alpha", 8)
        ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
        numbers = [r, alpha, *ranks.values(), *alphas.values()]
        if not all(type(value) in (int, float) and math.isfinite(value) and value > 0 for value in numbers):
            raise Unsupported(f"{where}: r or lora_alpha is no number above 0")
        if strange := [key for key in (*ranks, *alphas) if not _PLAIN.fullmatch(key)]:
            raise Unsupported(
                f"{where} has a pattern {quote(strange[0])}, expected names of modules; merge it with peft"
            )
        return cls(r, alpha, bool(config.get("use_rslora")), ranks, alphas, bool(config.get("fan_in_fan_out")))

    def scaling(self, module: str, rank: int, where: str) -> float:
        """Return by what B A of a module is multiplied.

        Args:
            rank: of its tensors.

        Raises:
            Unsupported: the configuration says another rank.
        """
        wanted = self.r if (key := _matching(self.rank_pattern, module)) is None else self.rank_pattern[key]
        if rank != wanted:
            raise Unsupported(f"{where}: {quote(module)} is of rank {rank}, its configuration says {wanted}")
        alpha = self.alpha if (key := _matching(self.alpha_pattern, module)) is None else self.alpha_pattern[key]
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def _matching(patterns: Mapping[str, Any], module: str) -> str | None:
    """Return the first pattern that is a module's name, or an end of it."""
    return next((key for key in patterns if module == key or module.endswith(f".{key}")), None)


@dataclass(slots=True)
class _Change:
    """What an adapter does to a tensor of the base.

    Attributes:
        whole: the tensor of the adapter that replaces it.
        a, b: those whose product is added then.
    """

    module: str = ""
    whole: str | None = None
    a: str | None = None
    b: str | None = None
    embedding: bool = field(default=False)


class MergedAdapter:
    """An adapter over its base.

    Args:
        base: whole weights.
        tensors: of the adapter, by name.
        read: gives one of them.
        config: content of ``adapter_config.json``.
        where: what to call the adapter in messages.

    Raises:
        Unsupported: the adapter is of a kind that is not merged here.
        BaseMismatch: the base lacks a tensor that it changes, or has it in another shape.
    """

    def __init__(
        self,
        base: TensorReader,
        tensors: Mapping[str, TensorInfo],
        read: Callable[[str], torch.Tensor],
        config: bytes,
        where: str,
    ) -> None:
        self.base, self._read, self._where = base, read, where
        self._config = AdapterConfig.parse(config, where)
        self._tensors = tensors
        self._changes = self._planned()
        for name, change in self._changes.items():
            self._check(name, change)

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor of the base, changed."""
        info = self.base.info(name)
        weight = as_tensor(self.base.read(name), info.dtype, info.shape)
        change = self._changes.get(name)
        if change is None:
            return weight
        if change.whole is not None:
            weight = self._read(change.whole).to(weight.dtype)
        if change.a is None or change.b is None:
            return weight
        a, b = self._read(change.a).float(), self._read(change.b).float()
        product = b @ a
        if change.embedding or self._config.transposed:
            product = product.T
        scaling = self._config.scaling(change.module, a.shape[0], self._where)
        change_of = product * scaling
        # as peft does it: for embeddings the change is rounded first, for other weights only the sum
        weight += change_of.to(weight.dtype) if change.embedding else change_of
        return weight

    def _planned(self) -> dict[str, _Change]:
        changes: dict[str, _Change] = {}
        for name in self._tensors:
            inner = name.removeprefix(_PREFIX).replace(".base_layer.", ".")
            match = _PARTS.fullmatch(inner)
            if match is None:
                if ".lora_" in inner:
                    raise Unsupported(f"{self._where} has {quote(name)}, which is not merged here; merge it with peft")
                changes.setdefault(inner, _Change()).whole = name
                continue
            change = changes.setdefault(f"{match['module']}.weight", _Change())
            change.module, change.embedding = match["module"], bool(match["kind"])
            if match["part"] == "A":
                change.a = name
            else:
                change.b = name
        return changes

    def _check(self, name: str, change: _Change) -> None:
        info = self.base.tensors.get(name)
        if info is None:
            raise BaseMismatch(
                f"base {self.base.path} has no tensor {quote(name)}, which {self._where} changes; pass --base with the "
                "base that the adapter was trained on"
            )
        shapes = [] if change.whole is None else [self._tensors[change.whole].shape]
        if (change.a is None) != (change.b is None):
            raise Unsupported(f"{self._where} has half of a change of {quote(name)}; merge it with peft")
        if change.a is not None and change.b is not None:
            a, b = self._tensors[change.a].shape, self._tensors[change.b].shape
            if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
                raise Unsupported(f"{self._where}: {quote(name)} is changed by {list(b)} times {list(a)}, not matrices")
            self._config.scaling(change.module, a[0], self._where)
            shapes.append((a[1], b[0]) if change.embedding or self._config.transposed else (b[0], a[1]))
        for shape in shapes:
            if info.shape != shape:
                raise BaseMismatch(
                    f"base {self.base.path} has {quote(name)} of {list(info.shape)}, {self._where} changes "
                    f"{list(shape)}"
                )


def save_merged(
    reader: RunReader,
    output: PathLike,
    at: StepTier,
    weights: Weights,
    notes: Mapping[str, bytes],
    *,
    overwrite: bool = False,
    progress: bool = False,
    storage_options: Options = None,
) -> None:
    """Write a step of a run of adapters as whole weights; arguments not named here are those of `Run.save`.

    Args:
        at: the step.
        weights: gives those of the adapter.
        notes: further files by name.

    Raises:
        InvalidArgument: the file is none of adapters, the caller named no base, or `output` cannot be written.
        Unsupported, BaseMismatch: as `MergedAdapter`.
    """
    layout = reader.layout(at.step, at.tier)
    if list(layout.shards) != [ADAPTER_WEIGHTS] or ADAPTER_CONFIG not in layout.files:
        raise InvalidArgument(f"{reader.path} is no run of adapters: its steps are whole weights as they are")
    if not reader.base.is_given:
        raise InvalidArgument(
            f"{reader.path} holds adapters, and nothing to recognise their base by; to merge them, pass --base"
        )
    records = {one.name: one for one in layout.tensors}
    tensors = {name: TensorInfo(name, one.dtype, one.shape) for name, one in records.items()}
    config = reader.side_files(layout).read(ADAPTER_CONFIG)

    def read(name: str) -> torch.Tensor:
        (found,) = weights([records[name]])
        info = tensors[name]
        return as_tensor(np.frombuffer(found, bits_dtype(info.dtype)), info.dtype, info.shape)

    base = reader.base_reader().checkpoint
    if overwrite:
        refuse_own_base(output, base.shards, base)
    merged = MergedAdapter(base, tensors, read, config, f"step {at.step:g} of {reader.path}")
    with progress_bar("merge", sum(map(_nbytes, base.tensors.values())), enabled=progress) as bar:
        export_merged(merged, output, bar.update, storage_options, overwrite, notes)


def export_merged(
    merged: MergedAdapter,
    output: PathLike,
    on_bytes: Callable[[int], Any] = lambda _: None,
    storage_options: Options = None,
    overwrite: bool = False,
    notes: Mapping[str, bytes] | None = None,
) -> None:
    """Write whole weights to the directory `output`, laid out as the base is, with the base's other files.

    Args:
        merged: the weights.
        output: the directory.
        on_bytes: called with the bytes of each tensor when it is written.
        storage_options: for fsspec, if `output` is a URL.
        overwrite: replace files of the same names, as `Run.save`.
        notes: further files by name, written after the weights.

    Raises:
        InvalidArgument: `output` is not empty or cannot be written.
    """
    base = merged.base
    names = [name for name in base.side_files if file_allowed(name)]
    replaced = [*base.shards, *([INDEX] if base.indexed else [])] if overwrite else None
    with output_directory(output, storage_options, replaced=replaced) as directory:
        for number, shard in enumerate(base.shards):
            infos = [info for info in base.tensors.values() if info.shard == number]
            with directory.file(shard) as out:
                out.write(build([(i.name, i.dtype, i.shape, _nbytes(i)) for i in infos], {"format": "pt"}))
                for info in infos:
                    out.write(bytes_of(merged.tensor(info.name)))
                    on_bytes(_nbytes(info))
        for name, content in (*(notes or {}).items(), *_beside(base, names)):
            with directory.file(name) as out:
                out.write(content)


def _beside(base: TensorReader, names: list[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the files beside the weights, the index last."""
    yield from zip(names, base.read_files(names), strict=True)
    if base.indexed:
        place = {info.name: base.shards[info.shard] for info in base.tensors.values()}
        total = sum(map(_nbytes, base.tensors.values()))
        document = {"metadata": {"total_size": total}, "weight_map": dict(sorted(place.items()))}
        yield INDEX, (json.dumps(document, indent=2) + "\n").encode()


def _nbytes(info: TensorInfo) -> int:
    return info.size * ITEMSIZE[info.dtype]
