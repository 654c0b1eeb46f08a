"""Writing what steps change as adapters of PEFT: low-rank factors of directions, with the coefficients folded in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch

from relex_codec.core.dtypes import ITEMSIZE
from relex_codec.core.filenames import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, PROVENANCE
from relex_codec.core.progress import progress_bar
from relex_codec.core.torch_dtypes import bytes_of
from relex_codec.decoding.tensor_decoder import TensorDecoder
from relex_codec.decoding.tensors import read_weights
from relex_codec.decoding.tiers import LINEAR as LINEAR_TIERS
from relex_codec.decoding.tiers import StepTier, as_step, choose_tier
from relex_codec.errors import InvalidArgument
from relex_codec.format.reader import FileReader
from relex_codec.format.safetensors_header import build
from relex_codec.format.tensor_record import TensorRecord
from relex_codec.storage.local_directory import AtomicDirectory
from relex_codec.storage.outputs import UploadedDirectory, output_directory
from relex_codec.storage.urls import Options, PathLike

from .adapter_modules import (
    EMBEDDING,
    FACTORED,
    Part,
    Plan,
    factor_shapes,
    name_of_whole,
    names_in_adapter,
    peft_config,
    plan_adapter,
    wrapped_after,
)
from .base_name import name_of_base
from .card import adapter_card
from .directions import is_factored, mixed_directions, stored_factors
from .provenance import as_bytes
from .run_reader import RunReader
from .truncation import Changes, mixed, truncated

RANK: Final = 16
"""Of adapters of files that hold no factors: what vLLM takes unless told otherwise."""
README: Final = "README.md"


@dataclass
class Adapter:
    """What an adapter has of what the steps change; returned by `Run.save_adapter`.

    Attributes:
        rank: of its factors.
        tiers: what each step was read from, by step.
        kept: share of the squared change, over all steps, that is in it.
        left_out: the share that each kind of tensor has which is not in it, by the reason.
        directories: where the adapter of each step was written, by step.

    Examples:
        >>> made = run.save_adapter("adapter-60", 60, rank=4)
        >>> made.rank, made.tiers, made.directories
        (4, {60.0: 'line'}, {60.0: 'adapter-60'})
        >>> f"{100 * made.kept:.0f} % of the squared change, without {', '.join(made.left_out)}"
        '46 % of the squared change, without tied embeddings, norms and biases'
    """

    rank: int
    tiers: dict[float, str] = field(default_factory=dict)
    kept: float = 0.0
    left_out: dict[str, float] = field(default_factory=dict)
    directories: dict[float, str] = field(default_factory=dict)


def changes_of(container: FileReader, tensor: TensorRecord, mix: Any, flipped: bool = False) -> Iterator[Changes]:
    """Yield what steps change in each matrix of a tensor, stacked; of a tensor that is none, as one row.

    Args:
        mix: float32 [J, K], as `truncation.mixed` returns it.
        flipped: give matrices transposed.

    Raises:
        Corrupt, Truncated: the file is damaged.
    """
    shape = tensor.shape if len(tensor.shape) >= 2 else (1, tensor.size)
    rows, columns = shape[-2:]
    weights = torch.from_numpy(np.ascontiguousarray(mix))
    if len(tensor.shape) >= 2 and is_factored(container, tensor):
        factors = stored_factors(container, tensor)
        for h in range(tensor.size // (rows * columns)):
            a = [torch.from_numpy(np.ascontiguousarray(one.a[h])) for one in factors]  # [r, m] each
            b = [torch.from_numpy(np.ascontiguousarray(one.b[h])) for one in factors]
            left, right = (b, a) if flipped else (a, b)
            ranks = torch.tensor([len(one) for one in left])
            scale = weights.repeat_interleave(ranks, dim=1)  # [J, sum of r]
            stack = torch.cat([torch.cat(left).T * row for row in scale])
            yield Changes(stack, torch.cat(right))
        return
    dense = torch.from_numpy(mixed_directions(container, tensor, weights.numpy()))
    dense = dense.view(len(mix), -1, rows, columns)
    for h in range(dense.shape[1]):
        matrix = dense[:, h].mT if flipped else dense[:, h]
        yield Changes(matrix.reshape(-1, matrix.shape[-1]))


def save_adapters(
    reader: RunReader,
    places: Mapping[StepTier, PathLike],
    notes: Mapping[StepTier, Mapping[str, Any]],
    *,
    rank: int | None = None,
    whole: bool = False,
    embeddings: bool = True,
    overwrite: bool = False,
    progress: bool = False,
    storage_options: Options = None,
) -> Adapter:
    """Write an adapter of each of some steps, all with the same factors A.

    Other arguments are those of `Run.save_adapter`.

    Args:
        places: directory of each step.
        notes: what ``relex.json`` says of each step, and the model card.

    Raises:
        InvalidArgument: a rank below 1, nothing that moves in the file, or a directory that cannot be written.
        BaseMismatch, CheckpointError: the base is needed, and cannot be used.
        Corrupt, Truncated: the file is damaged.
    """
    index, decoder = reader.container.index, reader.decoder
    if list(index.layout.shards) == [ADAPTER_WEIGHTS]:
        raise InvalidArgument(f"{reader.path} holds adapters: decode writes one at any step")
    if rank is not None and rank < 1:
        raise InvalidArgument(f"rank is {rank}, expected 1 or more")
    config = read_config(reader)
    plan = plan_adapter(index.layout.tensors, config, whole=whole, embeddings=embeddings)
    if not plan.factored:
        raise InvalidArgument(f"{reader.path} has no matrix that moves and that an adapter could change")
    rank = default_rank(reader.container, plan) if rank is None else rank
    steps = list(places)
    written = Adapter(rank, {step.step: step.tier for step in steps})
    written.directories = {step.step: str(place) for step, place in places.items()}
    others = [
        tensor.name
        for tensor in index.layout.tensors
        if len(tensor.shape) == 2 and tensor.number not in {part.tensor.number for part in plan.parts}
    ]
    base, revision = name_of_base(reader)
    settings = peft_config(plan, others, rank, base, revision, config)
    entries = _entries(plan, rank)
    total = len(plan.parts) + len(plan.left_out)
    with ExitStack() as stack:
        replaced = [ADAPTER_WEIGHTS] if overwrite else None
        directories: list[AtomicDirectory | UploadedDirectory] = []
        for place in places.values():
            directory = output_directory(place, storage_options, replaced=replaced)
            stack.enter_context(directory)
            directories.append(directory)
        with progress_bar("adapter", total, unit="tensor", enabled=progress) as bar:
            with ExitStack() as files:
                outs = [files.enter_context(directory.file(ADAPTER_WEIGHTS)) for directory in directories]
                for out in outs:
                    out.write(build(entries, {"format": "pt"}))
                energies = _Energies()
                for part in plan.parts:
                    for out, content in zip(outs, _content(decoder, part, steps, rank, energies), strict=True):
                        for data in content:
                            out.write(data)
                    bar.update()
            for tensor, why in plan.left_out:
                energies.leave_out(reader.container, decoder, tensor, steps, why)
                bar.update()
        written.kept, written.left_out = energies.kept, energies.shares
        for directory, step in zip(directories, steps, strict=True):
            card = adapter_card(notes[step], written, base, settings)
            rest = {PROVENANCE: as_bytes(dict(notes[step])), README: card.encode()}
            rest[ADAPTER_CONFIG] = (json.dumps(settings, indent=2) + "\n").encode()  # which makes it an adapter
            for name, text in rest.items():
                with directory.file(name) as out:
                    out.write(text)
    return written


def adapter_tiers(container: FileReader, steps: Sequence[float], tier: str) -> list[StepTier]:
    """Return what the changes of some steps are read from: ``track`` or ``line``, as in a file without frames.

    Raises:
        InvalidArgument: another tier, a step that it does not reach, or one that is the base.
    """
    if tier == "exact":
        raise InvalidArgument("tier 'exact' is no adapter: those are made of tiers 'track' and 'line'")
    found = [StepTier(as_step(step), choose_tier(container, as_step(step), tier, exact=False)) for step in steps]
    if not found:
        raise InvalidArgument("no step is given of which an adapter is to be written")
    for step in found:
        if step.tier not in LINEAR_TIERS:
            raise InvalidArgument(f"step {step.step:g} is the base: there is nothing for an adapter to change")
    return found


def default_rank(container: FileReader, plan: Plan) -> int:
    """Return the rank with which all that the file holds is kept, if that is factors; else `RANK`."""
    records = container.index.directions
    if not all(is_factored(container, part.tensor) for part in plan.factored):
        return RANK
    return max(sum(int(records[d]["rank"]) for d in part.tensor.directions) for part in plan.factored)


def read_config(reader: RunReader) -> dict[str, Any]:
    """Return ``config.json`` of the run; an empty one where it has none.

    Raises:
        BaseMismatch, CheckpointError: it is in the base alone, which cannot be used.
    """
    files = reader.side_files()
    if files.size(CONFIG) is None:
        return {}
    try:
        found = json.loads(files.read(CONFIG))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _entries(plan: Plan, rank: int) -> list[tuple[str, str, tuple[int, ...], int]]:
    """Return name, dtype, shape and bytes of the tensors of an adapter."""
    found: list[tuple[str, str, tuple[int, ...], int]] = []
    for part in plan.parts:
        tensor = part.tensor
        if part.kind not in FACTORED:
            found.append(
                (name_of_whole(part, plan.parts), tensor.dtype, tensor.shape, tensor.size * ITEMSIZE[tensor.dtype])
            )
            continue
        names = names_in_adapter(part, wrapped_after(part, plan.parts))
        for name, shape in zip(names, factor_shapes(part, rank), strict=True):
            found.append((name, "F32", shape, 4 * shape[0] * shape[1]))
    return found


class _Energies:
    """Squared changes, summed up over steps: of what an adapter has, and of what it has not."""

    def __init__(self) -> None:
        self._kept = self._total = 0.0
        self._left_out: dict[str, float] = {}

    def add(self, kept: float, total: float) -> None:
        self._kept, self._total = self._kept + kept, self._total + total

    def leave_out(
        self, container: FileReader, decoder: TensorDecoder, tensor: TensorRecord, steps: Sequence[StepTier], why: str
    ) -> None:
        energy = 0.0
        if tensor.directions:
            _, t = mixed(decoder.coefficients(tensor, steps))
            energy = sum(changes.energy for changes in changes_of(container, tensor, t))
        self._total += energy
        self._left_out[why] = self._left_out.get(why, 0.0) + energy

    @property
    def kept(self) -> float:
        return self._kept / self._total if self._total else 1.0

    @property
    def shares(self) -> dict[str, float]:
        return {why: energy / self._total if self._total else 0.0 for why, energy in self._left_out.items()}


def _content(
    decoder: TensorDecoder, part: Part, steps: Sequence[StepTier], rank: int, energies: _Energies
) -> list[list[memoryview]]:
    """Return, for each step, the bytes of the tensors that a part becomes."""
    container, tensor = decoder.container, part.tensor
    q, t = mixed(decoder.coefficients(tensor, steps))
    if part.kind not in FACTORED:
        energy = sum(changes.energy for changes in changes_of(container, tensor, t))
        energies.add(energy, energy)
        return [list(read_weights(decoder, [tensor], step, "cpu")) for step in steps]
    flipped = part.flipped or part.kind == EMBEDDING
    a_all, b_all = [], []
    for changes in changes_of(container, tensor, t, flipped):
        left, right, kept = truncated(changes, rank)
        energies.add(kept, changes.energy)
        r, n = right.shape
        a, b = torch.zeros(rank, n), torch.zeros(len(steps), left.shape[0] // len(t), rank)
        a[:r] = right
        b[:, :, :r] = torch.einsum("sj,jmr->smr", torch.from_numpy(q), left.view(len(t), -1, r))
        a_all.append(a)
        b_all.append(b)
    # of experts, A is expert by expert, and B has them side by side, the expert changing fastest
    a, b = torch.cat(a_all), torch.stack(b_all, dim=-1).flatten(2)
    return [[bytes_of(a), bytes_of(b[s])] for s in range(len(steps))]
