"""What changes between two steps: positions and values, the form in which served models take an update."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from relex_codec.core.dtypes import Bits, bits_dtype
from relex_codec.core.threads import prefetched
from relex_codec.decoding.tensor_decoder import TensorDecoder
from relex_codec.decoding.tiers import StepTier
from relex_codec.format.constants import PIECE
from relex_codec.format.tensor_record import TensorRecord

if TYPE_CHECKING:
    import torch

AHEAD = 1
"""Tensors that are compared while the caller uses one."""


class Patch(NamedTuple):
    """The elements of a tensor that change between two steps.

    vLLM's ``CheckpointWeightPatch`` has the same fields in the same order.

    Attributes:
        name: of the tensor.
        shape: of the whole tensor.
        dtype: of its elements.
        values: what they are at the second step, one-dimensional.
        indices: where they are, int64, increasing, in row-major order over the whole tensor.

    Examples:
        >>> import torch
        >>> patch = next(run.patches(10, 20))
        >>> patch.name, patch.shape, patch.dtype, patch.indices.dtype
        ('model.embed_tokens.weight', (48, 16), torch.bfloat16, torch.int64)
        >>> weights = run.tensor(patch.name, 10)
        >>> weights.view(-1)[patch.indices] = patch.values
        >>> torch.equal(weights, run.tensor(patch.name, 20))
        True
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    values: torch.Tensor
    indices: torch.Tensor


def changed_elements(
    decoder: TensorDecoder, tensor: TensorRecord, before: StepTier, after: StepTier
) -> tuple[npt.NDArray[np.int64], Bits]:
    """Return positions and bits of the elements of a tensor that differ at two steps, read by the piece."""
    positions: list[npt.NDArray[np.int64]] = [np.empty(0, np.int64)]
    values: list[Bits] = [np.empty(0, bits_dtype(tensor.dtype))]
    for lo in range(0, tensor.size, PIECE):
        hi = min(lo + PIECE, tensor.size)
        old, new = (decoder.read(tensor, step, lo, hi) for step in (before, after))
        found = np.flatnonzero(old != new)
        positions.append(found + lo)
        values.append(new[found])
    return np.concatenate(positions), np.concatenate(values)


def patches(decoder: TensorDecoder, before: StepTier, after: StepTier) -> Iterator[Patch]:
    """Yield a patch for each tensor of which something changes, in the file's order; the next one is made ahead."""
    from relex_codec.core.torch_dtypes import DTYPES, as_tensor

    def made() -> Iterator[Patch]:
        import torch

        for tensor in decoder.container.index.tensors:
            positions, values = changed_elements(decoder, tensor, before, after)
            if len(positions):
                yield Patch(
                    tensor.name,
                    tensor.shape,
                    DTYPES[tensor.dtype],
                    as_tensor(values, tensor.dtype, values.shape),
                    torch.from_numpy(positions),
                )

    yield from prefetched(made(), AHEAD)
