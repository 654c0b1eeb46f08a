"""The base as the run calls it: what tensors of the run start from, under their names in the run."""

from __future__ import annotations

from relex_codec.checkpoints.checkpoint import TensorInfo, TensorReader
from relex_codec.core.dtypes import Bits

from .planning import RunPlan, TensorPlan


class MatchedBase(TensorReader):
    """The tensors of a plan that start from the base, with the base's elements.

    Args:
        path: of the base, for messages.
    """

    def __init__(self, plan: RunPlan, path: str) -> None:
        self.path = path
        self._origins = {one.info.name: one.origin for one in started_somewhere(plan) if one.sources}
        self.tensors = {
            one.info.name: TensorInfo(one.info.name, one.origin.dtype, one.info.shape)
            for one in started_somewhere(plan)
            if one.sources
        }

    def read_into(self, name: str, lo: int, out: Bits) -> None:
        """Fill `out` with the bits of a tensor from element `lo` on; see `TensorReader.read_into`."""
        self.check_range(name, lo, out.size)
        out[:] = self._origins[name].read(lo, lo + out.size)


def started_somewhere(plan: RunPlan) -> list[TensorPlan]:
    """Return the tensors of the last observed step that are not other names of others."""
    return [one for one in plan.tensors if isinstance(one, TensorPlan) and one.planned.main]
