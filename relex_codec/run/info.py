"""What a file says about itself, as a dictionary and as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from relex_codec.core.dtypes import ITEMSIZE
from relex_codec.core.left_out import LeftOut, describe
from relex_codec.core.steps import spell_steps
from relex_codec.core.text import labelled, on_one_line, quote
from relex_codec.decoding.tiers import is_without_line
from relex_codec.format import constants as f
from relex_codec.format.index import Index
from relex_codec.format.reader import FileReader
from relex_codec.format.step_layout import StepLayout
from relex_codec.format.tensor_record import TensorRecord

from .error_text import SHOWN, error_line
from .sparkline import BLOCKS, sparkline

KINDS = ("directions", "coefficients", "exact", "base", "index")
"""What the bytes of a file are for."""
_KINDS = {f.SAME: "same", f.MOVING: "moving", f.FRAMED: "framed", f.TIED: "tied"}


def stored_bytes(container: FileReader) -> dict[str, int]:
    """Return the bytes of a file by kind; ``total`` is their sum and the file's size."""
    sizes = {name: entry.end - entry.begin for name, entry in container.index.entries.items()}
    kinds = {
        "directions": sizes[f.DATA_DIRECTIONS],
        "coefficients": sizes[f.COEFFICIENTS],
        "exact": frame_bytes(container),
        "base": sizes[f.DATA_BASE],
    }
    total = container.source.size
    return {**kinds, "index": total - sum(kinds.values()), "total": total}


def frame_bytes(container: FileReader) -> int:
    """Return the bytes of frames and their records; 0 without any."""
    if not container.index.has_frames:
        return 0
    entries = [container.index.entries[name] for name in f.FRAME_ENTRIES]
    return sum(entry.end - entry.begin for entry in entries)


def summary(container: FileReader) -> dict[str, Any]:
    """Return everything that ``info --json`` prints, and `Run.info` returns.

    Errors are relative to the delta of the last observed step; a number that is undefined is None.
    """
    index = container.index
    manifest = index.manifest
    own = {index.target(tensor).number: index.target(tensor) for tensor in index.layout.tensors}
    parameters = sum(tensor.size for tensor in own.values())
    checkpoint = _checkpoint_bytes(index.layout)
    run = sum(_checkpoint_bytes(index.layout_number(step.layout)) for step in manifest.steps)
    sizes = stored_bytes(container)
    rows = [tensor_row(index, tensor) for tensor in index.tensors]
    return {
        "file": container.source.path,
        "version": int(index.metadata["relex_version"]),
        "producer": index.metadata["producer"],
        "base": manifest.base_uri,
        "base_embedded": manifest.embedded,
        "steps": [int(step) for step in index.steps],
        "observed_steps": [int(step) for step in index.steps[: manifest.observed]],
        "tiers": ["line", "track", "exact"] if index.has_exact else ["line", "track"],
        "exact": _exact(container, parameters) if index.has_exact else None,
        "tensors": len(index.tensors),
        "parameters": parameters,
        "quality": manifest.quality,
        "growth": manifest.growth,
        "bytes": sizes,
        "bits_per_parameter": {
            "directions": round(8 * sizes["directions"] / parameters, 4) if parameters else None,
            "total": round(8 * sizes["total"] / parameters, 4) if parameters else None,
        },
        "checkpoint_bytes": checkpoint,
        "run_bytes": run,
        "ratio": round(run / sizes["total"], 2),
        "errors": _errors(container),
        "explained_variance": _spread(rows, "explained_variance"),
        "r2": _spread(rows, "r2"),
        "moving": sum(row["kind"] == "moving" for row in rows),
        "framed": sum(row["kind"] == "framed" for row in rows),
        "tied": sum(row["kind"] == "tied" for row in rows),
        "without_line": [tensor.name for tensor in index.layout.tensors if is_without_line(index, tensor)],
        "directories": [step.directory for step in manifest.steps],
        "layouts": [_layout(index, number) for number in sorted({step.layout for step in manifest.steps})],
        "left_out": [one._asdict() for one in manifest.left_out],
        "tensor_rows": rows,
    }


def _checkpoint_bytes(layout: StepLayout) -> int:
    """Bytes of the weights of a step."""
    return sum(tensor.size * ITEMSIZE[tensor.dtype] for tensor in layout.tensors)


def _errors(container: FileReader) -> dict[str, list[float | None]]:
    """Relative errors of the tiers at each step."""
    return {tier: list(map(_number, row)) for tier, row in zip(("track", "line"), container.errors(), strict=True)}


