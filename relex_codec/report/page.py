"""One page about a run: a single HTML file that needs no network, made of the run's numbers and of charts."""

from __future__ import annotations

import html
import shlex
from collections.abc import Iterable, Sequence
from typing import Any, Final

from relex_codec.core.text import on_one_line
from relex_codec.errors import InvalidArgument
from relex_codec.run.info import KINDS, needs_base
from relex_codec.trust.horizon import percent, shown_step

from .charts import MOST_LINES, charts_of, shown_range
from .numbers import Numbers
from .style import SCRIPT, STYLE

ROWS: Final = 10
"""Rows of the tables of tensors."""
POLICY: Final = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:"
)
"""What the page may do: nothing beyond itself."""


def require_bokeh() -> None:
    """Check that bokeh is installed.

    Raises:
        InvalidArgument: it is not.
    """
    try:
        import bokeh  # noqa: F401
    except ImportError as error:
        message = f"the page needs bokeh ({error}); install it with: pip install 'relex-codec[report]'"
        raise InvalidArgument(message) from None


def page(numbers: Numbers, title: str) -> str:
    """Return the page as HTML; nothing of the file is taken for HTML in it.

    Args:
        title: of the page, in words of the file or the user.

    Raises:
        InvalidArgument: bokeh is not installed.
    """
    require_bokeh()
    from bokeh.embed import components
    from bokeh.resources import Resources

    charts = charts_of(numbers)
    script, parts = components(charts) if charts else ("", {})
    library = Resources(mode="inline", components=["bokeh", "bokeh-widgets"]).render_js() if charts else ""
    drawn = [_section(name, f"<figure>{parts[name]}</figure>{_notes(name, numbers)}") for name in charts]
    body = [
        f"<h1>{_safe(title)}</h1>", _summary(numbers), _trust(numbers), *drawn, _tensors(numbers), _sizes(numbers.info),
        _provenance(numbers.info), _commands(numbers),
    ]  # fmt: skip
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_safe(title)}</title><style>{STYLE}</style></head>\n<body><main>{''.join(body)}</main>\n"
        f"{library}\n{script}\n<script>{SCRIPT}</script></body></html>\n"
    )


def _safe(text: object) -> str:
    return html.escape(on_one_line(str(text)))


def _section(title: str, content: str) -> str:
    return f"<section><h2>{_safe(title)}</h2>{content}</section>"


def _table(titles: Sequence[str], rows: Iterable[Sequence[object]], words: int = 1) -> str:
    """Return a table; the first `words` columns hold words, the others numbers."""
    head = "".join(
        f'<th scope="col"{"" if i < words else " class=number"}>{_safe(t)}</th>' for i, t in enumerate(titles)
    )
    lines = [
        "".join(f"<td{'' if i < words else ' class=number'}>{_safe(_cell(cell))}</td>" for i, cell in enumerate(row))
        for row in rows
    ]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _facts(rows: Iterable[tuple[str, object]]) -> str:
    found = "".join(f"<dt>{_safe(name)}</dt><dd>{_safe(_cell(value))}</dd>" for name, value in rows)
    return f"<dl>{found}</dl>"


def _summary(numbers: Numbers) -> str:
    info = numbers.info
    steps, observed = info["steps"], info["observed_steps"]
    base = "embedded" if info["base_embedded"] else (info["base"] or "not named")
    return _facts([
        ("steps", f"{len(steps):,}, {steps[0]:,} to {steps[-1]:,}; observed {len(observed):,}, to {observed[-1]:,}"),
        ("tiers", ", ".join(info["tiers"])),
        ("tensors", f"{info['tensors']:,}, of which {info['moving']:,} move; {info['parameters']:,} parameters"),
        ("size", f"{info['bytes']['total']:,} bytes, {info['ratio']:,} times smaller than the run"),
        ("base", base + (" (keep it: no step can be decoded without)" if needs_base(info) else "")),
    ])  # fmt: skip


def _trust(numbers: Numbers) -> str:
    trust = numbers.trust
    if trust is None:
        words = "".join(f"<p>Not known: {_safe(reason)}.</p>" for reason in numbers.missing[:1])
        return _section("How far to believe the line", words)
    words = "".join(f"<p>{_safe(word[0].upper() + word[1:])}.</p>" for word in trust.words)
    rows: list[tuple[str, object]] = [
        (
            f"distance by step {numbers.last:,}",
            "-" if trust.window_distance is None else percent(trust.window_distance),
        ),
        ("lines were best at", f"{percent(trust.band[0])} to {percent(trust.band[1])}"),
        ("here that is at steps", shown_range(numbers)),
        ("this comes from", "six small runs of others" if trust.band_source == "runs" else "scores of this run"),
    ]
    if ahead := _steps_ahead(numbers):
        rows.append(("steps to score", ", ".join(dict.fromkeys(map(shown_step, ahead)))))
    plain = (
        "<p>Explained variance and R^2 describe the observed steps. They do not say how far a line holds: the "
        "straightest lines of those runs held for the shortest time.</p>"
    )
    return _section("How far to believe the line", words + _facts(rows) + plain)


