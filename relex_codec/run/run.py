"""The lazy reader of a run: any step's weights on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from relex_codec.core.progress import progress_bar
from relex_codec.decoding.tiers import StepTier
from relex_codec.storage.urls import Options, PathLike, without_secrets

from .export import nbytes
from .iteration import iterate
from .pictured import PicturedRun
from .restore import choose_steps, numbered_steps
from .run_reader import RunReader, checked_device
from .saving import restore_steps, save_adapters_of, save_step
from .sweep import EVALUATIONS, Steps, Sweep, live_scores, run_sweep, search_between, wanted_steps
from .verify import check_all, check_exact

if TYPE_CHECKING:
    import torch

    from relex_codec.core.indexing import TensorIndex

    from .adapter import Adapter
    from .comparison import Comparison
    from .module_targets import Names
    from .patches import Patch
    from .resident import Resident


class Run(PicturedRun):
    """A ``.relex`` file, opened by `relex_codec.open`; a context manager. Weights are read when they are asked for.

    A run behaves like the keys of a mapping: ``len(run)`` is the number of tensors, ``name in run`` tells whether there
    is one of that name, and iterating yields the names in the file's order. What a name stands for depends on the step,
    so there is `tensor` instead of ``run[name]``. A closed run refuses every read with `InvalidArgument`, and still
    answers what needs no reading (`info`, `steps`, `keys`).

    Args:
        path: of the file, or its URL.
        base: where the base is; all of these as `relex_codec.open`, which also says what is raised.
        device: where tensors are decoded.
        storage_options: for fsspec.

    Attributes:
        path: of the file, as messages show it.
        device: where tensors are decoded and returned.

    Examples:
        >>> run = relex_codec.open("run.relex")
        >>> run.steps, len(run), "model.norm.weight" in run
        ([10, 20, 30, 40], 24, True)
        >>> run.tensor("model.norm.weight", step=60).shape  # a step that was never trained
        torch.Size([16])
        >>> run.tensor_info("model.norm.weight")["dtype"]
        'BF16'
        >>> state = run.state_dict(25)  # between two checkpoints
        >>> run.close()
    """

    def __init__(
        self, path: PathLike, *, base: PathLike | None = None, device: Any = "cpu", storage_options: Options = None
    ) -> None:
        self.device = checked_device(device)
        reader = RunReader(path, base=base, storage_options=storage_options)
        super().__init__(reader, None if base is None else without_secrets(base))
        self._options = storage_options

    def __enter__(self) -> Run:
        self._reader.check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the file; reading it afterwards is an error, closing it again is none.

        Examples:
            >>> run.close()
            >>> run.tensor("model.norm.weight", step=10)
            Traceback (most recent call last):
            relex_codec.errors.InvalidArgument: run.relex is closed; open it again to read it
        """
        self._reader.close()

    # -- weights -----------------------------------------------------------------------------------------------------

    def tensor(self, name: str, step: float, *, tier: str = "auto", index: TensorIndex = ...) -> torch.Tensor:
        """Return one tensor at a step, on the run's device; reads only what that needs.

        Args:
            name: of the tensor, as in the checkpoints.
            step: any number; fractional and extrapolated steps are decoded like observed ones.
            tier: ``line`` for any step, ``track`` for those from the first to the last stored one, ``exact`` for the
                stored ones themselves, bit for bit, if the file has that tier. ``auto``: ``exact`` where a step is
                stored so, the base at 0 if all tensors started from it, else ``track`` among the observed steps and
                ``line`` beyond.
            index: decodes only this part, as ``tensor[index]``: slices with a step of 1, integers, ``...``.

        Returns:
            A tensor of the file's dtype, in the shape that ``tensor[index]`` has, in memory of its own.

        Raises:
            InvalidArgument: no such tensor, tier or index, or the tier does not reach the step.
            BaseMismatch: the base is not the one that the run was encoded against.
            CheckpointError: the base cannot be read.
            Corrupt, Truncated: the file is damaged.

        Examples:
            >>> norm = run.tensor("model.norm.weight", step=12.5)
            >>> norm.shape, norm.dtype, norm.device
            (torch.Size([16]), torch.bfloat16, device(type='cpu'))
            >>> rows = run.tensor("model.embed_tokens.weight", step=10, tier="exact", index=(slice(0, 4), ...))
            >>> rows.shape
            torch.Size([4, 16])
        """
        return self._reader.tensor(name, step, tier, index, self.device)

    def state_dict(
        self, step: float, *, tier: str = "auto", slices: Mapping[str, TensorIndex] | None = None
    ) -> dict[str, torch.Tensor]:
        """Return all tensors at a step: ``{name: tensor}``.

        Args:
            step: as of `tensor`.
            tier: as of `tensor`.
            slices: of the tensors of which only a part is wanted, as the `index` of `tensor`.

        Raises:
            InvalidArgument, BaseMismatch, CheckpointError, Corrupt, Truncated: as `tensor`.

        Examples:
            >>> state = run.state_dict(40, slices={"model.embed_tokens.weight": slice(0, 8)})
            >>> len(state), state["model.embed_tokens.weight"].shape, state["model.norm.weight"].shape
            (24, torch.Size([8, 16]), torch.Size([16]))
        """
        return self.state_dicts([step], tier=tier, slices=slices)[0]

    def state_dicts(
        self, steps: Sequence[float], *, tier: str = "auto", slices: Mapping[str, TensorIndex] | None = None
    ) -> list[dict[str, torch.Tensor]]:
        """Return all tensors at each of some steps; base and codes are read once for all of them.

        Args:
            steps: as of `tensor`, in any order.
            tier: of all of them, as of `tensor`.
            slices: as of `state_dict`.

        Returns:
            For each step what `state_dict` returns, in the order of `steps`.

        Raises:
            InvalidArgument, BaseMismatch, CheckpointError, Corrupt, Truncated: as `tensor`.

        Examples:
            >>> trained, beyond = run.state_dicts([40, 60])
            >>> difference = beyond["model.norm.weight"].float() - trained["model.norm.weight"].float()
            >>> bool(difference.abs().max() < 0.05)
            True
        """
        return self._reader.states(slices or {}, steps, tier, self.device)

    def patches(self, before: float, after: float, *, tier: str = "auto") -> Iterator[Patch]:
        """Yield what changes between two steps: for each tensor that does, positions and values.

        A served model that has the one step gets the other by these alone. Each patch has the fields of vLLM's
        ``CheckpointWeightPatch``, in their order; its tensors are on the CPU. With tier ``exact``, applied to the bits
        of the first step, they give those of the second.

        Args:
            before: the step that the changes are from, as of `tensor`.
            after: the step that they lead to.
            tier: of both, as of `tensor`.

        Raises:
            InvalidArgument, BaseMismatch, CheckpointError, Corrupt, Truncated: as `tensor`.

        Examples:
            >>> for patch in run.patches(10, 20):
            ...     if "layers.0.self_attn" in patch.name:
            ...         print(patch.name, patch.shape, len(patch.values))
            model.layers.0.self_attn.k_proj.weight (8, 16) 42
            model.layers.0.self_attn.o_proj.weight (16, 16) 89
            model.layers.0.self_attn.q_proj.weight (16, 16) 89
            model.layers.0.self_attn.v_proj.weight (8, 16) 42
        """
        from .patches import patches

        reader = self._reader
        steps = (StepTier(float(step), reader.tier(step, tier)) for step in (before, after))
        return patches(reader.decoder, *steps)

    def resident(self, *, device: Any = None, slices: Mapping[str, TensorIndex] | None = None) -> Resident:
        """Hold base and packed directions on a device, from where any step is decoded without disk or network.

        Args:
            device: default: the run's.
            slices: of the tensors of which only a part is held, as the `index` of `tensor`: a rank's shards.

        Returns:
            What decodes steps from there. It needs the run no more, which may be closed.

        Raises:
            InvalidArgument: no such device, tensor or index.
            BaseMismatch: the base is not the one that the run was encoded against.
            Corrupt, Truncated: the file is damaged.

        Examples:
            >>> resident = run.resident(device="cpu", slices={"model.embed_tokens.weight": slice(0, 24)})
            >>> resident.state_dict(60)["model.embed_tokens.weight"].shape
            torch.Size([24, 16])
        """
        from .resident import Resident

        return Resident(self._reader.decoder, self.device if device is None else device, slices=slices)

    def iter_steps(
        self, *, start: float | None = None, stop: float | None = None
    ) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
        """Yield ``(step, {name: tensor})`` for every stored step from `start` to `stop`, bit for bit.

        Each part of the file that the steps need is decoded once, where `state_dict` decodes about log2 of their number
        of such parts for each step anew. The tensors belong to the caller.

        While it runs, lists of the words that differ between steps around the present one are in memory: for BF16 and
        some hundred steps 15 to 20 times the size of a checkpoint. `restore` needs no such memory.

        Args:
            start: the first step, included, as in ``--steps A:B``. Default: the first stored one.
            stop: the last step, included. Default: the last stored one.

        Raises:
            InvalidArgument: the file has no exact tier, or no stored step in the range.
            BaseMismatch: the base is not the one that the run was encoded against.
            Corrupt, Truncated: the file is damaged.

        Examples:
            >>> before = run.tensor("model.layers.0.self_attn.q_proj.weight", 10)
            >>> for step, state in run.iter_steps(start=20):
            ...     now = state["model.layers.0.self_attn.q_proj.weight"]
            ...     print(step, int((now != before).sum()), "of", now.numel(), "weights changed")
            ...     before = now
            20 89 of 256 weights changed
            30 94 of 256 weights changed
            40 93 of 256 weights changed
        """
        return iterate(self._reader, numbered_steps(self._reader.decoder, start, stop), self.device)

    def sweep(
        self,
        score: Callable[[Any], float],
        steps: str | Sequence[float],
        *,
        model: torch.nn.Module | None = None,
        tier: str = "auto",
        search: bool = False,
        evaluations: int = EVALUATIONS,
        names: Names = None,
        prefix: str = "",
    ) -> Sweep:
        """Score steps in memory, one after another; `model` is switched from step to step, in place.

        Args:
            score: a function of the model; without `model`, of ``{name: tensor}``. Higher is better.
            steps: numbers, or a list such as ``"100:2000:100,2500"``; with an open end (``"100:"``) steps of the run.
            model: a module with the weights of any step; when this returns it has those that were scored last.
            tier: as `tensor`.
            search: find the best step between the least and the greatest of `steps` (`relex_codec.trust.peak_search`).
            evaluations: how many steps a search scores at most.
            names: as of `load_into`.
            prefix: as of `load_into`.

        Returns:
            The scores. One that is not finite counts as none; several in a row end the sweep.

        Raises:
            InvalidArgument: `steps` is nothing of this kind; and as `load_into`. What `score` raises comes through.

        Examples:
            >>> found = run.sweep(lambda state: float(state["model.norm.weight"].float().std()), "20:100:20")
            >>> [row.step for row in found.rows], found.best.step
            ([20.0, 40.0, 60.0, 80.0, 100.0], 100.0)
        """
        self._reader.check_open()
        wanted = wanted_steps(self._reader, steps)
        chosen = search_between(wanted, evaluations, beyond=False) if search else Steps(wanted)
        found = Sweep()
        one = live_scores(self._reader, self.resident, score, model, tier, self.device, names, prefix)
        run_sweep(chosen, found, one)
        return found

    def load_into(
        self, module: torch.nn.Module, step: float, *, tier: str = "auto", names: Names = None, prefix: str = ""
    ) -> None:
        """Copy a step into the parameters and buffers of `module`, in place.

        Tied parameters count as present if one of their names is in the file. The module is changed only when
        everything has been checked and decoded.

        Args:
            module: that has them, on any device. A parameter of another dtype than the file's takes the values as
                ``copy_`` does.
            step: as of `tensor`.
            tier: as of `tensor`.
            names: where tensors go that are not called in the module what they are called in the file: a mapping or a
                function from the file's name to the module's, to ``(name, index)`` for a part of a fused parameter, or
                to None for a tensor that is left out.
            prefix: before all names in the module (``module.``, ``_orig_mod.``).

        Raises:
            InvalidArgument: names or shapes of module and file differ; and as `tensor`.

        Examples:
            >>> import torch
            >>> norm = torch.nn.RMSNorm(16, dtype=torch.bfloat16)
            >>> run.load_into(norm, 40, names={"model.norm.weight": "weight"}.get)
            >>> torch.equal(norm.weight, run.tensor("model.norm.weight", 40))
            True
        """
        from .loading import load_module

        load_module(self._reader, module, step, tier, names, prefix, self.device)

    # -- files -------------------------------------------------------------------------------------------------------

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

    # -- checking ----------------------------------------------------------------------------------------------------

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


def open(  # noqa: A001 (the public name is relex_codec.open)
    path: PathLike, *, base: PathLike | None = None, device: Any = "cpu", storage_options: Options = None
) -> Run:
    """Open a ``.relex`` file for reading.

    Args:
        path: local path or fsspec URL.
        base: the base model, if it is not where the file says, or not to be taken from the file.
        device: torch device that tensors are decoded on and returned on.
        storage_options: for fsspec, for `path` and for `base` if that is given. They are not sent to wherever a file
            says that its base is: credentials go only where the caller points. Under ``relex``: how this package
            reads, see `relex_codec.storage.config`.

    Returns:
        The open file. Its base is looked for when a tensor first needs it.

    Raises:
        InvalidArgument: no such file (then also a ``FileNotFoundError``) or device.
        Corrupt, Truncated, Unsupported: see `relex_codec.errors`.

    Examples:
        >>> with relex_codec.open("run.relex", device="cpu") as run:
        ...     norm = run.tensor("model.norm.weight", step=25)
        >>> norm.dtype
        torch.bfloat16
    """
    return Run(path, base=base, device=device, storage_options=storage_options)
