"""Reading tensors of an opened file at any step, as bits or as tensors: what `Run` and the integrations stand on.

Nothing here is part of the public interface.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from relex_codec.checkpoints.base_model import BaseReader
from relex_codec.core.dtypes import Bits
from relex_codec.core.indexing import TensorIndex, box_of
from relex_codec.core.text import quote
from relex_codec.decoding.base_locator import FileBase
from relex_codec.decoding.reading import reading_ahead
from relex_codec.decoding.tensor_decoder import Decoder, Read
from relex_codec.decoding.tensors import Wanted, read_bits, read_tensors
from relex_codec.decoding.tiers import as_step, choose_tier
from relex_codec.errors import InvalidArgument
from relex_codec.format.manifest import TensorEntry
from relex_codec.format.reader import FileReader
from relex_codec.kernels.dispatch import device_kernel, is_host
from relex_codec.kernels.interface import flat
from relex_codec.kernels.windows import windows
from relex_codec.storage.hub.revisions import refuse_offline
from relex_codec.storage.open import open_source
from relex_codec.storage.source import closed_on_error
from relex_codec.storage.urls import Options, PathLike, options_for

from .export import SideFiles

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


class RunReader:
    """An opened ``.relex`` file; arguments and errors of opening it are those of `relex_codec.open`.

    Attributes:
        path: for messages.
        container: the file's checked tables, which answer also when it is closed.
        closed: whether it has been closed.
    """

    def __init__(self, path: PathLike, *, base: PathLike | None = None, storage_options: Options = None) -> None:
        refuse_offline(path, InvalidArgument)
        self._source = open_source(path, options_for(path, storage_options))
        with closed_on_error(self._source):
            self.container = FileReader(self._source)
        self.path = self._source.path
        self._base = FileBase(self.container, base, storage_options)
        self._decoder = Decoder(self.container, self._base.reader, use_embedded=base is None)
        self.closed = False

    def __enter__(self) -> RunReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file; reading it afterwards is an error, closing it again is none."""
        self.closed = True
        self._source.close()

    def check_open(self) -> None:
        """Refuse to go on with a file that was closed, even where what is read next would still be in memory.

        Raises:
            InvalidArgument: it was closed.
        """
        if self.closed:
            raise InvalidArgument(f"{self.path} is closed; open it again to read it")

    @property
    def decoder(self) -> Decoder:
        """Reads tensors as bits; refused when the file is closed."""
        self.check_open()
        return self._decoder

    @property
    def base(self) -> FileBase:
        """Where the base is; refused when the file is closed."""
        self.check_open()
        return self._base

    @property
    def base_embedded(self) -> bool:
        """Whether the base is what the file embeds: the caller named no other."""
        return self._base.is_embedded

    def base_reader(self) -> BaseReader:
        """Return what reads the base and checks it, also where the file embeds one."""
        return self.base.reader()

    def side_files(self) -> SideFiles:
        """Return the base's files that are no weights, which every step has as they are."""
        return SideFiles(self.decoder, self.base.side_files())

    @property
    def numbers(self) -> Mapping[str, int]:
        """The tensors' places in the file's order, by name."""
        return self._decoder.numbers

    @property
    def steps(self) -> list[int]:
        """All steps that the file has coefficients of."""
        return [int(step) for step in self.container.index.steps]

    def keys(self) -> list[str]:
        """Names of the tensors, in the file's order."""
        return [tensor.name for tensor in self.container.index.manifest.tensors]

    def entry(self, name: str) -> TensorEntry:
        """Return name, dtype and shape of a tensor.

        Raises:
            InvalidArgument: there is no such tensor.
        """
        return self.container.index.manifest.tensors[self._decoder.number(name)]

    def tier(self, step: float, tier: str = "auto") -> str:
        """Return what `step` is read from: ``base``, ``exact``, ``track`` or ``line``."""
        return choose_tier(self.container, as_step(step), tier)

    # -- bits --------------------------------------------------------------------------------------------------------

    def bits(self, name: str, step: float, tier: str = "auto", lo: int = 0, hi: int | None = None) -> Bits:
        """Return elements lo .. hi (default: all) of a tensor at a step as unsigned integers, one-dimensional.

        Raises:
            InvalidArgument: the tensor has no such elements; and as `Run.tensor`.
        """
        decoder, read = self.decoder, (float(step), self.tier(step, tier))
        size = self.entry(name).size
        hi = size if hi is None else hi
        if not 0 <= lo <= hi <= size:
            raise InvalidArgument(f"elements {lo} to {hi} of {quote(name)}, which has {size}")
        window = flat(lo, hi)
        with reading_ahead(decoder, self.base_reader, [(name, [window])], [read]):
            return decoder.read_window(name, [read], window)[0].reshape(-1)

    def box(self, name: str, step: float, tier: str = "auto", index: TensorIndex = ...) -> Bits:
        """Return a box of a tensor at a step as unsigned integers, in the shape that ``tensor[index]`` has.

        Only the pieces that the box touches are read and decoded.

        Raises:
            InvalidArgument: an index that the tensor does not have, or a step in it other than 1; and as `Run.tensor`.
        """
        wanted = [Wanted(name, *box_of(self.entry(name).shape, index))]
        ((bits,),) = read_bits(self.decoder, self.base_reader, wanted, [(float(step), self.tier(step, tier))])
        return bits

    def ahead(
        self, wanted: Iterable[tuple[str, TensorIndex]], step: float, tier: str = "auto"
    ) -> AbstractContextManager[Any]:
        """Return a context in which these parts of tensors, asked for in about this order, are read ahead."""
        parts = []
        for name, index in wanted:
            shape = self.entry(name).shape
            parts.append((name, windows(shape, box_of(shape, index)[0])))
        return reading_ahead(self.decoder, self.base_reader, parts, [(float(step), self.tier(step, tier))])

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
        decoder = self.decoder
        reads: list[Read] = [(float(step), self.tier(step, tier)) for step in steps]
        boxes = [Wanted(name, *box_of(self.entry(name).shape, index)) for name, index in wanted.items()]
        states: list[dict[str, torch.Tensor]] = [{} for _ in reads]
        every = read_tensors(decoder, self.base_reader, boxes, reads, device)
        for name, found in zip(wanted, every, strict=True):
            for state, value in zip(states, found, strict=True):
                state[name] = value
        return states
