"""The part of a run that compares: its steps with each other, with checkpoints, and with other runs."""

from __future__ import annotations

from typing import Any

from relex_codec.checkpoints.safetensors import open_checkpoint
from relex_codec.decoding.tiers import StepTier
from relex_codec.storage.urls import Options, PathLike, without_secrets

from .compare import (
    at_step,
    compare_runs,
    compare_steps,
    compare_with_checkpoint,
    kinds_of,
    said_of_runs,
    shared_tensors,
    table,
)
from .sums import PairSums
from .trusted import TrustedRun


class ComparedRun(TrustedRun):
    """The part of `relex_codec.Run` that compares."""

    def compare(self, first: float, second: float, *, tier: str = "auto") -> dict[str, Any]:
        """Compare two steps: how far they are from the base and from each other, and how many weights differ.

        Reads base and file once, part by part, so that memory does not grow with the model.

        Args:
            first: step a, any number.
            second: step b.
            tier: what they are read from, as `Run.tensor`.

        Returns:
            ``a``, ``b`` (in words), ``only_in_one`` (names of tensors that are not compared, as one of the steps lacks
            them or has them in another dtype), ``total``, ``by_kind``, ``by_layer`` and ``tensors``. Each of these
            says: ``weights``, their number; ``moved_a``, ``moved_b``, the L2 norms of what the steps add to the base;
            ``difference``, that of what lies between them; ``relative_difference``, over the norm of the base;
            ``angle`` in degrees, of the two ways from the base (None where one has not moved); ``weights_differ`` and
            ``bits_differ``, shares.

        Raises:
            InvalidArgument, BaseMismatch, CheckpointError, Corrupt, Truncated: as `Run.tensor`.

        Examples:
            >>> total = run.compare(20, 40)["total"]
            >>> f"{total['angle']:.0f} degrees, {100 * total['weights_differ']:.0f} % of the weights differ"
            '42 degrees, 50 % of the weights differ'
        """
        decoder = self._reader.decoder
        steps = [StepTier(float(step), self._reader.tier(step, tier)) for step in (first, second)]
        shared, others = shared_tensors(at_step(decoder, steps[0]), kinds_of(at_step(decoder, steps[1])))
        found = table(compare_steps(decoder, shared, *steps), PairSums.as_steps)
        return {"a": self._said(steps[0]), "b": self._said(steps[1]), "only_in_one": others, **found}

    def compare_with_checkpoint(
        self, checkpoint: PathLike, step: float, *, tier: str = "auto", storage_options: Options = None
    ) -> dict[str, Any]:
        """Compare a step with a checkpoint in safetensors.

        Args:
            checkpoint: its directory, or a URL.
            step: of this run.
            tier: what it is read from, as `Run.tensor`.
            storage_options: for fsspec, if `checkpoint` is a URL.

        Returns:
            As `compare`, b being the checkpoint. Each part says: ``relative_error``, the L2 norm of the difference over
            that of what the checkpoint adds to the base; ``error_of_weights``, over that of the base; ``weights_equal``
            and ``bits_equal``, shares; ``largest_ulps``, the most floats between two weights; ``angle`` as `compare`.

        Raises:
            InvalidArgument: the two share no tensor; and as `Run.tensor`.
            CheckpointError, Truncated: the checkpoint cannot be read.

        Examples:
            >>> total = run.compare_with_checkpoint("ckpts/global_step_50", 50)["total"]  # which the line has not seen
            >>> f"{total['relative_error']:.1f} of what the checkpoint adds to the base"
            '0.4 of what the checkpoint adds to the base'
        """
        decoder = self._reader.decoder
        chosen = StepTier(float(step), self._reader.tier(step, tier))
        other = open_checkpoint(checkpoint, storage_options)
        shared, others = shared_tensors(at_step(decoder, chosen), kinds_of(other.tensors.values()))
        found = table(compare_with_checkpoint(decoder, shared, chosen, other), PairSums.as_against)
        return {"a": self._said(chosen), "b": other.path, "only_in_one": others, **found}

    def compare_with_run(self, other: ComparedRun) -> dict[str, Any]:
        """Compare the ways that two runs of one base went to their last observed steps, by their directions.

        Args:
            other: the other one, open too.

        Returns:
            As `compare`. Each says: ``weights``; ``moved_a``, ``moved_b``, L2 norms; ``cosine`` of the two ways: 1
            where both moved the same way, 0 where they have nothing in common.

        Raises:
            InvalidArgument: the runs have different bases, or no tensor moves in both.
            BaseMismatch, CheckpointError, Corrupt, Truncated: as `Run.tensor`.

        Examples:
            >>> size = relex_codec.encode("ckpts/", "early.relex", base="base/", steps=":20")
            >>> found = run.compare_with_run(relex_codec.open("early.relex"))
            >>> found["a"], found["b"], round(found["total"]["cosine"], 1)
            ('run.relex, to step 40', 'early.relex, to step 20', 0.8)
        """
        found = table(compare_runs(self._reader.decoder, other._reader.decoder), said_of_runs)
        sides = [f"{without_secrets(run.path)}, to step {run.observed_steps[-1]}" for run in (self, other)]
        return {"a": sides[0], "b": sides[1], **found}

    @staticmethod
    def _said(step: StepTier) -> str:
        return f"step {step.step:g} from tier {step.tier}"
