"""How far a run's line may be believed: what `relex_codec.trust` says of it, with the norms and scores at hand."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, Final

import numpy as np

from relex_codec.core.filenames import ADAPTER_WEIGHTS
from relex_codec.decoding.tiers import as_step
from relex_codec.errors import InvalidArgument
from relex_codec.trust.figures import Norms, distance
from relex_codec.trust.fits import HeldOut, held_out_errors, parse_curve
from relex_codec.trust.horizon import MEASURED, Band, Trust, band_of_scores, judge, within
from relex_codec.trust.scores import Scores, parse_scores

from .describe import DescribedRun
from .fitted import FittedDecoder, Secant
from .kept_scores import place_of_scores, read_scores
from .norms import lines_of, read_norms, stored_norms, tensor_distance
from .provenance import file_digest, remarks
from .sparkline import movement

OF_ADAPTERS: Final = (
    "how far a line of adapters may be believed is not known: lines were measured on whole weights, from which "
    "adapters begin at nothing"
)


class TrustedRun(DescribedRun):
    """The part of `relex_codec.Run` that says how far its line may be believed."""

    _norms: Norms | None = None
    _digest: str | None = None

    def info(self) -> dict[str, Any]:
        """Return what the file says about itself, the document that ``relex-codec info --json`` prints.

        Among its keys: ``base``, ``steps``, ``observed_steps``, ``tiers``, ``bytes`` (by what they are for, and
        ``total``), ``parameters``, ``ratio`` (bytes of all checkpoints over those of the file), ``explained_variance``
        and ``r2`` (from 0 to 1; they describe the observed steps and say nothing of others), ``digest`` (of header and
        root), ``trust`` (what `trust` says of the last observed step; None where the file has no norms and `trust` has
        not computed them yet), ``scores`` (those beside the file, or None) and ``tensor_rows``, one `tensor_info` each.

        Examples:
            >>> found = run.info()
            >>> found["tiers"], found["parameters"], found["checkpoint_bytes"]
            (['line', 'track', 'exact'], 5488, 10976)
        """
        document, norms = super().info(), self._known()
        observed, scores = self.observed_steps, self.scores()
        told = None
        if norms is not None and not self._of_adapters:
            lines, last = lines_of(self._reader.container.index), observed[-1]
            told = judge(lines, norms, last, (observed[0], last), self._band(norms)).as_dict()
        document |= {"digest": self._file_digest(), "trust": told, "scores": None if scores is None else asdict(scores)}
        return document | {"tensor_rows": [self._with_distance(row) for row in document.pop("tensor_rows")]}

    def tensor_info(self, name: str) -> dict[str, Any]:
        """Return what the file says about a tensor, without reading it.

        Args:
            name: of the tensor, which some step has.

        Returns:
            ``name``; ``dtype``, as safetensors calls it (``BF16``); ``shape``, a list; ``kind``: ``moving``, ``same``
            (at all steps), ``framed`` (stored step by step) or ``tied`` (another name of a tensor). Of a moving one
            also ``packing``, ``explained_variance``, ``r2``, the relative errors, and how far its line is from the base
            at the last observed step: ``moved``, in weight space, and ``distance``, its own D as in `trust` (None where
            the file has no norms).

        Raises:
            InvalidArgument: there is no such tensor.

        Examples:
            >>> found = run.tensor_info("model.norm.weight")
            >>> found["dtype"], found["shape"], found["kind"], round(found["r2"], 2)
            ('BF16', [16], 'moving', 0.97)
        """
        return self._with_distance(super().tensor_info(name))

    def _file_digest(self) -> str | None:
        if self._digest is None and not self._reader.closed:
            self._digest = file_digest(self._reader.container)
        return self._digest

    def _with_distance(self, row: dict[str, Any]) -> dict[str, Any]:
        """Add to what is said of a tensor how far its line is from the base at the last observed step."""
        index, last = self._reader.container.index, self.observed_steps[-1]
        tensor = index.find(row["name"], row["dtype"])
        if tensor is None or not tensor.directions:
            return row
        lines, known = lines_of(index), self._known()
        moved = float(np.linalg.norm(lines.at(last)[tensor.directions.start : tensor.directions.stop]))
        d = None
        if known is not None and not known.read:
            d = tensor_distance(tensor, lines, self._reader.container, last)
        numbers = {"moved": moved, "distance": d}
        return row | {key: None if x is None else float(f"{x:.6g}") for key, x in numbers.items()}

    def _known(self) -> Norms | None:
        """The norms that were computed or that the file brings; none of a closed file of which they were not asked."""
        if self._norms is None and not self._reader.closed:
            self._norms = stored_norms(self._reader.container)
        return self._norms

    def movement(self) -> list[float]:
        """Return the distance from the base at each step, in weight space, as the coefficients give it.

        Returns:
            The root of the summed squares of all coefficients for each of `steps`; empty where nothing moves, or where
            there are so many coefficients (over 16 MB) that they are not read with the file's tables.

        Examples:
            >>> [round(distance, 4) for distance in run.movement()]
            [0.0009, 0.0027, 0.0045, 0.0064]
        """
        return movement(self._reader.container)

    def fits(self) -> list[HeldOut]:
        """Compare curves through the coefficients at steps that they are not fitted on, the best first.

        Those are the later steps where a run has some, else the second half of the observed ones. Of the curves that
        `save` can follow, ``line`` is what every reader takes.

        Returns:
            A row for each curve; none where there are too few steps to fit on and to compare at.

        Raises:
            Corrupt, Truncated: the file is damaged.

        Examples:
            >>> [(found.fit, found.held_out, round(found.error, 2)) for found in run.fits()]
            [('line', (30, 40), 0.12), ('log', (30, 40), 0.27)]
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

        Examples:
            >>> found = run.trust(60)
            >>> found.level, f"{100 * found.distance:.2f} %", [round(step) for step in found.peak_steps]
            ('score', '0.27 %', [50, 103])
        """
        number = as_step(step)
        if not abs(number) < float("inf"):
            raise InvalidArgument(f"step is {number}, expected a finite number")
        self._reader.check_open()
        observed = self.observed_steps
        lines = lines_of(self._reader.container.index)
        if self._of_adapters:
            return replace(judge(lines, None, number, (observed[0], observed[-1])), words=(OF_ADAPTERS,))
        norms = self._measured()
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
        found = self.trust(step) if along == "line" or self._of_adapters else self._trust_along(step, along)
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
            step: any number.
            max_distance: a ratio: 0.004 is 0.4 % of the weights' own size.

        Returns:
            `step` itself if it is near enough; never one before the last observed step, where training itself was.

        Raises:
            InvalidArgument: `max_distance` is not above 0; and as `trust`.

        Examples:
            >>> run.step_within(800, max_distance=0.004)
            85.0
        """
        if not max_distance > 0:
            raise InvalidArgument(f"the largest distance is {max_distance}, expected a number above 0")
        self._reader.check_open()
        if self._of_adapters:
            raise InvalidArgument(f"{self.path} holds adapters: {OF_ADAPTERS}; choose a step")
        lines = lines_of(self._reader.container.index)
        return within(lines, self._measured(), as_step(step), self.observed_steps[-1], max_distance)

    def scores(self) -> Scores | None:
        """Return the scores that lie beside the file, in ``run.scores.json`` beside ``run.relex``; None without any.

        They are looked for on the local disk only.

        Raises:
            InvalidArgument: there is such a file, but it does not hold scores.

        Examples:
            >>> from pathlib import Path
            >>> text = '{"metric": "solved", "scores": [{"step": 60, "tier": "line", "score": 0.64}]}'
            >>> size = Path("run.scores.json").write_text(text)
            >>> run.scores()
            Scores(metric='solved', scores=(Score(step=60.0, tier='line', score=0.64),))
        """
        beside = place_of_scores(self.path)
        text = None if beside is None else read_scores(beside)
        return None if text is None else parse_scores(text, str(beside))

    @property
    def _of_adapters(self) -> bool:
        return list(self._reader.container.index.layout.shards) == [ADAPTER_WEIGHTS]

    def _measured(self) -> Norms:
        found = self._known()
        if found is None:
            self._norms = found = read_norms(self._reader.decoder)
        return found

    def _band(self, norms: Norms) -> Band:
        scores, lines = self.scores(), lines_of(self._reader.container.index)
        if scores is None:
            return MEASURED
        return band_of_scores([(distance(lines.at(one.step), norms), one.score) for one in scores.of("line")])
