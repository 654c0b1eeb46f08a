"""The lazy reader of a run: any step's weights on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from relex_codec.decoding.tiers import StepTier
from relex_codec.storage.urls import Options, PathLike, without_secrets

from .iteration import iterate
from .restore import numbered_steps
from .run_reader import RunReader, checked_device
from .sweep import EVALUATIONS, Steps, Sweep, live_scores, run_sweep, search_between, wanted_steps
from .written import WrittenRun

if TYPE_CHECKING:
    import torch

    from relex_codec.core.indexing import TensorIndex

    from .module_targets import Names
    from .patches import Patch
    from .resident import Resident


class Run(WrittenRun):
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
