"""How the ranks of a group agree: on the generation that they write, and on who records what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from relex_codec.core.text import quote
from relex_codec.errors import InvalidArgument, RelexError

from .state import Local

T = TypeVar("T")


class Ranks:
    """The processes that record together: those of torch.distributed's default group, or this one alone."""

    def __init__(self, distributed: bool) -> None:
        import torch.distributed as dist

        self._together = distributed and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.rank = dist.get_rank() if self._together else 0
        self.world = dist.get_world_size() if self._together else 1

    def from_first(self, make: Callable[[], T]) -> T:
        """Return what the first rank makes; what it raises, all raise."""
        made: list[Any] = [None, None]
        if self.rank == 0:
            made = _tried(make)
        if self._together:
            import torch.distributed as dist

            dist.broadcast_object_list(made, src=0)
        if made[1] is not None:
            raise made[1]
        found: T = made[0]
        return found

    def all_or_none(self, make: Callable[[], T]) -> T:
        """Return what this rank makes; if one of them fails, all raise."""
        return self.gathered(make)[self.rank]

    def gathered(self, make: Callable[[], T]) -> list[T]:
        """Return what each rank makes; if one of them fails, all raise."""
        own = _tried(make)
        every: list[Any] = [own]
        if self._together:
            import torch.distributed as dist

            every = [None] * self.world
            # what is made here need not be something that can be sent
            dist.all_gather_object(every, [None, own[1]] if own[1] is not None else [_sendable(own[0]), None])
            every[self.rank] = own
        for rank, (_, error) in enumerate(every):
            if error is not None:
                raise error if rank == self.rank else InvalidArgument(f"rank {rank}: {error}")
        return [made for made, _ in every]


def _sendable(value: Any) -> Any:
    return value if isinstance(value, list | dict | str | int | type(None)) else None


def _tried(make: Callable[[], Any]) -> list[Any]:
    try:
        return [make(), None]
    except RelexError as error:
        return [None, error]


def own_parts(found: Mapping[str, Local], ranks: Ranks) -> dict[str, Local]:
    """Return what this rank records: its parts of sharded tensors, and tensors that no rank before it has whole.

    Raises:
        InvalidArgument: ranks have the same tensor with other shapes.
    """
    described = {local.name: (local.dtype, local.box.shape, local.whole) for local in found.values()}
    every = ranks.gathered(lambda: described)
    mine: dict[str, Local] = {}
    for name, local in found.items():
        for rank, others in enumerate(every):
            if name in others and others[name] != described[name]:
                dtype, shape, _ = others[name]
                raise InvalidArgument(
                    f"tensor {quote(name)} is {local.dtype} {list(local.box.shape)} on rank {ranks.rank} and {dtype} "
                    f"{list(shape)} on rank {rank}; give sharded tensors as DTensors"
                )
        first = next(rank for rank, others in enumerate(every) if name in others)
        if local.values is not None and (not local.whole or first == ranks.rank):
            mine[name] = local
    return mine
