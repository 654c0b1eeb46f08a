"""Charts of the page: the panels of the pictures once more, with bokeh, to hover over and to filter."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from relex_codec.trust.horizon import shown_step

from . import palette as colour
from .axes import StepAxis, step_axis, thinned
from .heat import heat_table
from .numbers import F64, Numbers

MOST_LINES: Final = 400
"""Tensors of which there is a line to hover over: those that moved most."""
MOST_POINTS: Final = 120
"""Points of such a line."""
HEIGHT: Final = 330
TOOLS: Final = "pan,box_zoom,wheel_zoom,reset,save"
FILTER: Final = """
    const fits = (choice, value) => choice.value === "all" || choice.value === value;
    filter.booleans = source.data.layers.map((layer, i) => fits(layers, layer) && fits(kinds, source.data.kinds[i]));
    source.change.emit();
"""
Chart = Any
"""A figure or a layout of bokeh, which is not here until a page is made."""


def charts_of(numbers: Numbers) -> dict[str, Chart]:
    """Return the charts in which there is something to see, by the title that goes above each."""
    found: dict[str, Chart] = {}
    if numbers.names:
        found["Coefficients"] = _coefficients(numbers)
    if np.isfinite(numbers.errors).any():
        found["Error of each step, relative to its change"] = _errors(numbers)
    if numbers.scores is not None and numbers.scores.scores:
        found["Scores"] = _scores(numbers)
    if numbers.names:
        d = numbers.column("distance")
        known = bool(np.isfinite(d).any())
        moved, unit = (100 * d, "% of its own size") if known else (numbers.moved_per_weight(), "RMS per weight")
        found["Explained variance, by layer and kind"] = _heat(
            numbers, numbers.column("explained_variance"), "share", 1.0
        )
        found[f"Movement by step {numbers.last}, by layer and kind"] = _heat(numbers, moved, unit, None)
    return found


def _figure(axis: StepAxis, label: str, log_y: bool = False) -> Any:
    from bokeh.models import NumeralTickFormatter
    from bokeh.plotting import figure

    found = figure(
        height=HEIGHT, sizing_mode="stretch_width", tools=TOOLS, x_range=(axis.low, axis.high), x_axis_label="step",
        y_axis_label=label, x_axis_type="log" if axis.log else "linear", y_axis_type="log" if log_y else "linear",
        output_backend="canvas",
    )  # fmt: skip
    found.xaxis.formatter = NumeralTickFormatter(format="0,0")
    found.toolbar.logo = None
    found.toolbar.autohide = True
    found.grid.grid_line_alpha = 0.25
    return found


def _ground(found: Any, numbers: Numbers, axis: StepAxis) -> None:
    from bokeh.models import BoxAnnotation

    boxes: list[tuple[float, float, str, float, str | None]] = [
        (axis.low, float(numbers.last), colour.SHADE, 0.7, None)
    ]
    if numbers.peaks is not None:
        low, high = max(numbers.peaks[0], axis.low), min(numbers.peaks[1], axis.high)
        boxes += [(low, high, colour.GREEN, 0.25, None)] if low < high else []
        boxes += [(high, axis.high, colour.RED, 0.14, "right_diagonal_line")] if high < axis.high else []
    for left, right, fill, alpha, hatch in boxes:
        found.add_layout(
            BoxAnnotation(
                left=left, right=right, fill_color=fill, fill_alpha=alpha, level="underlay", line_color=None,
                hatch_pattern=hatch, hatch_color=fill, hatch_alpha=0.25, hatch_scale=10, hatch_weight=0.5,
            )
        )  # fmt: skip


def _coefficients(numbers: Numbers) -> Chart:
    """Each tensor's coefficients, to hover over, under those of all together and their line."""
    from bokeh.layouts import column, row
    from bokeh.models import BooleanFilter, CDSView, ColumnDataSource, CustomJS, HoverTool, Select
    from bokeh.transform import linear_cmap

    axis = step_axis(numbers)
    values, all_together = numbers.normalised()
    beyond = axis.between(numbers.last, axis.high, MOST_POINTS)
    within = axis.between(max(axis.low, float(numbers.steps[0])), numbers.last, MOST_POINTS)
    over, before = numbers.line_together(beyond), numbers.line_together(within)
    shown = np.concatenate([all_together, over, before])
    high, positive = float(shown.max()), shown[shown > 0]
    log_y = axis.log and len(positive) > 0.7 * len(shown)
    found = _figure(axis, "coefficient / its line at the last observed step", log_y)
    if log_y:
        found.y_range.start, found.y_range.end = max(float(positive.min()), high / 1e4) / 1.5, 1.5 * high
    else:
        low = min(0.0, float(shown.min()))
        found.y_range.start, found.y_range.end = low - 0.05 * (high - low), high + 0.08 * (high - low)
    ends = np.abs(numbers.lines.at(numbers.last))
    chosen = np.sort(np.argsort(-ends, kind="stable")[:MOST_LINES])
    chosen = chosen[np.isfinite(values[chosen]).all(axis=1)]
    at = thinned(len(numbers.steps), MOST_POINTS)
    steps = numbers.steps[at].astype(np.float32)
    layers = [numbers.places[i].layer for i in chosen]
    source = ColumnDataSource({
        "xs": [steps for _ in chosen],
        "ys": [values[i, at].astype(np.float32) for i in chosen],
        "names": [numbers.names[i] for i in chosen],
        "kinds": [numbers.places[i].kind for i in chosen],
        "layers": ["none" if layer is None else str(layer) for layer in layers],
        "order": [-1 if layer is None else layer for layer in layers],
        "r2": [_number(numbers.rows[i]["r2"]) for i in chosen],
        "variance": [_number(numbers.rows[i]["explained_variance"]) for i in chosen],
        "moved": [_number(numbers.rows[i]["moved"]) for i in chosen],
    })  # fmt: skip
    wanted = BooleanFilter()
    deepest = max([layer for layer in layers if layer is not None], default=0)
    lines = found.multi_line(
        "xs", "ys", source=source, view=CDSView(filter=wanted), line_width=1, line_alpha=0.5,
        line_color=linear_cmap("order", "Cividis256", -1, max(deepest, 1)),
        hover_line_color=colour.RED, hover_line_alpha=1.0, hover_line_width=2.5,
    )  # fmt: skip
    tips = [
        ("tensor", "@names"),
        ("R^2 (no forecast)", "@r2"),
        ("explained variance", "@variance"),
        ("moved", "@moved"),
    ]
    found.add_tools(HoverTool(renderers=[lines], tooltips=tips, line_policy="nearest"))
    found.line(numbers.steps[at], all_together[at], line_width=2.5, color=colour.BLUE, legend_label="all together")
    found.line(within, before, line_width=1.2, color=colour.INK, legend_label="line")
    found.line(beyond, over, line_width=1.6, color=colour.INK, line_dash=[6, 3], legend_label="line, extrapolated")
    found.legend.location = "top_left"
    found.legend.background_fill_alpha = 0.8
    _ground(found, numbers, axis)
    by_layer = ["all", *dict.fromkeys(source.data["layers"])]
    by_kind = ["all", *sorted(set(source.data["kinds"]))]
    choices = [Select(title=title, value="all", options=list(options), width=200, sizing_mode="inherit")
               for title, options in (("layer", by_layer), ("kind", by_kind))]  # fmt: skip
    chooser = CustomJS(
        args={"source": source, "filter": wanted, "layers": choices[0], "kinds": choices[1]}, code=FILTER
    )
    for choice in choices:
        choice.js_on_change("value", chooser)
    return column(row(*choices), found, sizing_mode="stretch_width")


