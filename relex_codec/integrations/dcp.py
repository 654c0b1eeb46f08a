"""Reading a step with torch.distributed.checkpoint: each rank fetches and decodes the slices that it holds."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import starmap
from typing import Any, Final

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from relex_codec.core.text import quote
from relex_codec.core.threads import IO_THREADS, parallel_map
from relex_codec.core.torch_dtypes import DTYPES, as_tensor
from relex_codec.errors import InvalidArgument
from relex_codec.format.tensor_record import TensorRecord
from relex_codec.run.run_reader import RunReader
from relex_codec.storage.source import closed_on_error
from relex_codec.storage.urls import Options, PathLike, without_secrets

TOGETHER: Final = 64 << 20
"""Bytes that are decoded at a time, or one slice if that is more: reads of small tensors wait together."""


class RelexStorageReader(StorageReader):
    """A step of a run for ``torch.distributed.checkpoint.load``, as if it were a checkpoint of plain tensors.

    The state dict may hold plain tensors and DTensors (FSDP2, tensor parallelism, or both): a rank reads the rows that
    its shards have. Values are copied into tensors of another dtype as ``copy_`` does, which is exact from BF16 to F32.

    Args:
        url: path or URL of the ``.relex`` file.
        step: as `Run.tensor`.
        key_prefix: what keys of the state dict have before the names in the file: ``"model."`` for
            ``{"model": module.state_dict()}``.
        tied: keys (without the prefix) that the file does not have, and the names in the file that they share weights
            with: ``{"lm_head.weight": "model.embed_tokens.weight"}`` where a checkpoint leaves tied weights out.
        tier: as `Run.tensor`.
        base: as of `relex_codec.open`.
        storage_options: as of `relex_codec.open`.

    Raises:
        InvalidArgument: no such file, or a step that the tier does not reach. As all errors while loading, it comes as
            ``CheckpointException`` from ``load`` where several ranks take part, which says what each rank met.

    Examples:
        >>> import torch
        >>> import torch.distributed.checkpoint as dcp
        >>> state = {"model.norm.weight": torch.zeros(16)}
        >>> dcp.load(state, storage_reader=relex_codec.RelexStorageReader("run.relex", 60))
        >>> torch.equal(state["model.norm.weight"], run.tensor("model.norm.weight", 60).float())
        True
    """

    def __init__(
        self,
        url: PathLike,
        step: float,
        *,
        key_prefix: str = "",
        tied: Mapping[str, str] | None = None,
        tier: str = "auto",
        base: PathLike | None = None,
        storage_options: Options = None,
    ) -> None:
        super().__init__()
        self.checkpoint_id: PathLike = os.fspath(url)
        self._step, self._tier, self._prefix, self._tied = step, tier, key_prefix, dict(tied or {})
        self._base, self._options = base, storage_options
        self._reader: RunReader | None = None
        self._opened()

    def reset(self, checkpoint_id: PathLike | None = None) -> None:
        """Begin a new load; `checkpoint_id`, if given, is another ``.relex`` file to read."""
        if checkpoint_id is not None and os.fspath(checkpoint_id) != self.checkpoint_id:
            self.close()
            self.checkpoint_id = os.fspath(checkpoint_id)

    def close(self) -> None:
        """Release the file; the next load opens it again.

        Examples:
            >>> reader = relex_codec.RelexStorageReader("run.relex", 60)
            >>> reader.close()
        """
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def read_metadata(self) -> Metadata:  # type: ignore[override, unused-ignore]
        """Return key, dtype and shape of every tensor, each as one chunk.

        It takes no ``rank``: torch would then try that after an error, and a rank where it worked would go on alone.
        """
        reader, names = self._opened()
        return Metadata(
            {key: self._described(reader, name) for key, name in names.items()},
            planner_data={key: (key,) for key in names},
            storage_meta=StorageMeta(checkpoint_id=without_secrets(self.checkpoint_id)),
        )

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up: what is read is decided by the plan."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Return the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Return the plans as they are.

        Raises:
            InvalidArgument: there is nothing to load on any rank, as with a wrong prefix and a partial load.
        """
        if not any(plan.items for plan in plans):
            key = next(iter(self._opened()[1]))
            raise InvalidArgument(
                f"nothing in the state dict is in {without_secrets(self.checkpoint_id)}, whose keys are like "
                f"{quote(key)}; see key_prefix"
            )
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Decode what the plan asks for and copy it into the tensors of the state dict.

        Raises:
            InvalidArgument: the state dict has something that is no tensor, or a tensor of another shape.
        """
        reader, names = self._opened()
        for item in plan.items:
            if item.type != LoadItemType.TENSOR:
                raise InvalidArgument(f"{quote(item.dest_index.fqn)} of the state dict is no tensor; leave it out")

        def place(item: ReadItem) -> tuple[str, tuple[slice, ...]]:
            box = [(low, low + length) for low, length in zip(item.storage_offsets, item.lengths, strict=True)]
            return names[item.storage_index.fqn], tuple(starmap(slice, box))

        def decode(item: ReadItem) -> torch.Tensor:
            name, index = place(item)
            bits = reader.box(name, self._step, self._tier, index)
            return as_tensor(bits.reshape(-1), self._entry(reader, name).dtype, bits.shape)

        with reader.ahead(map(place, plan.items), self._step, self._tier):
            for items in batches(plan.items, [self._nbytes(item, reader, names) for item in plan.items], TOGETHER):
                for item, value in zip(items, parallel_map(decode, items, IO_THREADS), strict=True):
                    target = planner.resolve_tensor(item).detach()
                    if target.shape != value.shape:
                        key = quote(item.dest_index.fqn)
                        raise InvalidArgument(
                            f"{key}: {list(value.shape)} was planned, {list(target.shape)} is in the state dict"
                        )
                    target.copy_(value)
                    planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: PathLike) -> bool:
        """Tell whether a path or URL looks like one of a ``.relex`` file."""
        return without_secrets(checkpoint_id).endswith(".relex")

    def _opened(self) -> tuple[RunReader, dict[str, str]]:
        """Return the open file, and the name in it of each key."""
        if self._reader is None:
            reader = RunReader(self.checkpoint_id, base=self._base, storage_options=self._options)
            with closed_on_error(reader):
                reader.tier(self._step, self._tier)
                self._names = self._named(reader)
            self._reader = reader
        return self._reader, self._names

    def _named(self, reader: RunReader) -> dict[str, str]:
        names = {name: name for name in reader.keys(reader.layout(self._step, self._tier))}
        for key, name in self._tied.items():
            if name not in names or key in names:
                wrong = f"{quote(name)} is not in" if name not in names else f"{quote(key)} itself is in"
                raise InvalidArgument(f"tied says that {quote(key)} shares {quote(name)}, but {wrong} {reader.path}")
        return {self._prefix + key: name for key, name in (names | self._tied).items()}

    def _entry(self, reader: RunReader, name: str) -> TensorRecord:
        return reader.entry(name, self._step, self._tier)

    def _described(self, reader: RunReader, name: str) -> TensorStorageMetadata:
        entry = self._entry(reader, name)
        if entry.dtype not in DTYPES:
            raise InvalidArgument(f"torch {torch.__version__} has no dtype for {entry.dtype}, which {quote(name)} has")
        shape = torch.Size(entry.shape)
        chunk = ChunkStorageMetadata(torch.Size([0] * len(shape)), shape)
        return TensorStorageMetadata(TensorProperties(DTYPES[entry.dtype]), shape, [chunk])

    def _nbytes(self, item: ReadItem, reader: RunReader, names: Mapping[str, str]) -> int:
        """Bytes of what an item asks for."""
        entry = self._entry(reader, names[item.storage_index.fqn])
        return math.prod(item.lengths) * DTYPES[entry.dtype].itemsize


def batches(items: Sequence[ReadItem], sizes: Sequence[int], limit: int) -> Iterator[list[ReadItem]]:
    """Split `items`, in order, into batches whose `sizes` add up to at most `limit`; what exceeds it is alone."""
    batch: list[ReadItem] = []
    total = 0
    for item, size in zip(items, sizes, strict=True):
        if batch and total + size > limit:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size
    if batch:
        yield batch
