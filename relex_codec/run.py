"""The lazy reader of a run: any step's weights on demand."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from . import format as f
from .base import BaseReader, Expected, resolve
from .checkpoint import Checkpoint
from .container import Container
from .decoder import BATCH, Decoder, choose_tier
from .dtypes import Bits
from .errors import CheckpointError, InvalidArgument, RelexError
from .export import Base, export, nbytes
from .header import quote
from .hub import explaining
from .kernels.device import kernel_for
from .manifest import TensorEntry
from .packing import piece_lengths
from .paths import Options, PathLike, options_for
from .restore import choose_steps, restore
from .storage import open_source

if TYPE_CHECKING:
    import torch


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
        self._source = open_source(path, options_for(path, storage_options))
        self.path = self._source.path
        self.device = device
        try:
            self._container = Container(self._source)
        except BaseException:
            self._source.close()
            raise
        self._base_given, self._options = base, storage_options
        self._base_reader: BaseReader | None = None
        self._lock = threading.Lock()
        kernel = kernel_for(device)
        self._decoder = Decoder(self._container, self._open_base, use_embedded=base is None, kernel=kernel)

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
    def container(self) -> Container:
        """The open file with its checked tables."""
        return self._container

    @property
    def decoder(self) -> Decoder:
        """Reads tensors as bits."""
        return self._decoder

    @property
    def base_given(self) -> bool:
        """Whether the caller said where the base is."""
        return self._base_given is not None

    def base_reader(self) -> BaseReader:
        """Return what reads the base and checks it, also where the file embeds one."""
        return self._open_base()

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

    def entry(self, name: str) -> TensorEntry:
        """Return name, dtype and shape of a tensor.

        Raises:
            InvalidArgument: there is no such tensor.
        """
        return self._container.index.manifest.tensors[self._decoder.number(name)]

    def tier(self, step: float, tier: str = "auto") -> str:
        """Return what `step` is read from: ``base``, ``exact``, ``track`` or ``line``."""
        return choose_tier(self._container, float(step), tier)

    def bits(self, name: str, step: float, tier: str = "auto", lo: int = 0, hi: int | None = None) -> Bits:
        """Return elements lo .. hi (default: all) of a tensor at a step as unsigned integers, one-dimensional."""
        return self._decoder.read(name, float(step), self.tier(step, tier), lo, hi)

    def tensor(self, name: str, step: float, tier: str = "auto") -> torch.Tensor:
        """Return one tensor at a step, on the run's device; reads only what that needs.

        Args:
            step: any number; fractional and extrapolated steps are decoded like observed ones.
            tier: ``line`` for any step, ``track`` for those from the first to the last stored one, ``exact`` for the
                stored ones themselves, bit for bit, if the file has that tier. ``auto``: the base at 0, ``exact``
                where a step is stored so, else ``track`` among the observed steps and ``line`` beyond.

        Raises:
            InvalidArgument: no such tensor or tier, or the tier does not reach the step.
            BaseMismatch: the base is not the one that the run was encoded against.
            Corrupt, Truncated: the file is damaged.
        """
        return self._torch(name, self.bits(name, step, tier), self.entry(name).shape)

    def state_dict(self, step: float, tier: str = "auto") -> dict[str, torch.Tensor]:
        """Return all tensors at a step: ``{name: tensor}``; steps and tiers are those of `tensor`."""
        return {name: self.tensor(name, step, tier) for name in self.keys()}

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
        steps = choose_steps(self._decoder, None)
        numbers = {
            number: step
            for number, step in enumerate(steps, 1)
            if (start is None or step >= start) and (stop is None or step <= stop)
        }
        if not numbers:
            wanted = ":".join("" if end is None else str(end) for end in (start, stop))
            raise InvalidArgument(
                f"steps {wanted!r} leaves nothing, there is {steps[0]} to {steps[-1]} ({len(steps)} steps)"
            )
        return self._iterate(numbers)

    def _iterate(self, numbers: dict[int, int]) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
        from .exact.replay import replay_tensors

        entries = self._container.index.manifest.tensors
        for number, found in replay_tensors(self._decoder.exact, numbers, self._decoder.part_origin):
            state = {e.name: self._torch(e.name, bits, e.shape) for e, bits in zip(entries, found, strict=True)}
            del found
            yield numbers[number], state
            del state  # of which nothing is held while the next step is made

    def load_into(self, module: torch.nn.Module, step: float, tier: str = "auto") -> None:
        """Copy a step into the parameters and buffers of `module`, in place.

        Tied parameters count as present if one of their names is in the file. The module is changed only when
        everything has been checked and decoded.

        Raises:
            InvalidArgument: names or shapes of module and file differ.
        """
        import torch

        targets = dict(module.state_dict(keep_vars=True))
        meta = next((name for name, target in targets.items() if target.is_meta), None)
        if meta is not None:
            raise InvalidArgument(
                f"{quote(meta)} of the module is on the meta device; materialise it: module.to_empty(device=...)"
            )
        there = {targets[name].data_ptr() for name in self.keys() if name in targets}
        missing = [n for n, t in targets.items() if n not in self._decoder.numbers and t.data_ptr() not in there]
        unexpected = [name for name in self.keys() if name not in targets]
        if missing or unexpected:
            what = f"the file lacks {quote(missing[0])}" if missing else f"the module lacks {quote(unexpected[0])}"
            raise InvalidArgument(
                f"module and file differ: {what} ({len(missing)} missing, {len(unexpected)} unexpected)"
            )
        for name in self.keys():
            found, expected = tuple(targets[name].shape), self.entry(name).shape
            if found != expected:
                raise InvalidArgument(f"{quote(name)} is {list(found)} in the module, {list(expected)} in the file")
        decoded = self.state_dict(step, tier)
        with torch.no_grad():
            for name, value in decoded.items():
                targets[name].copy_(value)

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
        with self._bar("decode", 1, progress) as bar:
            options = self._options if storage_options is None else storage_options
            export(self._decoder, output, float(step), chosen, self._side_files(), bar.update, options)
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
            restore(self._decoder, output, chosen, self._side_files(), bar.update, options)
        return chosen

    def check_base(self) -> None:
        """Read the whole base and check it.

        Raises:
            BaseMismatch: it is not the one that the run was encoded against.
        """
        index = self._container.index
        reader = self._open_base()
        for record, tensor in zip(index.tensors, index.manifest.tensors, strict=True):
            if record["origin"] == f.IN_BASE:
                for lo in range(0, tensor.size, BATCH * f.PIECE):
                    reader.read(tensor.name, lo, min(lo + BATCH * f.PIECE, tensor.size))

    def verify(self) -> None:
        """Read and check every byte of the file; whether steps are restored from it, `check_exact` tells.

        Raises:
            Corrupt, Truncated: it is damaged; the message names the entry.
        """
        self._decoder.check_all()

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
        from .exact.replay import replay_all

        with self._bar("verify", count, progress) as bar:
            replay_all(self._decoder.exact, range(1, count + 1), self._decoder.part_origin, on_bytes=bar.update)
        return count

    def _bar(self, what: str, steps: int, progress: bool) -> Any:
        """A bar for the bytes of so many steps; none where there is no terminal."""
        total = steps * sum(map(nbytes, self._container.index.manifest.tensors))
        return tqdm(total=total, unit="B", unit_scale=True, desc=what, disable=None if progress else True)

    def _side_files(self) -> Base | None:
        """Where a decoded checkpoint's other files come from; None for the embedded ones."""
        embedded = self._container.index.manifest.embedded and not self.base_given
        return None if embedded else lambda: self.base_reader().checkpoint

    def _open_base(self) -> BaseReader:
        with self._lock:
            if self._base_reader is None:
                self._base_reader = BaseReader(self._find_base(), self._expected())
            return self._base_reader

    def _find_base(self) -> Checkpoint:
        if self._base_given is not None:
            return resolve(self._base_given, self._options)
        uri = self._container.index.manifest.base_uri
        if uri is None:
            raise InvalidArgument(f"{self.path} does not say where its base is; pass --base")
        try:
            return resolve(uri)
        except RelexError as error:
            raise CheckpointError(f"the base of {self.path} cannot be read: {error}; pass --base") from None

    def _expected(self) -> list[Expected]:
        index = self._container.index
        expected = []
        for record, tensor in zip(index.tensors, index.manifest.tensors, strict=True):
            if record["origin"] == f.IN_BASE:
                first = int(record["digest"])
                digests = index.digests[first : first + len(piece_lengths(tensor.size))]
                expected.append(Expected(tensor.name, tensor.origin_dtype, tensor.shape, digests))
        return expected

    def _torch(self, name: str, bits: Bits, shape: tuple[int, ...]) -> torch.Tensor:
        from .torch_dtypes import as_tensor

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
            says that its base is: credentials go only where the caller points.

    Raises:
        InvalidArgument: no such file or device.
        Corrupt, Truncated, Unsupported: see `relex_codec.errors`.
    """
    with explaining(path, storage_options, InvalidArgument):
        return Run(path, base, device, storage_options)
