"""What an open file tells of itself: as data, as one line for a prompt, as a table for a notebook."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any

from relex_codec.core.text import quote

from .coefficients import Coefficients, read_coefficients
from .info import summary, tensor_row
from .run_reader import RunReader


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


def as_html(path: str, told: dict[str, str], *, closed: bool = False) -> str:
    """Return `facts` as a table, in which nothing of the file is taken for HTML."""
    rows = "".join(
        f'<tr><th style="text-align: left">{name}</th><td style="text-align: left">{html.escape(value)}</td></tr>'
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
        return as_line(self.path, facts(self.info(), self._given_base), closed=self._reader.closed)

    def _repr_html_(self) -> str:
        return as_html(self.path, facts(self.info(), self._given_base), closed=self._reader.closed)

    @property
    def steps(self) -> list[int]:
        """All steps that the file has coefficients of."""
        return self._reader.steps

    @property
    def observed_steps(self) -> list[int]:
        """The steps that directions and lines were fitted on."""
        return self.steps[: self._reader.container.index.manifest.observed]

    def keys(self) -> list[str]:
        """Names of the tensors, in the file's order."""
        return self._reader.keys()

    def info(self) -> dict[str, Any]:
        """Return what the file says about itself, the document that ``relex-codec info --json`` prints.

        Among its keys: ``base``, ``steps``, ``observed_steps``, ``tiers``, ``bytes`` (by what they are for, and
        ``total``), ``parameters``, ``ratio`` (bytes of all checkpoints over those of the file), ``explained_variance``
        and ``r2`` (from 0 to 1), and ``tensor_rows``, one `tensor_info` each.
        """
        return summary(self._reader.container)

    def tensor_info(self, name: str) -> dict[str, Any]:
        """Return what the file says about a tensor, without reading it.

        Returns:
            ``name``; ``dtype``, as safetensors calls it (``BF16``); ``shape``, a list; ``kind``: ``moving``, ``same``
            (at all steps) or ``framed`` (stored step by step); of a moving one also ``packing``,
            ``explained_variance``, ``r2`` and the relative errors, as in ``relex-codec info --json``.

        Raises:
            InvalidArgument: there is no such tensor.
        """
        index = self._reader.container.index
        return tensor_row(index, index.tensor(name))

    def tier(self, step: float, *, tier: str = "auto") -> str:
        """Return what `step` is read from: ``base``, ``exact``, ``track`` or ``line``.

        Raises:
            InvalidArgument: no such tier, or it does not reach the step.
        """
        return self._reader.tier(step, tier)

    def coefficients(self) -> Coefficients:
        """Return how far the run has moved along each direction at each of its steps, float64 [directions, steps].

        Raises:
            Corrupt, Truncated: the file is damaged.
        """
        return read_coefficients(self._reader.decoder)