def _errors(numbers: Numbers) -> Chart:
    axis = StepAxis(float(numbers.steps[0]), float(max(numbers.steps[-1], numbers.steps[0] + 1)), False)
    found = _figure(axis, "|W - decoded| / |W - base|")
    at = thinned(len(numbers.steps), 500)
    found.y_range.start = 0
    found.y_range.end = max(1.1, min(1.05 * float(np.nanmax(numbers.errors)), 3.0))
    for row, name, dash in ((0, "track", "solid"), (1, "line", [8, 3])):
        found.line(
            numbers.steps[at], numbers.errors[row, at], color=colour.TIERS[name], line_width=2, line_dash=dash,
            legend_label=name, name=name,
        )  # fmt: skip
    found.line([axis.low, axis.high], [1.0, 1.0], color=colour.INK, line_dash="dotted", legend_label="base")
    _hover(found, [("step", "@x{0,0}"), ("error", "@y{0.0000}")])
    found.legend.background_fill_alpha = 0.8
    return found


def _scores(numbers: Numbers) -> Chart:
    scores = numbers.scores
    assert scores is not None
    axis = step_axis(numbers)
    steps = [one.step for one in scores.scores if one.tier != "base"] or [float(numbers.last)]
    low = min([axis.low, *(step for step in steps if step > 0)]) if axis.log else min(axis.low, *steps, 0.0)
    axis = StepAxis(low, max(axis.high, 1.05 * max(steps)), axis.log)
    found = _figure(axis, scores.metric[:60] or "score")
    for tier in ("trained", "exact", "track", "line"):
        one = scores.of(tier)
        if one:
            at, values = [score.step for score in one], [score.score for score in one]
            marker = {"trained": "circle", "exact": "square", "track": "diamond", "line": "triangle"}[tier]
            found.line(
                at,
                values,
                color=colour.TIERS[tier],
                line_dash="dashed" if tier == "line" else "solid",
                legend_label=tier,
            )
            found.scatter(at, values, marker=marker, size=7, color=colour.TIERS[tier], legend_label=tier)
    for score in scores.of("base")[:1]:
        found.line([axis.low, axis.high], [score.score] * 2, color=colour.INK, line_dash="dotted", legend_label="base")
    _ground(found, numbers, axis)
    _hover(found, [("step", "@x{0,0}"), ("score", "@y{0.0000}")])
    if len(found.legend):
        found.legend.background_fill_alpha = 0.8
        found.legend.location = "bottom_left"
    return found


