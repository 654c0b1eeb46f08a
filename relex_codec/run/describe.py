"""What an open file tells of itself: as data, as one line for a prompt, as a table for a notebook."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import Any

from relex_codec.core.text import quote

from .coefficients import Coefficients, read_coefficients
from .info import summary, tensor_row
from .run_reader import RunReader
from .sparkline import as_svg, movement


def facts(document: dict[str, Any], base: str | None = None) -> dict[str, str]:
    """Return base, steps, tiers and size in words.

    Args:
        document: of `info.summary`.
        base: that the caller gave instead of what the file says.
    """
    steps, observed = document["steps"], document["observed_steps"]
    uri = "unknown" if document["base"] is None else quote(document["base"])
    own = "embedded" if document["base_embedded"] else uri
    seen = "all observed" if len(observed) == len(steps) else f"observed to {observed[-1]}"
    return {
        "base": own if base is None else quote(base),
        "steps": f"{steps[0]} to {steps[-1]} ({len(steps)} steps, {seen})",
        "tiers": ", ".join(document["tiers"]),
        "tensors": f"{document['tensors']:,} with {document['parameters']:,} parameters",
        "size": f"{document['bytes']['total']:,} bytes",
    }


def as_line(path: str, told: dict[str, str], *, closed: bool = False) -> str:
    """Return `facts` as one line."""
    what = f"base {told['base']}, steps {told['steps']}, tiers {told['tiers']}, {told['size']}"
    return f"<relex_codec.Run {quote(path)}: {what}{', closed' if closed else ''}>"


def as_html(path: str, told: dict[str, str], *, closed: bool = False, moved: Sequence[float] = ()) -> str:
    """Return `facts` as a table, in which nothing of the file is taken for HTML.

    Args:
        moved: how far the run is from the base at each step, for a small picture beside the steps; empty for none.
    """
    picture = {"steps": " " + as_svg(moved)} if len(moved) > 1 else {}
    rows = "".join(
        f'<tr><th style="text-align: left">{name}</th>'
        f'<td style="text-align: left">{html.escape(value)}{picture.get(name, "")}</td></tr>'
        for name, value in told.items()
    )
    caption = f"relex_codec.Run {html.escape(quote(path))}{' (closed)' if closed else ''}"
    return f'<table><caption style="text-align: left">{caption}</caption><tbody>{rows}</tbody></table>'


class DescribedRun:
    """The part of `relex_codec.Run` that reads no weights.

    Args:
        reader: the open file.
        base: that the caller gave, without credentials; None: what the file says.

    Attributes:
        path: of the file, for messages.
    """

    def __init__(self, reader: RunReader, base: str | None) -> None:
        self._reader, self._given_base = reader, base
        self.path = reader.path

    def __len__(self) -> int:
        return len(self._reader.container.index.layout.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._reader.container.index.layout

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __bool__(self) -> bool:
        return True  # also of a file without tensors

    def __repr__(self) -> str:
        told = facts(summary(self._reader.container), self._given_base)
        return as_line(self.path, told, closed=self._reader.closed)

    def _repr_html_(self) -> str:
        told, moved = facts(summary(self._reader.container), self._given_base), movement(self._reader.container)
        return as_html(self.path, told, closed=self._reader.closed, moved=moved)

    @property
    def steps(self) -> list[int]:
        """All steps that the file has coefficients of, rising.

        Examples:
            >>> run.steps
            [10, 20, 30, 40]
        """
        return self._reader.steps

    @property
    def observed_steps(self) -> list[int]:
        """The steps that directions and lines were fitted on: the first ones of `steps`, or all.

        Examples:
            >>> size = relex_codec.encode("ckpts/", "early.relex", base="base/", observe=30)
            >>> relex_codec.open("early.relex").observed_steps
            [10, 20, 30]
        """
        return self.steps[: self._reader.container.index.manifest.observed]

    def keys(self) -> list[str]:
        """Return the names of the tensors, in the file's order.

        Examples:
            >>> run.keys()[:2]
            ['model.embed_tokens.weight', 'model.layers.0.input_layernorm.weight']
        """
        return self._reader.keys()

    def info(self) -> dict[str, Any]:
        """Return what the file says about itself, the document that ``relex-codec info --json`` prints.

        Among its keys: ``base``, ``steps``, ``observed_steps``, ``tiers``, ``bytes`` (by what they are for, and
        ``total``), ``parameters``, ``ratio`` (bytes of all checkpoints over those of the file), ``explained_variance``
        and ``r2`` (from 0 to 1), ``errors`` (of tiers ``track`` and ``line`` at each step, relative to how far it is
        from where it started), ``layouts`` (which steps have which tensors, shards and files), ``left_out``, and
        ``tensor_rows``, one `tensor_info` each.
        """
        return summary(self._reader.container)

    def tensor_info(self, name: str) -> dict[str, Any]:
        """Return what the file says about a tensor, without reading it.

        Returns:
            ``name``; ``dtype``, as safetensors calls it (``BF16``); ``shape``, a list; ``kind``: ``moving``, ``same``
            (at all steps), ``framed`` (stored step by step) or ``tied`` (another name of the tensor ``target``); of a
            moving one also ``packing``, ``explained_variance``, ``r2`` and the relative errors, as in ``relex-codec
            info --json``.

        Raises:
            InvalidArgument: there is no such tensor.
        """
        index = self._reader.container.index
        elsewhere = [tensor for tensor in index.tensors if tensor.name == name]  # steps may differ in what it is
        if name not in index.layout and elsewhere:
            return tensor_row(index, elsewhere[-1])
        return tensor_row(index, index.tensor(name))

    def tier(self, step: float, *, tier: str = "auto") -> str:
        """Return what `step` is read from: ``base``, ``exact``, ``track`` or ``line``.

        Args:
            step: as of `tensor`.
            tier: that is asked for, as of `tensor`.

        Raises:
            InvalidArgument: no such tier, or it does not reach the step.

        Examples:
            >>> [run.tier(step) for step in (0, 10, 12.5, 60)]
            ['base', 'exact', 'track', 'line']
            >>> run.tier(60, tier="track")
            Traceback (most recent call last):
            relex_codec.errors.InvalidArgument: tier 'track' reaches from step 10 to 40, not 60; 'line' does
        """
        return self._reader.tier(step, tier)

    def coefficients(self) -> Coefficients:
        """Return how far the run has moved along each direction at each of its steps, float64 [directions, steps].

        Raises:
            Corrupt, Truncated: the file is damaged.

        Examples:
            >>> found = run.coefficients()
            >>> found, found.values.dtype, found.steps.tolist()
            (Coefficients(16 directions of 16 tensors at 4 steps), dtype('float64'), [10, 20, 30, 40])
        """
        return read_coefficients(self._reader.decoder)
