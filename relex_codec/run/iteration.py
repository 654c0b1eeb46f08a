"""Stored steps one after another, as tensors, with each frame decoded once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from relex_codec.core.dtypes import Bits

from .restore import needed_tensors
from .run_reader import RunReader

if TYPE_CHECKING:
    import torch


def iterate(
    reader: RunReader, numbers: Mapping[int, int], device: Any
) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:  # fmt: skip
    """Yield step and tensors of each stored step; what is raised, `Run.iter_steps` says.

    Args:
        numbers: step by its number, from 1 on.
        device: of the tensors.
    """
    from relex_codec.core.torch_dtypes import as_tensor
    from relex_codec.exact.replay import replay_tensors

    decoder = reader.decoder
    index = decoder.container.index
    plan = decoder.fetcher.replay_plan(decoder.exact, numbers)
    wanted = needed_tensors(index, numbers)
    for number, found in replay_tensors(decoder.exact, numbers, decoder.part_origin, wanted, plan):
        reader.check_open()  # the step might have been in memory
        tensors = index.layout_of(number).tensors
        names = Counter(index.target(one).number for one in tensors)
        state: dict[str, torch.Tensor] = {}
        for one in tensors:
            target = index.target(one).number
            names[target] -= 1
            bits = _taken(found, target, last=not names[target])
            state[one.name] = as_tensor(bits, one.dtype, one.shape).to(device)
            del bits
        del found
        yield numbers[number], state
        del state  # of which nothing is held while the next step is made


def _taken(found: dict[int, Bits], number: int, *, last: bool) -> Bits:
    """Return a tensor that has several names, in memory of its own for each of them."""
    return found.pop(number) if last else found[number].copy()
