"""Reading tensors of an opened file at any step, as bits or as tensors: what `Run` and the integrations stand on.

Nothing here is part of the public interface.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from relex_codec.checkpoints.base_model import BaseReader
from relex_codec.core.dtypes import Bits
from relex_codec.core.forks import new_lock
from relex_codec.core.indexing import TensorIndex
from relex_codec.core.text import quote
from relex_codec.decoding.base_locator import BaseLocator
from relex_codec.decoding.tensor_decoder import TensorDecoder
from relex_codec.decoding.tensors import box_at, plan_boxes, read_bits, read_tensors
from relex_codec.decoding.tiers import StepTier, as_step, choose_tier, layout_at
from relex_codec.errors import InvalidArgument
from relex_codec.format.reader import FileReader
from relex_codec.format.step_layout import StepLayout
from relex_codec.format.tensor_record import TensorRecord
from relex_codec.kernels.dispatch import device_kernel, is_host
from relex_codec.storage.hub.revisions import refuse_offline
from relex_codec.storage.open import open_source
from relex_codec.storage.source import LocalSource, Source, closed_on_error
from relex_codec.storage.urls import Options, PathLike, is_url, local_path, options_for

from .side_files import SideFiles

if TYPE_CHECKING:
    import torch


def checked_device(device: Any) -> Any:
    """Return the device to decode on; None is the CPU.

    Raises:
        InvalidArgument: there is no such device.
    """
    device = "cpu" if device is None else device
    if not is_host(device):
        device_kernel(device)
    return device


class _Opened(NamedTuple):
    """What one process has opened."""

    process: int
    container: FileReader
    decoder: TensorDecoder


_OPENING: Final = new_lock()


def _absolute(path: PathLike) -> PathLike:
    """Return a path that means the same in a process that works in another directory."""
    if is_url(path):
        return path
    with suppress(OSError):  # the working directory was removed
        return os.path.abspath(local_path(path))
    return path


class RunReader:
    """An opened ``.relex`` file; arguments and errors of opening it are those of `relex_codec.open`.

    A copy in another process, forked or unpickled, opens the file for itself when it first needs it, and refuses it if
    it is another one by then.

    Attributes:
        path: for messages.
        closed: whether it has been closed.
    """

    def __init__(self, path: PathLike, *, base: PathLike | None = None, storage_options: Options = None) -> None:
        refuse_offline(path, InvalidArgument)
        self._place, self._base_place = _absolute(path), None if base is None else _absolute(base)
        self._options = storage_options
        self.closed = False
        self._opened: _Opened | None = self._open(open_source(path, options_for(path, storage_options)), base)
        self.path = self._opened.container.source.path
        self._identity = self._opened.container.identity

    def _open(self, source: Source, base: PathLike | None) -> _Opened:
        with closed_on_error(source):
            container = FileReader(source)
        decoder = TensorDecoder(container, BaseLocator(container, base, self._options))
        return _Opened(os.getpid(), container, decoder)

    def _here(self) -> _Opened:
        """Return what this process has opened, after doing so if that is necessary."""
        found = self._opened
        if found is not None and found.process == os.getpid():
            return found
        with _OPENING:
            found = self._opened
            if found is None or found.process != os.getpid():
                source = found.container.source if found is not None else None
                if not isinstance(source, LocalSource):  # which is read without locks or connections
                    source = open_source(self._place, options_for(self._place, self._options))
                found = self._open(source, self._base_place)
                if found.container.identity != self._identity:
                    source.close()
                    raise InvalidArgument(
                        f"{self.path} is another file than the one that was opened before this process was started; "
                        "open it here"
                    )
                self._opened = found
            return found

    def __getstate__(self) -> dict[str, Any]:
        if self.closed:
            raise InvalidArgument(f"{self.path} is closed; open it again before it goes to another process")
        return {**self.__dict__, "_opened": None}

    def __enter__(self) -> RunReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file; reading it afterwards is an error, closing it again is none."""
        self.closed = True
        if self._opened is not None:
            self._opened.container.source.close()

    def check_open(self) -> None:
        """Refuse to go on with a file that was closed, even where what is read next would still be in memory.

        Raises:
            InvalidArgument: it was closed.
        """
        if self.closed:
            raise InvalidArgument(f"{self.path} is closed; open it again to read it")

    @property
    def container(self) -> FileReader:
        """The file's checked tables, which answer also when it is closed."""
        return self._here().container

    @property
    def decoder(self) -> TensorDecoder:
        """Reads tensors as bits; refused when the file is closed."""
        self.check_open()
        return self._here().decoder

    @property
    def base(self) -> BaseLocator:
        """Where the base is; refused when the file is closed."""
        return self.decoder.base

    @property
    def base_embedded(self) -> bool:
        """Whether the base is what the file embeds: the caller named no other."""
        return self._here().decoder.base.is_embedded

    def base_reader(self) -> BaseReader:
        """Return what reads the base and checks it, also where the file embeds one."""
        return self.base.reader()

    def layout(self, step: float, tier: str = "auto") -> StepLayout:
        """Return which tensors and files there are at a step."""
        return layout_at(self.container.index, self._step_tier(step, tier))

    def side_files(self, layout: StepLayout | None = None) -> SideFiles:
        """Return the files of a layout that are no weights; default: those of tiers ``line`` and ``track``."""
        return SideFiles(self.decoder, layout or self.container.index.layout)

    @property
    def steps(self) -> list[int]:
        """All steps that the file has coefficients of."""
        return [int(step) for step in self.container.index.steps]

    def keys(self, layout: StepLayout | None = None) -> list[str]:
        """Names of the tensors of a layout, in the file's order; default: that of tiers ``line`` and ``track``."""
        return [tensor.name for tensor in (layout or self.container.index.layout).tensors]

    def entry(self, name: str, step: float | None = None, tier: str = "auto") -> TensorRecord:
        """Return name, dtype and shape of a tensor, at a step or as tiers ``line`` and ``track`` have it.

        Raises:
            InvalidArgument: there is no such tensor.
        """
        return self.container.index.tensor(name, None if step is None else self.layout(step, tier))

    def tier(self, step: float, tier: str = "auto") -> str:
        """Return what `step` is read from: ``base``, ``exact``, ``track`` or ``line``."""
        return choose_tier(self.container, as_step(step), tier)

    def _step_tier(self, step: float, tier: str) -> StepTier:
        return StepTier(float(step), self.tier(step, tier))

    # -- bits --------------------------------------------------------------------------------------------------------

    def bits(self, name: str, step: float, tier: str = "auto", lo: int = 0, hi: int | None = None) -> Bits:
        """Return elements lo .. hi (default: all) of a tensor at a step as unsigned integers, one-dimensional.

        Raises:
            InvalidArgument: the tensor has no such elements; and as `Run.tensor`.
        """
        tensor = self.entry(name, step, tier)
        hi = tensor.size if hi is None else hi
        if not 0 <= lo <= hi <= tensor.size:
            raise InvalidArgument(f"elements {lo} to {hi} of {quote(name)}, which has {tensor.size}")
        return self.decoder.read(tensor, self._step_tier(step, tier), lo, hi)

    def box(self, name: str, step: float, tier: str = "auto", index: TensorIndex = ...) -> Bits:
        """Return a box of a tensor at a step as unsigned integers, in the shape that ``tensor[index]`` has.

        Only the pieces that the box touches are read and decoded.

        Raises:
            InvalidArgument: an index that the tensor does not have, or a step in it other than 1; and as `Run.tensor`.
        """
        boxes = [box_at(self.entry(name, step, tier), index)]
        ((bits,),) = read_bits(self.decoder, boxes, [self._step_tier(step, tier)])
        return bits

    def ahead(
        self, wanted: Iterable[tuple[str, TensorIndex]], step: float, tier: str = "auto"
    ) -> AbstractContextManager[Any]:
        """Return a context in which these parts of tensors, asked for in about this order, are read ahead."""
        boxes = [box_at(self.entry(name, step, tier), index) for name, index in wanted]
        return self.decoder.fetcher.ahead(plan_boxes(self.decoder, boxes, [self._step_tier(step, tier)]))

    # -- tensors -----------------------------------------------------------------------------------------------------

    def tensor(
        self, name: str, step: float, tier: str = "auto", index: TensorIndex = ..., device: Any = "cpu"
    ) -> torch.Tensor:
        """Return a tensor, or the part that ``tensor[index]`` is, at a step; errors are those of `Run.tensor`."""
        return self.tensors({name: index}, [step], tier, device)[0][name]

    def tensors(
        self, wanted: Mapping[str, TensorIndex], steps: Sequence[float], tier: str, device: Any
    ) -> list[dict[str, torch.Tensor]]:
        """Return parts of some tensors at each of some steps; base and codes are read once for all of them."""
        return self._states(lambda _: wanted, steps, tier, device)

    def states(
        self, slices: Mapping[str, TensorIndex], steps: Sequence[float], tier: str, device: Any
    ) -> list[dict[str, torch.Tensor]]:  # fmt: skip
        """Return all tensors that there are at each of some steps, as `tensors`; of those in `slices` only a part."""

        def wanted(layout: StepLayout) -> dict[str, TensorIndex]:
            for name in slices:
                self.container.index.tensor(name, layout)
            return {name: slices.get(name, ...) for name in self.keys(layout)}

        return self._states(wanted, steps, tier, device)

    def _states(
        self,
        wanted: Callable[[StepLayout], Mapping[str, TensorIndex]],
        steps: Sequence[float],
        tier: str,
        device: Any,
    ) -> list[dict[str, torch.Tensor]]:
        self.check_open()
        chosen = [self._step_tier(step, tier) for step in steps]
        states: list[dict[str, torch.Tensor]] = [{} for _ in chosen]
        for layout, places in self.by_layout(chosen).items():
            parts = wanted(layout)
            boxes = [box_at(self.container.index.tensor(name, layout), index) for name, index in parts.items()]
            decoded = read_tensors(self.decoder, boxes, [chosen[i] for i in places], device)
            for name, found in zip(parts, decoded, strict=True):
                for i, value in zip(places, found, strict=True):
                    states[i][name] = value
        return states

    def by_layout(self, steps: Sequence[StepTier]) -> dict[StepLayout, list[int]]:
        """Return the layouts of some steps, and the places of the steps that each is of."""
        found: dict[StepLayout, list[int]] = {}
        for i, step in enumerate(steps):
            found.setdefault(layout_at(self.container.index, step), []).append(i)
        return found
