"""How far a run has moved along each direction: the coefficients of a file, as a value that can be plotted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from relex_codec.decoding.tensor_decoder import TensorDecoder


@dataclass(frozen=True, eq=False)
class Coefficients:
    """The coefficients of a run: at step ``steps[i]``, tensor ``names[j]`` is its base plus ``values[j, i]`` times v_j.

    v_j is a direction of unit length in the space of the tensor's elements (before it was quantised), and a coefficient
    ``(W(t_i) - W0) . v_j``: a signed distance in weight space, in units of the weights (RELEX, arXiv 2605.21468). Made
    by `Run.coefficients`.

    Attributes:
        values: float64 [directions, steps].
        names: of the tensor that each direction belongs to, [directions]. A tensor that does not move along a line
            has none; one with several has its name there several times, the direction that explains most first.
        steps: int64 [steps], rising, all those of the run: observed and later ones.

    Examples:
        >>> found = run.coefficients()
        >>> found.values.shape == (len(found.names), len(found.steps))
        True
        >>> norm = found.values[found.names.index("model.norm.weight")]  # plt.plot(found.steps, norm)
        >>> norm.round(4).tolist()
        [0.0003, 0.001, 0.0012, 0.0017]
    """

    values: npt.NDArray[np.float64]
    names: tuple[str, ...]
    steps: npt.NDArray[np.int64]

    def __repr__(self) -> str:
        directions, steps = self.values.shape
        return f"Coefficients({directions} directions of {len(set(self.names))} tensors at {steps} steps)"


def read_coefficients(decoder: TensorDecoder) -> Coefficients:
    """Read all coefficients of a file.

    Raises:
        Corrupt, Truncated: the file is damaged.
    """
    container = decoder.container
    index = container.index
    names = tuple(tensor.name for tensor in index.tensors for _ in tensor.directions)  # numbered in this order
    values = container.coefficients(0, len(names)) if names else np.empty((0, len(index.steps)), np.float64)
    return Coefficients(values, names, np.array(index.steps, np.int64))
