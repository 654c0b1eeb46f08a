"""The part of a run that writes: checkpoints of a step, adapters, and stored steps as they were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from relex_codec.decoding.tiers import StepTier
from relex_codec.storage.urls import Options, PathLike

from .checked import CheckedRun
from .saving import restore_steps, save_adapters_of, save_step

if TYPE_CHECKING:
    from .adapter import Adapter


class WrittenRun(CheckedRun):
    """The part of `relex_codec.Run` that writes.

    Attributes:
        device: where tensors are decoded and returned.
    """

    device: Any

    def save(
        self,
        output: PathLike,
        step: float,
        *,
        tier: str = "auto",
        along: str = "line",
        provenance: bool = False,
        overwrite: bool = False,
        merge: bool = False,
        progress: bool = False,
        storage_options: Options = None,
    ) -> str:
        """Write a step as a Hugging Face checkpoint directory, locally or to an fsspec URL.

        A local directory appears when it is complete. At a URL file after file appears, the index (or ``config.json``)
        last.

        Args:
            output: the directory; it must not exist or be empty.
            step: as of `tensor`.
            tier: as of `tensor`.
            along: what tier ``line`` follows: ``line``, that of the file; another curve through the coefficients of the
                observed steps, ``window:W``, ``poly:D`` or ``log`` (`relex_codec.trust.fits`); or ``secant``, which
                needs the exact tier and goes on from the last observed step as training went since the middle one
                (`relex_codec.run.fitted.Secant`).
            provenance: write ``relex.json`` as well: which file and tier the step is of, and how far to believe it.
            overwrite: write into a directory that is not empty: files of the same names are replaced, others stay. It
                is refused where other weights would be left beside the new ones.
            merge: of a run of adapters, write the base with the step's adapter merged into it; `base` must be given
                when the file is opened.
            progress: show a bar on stderr, or a line a minute where that is no terminal.
            storage_options: for `output`. Default: those that the file was opened with.

        Returns:
            What the step was read from, as `tier` does.

        Raises:
            InvalidArgument: `output` exists and is not empty, or cannot be written; `along` is not one of these, or the
                step is not read from tier ``line``; and as `tensor`.

        Examples:
            >>> run.save("step-60", 60)
            'line'
            >>> import os
            >>> sorted(os.listdir("step-60"))
            ['config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json']
        """
        self._reader.check_open()
        at = StepTier(float(step), self.tier(step, tier=tier))
        save_step(
            self, output, at, self.device, along=along, provenance=provenance, overwrite=overwrite, merge=merge,
            progress=progress, storage_options=self._options if storage_options is None else storage_options,
        )  # fmt: skip
        return at.tier

    def save_adapter(
        self,
        output: PathLike,
        step: float | Sequence[float],
        *,
        tier: str = "auto",
        rank: int | None = None,
        modules_to_save: bool = False,
        embeddings: bool = True,
        overwrite: bool = False,
        progress: bool = False,
        storage_options: Options = None,
    ) -> Adapter:
        """Write what a step changes as a LoRA adapter of PEFT: low-rank factors of the directions, and a model card.

        What the file stores as factors alone (``quality="micro"``) is read as such; of other directions the best
        factors of that rank are computed (truncated SVD; Eckart and Young, 1936). Neither reads the base's weights.

        Args:
            output: the directory; it must not exist or be empty. For several steps it gets ``step-N`` of each.
            step: as `tensor`, or several: their adapters have the same factors A, the best for all of them together.
            tier: ``track`` or ``line``, as of `tensor`; ``auto``: ``track`` among the observed steps, ``line`` beyond.
            rank: of the factors. Default: that of the factors that the file holds, if it holds no others, else 16.
            modules_to_save: bring norms and biases too, as they are at the step: this reads the base.
            embeddings: bring embeddings and heads.
            overwrite: as `save`.
            progress: show a bar on stderr, or a line a minute where that is no terminal.
            storage_options: for `output`. Default: those that the file was opened with.

        Returns:
            What the adapter has of the change, and what it has not.

        Raises:
            InvalidArgument: no such step or tier, a rank below 1, nothing that an adapter could change, or `output`
                exists and is not empty, or cannot be written.
            BaseMismatch, CheckpointError: the base is needed (``config.json``, norms), and cannot be used.
            Corrupt, Truncated: the file is damaged.

        Examples:
            >>> made = run.save_adapter("adapter-60", 60, rank=4)
            >>> made.rank, made.tiers, 0 < made.kept < 1
            (4, {60.0: 'line'}, True)
            >>> import os
            >>> sorted(os.listdir("adapter-60"))
            ['README.md', 'adapter_config.json', 'adapter_model.safetensors', 'relex.json']
        """
        return save_adapters_of(
            self, output, step, tier=tier, rank=rank, modules_to_save=modules_to_save, embeddings=embeddings,
            overwrite=overwrite, progress=progress,
            storage_options=self._options if storage_options is None else storage_options,
        )  # fmt: skip

    def restore(
        self,
        output: PathLike,
        *,
        steps: str | None = None,
        exclude_steps: str | None = None,
        provenance: bool = False,
        overwrite: bool = False,
        workers: int | None = None,
        engine: str = "auto",
        address: str | None = None,
        progress: bool = False,
        storage_options: Options = None,
    ) -> list[int]:
        """Write stored steps, bit for bit, as a run, each as `save` writes it, in the directory that it had.

        That is ``output/checkpoint-10``, ``output/10/model`` and the like, or ``output/global_step_N`` if the file does
        not say. What the run's directories held besides, `info` lists as ``left_out``.

        A local directory appears when all steps are complete; at a URL, none is a checkpoint before all weights are
        there. Parts of tensors are replayed one after another, so memory grows neither with the model nor with the
        number of steps.

        Args:
            output: the directory; it must not exist or be empty.
            steps: which ones: ``A:B``, ``A:B:K`` (ends included, every K-th from A) or ``N``, or several of them:
                ``1:4,6,8``. Default: all.
            exclude_steps: which of them are left out, written in the same way.
            provenance: write ``output/relex.json`` as well: which file and steps these are. The directories of the
                steps hold what they held, and nothing else.
            overwrite: as `save`, for the directory of each step; other steps stay.
            workers: how many parts are replayed at the same time; default: one for each processor.
            engine: where that is, as of `relex_codec.encode`. With ``ray``, `output` is a directory that all machines
                have.
            address: of the Ray cluster, as of `relex_codec.encode`.
            progress: show a bar on stderr, or a line a minute where that is no terminal.
            storage_options: for `output`. Default: those that the file was opened with.

        Returns:
            The steps that were written.

        Raises:
            InvalidArgument: the file has no exact tier, `steps` leaves nothing, `output` exists and is not empty, or it
                cannot be written.
            BaseMismatch: the base is not the one that the run was encoded against.
            Corrupt, Truncated: the file is damaged.

        Examples:
            >>> run.restore("again", steps="20:40", exclude_steps="30")
            [20, 40]
            >>> import os
            >>> sorted(os.listdir("again"))
            ['global_step_20', 'global_step_40']
        """
        from relex_codec.engines.choice import EngineChoice

        return restore_steps(
            self._reader, output, steps, exclude_steps, provenance=provenance, overwrite=overwrite,
            engine=EngineChoice(engine, workers, address), progress=progress,
            storage_options=self._options if storage_options is None else storage_options,
        )  # fmt: skip
