"""`safe_open` on a step of a run, behaving as safetensors' own."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Final

import numpy as np

from relex_codec.core.indexing import TensorIndex, box_of, split_index
from relex_codec.errors import InvalidArgument
from relex_codec.format.tensor_record import TensorRecord
from relex_codec.storage.source import closed_on_error
from relex_codec.storage.urls import Options, PathLike

from .run_reader import RunReader, checked_device

_NUMPY: Final = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "F16": "<f2", "U32": "<u4", "I32": "<i4",
    "F32": "<f4", "U64": "<u8", "I64": "<i8", "F64": "<f8", "C64": "<c8",
}  # fmt: skip
FRAMEWORKS: Final = {"pt": "pt", "torch": "pt", "pytorch": "pt", "np": "np", "numpy": "np"}


class safe_open:  # noqa: N801 (the name of safetensors' class)
    """One step of a run as a handle like ``safetensors.safe_open``; a context manager.

    `filename`, `framework` and `device` are what they are there, also in their order.

    Args:
        filename: path or URL of the ``.relex`` file.
        framework: ``pt`` for torch tensors, ``np`` for numpy arrays, which know no bfloat16.
        device: of torch tensors, where they are also decoded.
        step: as of `Run.tensor`.
        tier: as of `Run.tensor`.
        base: as of `relex_codec.open`.
        storage_options: as of `relex_codec.open`.

    Raises:
        InvalidArgument: as `relex_codec.open`, an unknown framework, or a step that the tier does not reach.
        Corrupt, Truncated, Unsupported: as `relex_codec.open`.

    Examples:
        >>> with relex_codec.safe_open("run.relex", "pt", "cpu", step=800) as f:
        ...     rows = f.get_slice("model.embed_tokens.weight")[0:4]  # decodes these rows only
        >>> rows.shape
        torch.Size([4, 16])
    """

    def __init__(
        self,
        filename: PathLike,
        framework: str = "pt",
        device: Any = "cpu",
        *,
        step: float,
        tier: str = "auto",
        base: PathLike | None = None,
        storage_options: Options = None,
    ) -> None:
        if framework not in FRAMEWORKS:
            raise InvalidArgument(f"framework is {framework!r}, expected one of {', '.join(FRAMEWORKS)}")
        self._framework = FRAMEWORKS[framework]
        self._device = checked_device(device)
        self._reader = RunReader(filename, base=base, storage_options=storage_options)
        self._step, self._tier = step, tier
        with closed_on_error(self._reader):
            self._keys()  # the tier reaches the step, or is refused now

    def __enter__(self) -> safe_open:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.close()

    def keys(self) -> list[str]:
        """Return the names of the tensors, sorted, as safetensors gives them.

        Examples:
            >>> with relex_codec.safe_open("run.relex", step=60) as f:
            ...     print(f.keys()[-1])
            model.norm.weight
        """
        return sorted(self._keys())

    def _keys(self) -> list[str]:
        return self._reader.keys(self._reader.layout(self._step, self._tier))

    def offset_keys(self) -> list[str]:
        """Return the names of the tensors in the order of the file.

        Examples:
            >>> with relex_codec.safe_open("run.relex", step=60) as f:
            ...     print(f.offset_keys() == run.keys())
            True
        """
        return self._keys()

    def metadata(self) -> dict[str, str]:
        """Return what the decoded checkpoint's ``__metadata__`` is.

        Examples:
            >>> with relex_codec.safe_open("run.relex", step=60) as f:
            ...     print(f.metadata())
            {'format': 'pt'}
        """
        return {"format": "pt"}

    def get_tensor(self, name: str) -> Any:
        """Return a tensor (``pt``) or array (``np``).

        Args:
            name: of the tensor.

        Raises:
            InvalidArgument: no such tensor, or numpy has no dtype for it; and as `Run.tensor`.
            BaseMismatch, CheckpointError, Corrupt, Truncated: as `Run.tensor`.

        Examples:
            >>> with relex_codec.safe_open("run.relex", step=60) as f:
            ...     print(f.get_tensor("model.norm.weight").shape)
            torch.Size([16])
        """
        return self._part(name, ...)

    def get_tensors(self) -> dict[str, Any]:
        """Return every tensor: ``{name: tensor}``.

        Raises:
            InvalidArgument, BaseMismatch, CheckpointError, Corrupt, Truncated: as `get_tensor`.

        Examples:
            >>> with relex_codec.safe_open("run.relex", step=60) as f:
            ...     print(len(f.get_tensors()))
            24
        """
        names = self.offset_keys()
        with self._reader.ahead([(name, ...) for name in names], self._step, self._tier):
            return {name: self.get_tensor(name) for name in names}

    def get_slice(self, name: str) -> Slice:
        """Return a lazy view; indexing it decodes what it needs.

        Args:
            name: of the tensor.

        Raises:
            InvalidArgument: no such tensor.

        Examples:
            >>> with relex_codec.safe_open("run.relex", step=60) as f:
            ...     print(f.get_slice("model.embed_tokens.weight")[8:12, :4].shape)
            torch.Size([4, 4])
        """
        return Slice(self, name)

    def _entry(self, name: str) -> TensorRecord:
        return self._reader.entry(name, self._step, self._tier)

    def _part(self, name: str, index: TensorIndex) -> Any:
        """Return what ``tensor[index]`` is, decoding nothing else."""
        entry = self._entry(name)
        if self._framework == "pt":
            return self._reader.tensor(name, self._step, self._tier, index, self._device)
        if entry.dtype not in _NUMPY:
            raise InvalidArgument(f"numpy has no dtype for {entry.dtype}; open with framework='pt'")
        return self._reader.box(name, self._step, self._tier, index).view(_NUMPY[entry.dtype])


class Slice:
    """A tensor that is decoded when indexed, and then only what the index needs; made by `safe_open.get_slice`.

    Args:
        handle: what it reads from, which must be open when it is indexed.
        name: of the tensor.

    Examples:
        >>> with relex_codec.safe_open("run.relex", step=60) as f:
        ...     rows = f.get_slice("model.embed_tokens.weight")
        ...     print(rows.get_shape(), rows.get_dtype(), rows[3].shape, rows[:, -1].shape)
        [48, 16] BF16 torch.Size([16]) torch.Size([48])
    """

    def __init__(self, handle: safe_open, name: str) -> None:
        self._handle, self._name = handle, name
        self._entry = handle._entry(name)

    def get_shape(self) -> list[int]:
        """Return the shape of the whole tensor.

        Examples:
            >>> relex_codec.safe_open("run.relex", step=60).get_slice("model.norm.weight").get_shape()
            [16]
        """
        return list(self._entry.shape)

    def get_dtype(self) -> str:
        """Return safetensors' name of the dtype.

        Examples:
            >>> relex_codec.safe_open("run.relex", step=60).get_slice("model.norm.weight").get_dtype()
            'BF16'
        """
        return self._entry.dtype

    def __getitem__(self, index: Any) -> Any:
        """Index as torch and numpy do: integers, slices with positive steps, ``...``; an element is a 0-d array.

        Raises:
            IndexError: out of range, or too many dimensions.
            ValueError: a step that is not positive.
        """
        found = self._indexed(index)
        return found if self._handle._framework == "pt" else np.asarray(found)

    def _indexed(self, index: Any) -> Any:
        try:
            part, rest = split_index(index)
            box_of(self._entry.shape, part)
        except InvalidArgument as error:  # which is a ValueError too
            raise IndexError(f"{error}: {self._name!r}") from None
        except ValueError as error:
            raise ValueError(f"{error}: {self._name!r}") from None
        return self._handle._part(self._name, part)[rest]
