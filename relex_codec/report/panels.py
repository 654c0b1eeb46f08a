"""Panels of a picture, each drawn into axes of matplotlib; which there are, and what each needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from relex_codec.errors import InvalidArgument
from relex_codec.trust.horizon import percent

from . import palette as colour
from .axes import StepAxis, step_axis, thinned
from .heat import heat_table, log_low
from .numbers import F64, Numbers

Axes = Any
"""Axes of matplotlib, which is not here until a picture is drawn."""
MOST_LINES: Final = 400
"""Tensors of which a line is drawn: those that moved most."""
RASTER: Final = 60
"""From so many lines on they are pixels in vector formats too, which opens in an instant and stays small."""


def draw_coefficients(axes: Axes, numbers: Numbers, tensor: str | None = None) -> None:
    """Draw coefficients over the steps with their lines, the observed part shaded, and the line beyond it dashed.

    Args:
        tensor: draw this one alone; default: all of them, each over what its line has at the last observed step.

    Raises:
        InvalidArgument: there is no such tensor, or it does not move.
    """
    if tensor is not None and tensor not in numbers.names:
        raise InvalidArgument(f"no tensor {tensor!r} moves along a line; see info --tensors")
    axis = step_axis(numbers)
    if not numbers.names:
        _nothing(axes, "no tensor moved while the run was observed")
        return
    beyond = axis.between(numbers.last, axis.high)
    within = axis.between(max(axis.low, float(numbers.steps[0])), numbers.last)
    if tensor is None:
        rows, bold = numbers.normalised()
        _thin_lines(axes, numbers, rows)
        over, before = numbers.line_together(beyond), numbers.line_together(within)
        axes.set_ylabel("coefficient / its line at the last observed step")
        axes.set_title(f"Coefficients of {len(numbers.names):,} tensors")
        label = "all together"
    else:
        row = numbers.names.index(tensor)
        slope, intercept = numbers.lines.slope[row], numbers.lines.intercept[row]
        bold, over, before = numbers.coefficients[row], slope * beyond + intercept, slope * within + intercept
        axes.set_ylabel("coefficient: distance along the direction")
        axes.set_title(_short(tensor, 48))
        label = "coefficient"
    marks = {"marker": "o", "markersize": 3.5} if len(numbers.steps) <= 40 else {}
    axes.plot(numbers.steps, bold, color=colour.BLUE, linewidth=1.8, label=label, zorder=4, **marks)
    axes.plot(within, before, color=colour.INK, linewidth=0.9, zorder=5, label="line")
    axes.plot(
        beyond, over, color=colour.INK, linewidth=1.3, linestyle=(0, (4, 2)), zorder=5, label="line, extrapolated"
    )
    _limits(axes, axis, np.concatenate([bold, over, before]))
    _ground(axes, numbers, axis)
    _legend(axes)


def _thin_lines(axes: Axes, numbers: Numbers, rows: F64) -> None:
    """Draw a thin line for each tensor, coloured by layer."""
    from matplotlib.collections import LineCollection

    ends = np.abs(numbers.lines.at(numbers.last))
    chosen = np.sort(np.argsort(-ends, kind="stable")[:MOST_LINES])
    chosen = chosen[np.isfinite(rows[chosen]).all(axis=1)]
    at = thinned(len(numbers.steps))
    layers = np.array([-1 if numbers.places[i].layer is None else numbers.places[i].layer for i in chosen], np.float64)
    lines = LineCollection(
        [np.column_stack([numbers.steps[at], rows[i, at]]) for i in chosen],
        cmap=colour.HEAT, linewidths=0.6, alpha=0.45, zorder=2, rasterized=len(chosen) > RASTER,
    )  # fmt: skip
    lines.set_array(layers)
    axes.add_collection(lines)
    axes.plot([], [], color=colour.GREY, linewidth=0.6, label="each tensor, last layers light")


def _legend(axes: Axes) -> None:
    axes.legend(loc="best", fontsize="small", frameon=True, framealpha=0.85, edgecolor="none", facecolor="white")


def _limits(axes: Axes, axis: StepAxis, values: F64) -> None:
    axes.set_xlim(axis.low, axis.high)
    finite = values[np.isfinite(values)]
    top, bottom = float(finite.max(initial=0)), float(finite.min(initial=0))
    if axis.log:
        axes.set_xscale("log")
        above = finite[finite > 0]
        if len(above) > 0.7 * len(values):
            axes.set_yscale("log")
            axes.set_ylim(max(float(above.min()), float(above.max()) / 1e4) / 1.5, float(above.max()) * 1.5)
    if axes.get_yscale() == "linear" and top > bottom:
        axes.set_ylim(bottom - 0.06 * (top - bottom), top + 0.08 * (top - bottom))
    axes.set_xlabel("step")


def _ground(axes: Axes, numbers: Numbers, axis: StepAxis, label: bool = True) -> None:
    """Shade the observed steps, and colour where the best step of the line is expected."""
    axes.axvspan(axis.low, numbers.last, color=colour.SHADE, zorder=0, linewidth=0, label="observed" if label else None)
    peaks = numbers.peaks
    if peaks is None or numbers.trust is None:
        return
    low, high = max(peaks[0], axis.low), min(peaks[1], axis.high)
    if low < high:
        of = "six small runs" if numbers.trust.band_source == "runs" else "its scores"
        said = f"best step, by {of}" if label else None
        axes.axvspan(low, high, facecolor=colour.GREEN, alpha=0.25, zorder=1, linewidth=0, label=said)
        for end in (low, high):  # which grey print shows too
            axes.axvline(end, color=colour.GREEN, linewidth=0.8, zorder=1)
    if high < axis.high:
        said = "beyond it" if label else None
        axes.axvspan(
            high,
            axis.high,
            facecolor=colour.RED + "1F",
            edgecolor=colour.RED + "55",
            hatch="//",
            zorder=1,
            linewidth=0,
            label=said,
        )


def draw_errors(axes: Axes, numbers: Numbers) -> None:
    """Draw the relative error of tiers track and line at each step, and 1.0, which is that of the base."""
    axes.set_title("Error of each step, relative to its change")
    if not np.isfinite(numbers.errors).any():
        _nothing(axes, "the file does not bring the error of each step")
        return
    axis = StepAxis(float(numbers.steps[0]), float(max(numbers.steps[-1], numbers.steps[0] + 1)), False)
    marks = {"marker": "o", "markersize": 3} if len(numbers.steps) <= 40 else {}
    axes.axvspan(axis.low, numbers.last, color=colour.SHADE, zorder=0, linewidth=0)
    axes.plot(numbers.steps, numbers.errors[0], color=colour.BLUE, linewidth=1.6, label="track", **marks)
    axes.plot(
        numbers.steps,
        numbers.errors[1],
        color=colour.ORANGE,
        linewidth=1.6,
        linestyle=(0, (5, 1.5)),
        label="line",
        **marks,
    )
    axes.axhline(1.0, color=colour.INK, linewidth=1, linestyle=":", label="base")
    axes.set_xlim(axis.low, axis.high)
    top = float(np.nanmax(np.where(np.isfinite(numbers.errors), numbers.errors, np.nan)))
    axes.set_ylim(0, max(1.1, min(1.05 * top, 3.0)))
    axes.set_xlabel("step")
    axes.set_ylabel("|W - decoded| / |W - base|")
    _legend(axes)


def draw_variance(axes: Axes, numbers: Numbers) -> None:
    """Draw the share of the observed changes that lies along one direction, by layer and kind."""
    _heat(axes, numbers, numbers.column("explained_variance"), "Explained variance (no forecast)", (0.0, 1.0))


def draw_movement(axes: Axes, numbers: Numbers) -> None:
    """Draw how far each tensor has moved by the last observed step, by layer and kind."""
    d = 100 * numbers.column("distance")
    if np.isfinite(d).any():
        _heat(axes, numbers, d, f"Movement by step {numbers.last}, % of own size", None)
    else:
        _heat(axes, numbers, numbers.moved_per_weight(), f"Movement by step {numbers.last}, RMS per weight", None)


def _heat(axes: Axes, numbers: Numbers, values: F64, title: str, ends: tuple[float, float] | None) -> None:
    from matplotlib.colors import LogNorm, Normalize

    axes.set_title(title)
    table = heat_table(numbers.places, values)
    if not np.isfinite(table.values).any():
        _nothing(axes, "nothing to show: no tensor moved")
        return
    low, high = ends or (0.0, float(np.nanmax(table.values)) or 1.0)
    begin = None if ends else log_low(table.values)
    norm = Normalize(low, high) if begin is None else LogNorm(begin, high, clip=True)
    axes.set_facecolor("#FFFFFF")
    rows, columns = table.values.shape
    image = axes.pcolormesh(
        np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5, np.ma.masked_invalid(table.values),
        cmap=colour.HEAT, norm=norm, edgecolors="white", linewidth=0.4 if rows * columns < 900 else 0,
    )  # fmt: skip
    axes.set_ylim(rows - 0.5, -0.5)
    shown = thinned(columns, 14)
    axes.set_xticks(shown, ["-" if table.layers[i] is None else str(table.layers[i]) for i in shown])
    axes.set_yticks(range(rows), [_short(kind, 26) for kind in table.kinds], fontsize="small" if rows <= 16 else 5.5)
    axes.set_xlabel("layer (-: in none)" if None in table.layers else "layer")
    if table.left_out:
        axes.set_xlabel(f"layer; {table.left_out} rarer kinds are left out")
    axes.tick_params(length=0)
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.046, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize="small")


def draw_scores(axes: Axes, numbers: Numbers) -> None:
    """Draw the scores that lie beside the file, over the steps."""
    scores = numbers.scores
    axes.set_title("Scores" if scores is None or not scores.metric else f"Scores: {_short(scores.metric, 40)}")
    if scores is None or not scores.scores:
        _nothing(axes, "there are no scores beside the file")
        return
    for tier, marker, style in (
        ("trained", "o", "-"),
        ("exact", "s", "none"),
        ("track", "D", "none"),
        ("line", "^", "--"),
    ):
        found = scores.of(tier)
        if found:
            axes.plot(
                [one.step for one in found], [one.score for one in found],
                marker=marker, markersize=4.5, linestyle=style, linewidth=1.2, color=colour.TIERS[tier], label=tier,
                zorder=4,
            )  # fmt: skip
    for one in scores.of("base")[:1]:
        axes.axhline(one.score, color=colour.INK, linestyle=":", linewidth=1, label="base")
    steps = [one.step for one in scores.scores if one.tier != "base"] or [float(numbers.last)]
    axis = step_axis(numbers)
    high = max(axis.high, 1.05 * max(steps))
    low = min([axis.low, *(step for step in steps if step > 0)]) if axis.log else min(axis.low, *steps, 0.0)
    axis = StepAxis(low, high, axis.log)
    if axis.log:
        axes.set_xscale("log")
    axes.set_xlim(axis.low, axis.high)
    _ground(axes, numbers, axis, label=len(axes.figure.axes) == 1)  # else beside the panel that says it
    axes.set_xlabel("step")
    axes.set_ylabel("score")
    _legend(axes)


def _nothing(axes: Axes, why: str) -> None:
    axes.text(0.5, 0.5, why, ha="center", va="center", transform=axes.transAxes, color=colour.INK, wrap=True)
    axes.set_xticks([])
    axes.set_yticks([])


def _short(text: str, most: int) -> str:
    """Return text that fits, its end rather than its beginning, without what matplotlib takes for mathematics."""
    shown = "".join(character if character.isprintable() else "?" for character in text).replace("$", r"\$")
    return shown if len(shown) <= most else "..." + shown[-most + 3 :]


PANELS: Final[dict[str, Callable[[Axes, Numbers], None]]] = {
    "coefficients": draw_coefficients,
    "errors": draw_errors,
    "variance": draw_variance,
    "movement": draw_movement,
    "scores": draw_scores,
}


def panels_of(numbers: Numbers) -> list[str]:
    """Return the panels that there is something to see in."""
    found = ["coefficients"]
    if np.isfinite(numbers.errors).any():
        found.append("errors")
    if numbers.names:
        found += ["variance", "movement"]
    return found + (["scores"] if numbers.scores is not None and numbers.scores.scores else [])


def caption(numbers: Numbers) -> str:
    """Return what is known of the whole run, in one line under a picture."""
    first, last = numbers.steps[0], numbers.steps[-1]
    parts = [f"step {first}" if first == last else f"steps {first} to {last}, observed to {numbers.last}"]
    if numbers.trust is not None and numbers.trust.window_distance is not None:
        parts.append(f"by then {percent(numbers.trust.window_distance)} of the weights' own size from the base")
    return "; ".join(parts)
