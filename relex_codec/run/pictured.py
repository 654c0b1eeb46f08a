"""The part of a run that draws itself, where matplotlib is installed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .compared import ComparedRun


class PicturedRun(ComparedRun):
    """The part of `relex_codec.Run` that draws."""

    def plot(self, *, what: str = "coefficients", tensor: str | None = None, axes: Any = None) -> Any:
        """Draw the run with matplotlib (extra ``plot``).

        Norms that the file does not bring are computed, if the base is there; without, no band is drawn.

        Args:
            what: ``coefficients`` over the steps, with their lines and where the best step of the line is expected;
                ``errors`` of each step; ``variance`` that one direction explains, and ``movement``, by layer and kind;
                ``scores`` that lie beside the file.
            tensor: whose coefficients are drawn; default: all of them.
            axes: of matplotlib, to draw into; default: those of a new figure.

        Returns:
            The axes.

        Raises:
            InvalidArgument: no such tensor or `what`, or matplotlib is not installed.
            Corrupt, Truncated: the file is damaged.

        Examples:
            >>> axes = run.plot(tensor="model.norm.weight")
            >>> axes.get_xlabel()
            'step'
            >>> axes.figure.savefig("run.png")
        """
        self._reader.check_open()
        # Pictures stand above this layer, and only who asks for one imports them.
        return import_module("relex_codec.report.plots").plot(self, what, tensor, axes)