def _hover(found: Any, tips: list[tuple[str, str]]) -> None:
    from bokeh.models import HoverTool

    found.add_tools(HoverTool(tooltips=tips))


def _heat(numbers: Numbers, values: F64, unit: str, high: float | None) -> Chart:
    """A number of each tensor by layer and kind; hovering tells it."""
    from bokeh.models import BasicTicker, ColorBar, ColumnDataSource, HoverTool, LinearColorMapper
    from bokeh.plotting import figure

    table = heat_table(numbers.places, values)
    layers = ["-" if layer is None else str(layer) for layer in table.layers]
    cells = [(i, j) for i in range(len(table.kinds)) for j in range(len(layers)) if np.isfinite(table.values[i, j])]
    source = ColumnDataSource({
        "layer": [layers[j] for _, j in cells],
        "kind": [table.kinds[i] for i, _ in cells],
        "value": [float(f"{table.values[i, j]:.6g}") for i, j in cells],
    })  # fmt: skip
    top = high or max(source.data["value"], default=1.0) or 1.0
    mapper = LinearColorMapper(palette="Cividis256", low=0, high=top)
    found = figure(
        height=max(180, 70 + 20 * len(table.kinds)), sizing_mode="stretch_width", tools="save", x_range=layers,
        y_range=list(reversed(table.kinds)), x_axis_label="layer", output_backend="canvas",
    )  # fmt: skip
    rects = found.rect(
        "layer", "kind", 0.98, 0.96, source=source, line_color=None, fill_color={"field": "value", "transform": mapper}
    )
    found.add_tools(
        HoverTool(renderers=[rects], tooltips=[("layer", "@layer"), ("kind", "@kind"), (unit, "@value{0.0000e+0}")])
    )
    found.add_layout(
        ColorBar(color_mapper=mapper, ticker=BasicTicker(desired_num_ticks=5), title=unit, width=12), "right"
    )
    found.toolbar.logo = None
    found.toolbar.autohide = True
    found.grid.grid_line_color = None
    if len(layers) > 30:
        found.xaxis.major_label_orientation = np.pi / 2
        found.xaxis.major_label_text_font_size = "7px"
    return found


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def shown_range(numbers: Numbers) -> str:
    """Return the steps between which the best step of the line is expected, in words."""
    peaks = numbers.peaks
    if peaks is None:
        return "not known"
    if peaks[1] <= numbers.last:
        return "none beyond the observed ones"
    return f"{shown_step(peaks[0])} to {shown_step(peaks[1])}"
