"""The lazy reader of a run: any step's weights on demand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from relex_codec.checkpoints.base_model import BaseReader
from relex_codec.core.dtypes import Bits
from relex_codec.core.indexing import TensorIndex
from relex_codec.core.text import quote
from relex_codec.decoding.base_locator import BaseLocator
from relex_codec.decoding.tensor_decoder import TensorDecoder
from relex_codec.decoding.tensors import box_at, plan_boxes, read_bits, read_tensors, read_weights
from relex_codec.decoding.tiers import StepTier, as_step, choose_tier
from relex_codec.errors import InvalidArgument
from relex_codec.format.reader import FileReader
from relex_codec.format.tensor_record import TensorRecord
from relex_codec.kernels.dispatch import device_kernel, is_host
from relex_codec.storage.hub.paths import refuse_offline
from relex_codec.storage.open import open_source
from relex_codec.storage.source import closed_on_error
from relex_codec.storage.urls import Options, PathLike, options_for

from .export import SideFiles, export, nbytes
from .restore import choose_steps, numbered_steps, restore
from .verify import check_all, check_exact

if TYPE_CHECKING:
    import torch

    from .module_targets import Names
    from .resident import Resident


class Run:
    """A ``.relex`` file, opened by `relex_codec.open`; a context manager. Weights are read when they are asked for.

    Attributes:
        path: for messages.
        device: where tensors are decoded and returned.
    """

    def __init__(
        self,
        path: PathLike,
        base: PathLike | None = None,
        device: Any = "cpu",
        storage_options: Options = None,
    ) -> None:
        self.device = "cpu" if device is None else device
        if not is_host(self.device):
            device_kernel(self.device)  # whether there is such a device
        refuse_offline(path, InvalidArgument)
        self._source = open_source(path, options_for(path, storage_options))
        with closed_on_error(self._source):
            self._container = FileReader(self._source)
        self.path = self._source.path
        self._options = storage_options
        self._decoder = TensorDecoder(self._container, BaseLocator(self._container, base, storage_options))

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Run({self.path!r}, {len(self.keys())} tensors, steps {self.steps[0]} to {self.steps[-1]})"

    def close(self) -> None:
        """Release the file; reading it afterwards is an error."""
        self._source.close()

    @property
    def container(self) -> FileReader:
        """The open file with its checked tables."""
        return self._container

    @property
    def decoder(self) -> TensorDecoder:
        """Reads tensors as bits."""
        return self._decoder

    @property
    def base_embedded(self) -> bool:
        """Whether the base is what the file embeds: the caller named no other."""
        return self._decoder.base.is_embedded

    def base_reader(self) -> BaseReader:
        """Return what reads the base and checks it, also where the file embeds one."""
        return self._decoder.base.reader()

    def side_files(self) -> SideFiles:
        """Return the base's files that are no weights, which every step has as they are."""
        return SideFiles(self._decoder)

    @property
    def steps(self) -> list[int]:
        """All steps that the file has coefficients of."""
        return [int(step) for step in self._container.index.steps]

    @property
    def observed_steps(self) -> list[int]:
        """The steps that directions and lines were fitted on."""
        return self.steps[: self._container.index.manifest.observed]

    def keys(self) -> list[str]:
        """Names of the tensors, in the file's order."""
        return [tensor.name for tensor in self._container.index.manifest.tensors]

    def entry(self, name: str) -> TensorRecord:
        """Return name, dtype and shape of a tensor.

        Raises:
            InvalidArgument: there is no such tensor.
        """
        return self._container.index.tensor(name)

    def tier(self, step: float, tier: str = "auto") -> str:
        """Return what `step` is read from: ``base``, ``exact``, ``track`` or ``line``."""
        return choose_tier(self._container, as_step(step), tier)

    def _step_tier(self, step: float, tier: str) -> StepTier:
        return StepTier(float(step), self.tier(step, tier))

    def bits(self, name: str, step: float, tier: str = "auto", lo: int = 0, hi: int | None = None) -> Bits:
        """Return elements lo .. hi (default: all) of a tensor at a step as unsigned integers, one-dimensional.

        Raises:
            InvalidArgument: the tensor has no such elements; and as `tensor`.
        """
        tensor = self.entry(name)
        hi = tensor.size if hi is None else hi
        if not 0 <= lo <= hi <= tensor.size:
            raise InvalidArgument(f"elements {lo} to {hi} of {quote(name)}, which has {tensor.size}")
        return self._decoder.read(tensor, self._step_tier(step, tier), lo, hi)

    def ahead(
        self, wanted: Iterable[tuple[str, TensorIndex]], step: float, tier: str = "auto"
    ) -> AbstractContextManager[Any]:
        """Return a context in which these parts of tensors, asked for in about this order, are read ahead."""
        boxes = [box_at(self.entry(name), index) for name, index in wanted]
        return self._decoder.fetcher.ahead(plan_boxes(self._decoder, boxes, [self._step_tier(step, tier)]))

    def box(self, name: str, step: float, tier: str = "auto", index: TensorIndex = ...) -> Bits:
        """Return a box of a tensor at a step as unsigned integers, in the shape that ``tensor[index]`` has.

        Only the pieces that the box touches are read and decoded.

        Raises:
            InvalidArgument: an index that the tensor does not have, or a step in it other than 1; and as `tensor`.
        """
        boxes = [box_at(self.entry(name), index)]
        ((bits,),) = read_bits(self._decoder, boxes, [self._step_tier(step, tier)])
        return bits

    def tensor(self, name: str, step: float, tier: str = "auto", index: TensorIndex = ...) -> torch.Tensor:
        """Return one tensor at a step, on the run's device; reads only what that needs.

        Args:
            step: any number; fractional and extrapolated steps are decoded like observed ones.
            tier: ``line`` for any step, ``track`` for those from the first to the last stored one, ``exact`` for the
                stored ones themselves, bit for bit, if the file has that tier. ``auto``: the base at 0, ``exact``
                where a step is stored so, else ``track`` among the observed steps and ``line`` beyond.
            index: decodes only this part, as ``tensor[index]``: slices with a step of 1, integers, ``...``.

        Raises:
            InvalidArgument: no such tensor, tier or index, or the tier does not reach the step.
            BaseMismatch: the base is not the one that the run was encoded against.
            Corrupt, Truncated: the file is damaged.
        """
        self.entry(name)
        return self._tensors({name: index}, [step], tier)[0][name]

    def state_dict(
        self, step: float, tier: str = "auto", *, slices: Mapping[str, TensorIndex] | None = None
    ) -> dict[str, torch.Tensor]:
        """Return all tensors at a step: ``{name: tensor}``; steps and tiers are those of `tensor`.

        Args:
            slices: of the tensors of which only a part is wanted, as the `index` of `tensor`.
        """
        return self.state_dicts([step], tier, slices=slices)[0]

    def state_dicts(
        self, steps: Sequence[float], tier: str = "auto", *, slices: Mapping[str, TensorIndex] | None = None
    ) -> list[dict[str, torch.Tensor]]:
        """Return all tensors at each of some steps; base and codes are read once for all of them."""
        chosen = dict(slices or {})
        for name in chosen:
            self.entry(name)
        return self._tensors({name: chosen.get(name, ...) for name in self.keys()}, steps, tier)

    def _tensors(
        self, wanted: Mapping[str, TensorIndex], steps: Sequence[float], tier: str
    ) -> list[dict[str, torch.Tensor]]:
        """Decode boxes of some tensors at some steps, on the run's device."""
        chosen = [self._step_tier(step, tier) for step in steps]
        boxes = [box_at(self.entry(name), index) for name, index in wanted.items()]
        states: list[dict[str, torch.Tensor]] = [{} for _ in chosen]
        every = read_tensors(self._decoder, boxes, chosen, self.device)
        for name, found in zip(wanted, every, strict=True):
            for state, value in zip(states, found, strict=True):
                state[name] = value
        return states

    def resident(self, device: Any = None, *, slices: Mapping[str, TensorIndex] | None = None) -> Resident:
        """Hold base and packed directions on a device, from where any step is decoded without disk or network.

        Args:
            device: default: the run's.
            slices: of the tensors of which only a part is held, as the `index` of `tensor`: a rank's shards.

        Raises:
            InvalidArgument: no such device, tensor or index.
            BaseMismatch: the base is not the one that the run was encoded against.
            Corrupt, Truncated: the file is damaged.
        """
        from .resident import Resident

        return Resident(self._decoder, self.device if device is None else device, slices)

    def iter_steps(
        self, start: float | None = None, stop: float | None = None
    ) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
        """Yield ``(step, {name: tensor})`` for every stored step from `start` to `stop`, bit for bit.

        Both ends are included, as in ``--steps A:B``; None is the first or the last stored step. Each frame that the
        steps need is decoded once, where `state_dict` decodes some log2 of their number for each step anew. The tensors
        belong to the caller.

        While it runs, lists of the words that differ between steps around the present one are in memory: for BF16 and
        some hundred steps 15 to 20 times the size of a checkpoint. `restore` needs no such memory.

        Raises:
            InvalidArgument: the file has no exact tier, or no stored step in the range.
            BaseMismatch: the base is not the one that the run was encoded against.
            Corrupt, Truncated: the file is damaged.
        """
        return self._iterate(numbered_steps(self._decoder, start, stop))

    def _iterate(self, numbers: dict[int, int]) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
        from relex_codec.exact.replay import replay_tensors

        entries = self._container.index.tensors
        plan = self._decoder.fetcher.replay_plan(self._decoder.exact, numbers)
        for number, found in replay_tensors(self._decoder.exact, numbers, self._decoder.part_origin, plan):
            state = {e.name: self._torch(e.name, bits, e.shape) for e, bits in zip(entries, found, strict=True)}
            del found
            yield numbers[number], state
            del state  # of which nothing is held while the next step is made

    def load_into(
        self, module: torch.nn.Module, step: float, tier: str = "auto", *, names: Names = None, prefix: str = ""
    ) -> None:
        """Copy a step into the parameters and buffers of `module`, in place.

        Tied parameters count as present if one of their names is in the file. The module is changed only when
        everything has been checked and decoded.

        Args:
            names: where tensors go that are not called in the module what they are called in the file: a mapping or a
                function from the file's name to the module's, to ``(name, index)`` for a part of a fused parameter, or
                to None for a tensor that is left out.
            prefix: before all names in the module (``module.``, ``_orig_mod.``).

        Raises:
            InvalidArgument: names or shapes of module and file differ.
        """
        import torch

        from relex_codec.core.torch_dtypes import DTYPES

        from .module_targets import check_dtypes, match

        targets = match({name: self.entry(name).shape for name in self.keys()}, module, names, prefix)
        check_dtypes(targets, {name: DTYPES[self.entry(name).dtype] for name in self.keys()})
        decoded = self._tensors({target.name: ... for target in targets}, [step], tier)[0]
        with torch.no_grad():
            for target in targets:
                target.tensor.copy_(decoded[target.name])

    def save(
        self,
        output: PathLike,
        step: float,
        tier: str = "auto",
        *,
        progress: bool = False,
        storage_options: Options = None,
    ) -> str:
        """Write a step as a Hugging Face checkpoint directory, locally or to an fsspec URL.

        A local directory appears when it is complete. At a URL file after file appears, the index (or ``config.json``)
        last.

        Args:
            storage_options: for `output`. Default: those that the file was opened with.

        Returns:
            What the step was read from, as `tier` does.

        Raises:
            InvalidArgument: `output` exists and is not empty, or cannot be written; and as `tensor`.
        """
        chosen = self.tier(step, tier)
        options = self._options if storage_options is None else storage_options

        def weights(tensors: Sequence[TensorRecord]) -> Iterator[memoryview]:
            return read_weights(self._decoder, tensors, StepTier(float(step), chosen), self.device)

        with self._bar("decode", 1, progress) as bar:
            export(self._decoder, output, weights, bar.update, options)
        return chosen

    def restore(
        self,
        output: PathLike,
        steps: str | None = None,
        *,
        progress: bool = False,
        storage_options: Options = None,
    ) -> list[int]:
        """Write stored steps, bit for bit, as a run: ``output/global_step_N/``, each as `save` writes it.

        A local directory appears when all steps are complete; at a URL, none is a checkpoint before all weights are
        there. Parts of tensors are replayed one after another, so memory grows neither with the model nor with the
        number of steps.

        Args:
            steps: which ones: ``A:B`` or ``A:B:K`` (ends included, every K-th from A), or one step ``N``. Default: all.
            storage_options: for `output`. Default: those that the file was opened with.

        Returns:
            The steps that were written.

        Raises:
            InvalidArgument: the file has no exact tier, `steps` leaves nothing, `output` exists and is not empty, or it
                cannot be written.
            BaseMismatch: the base is not the one that the run was encoded against.
            Corrupt, Truncated: the file is damaged.
        """
        chosen = choose_steps(self._decoder, steps)
        with self._bar("restore", len(chosen), progress) as bar:
            options = self._options if storage_options is None else storage_options
            restore(self._decoder, output, chosen, bar.update, options)
        return chosen

    def check_base(self) -> None:
        """Read the whole base and check it.

        Raises:
            BaseMismatch: it is not the one that the run was encoded against.
        """
        self._decoder.base.check()

    def verify(self) -> None:
        """Read and check every byte of the file; whether steps are restored from it, `check_exact` tells.

        Raises:
            Corrupt, Truncated: it is damaged; the message names the entry.
        """
        check_all(self._decoder)

    def check_exact(self, *, progress: bool = False) -> int:
        """Restore every stored step of every tensor and check all digests, in memory as `restore`.

        Returns:
            The number of steps.

        Raises:
            InvalidArgument: the file has no exact tier.
            BaseMismatch: the base is not the one that the run was encoded against.
            Corrupt, Truncated: the file is damaged; the message names the tensor or the byte.
        """
        count = len(choose_steps(self._decoder, None))
        with self._bar("verify", count, progress) as bar:
            check_exact(self._decoder, count, bar.update)
        return count

    def _bar(self, what: str, steps: int, progress: bool) -> Any:
        """A bar for the bytes of so many steps; none where there is no terminal."""
        total = steps * sum(map(nbytes, self._container.index.tensors))
        return tqdm(total=total, unit="B", unit_scale=True, desc=what, disable=None if progress else True)

    def _torch(self, name: str, bits: Bits, shape: tuple[int, ...]) -> torch.Tensor:
        from relex_codec.core.torch_dtypes import as_tensor

        return as_tensor(bits, self.entry(name).dtype, shape).to(self.device)


def open(  # noqa: A001 (the public name is relex_codec.open)
    path: PathLike, base: PathLike | None = None, device: Any = "cpu", storage_options: Options = None
) -> Run:
    """Open a ``.relex`` file for reading.

    Args:
        path: local path or fsspec URL.
        base: the base model, if it is not where the file says, or not to be taken from the file.
        device: torch device that tensors are decoded on.
        storage_options: for fsspec, for `path` and for `base` if that is given. They are not sent to wherever a file
            says that its base is: credentials go only where the caller points. Under ``relex``: how this package
            reads, see `relex_codec.storage.config`.

    Raises:
        InvalidArgument: no such file or device.
        Corrupt, Truncated, Unsupported: see `relex_codec.errors`.
    """
    return Run(path, base, device, storage_options)
