"""How far a run's line may be believed: what `relex_codec.trust` says of it, with the norms and scores at hand."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from relex_codec.decoding.tiers import as_step
from relex_codec.errors import InvalidArgument
from relex_codec.storage.urls import is_url
from relex_codec.trust.figures import Norms, distance
from relex_codec.trust.fits import HeldOut, held_out_errors, parse_curve
from relex_codec.trust.horizon import MEASURED, Band, Trust, band_of_scores, judge, within
from relex_codec.trust.scores import Scores, parse_scores

from .describe import DescribedRun
from .fitted import FittedDecoder, Secant
from .norms import lines_of, read_norms, stored_norms
from .provenance import remarks
from .sparkline import movement


class TrustedRun(DescribedRun):
    """The part of `relex_codec.Run` that says how far its line may be believed."""

    _norms: Norms | None = None

    def info(self) -> dict[str, Any]:
        """Return what the file says about itself, the document that ``relex-codec info --json`` prints.

        Among its keys: ``base``, ``steps``, ``observed_steps``, ``tiers``, ``bytes`` (by what they are for, and
        ``total``), ``parameters``, ``ratio`` (bytes of all checkpoints over those of the file), ``explained_variance``
        and ``r2`` (from 0 to 1; they describe the observed steps and say nothing of others), ``trust`` (what `trust`
        says of the last observed step; None where the file has no norms and `trust` has not computed them yet),
        ``scores`` (those beside the file, or None) and ``tensor_rows``, one `tensor_info` each.
        """
        document, norms = super().info(), self._norms or stored_norms(self._reader.container)
        observed, scores = self.observed_steps, self.scores()
        told = None
        if norms is not None:
            lines, last = lines_of(self._reader.container.index), observed[-1]
            told = judge(lines, norms, last, (observed[0], last), self._band(norms)).as_dict()
        rows = document.pop("tensor_rows")
        return document | {"trust": told, "scores": None if scores is None else asdict(scores), "tensor_rows": rows}

    def movement(self) -> list[float]:
        """Return the distance from the base at each step, in weight space, as the coefficients give it.

        Returns:
            The root of the summed squares of all coefficients for each of `steps`; empty where nothing moves, or where
            there are so many coefficients (over 16 MB) that they are not read with the file's tables.
        """
        return movement(self._reader.container)

    def fits(self) -> list[HeldOut]:
        """Compare curves through the coefficients at steps that they are not fitted on, the best first.

        Those are the later steps where a run has some, else the second half of the observed ones. Of the curves that
        `save` can follow, ``line`` is what every reader takes.

        Raises:
            Corrupt, Truncated: the file is damaged.
        """
        found = self.coefficients()
        return held_out_errors(found.steps.tolist(), found.values, len(self.observed_steps))

    def trust(self, step: float) -> Trust:
        """Say how far a step of the line is from the base, and where the best step of such a line lies.

        The distance is taken from norms that the file brings. Where it lacks them they are computed, which reads base
        and directions once and takes about as long as decoding a step. Scores of this run, in ``run.scores.json``
        beside ``run.relex``, narrow the band.

        Args:
            step: any number.

        Returns:
            A `Trust`. For steps that are not read from the line it says what the line would give.

        Raises:
            InvalidArgument: `step` is no finite number, or the file of scores is not one.
            BaseMismatch, CheckpointError: norms have to be computed, and the base cannot be used.
            Corrupt, Truncated: the file is damaged.
        """
        number = as_step(step)
        if not abs(number) < float("inf"):
            raise InvalidArgument(f"step is {number}, expected a finite number")
        self._reader.check_open()
        observed = self.observed_steps
        lines, norms = lines_of(self._reader.container.index), self._measured()
        return judge(lines, norms, number, (observed[0], observed[-1]), self._band(norms))

    def _about(self, step: float, tier: str, along: str) -> tuple[Trust | None, list[str]]:
        """Return how far a step may be believed if it lies beyond the observed ones, and all that is said of it.

        Args:
            tier: that it is read from.
            along: as `Run.save`.
        """
        container = self._reader.container
        words = remarks(container, step, tier)
        if tier != "line" or 0 <= step <= self.observed_steps[-1]:
            return None, words
        found = self.trust(step) if along == "line" else self._trust_along(step, along)
        return found, [*words, *found.words]

    def _trust_along(self, step: float, along: str) -> Trust:
        decoder, observed = self._reader.decoder, self.observed_steps
        lines, moved, norms = lines_of(decoder.container.index), None, self._measured()
        if along == "secant":
            moved, norms = Secant.of(decoder).distance(decoder, step), replace(norms, read=False)
        else:
            fitted = FittedDecoder(decoder, parse_curve(along))
            moved = distance(fitted.at(step), norms)
        return judge(lines, norms, step, (observed[0], observed[-1]), self._band(self._measured()), moved=moved)

    def step_within(self, step: float, max_distance: float) -> float:
        """Return the step nearest to `step` whose distance from the base, as `trust` gives it, is at most so much.

        Args:
            max_distance: a ratio: 0.004 is 0.4 % of the weights' own size.

        Returns:
            `step` itself if it is near enough; never one before the last observed step, where training itself was.

        Raises:
            InvalidArgument: `max_distance` is not above 0; and as `trust`.

        Example:
            >>> run.step_within(800, max_distance=0.15)
            78.0
        """
        if not max_distance > 0:
            raise InvalidArgument(f"the largest distance is {max_distance}, expected a number above 0")
        self._reader.check_open()
        lines = lines_of(self._reader.container.index)
        return within(lines, self._measured(), as_step(step), self.observed_steps[-1], max_distance)

    def scores(self) -> Scores | None:
        """Return the scores that lie beside the file, in ``run.scores.json`` beside ``run.relex``; None without any.

        They are looked for on the local disk only.

        Raises:
            InvalidArgument: there is such a file, but it does not hold scores.
        """
        path = self.path
        if is_url(path) or not path.endswith(".relex"):
            return None
        beside = Path(path.removesuffix(".relex") + ".scores.json")
        try:
            text = beside.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InvalidArgument(f"cannot read {os.fspath(beside)}: {error.strerror}") from None
        return parse_scores(text, os.fspath(beside))

    def _measured(self) -> Norms:
        if self._norms is None:
            self._norms = stored_norms(self._reader.container) or read_norms(self._reader.decoder)
        return self._norms

    def _band(self, norms: Norms) -> Band:
        scores, lines = self.scores(), lines_of(self._reader.container.index)
        if scores is None:
            return MEASURED
        return band_of_scores([(distance(lines.at(one.step), norms), one.score) for one in scores.of("line")])