def _layout(index: Index, number: int) -> dict[str, Any]:
    """What the steps of a layout are made of."""
    layout = index.layout_number(number)
    return {
        "steps": [int(at) for at, step in zip(index.steps, index.manifest.steps, strict=True) if step.layout == number],
        "tensors": len(layout.tensors),
        "shards": list(layout.shards),
        "files": [
            {"name": name, "bytes": file.length, "stored": file.stored} for name, (_, file) in layout.files.items()
        ],
    }


def _exact(container: FileReader, parameters: int) -> dict[str, Any]:
    steps = len(container.index.steps)
    bits = 8 * frame_bytes(container) / (parameters * steps) if parameters else None
    return {
        "steps": steps,
        "segments": container.index.segments,
        "bits_per_parameter_and_step": None if bits is None else float(f"{bits:.6g}"),
    }


def tensor_row(index: Index, tensor: TensorRecord) -> dict[str, Any]:
    """Return what ``info --json`` says of one tensor."""
    row: dict[str, Any] = {
        "name": tensor.name,
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "kind": _KINDS[tensor.kind],
        "origin": "base" if index.target(tensor).in_base else "file",
        "directions": len(tensor.directions),
    }
    if tensor.target is not None:
        row["target"] = index.tensors[tensor.target].name
    if tensor.directions:
        first = index.directions[tensor.directions.start]
        row |= {
            "packing": f.PACKINGS[int(first["packing"])].name,
            "factor_rank": int(first["rank"]),
            "explained_variance": _number(first["explained"]),
            "r2": _number(first["r2"]),
            "error_unquantised": _number(first["error_line"]),
            "error_stored": _number(first["error_stored"]),
        }
    return row


def _number(value: Any) -> float | None:
    return float(f"{float(value):.6g}") if np.isfinite(value) else None


def _spread(rows: list[dict[str, Any]], key: str) -> dict[str, Any] | None:
    """Median and lowest value of a column, with the name of the lowest."""
    found = [(row[key], row["name"]) for row in rows if row.get(key) is not None]
    if not found:
        return None
    low, name = min(found)
    return {"median": float(f"{float(np.median([value for value, _ in found])):.6g}"), "lowest": low, "name": name}


def text(
    document: dict[str, Any],
    tensors: bool = False,
    moved: Sequence[float] = (),
    blocks: str = BLOCKS,
    columns: int = 0,
) -> str:
    """Return what `Run.info` returns as text that fits on a screen.

    Args:
        tensors: add a row for each.
        moved: how far the run is from the base at each step.
        blocks: what small pictures are drawn with, as of `sparkline`.
        columns: of the screen, as of `labelled`.
    """
    steps, observed, sizes = document["steps"], document["observed_steps"], document["bytes"]
    base = on_one_line(document["base"] or "not named")
    base = (
        f"embedded; was {base}"
        if document["base_embedded"]
        else base + (" (keep it: no step can be decoded without)" if needs_base(document) else "")
    )
    quality = on_one_line(document["quality"])
    if document["growth"] is not None:
        quality += f" (weight error grows by at most {100 * document['growth']:g} %)"
    bits = document["bits_per_parameter"]
    lines = [
        ("file", on_one_line(f"{document['file']} (format {document['version']}, {document['producer']})")),
        ("base", base),
        ("steps", f"{len(steps)}, from {steps[0]} to {steps[-1]}; observed {len(observed)}, to {observed[-1]}"),
        *([("moved", f"{sparkline(moved, blocks)}  distance from the base over the steps")] if moved else []),
        ("tiers", f"track from {steps[0]} to {steps[-1]}, line for any step{_without_line_text(document)}"),
        *([("exact", _exact_text(document["exact"]))] if document["exact"] else []),
        ("tensors", _tensors_text(document)),
        ("quality", quality),
        ("bytes", " + ".join(f"{kind} {sizes[kind]:,}" for kind in KINDS) + f" = {sizes['total']:,}"),
        (
            "size",
            f"{_decimals(bits['directions'])} bits per parameter for directions, {_decimals(bits['total'])} in all",
        ),
        (
            "ratio",
            f"{document['ratio']:,} times smaller than {len(steps)} checkpoints "
            f"of {document['checkpoint_bytes']:,} bytes",
        ),
        ("variance", _spread_text(document["explained_variance"], "of the observed changes lies along one direction")),
        ("R^2", _spread_text(document["r2"], "of the lines over the observed steps; no forecast")),
        *[
            (f"{tier} off", line)
            for tier, values in document["errors"].items()
            if (line := error_line(steps, values, blocks)) is not None
        ],
        ("trust", _trust_text(document)),
        *([("scores", _scores_text(document["scores"]))] if document["scores"] else []),
        *([("differ", _layouts_text(document["layouts"], steps))] if len(document["layouts"]) > 1 else []),
        *([("left out", left_out_text(document))] if document["left_out"] else []),
    ]
    return labelled(lines, columns) + ("\n\n" + _tensor_table(document["tensor_rows"]) if tensors else "")


