"""The part of a run that checks: the file, its base, and whether it has what the checkpoints have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relex_codec.core.progress import progress_bar
from relex_codec.storage.urls import Options, PathLike

from .export import nbytes
from .pictured import PicturedRun
from .restore import choose_steps
from .verify import check_all, check_exact

if TYPE_CHECKING:
    from .comparison import Comparison


class CheckedRun(PicturedRun):
    """The part of `relex_codec.Run` that checks."""

    _options: Options

    def check_base(self) -> None:
        """Read the whole base and check it.

        Raises:
            BaseMismatch: it is not the one that the run was encoded against.
            CheckpointError: it cannot be read.

        Examples:
            >>> run.check_base()
            >>> relex_codec.open("run.relex", base="ckpts/global_step_10").check_base()
            Traceback (most recent call last):
            relex_codec.errors.BaseMismatch: base ckpts/global_step_10 does not match: tensor ... differs ...
        """
        self._reader.base.check()

    def verify(self) -> None:
        """Read and check every byte of the file; whether steps are restored from it, `check_exact` tells.

        Raises:
            Corrupt, Truncated: it is damaged; the message names the entry.

        Examples:
            >>> run.verify()
        """
        check_all(self._reader.decoder)

    def check_exact(self, *, progress: bool = False) -> int:
        """Restore every stored step of every tensor and check all digests, in memory as `restore`.

        Args:
            progress: show a bar on stderr, or a line a minute where that is no terminal.

        Returns:
            The number of steps.

        Raises:
            InvalidArgument: the file has no exact tier.
            BaseMismatch: the base is not the one that the run was encoded against.
            Corrupt, Truncated: the file is damaged; the message names the tensor or the byte.

        Examples:
            >>> run.check_exact()
            4
        """
        decoder = self._reader.decoder
        count = len(choose_steps(decoder, None))
        total = count * sum(nbytes(one) for one in self._reader.container.index.tensors if one.target is None)
        with progress_bar("verify", total, enabled=progress) as bar:
            check_exact(decoder, count, bar.update)
        return count

    def verify_against(
        self,
        run: PathLike,
        *,
        steps: str | None = None,
        exclude_steps: str | None = None,
        allow_pickle: bool = False,
        workers: int | None = None,
        engine: str = "auto",
        address: str | None = None,
        progress: bool = False,
        storage_options: Options = None,
    ) -> Comparison:
        """Compare every stored step with the checkpoints of the run, bit for bit, and look what else the run holds.

        Steps are replayed as by `check_exact`, so that all digests are checked as well. The weights of the base are
        hashed, since the file is of no use without it.

        Args:
            run: as for `relex_codec.encode`: directory or URL, or one with ``{step}`` in it.
            steps: which ones: ``A:B``, ``A:B:K`` (ends included, every K-th from A) or ``N``, or several of them:
                ``1:4,6,8``. Default: all.
            exclude_steps: which of them are left out, written in the same way.
            allow_pickle: read checkpoints that pickles describe, as `relex_codec.encode` does.
            workers: how many parts are compared at the same time; default: one for each processor.
            engine: where that is, as of `relex_codec.encode`.
            address: of the Ray cluster, as of `relex_codec.encode`.
            progress: show a bar on stderr, or a line a minute where that is no terminal.
            storage_options: for `run`. Default: those that the file was opened with.

        Returns:
            What was found: ``comparison.ok`` tells whether the file has every step of the run as it is, and
            ``comparison.sentence()`` says the rest. What differs is returned, not raised.

        Raises:
            InvalidArgument: the file has no exact tier, `run` is a journal, or `steps` leaves nothing.
            CheckpointError: there is no run, or no step of it can be read.
            BaseMismatch: the base is not the one that the run was encoded against.
            Corrupt, Truncated: the file is damaged; the message names the tensor or the byte.

        Examples:
            >>> comparison = relex_codec.open("run.relex").verify_against("ckpts/")
            >>> comparison.equal_steps, comparison.only_in_run, comparison.ok
            (4, [50], False)
            >>> relex_codec.open("run.relex").verify_against("ckpts/", exclude_steps="50").ok
            True
        """
        from relex_codec.engines.choice import EngineChoice

        from .against import compare_with_run

        options = self._options if storage_options is None else storage_options
        return compare_with_run(
            self._reader, run, engine=EngineChoice(engine, workers, address), steps=steps, exclude_steps=exclude_steps,
            allow_pickle=allow_pickle, progress=progress,
            storage_options=options,
        )  # fmt: skip
