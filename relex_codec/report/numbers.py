"""The numbers that pictures and page show, collected once from an open run: plain arrays, also written beside them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from relex_codec.errors import BaseMismatch, CheckpointError
from relex_codec.run.norms import lines_of
from relex_codec.run.places import Place, place_of
from relex_codec.run.run import Run
from relex_codec.trust.figures import Lines, Norms, distance
from relex_codec.trust.horizon import Trust
from relex_codec.trust.scores import Scores

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Numbers:
    """What there is to see of a run.

    Attributes:
        info: as `Run.info` returns it.
        steps: int64 [T], all of them.
        observed: how many, from the first, lines were fitted on.
        names: of the tensors that move, one for each row of what follows.
        places: layer and kind of each.
        coefficients: float64 [tensors, T], of the first direction of each.
        lines: of those directions.
        rows: what `Run.tensor_info` says of each.
        errors: float64 [2, T], relative error of tiers ``track`` and ``line``; NaN where the file does not say.
        norms: of all directions, for distances; None where they are not known.
        all_lines: of all directions.
        trust: of the last observed step; None where norms are not known.
        scores: those beside the file.
        missing: why something is not there, in words.
    """

    info: dict[str, Any]
    steps: npt.NDArray[np.int64]
    observed: int
    names: list[str]
    places: list[Place]
    coefficients: F64
    lines: Lines
    rows: list[dict[str, Any]]
    errors: F64
    norms: Norms | None
    all_lines: Lines
    trust: Trust | None
    scores: Scores | None
    missing: list[str]

    @property
    def last(self) -> int:
        """The last observed step."""
        return int(self.steps[self.observed - 1])

    @property
    def peaks(self) -> tuple[float, float] | None:
        """The steps between which the best step of the line lies, as far as is known."""
        return None if self.trust is None else self.trust.peak_steps

    def column(self, key: str) -> F64:
        """Return one number of each tensor that moves, NaN where there is none."""
        return np.array([np.nan if row.get(key) is None else float(row[key]) for row in self.rows], np.float64)

    def moved_per_weight(self) -> F64:
        """Return the root mean square change of a weight at the last observed step, of each tensor that moves."""
        sizes = np.array([max(1, int(np.prod(row["shape"], dtype=object))) for row in self.rows], np.float64)
        return np.asarray(self.column("moved") / np.sqrt(sizes), np.float64)

    def distances(self, steps: F64) -> F64:
        """Return D of the line at some steps; NaN where norms are not known."""
        if self.norms is None:
            return np.full(len(steps), np.nan)
        return np.array([distance(self.all_lines.at(float(step)), self.norms) for step in steps])

    def normalised(self) -> tuple[F64, F64]:
        """Return coefficients over what each line has at the last observed step, and the same for all tensors together.

        Returns:
            float64 [tensors, T], NaN for tensors whose line is at 0 there; and float64 [T], of all tensors: how far the
            run is along the way to where the lines are at the last observed step.
        """
        ends = self.lines.at(self.last)
        with np.errstate(divide="ignore", invalid="ignore"):
            rows = np.where(ends[:, None] != 0, self.coefficients / ends[:, None], np.nan)
        return rows, self._along(self.coefficients)

    def line_together(self, steps: F64) -> F64:
        """Return for the lines what `normalised` returns second for the coefficients, at some steps."""
        return self._along(self.lines.slope[:, None] * steps + self.lines.intercept[:, None])

    def _along(self, values: F64) -> F64:
        ends = self.lines.at(self.last)
        scale = float(np.abs(ends).max(initial=0)) or np.nan
        ends = ends / scale
        return np.asarray(ends @ (values / scale) / (ends @ ends), np.float64)

    def as_npz(self) -> bytes:
        """Return the numbers as the bytes of a ``.npz`` file, without anything that would be pickled."""
        arrays: dict[str, Any] = {
            "steps": self.steps,
            "observed": np.array(self.observed),
            "names": np.array(self.names, dtype=np.str_),
            "kinds": np.array([place.kind for place in self.places], dtype=np.str_),
            "layers": np.array([-1 if place.layer is None else place.layer for place in self.places], np.int64),
            "coefficients": self.coefficients,
            "slope": self.lines.slope,
            "intercept": self.lines.intercept,
            "errors_track": self.errors[0],
            "errors_line": self.errors[1],
            **{key: self.column(key) for key in ("explained_variance", "r2", "moved", "distance")},
        }
        if self.trust is not None:
            arrays["band"] = np.array(self.trust.band)
            if self.trust.peak_steps is not None:
                arrays["peak_steps"] = np.array(self.trust.peak_steps)
        if self.scores is not None:
            found = self.scores.scores
            arrays["scored_steps"] = np.array([one.step for one in found], np.float64)
            arrays["scored_tiers"] = np.array([one.tier for one in found], dtype=np.str_)
            arrays["scores"] = np.array([one.score for one in found], np.float64)
        out = io.BytesIO()
        np.savez_compressed(out, **arrays)
        return out.getvalue()


def collect(run: Run) -> Numbers:
    """Collect what there is to see of a run.

    Norms that the file does not bring are computed, if the base is there.

    Raises:
        InvalidArgument: the run is closed, or the file of scores beside it is none.
        Corrupt, Truncated: the file is damaged.
    """
    container = run._reader.decoder.container
    index, missing = container.index, []
    trust, norms = None, None
    try:
        trust = run.trust(run.observed_steps[-1])
        norms = run._measured()
    except (CheckpointError, BaseMismatch) as error:
        missing.append(f"how far the line may be believed: the file has no norms of its directions, and {error}")
    errors = container.errors().astype(np.float64)
    if not np.isfinite(errors).any():
        missing.append("the error of each step: the file does not bring it")
    found = run.coefficients()
    records = [tensor for tensor in index.tensors if tensor.directions]
    first = [tensor.directions.start for tensor in records]
    lines = lines_of(index)
    info = run.info()
    by_name = {(row["name"], row["dtype"]): row for row in info["tensor_rows"]}
    return Numbers(
        info, found.steps, len(run.observed_steps), [tensor.name for tensor in records],
        [place_of(tensor.name) for tensor in records], found.values[first],
        Lines(lines.slope[first], lines.intercept[first]),
        [by_name[tensor.name, tensor.dtype] for tensor in records], errors, norms, lines, trust, run.scores(), missing,
    )  # fmt: skip