def needs_base(document: dict[str, Any]) -> bool:
    """Tell whether decoding needs the base, so that it must be kept, by what `summary` returned."""
    return not document["base_embedded"] and any(row["origin"] == "base" for row in document["tensor_rows"])


def _tensors_text(document: dict[str, Any]) -> str:
    count = document["framed"]
    framed = f", {count} {'is' if count == 1 else 'are'} stored step by step" if count else ""
    count = document["tied"]
    framed += f", {count} {'is another name' if count == 1 else 'are other names'} of one" if count else ""
    return f"{document['tensors']}, of which {document['moving']} move{framed}; {document['parameters']:,} parameters"


def _without_line_text(document: dict[str, Any]) -> str:
    """Which tensors keep whole steps from being read beyond the stored ones."""
    names = [quote(name) for name in document["without_line"]]
    if not names:
        return ""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f", but for {names[0]}{more}: at stored steps only"


def _layouts_text(layouts: list[dict[str, Any]], steps: list[int]) -> str:
    """Which steps differ from others in tensors, shards or files."""
    spelled = [spell_steps(layout["steps"], steps) for layout in layouts]
    more = f" and {len(spelled) - SHOWN} more kinds" if len(spelled) > SHOWN else ""
    return f"steps {'; '.join(spelled[:SHOWN])}{more} in tensors, shards or files"


def left_out_text(document: dict[str, Any]) -> str:
    """What the run's directory held and the file does not, in words, by what `summary` returned; empty if nothing."""
    return describe([LeftOut(**row) for row in document["left_out"]], len(document["steps"]))


def _exact_text(exact: dict[str, Any]) -> str:
    segments = f" in {exact['segments']} segments" if exact["segments"] > 1 else ""
    bits = _decimals(exact["bits_per_parameter_and_step"])
    return f"all {exact['steps']} steps bit for bit{segments}, {bits} bits per parameter and step"


def _trust_text(document: dict[str, Any]) -> str:
    if document["trust"] is None:
        return "the file has no norms of its directions; --trust computes them, reading base and directions"
    return "; ".join(document["trust"]["words"])


def _scores_text(scores: dict[str, Any]) -> str:
    rows = scores["scores"]
    if not rows:
        return "none"
    best = max(rows, key=lambda row: row["score"])
    what = f" ({on_one_line(scores['metric'])})" if scores["metric"] else ""
    return f"{len(rows)}{what}, the best {best['score']:g} at step {best['step']:g}, {best['tier']}"


def fits_text(rows: list[dict[str, Any]]) -> str:
    """Return what `Run.fits` found, as a table."""
    if not rows:
        return "fits: too few steps to hold some out"
    first = rows[0]
    (count, last), (low, high) = first["fitted"], first["held_out"]
    table = [("fit", "error", f"at step {high}")]
    table += [(row["fit"], f"{row['error']:.4f}", f"{row['last']:.4f}") for row in rows]
    widths = [max(len(line[i]) for line in table) for i in range(3)]
    lines = ["  ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)).rstrip() for line in table]
    told = f"fits over {count} steps to {last}, compared at those from {low} to {high} (1: as wrong as the base)"
    return "\n".join([told, *lines])


def _decimals(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _spread_text(spread: dict[str, Any] | None, what: str) -> str:
    if spread is None:
        return "-"
    return f"median {spread['median']:.4f}, lowest {spread['lowest']:.4f} ({on_one_line(spread['name'])}) {what}"


def _tensor_table(rows: list[dict[str, Any]]) -> str:
    columns = (
        "name",
        "dtype",
        "shape",
        "kind",
        "packing",
        "factor_rank",
        "explained_variance",
        "r2",
        "error_unquantised",
        "error_stored",
    )
    titles = ("tensor", "dtype", "shape", "kind", "packing", "factors", "variance", "R^2", "error", "stored")
    cells = [titles] + [tuple(_cell(row.get(column)) for column in columns) for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join("  ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)).rstrip() for line in cells)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else on_one_line(str(value))
