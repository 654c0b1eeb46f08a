"""Pictures of a run with matplotlib: one panel into given axes, or a whole figure as PNG, SVG or PDF."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Final

from relex_codec.errors import InvalidArgument
from relex_codec.run.run import Run

from .numbers import Numbers, collect
from .panels import PANELS, Axes, caption, draw_coefficients, panels_of

FORMATS: Final = ("png", "svg", "pdf")
STYLE: Final[dict[str, Any]] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "figure.facecolor": "white",
    "hatch.linewidth": 0.5,
    "svg.fonttype": "path",
    "svg.hashsalt": "relex",
    "pdf.fonttype": 42,
}


def require_matplotlib() -> Any:
    """Return matplotlib.

    Raises:
        InvalidArgument: it is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        message = f"pictures need matplotlib ({error}); install it with: pip install 'relex-codec[plot]'"
        raise InvalidArgument(message) from None
    return matplotlib


def _style() -> AbstractContextManager[Any]:
    found: AbstractContextManager[Any] = require_matplotlib().rc_context(STYLE)
    return found


def plot(run: Run, what: str = "coefficients", tensor: str | None = None, axes: Axes = None) -> Axes:
    """Draw one panel of a run; see `Run.plot`."""
    if what not in PANELS:
        raise InvalidArgument(f"what is {what!r}, expected one of {', '.join(PANELS)}")
    with _style():
        if axes is None:
            from matplotlib import pyplot

            _, axes = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
        _draw(what, tensor)(axes, collect(run))
    return axes


def _draw(what: str, tensor: str | None) -> Any:
    return partial(draw_coefficients, tensor=tensor) if what == "coefficients" else PANELS[what]


def picture(
    numbers: Numbers,
    form: str,
    what: Sequence[str] = (),
    tensor: str | None = None,
    *,
    width: float = 0.0,
    title: str = "",
    dpi: int = 150,
) -> bytes:
    """Return a picture as the bytes of a file.

    Args:
        form: ``png``, ``svg`` or ``pdf``.
        what: panels; default: all in which there is something to see, and with `tensor` the coefficients.
        tensor: of which the coefficients are drawn; default: all.
        width: inches; default: by the number of panels.
        title: above all panels.

    Raises:
        InvalidArgument: no such panel, format or tensor, or matplotlib is not installed.
    """
    unknown = [one for one in what if one not in PANELS]
    if unknown:
        raise InvalidArgument(f"what is {unknown[0]!r}, expected some of {', '.join(PANELS)}")
    if form not in FORMATS:
        raise InvalidArgument(f"pictures are {', '.join(FORMATS)}, not {form!r}")
    chosen = list(what) or (["coefficients"] if tensor is not None else panels_of(numbers))
    with _style():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        columns = _columns(len(chosen), width)
        rows = math.ceil(len(chosen) / columns)
        figure = Figure(figsize=(width or 5.4 * columns, 3.7 * rows + (0.5 if title else 0.2)), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(rows, columns, squeeze=False)
        places = [axes for line in grid for axes in line]
        for one, axes in zip(chosen, places, strict=False):
            _draw(one, tensor)(axes, numbers)
        for axes in places[len(chosen) :]:
            axes.set_visible(False)
        if title:
            figure.suptitle(
                textwrap.shorten(title, max(20, int(11 * figure.get_size_inches()[0])), placeholder="..."), fontsize=11
            )
        told = textwrap.fill(caption(numbers), max(30, int(13 * figure.get_size_inches()[0])))
        figure.supxlabel(told, fontsize="small", color="#555555")
        out = io.BytesIO()
        bare: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(form, {})
        figure.savefig(out, format=form, dpi=dpi, metadata=bare)
    return out.getvalue()


def _columns(count: int, width: float) -> int:
    """Return how many panels stand beside each other."""
    fitting = int(width // 4.2) if width else (2 if count in (2, 4) else 3)
    return max(1, min(count, fitting))