def _steps_ahead(numbers: Numbers) -> list[int]:
    """Return five steps between which the best one is expected, evenly in the logarithm; none if it is not ahead."""
    if numbers.peaks is None or numbers.peaks[1] <= numbers.last:
        return []
    low, high = max(numbers.peaks[0], 1.0), numbers.peaks[1]
    return [round(low * (high / low) ** (i / 4)) for i in range(5)]


def _notes(name: str, numbers: Numbers) -> str:
    if name != "Coefficients":
        return ""
    shade = "Grey: observed steps. Green: where the best step of the line is expected. Red: beyond it."
    more = ""
    if len(numbers.names) > MOST_LINES:
        more = f" Lines are drawn of the {MOST_LINES} tensors, of {len(numbers.names):,}, that moved most."
    thin = "Thin lines are tensors, light in the last layers; hover over one, or choose some."
    return f'<p class="note">{shade} {thin}{more}</p>'


def _tensors(numbers: Numbers) -> str:
    rows = numbers.rows
    if not rows:
        return _section("Tensors", "<p>No tensor moved while the run was observed.</p>")
    columns = ("name", "r2", "explained_variance", "moved", "distance", "error_stored")
    titles = ("tensor", "R^2", "explained variance", "moved", "of its own size", "error as stored")
    bent = sorted((row for row in rows if row["r2"] is not None), key=lambda row: row["r2"])[:ROWS]
    far = sorted((row for row in rows if row["moved"] is not None), key=lambda row: -row["moved"])[:ROWS]
    found = ""
    for title, chosen in (("Least linear", bent), ("Most moving", far)):
        found += f"<h3>{title}</h3>" + _table(titles, [[row[key] for key in columns] for row in chosen])
    return _section("Tensors", found)


def _sizes(info: dict[str, Any]) -> str:
    sizes, tiers = (
        info["bytes"],
        {"directions": "line", "coefficients": "track", "exact": "exact", "base": "all", "index": "all"},
    )
    rows = [(kind, tiers[kind], sizes[kind], _share(sizes[kind], sizes["total"])) for kind in KINDS]
    rows.append(("total", "", sizes["total"], _share(sizes["total"], sizes["total"])))
    bits = info["bits_per_parameter"]
    told: list[tuple[str, object]] = [
        ("bits per parameter, directions", bits["directions"]),
        ("bits per parameter, all", bits["total"]),
        ("bytes of one checkpoint", info["checkpoint_bytes"]),
        ("bytes of all checkpoints", info["run_bytes"]),
    ]
    if info["exact"]:
        told.append(("exact: bits per parameter and step", info["exact"]["bits_per_parameter_and_step"]))
    kinds: dict[str, list[int]] = {}
    for row in info["tensor_rows"]:
        found = kinds.setdefault(row["kind"], [0, 0])
        found[0] += 1
        found[1] += _size(row["shape"])
    by_kind = _table(("tensors that are", "tensors", "weights"), [(kind, *found) for kind, found in kinds.items()])
    return _section("Sizes", _table(("bytes of", "for tier", "bytes", "share"), rows, 2) + _facts(told) + by_kind)


def _size(shape: Sequence[int]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _provenance(info: dict[str, Any]) -> str:
    growth = "" if info["growth"] is None else f" (weight error grows by at most {100 * info['growth']:g} %)"
    return _section("Provenance", _facts([
        ("file", _file_name(info)), ("digest of header and root", info["digest"]),
        ("format", info["version"]), ("producer", info["producer"]), ("base", info["base"] or "not named"),
        ("quality", info["quality"] + growth),
    ]))  # fmt: skip


def _file_name(info: dict[str, Any]) -> str:
    return str(info["file"]).replace("\\", "/").rpartition("/")[2]


def _commands(numbers: Numbers) -> str:
    info = numbers.info
    name, last = shlex.quote(_file_name(info)), info["steps"][-1]
    lines = [f"relex-codec info {name} --json", f"relex-codec decode {name} --step {last} -o step-{last}"]
    if ahead := _steps_ahead(numbers):
        middle = ahead[len(ahead) // 2]
        lines.append(f"relex-codec decode {name} --step {middle} -o step-{middle}")
    lines.append(f"relex-codec decode {name} --step {10 * last} --max-distance 0.4 -o far")
    if info["exact"]:
        lines.append(f"relex-codec restore {name} -o run")
    lines.append(f"relex-codec compare {name} --steps {info['steps'][0]},{last}")
    lines.append(f"relex-codec verify {name}")
    found = "".join(
        f'<div class="command"><code>{_safe(line)}</code><button type="button">Copy</button></div>' for line in lines
    )
    return _section("Commands", found)
