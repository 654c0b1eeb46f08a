"""What a checkpoint and a run of checkpoints are to the rest of the package: two protocols, and what a tensor is.

Everything behind this module (fitting, the exact tier, comparing) asks only for what is written here. A new kind of
checkpoint is a class that implements `TensorReader`, in a module of its own beside safetensors.py; a run of such
checkpoints is `series.ReaderSeries` unless reading a tensor at all steps at once is cheaper than step by step, and only
then another `CheckpointSeries`. Tensors are read as their bits, so nothing is ever converted on the way.

Example: a checkpoint that lies in memory, as `{name: (dtype, array of bits)}`.

    >>> import numpy as np
    >>> class InMemory(TensorReader):
    ...     def __init__(self, weights):
    ...         self.path = "a checkpoint in memory"
    ...         self.tensors = {name: TensorInfo(name, dtype, bits.shape) for name, (dtype, bits) in weights.items()}
    ...         self._weights = weights
    ...
    ...     def read_into(self, name, lo, out):
    ...         self.check_range(name, lo, out.size)
    ...         out[:] = self._weights[name][1].reshape(-1)[lo : lo + out.size]
    >>> checkpoint = InMemory({"w": ("BF16", np.array([[16256, 16384], [0, 49024]], np.uint16))})
    >>> checkpoint.info("w").shape, checkpoint.read("w", 1, 3)
    ((2, 2), array([16384,     0], dtype=uint16))
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from relex_codec.core.dtypes import Bits, bits_dtype
from relex_codec.core.filenames import ADAPTER_WEIGHTS, SINGLE
from relex_codec.core.text import quote
from relex_codec.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What is known of a tensor without reading it.

    Attributes:
        name: as the model's state dict calls it.
        dtype: by its safetensors name, one of `core.dtypes.ITEMSIZE`.
        shape: of the whole tensor, also where its parts lie in several files.
        shard: number of the file among `TensorReader.shards` that has it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: int = 0

    @property
    def size(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)


class TensorReader(Protocol):
    """One checkpoint: the weights of a model at one step (or of the base), and the files beside them.

    A class that implements it sets `path` and `tensors` when it is made, and has `read_into`. The rest has defaults,
    which are right for weights without files of the Hugging Face layout.

    **When it is made**, all that can be wrong without reading weights is found out: files that are missing or end
    early, headers that cannot be, a dtype that the format does not know, two pieces of a tensor that overlap or leave a
    hole. Weights are read when they are asked for, not before.

    **Elements** of a tensor are counted in row-major order over its whole shape. A range may begin and end anywhere,
    also in the middle of a row or of what a file holds together; it may be empty. Callers mostly go through a tensor
    from its beginning, 2^18 elements at a time or less, and come back for a few pieces of it.

    **Bits**: `out` has the dtype that `core.dtypes.bits_dtype` gives for the tensor's: unsigned, little-endian, of the
    element's width. Values are those of the checkpoint, bit for bit, NaNs included. Where files hold another dtype
    than the model's, `tensors` says the dtype that is read.

    **Threads**: all methods are called from several threads at the same time, also for the same tensor.

    **Memory and files**: a call takes memory for what it returns and a small constant beside it. Runs have 500
    checkpoints, all of which are open at once: no file stays open between calls, and what is equal for all steps
    (`tensors`, above all) is shared between readers.

    **Errors** name the path, say what was found and expected, and what to do: CheckpointError for what cannot be read,
    or is no longer what it was when it was opened; Truncated where a file ends early. An OSError does not come through.
    A range outside the tensor is a mistake of the caller and a ValueError (`check_range`). `out` may then hold
    anything.

    Nothing that a checkpoint holds is executed.

    Attributes:
        path: where it is, for messages; without credentials.
        tensors: what there is by name, in the order in which it lies: a `.relex` file keeps the order of the base.
        shards: names of the safetensors files, sorted. If this is a base, its decoded steps are written with them.
        indexed: whether ``model.safetensors.index.json`` is among the files.
        side_files: names of the files beside the weights that a decoded step needs too: configuration, tokenizer.
        absent: names that its index lists and no file has. That is fatal only where such a tensor is needed
            (`checks.check_against_base`): an index may go on listing a tied ``lm_head.weight``.
        notes: what there is that is not read, one line each, for whoever encodes it.
        read_whole: names of files of another kind than safetensors that hold these tensors and nothing else.
        may_be_slices: whether its files say of themselves that their tensors may be slices of the model's.
    """

    path: str
    tensors: Mapping[str, TensorInfo]
    shards: Sequence[str] = (SINGLE,)
    indexed: bool = False
    side_files: Sequence[str] = ()
    absent: Sequence[str] = ()
    notes: Sequence[str] = ()
    read_whole: Sequence[str] = ()
    may_be_slices: bool = False

    @property
    def is_adapter(self) -> bool:
        """Whether it is an adapter, which is to be laid on a base and has no tensors in common with that."""
        return list(self.shards) == [ADAPTER_WEIGHTS]

    @abstractmethod
    def read_into(self, name: str, lo: int, out: Bits) -> None:
        """Fill `out` with the bits of a tensor from element `lo` on.

        Args:
            name: one of `tensors`.
            lo: the first element, from 0 on.
            out: one-dimensional and contiguous, of the tensor's `bits_dtype`; all of it is filled.

        Raises:
            CheckpointError: there is no such tensor, or it cannot be read.
            Truncated: a file ends early.
            ValueError: the tensor has no such elements.
        """

    def info(self, name: str) -> TensorInfo:
        """Return what is known of a tensor.

        Raises:
            CheckpointError: there is no such tensor.
        """
        try:
            return self.tensors[name]
        except KeyError:
            raise CheckpointError(f"{self.path} has no tensor {quote(name)}") from None

    def check_range(self, name: str, lo: int, count: int) -> TensorInfo:
        """Return what is known of a tensor that has the elements from `lo` on, `count` of them.

        Raises:
            CheckpointError: there is no such tensor.
            ValueError: it has no such elements.
        """
        info = self.info(name)
        if not 0 <= lo <= lo + count <= info.size:
            raise ValueError(f"elements {lo} to {lo + count} of {quote(name)}, which has {info.size}")
        return info

    def read(self, name: str, lo: int = 0, hi: int | None = None) -> Bits:
        """Return the bits of elements `lo` to `hi` (default: all) of a tensor, one-dimensional and writable.

        Raises:
            CheckpointError, Truncated, ValueError: as `read_into`.
        """
        info = self.info(name)
        hi = info.size if hi is None else hi
        self.check_range(name, lo, hi - lo)
        out: Bits = np.empty(hi - lo, bits_dtype(info.dtype))
        self.read_into(name, lo, out)
        return out

    def read_file(self, name: str) -> bytes:
        """Return the bytes of one of `side_files`, or raise CheckpointError."""
        return next(iter(self.read_files([name])))

    def read_files(self, names: Sequence[str]) -> Iterable[bytes]:
        """Return the bytes of several of `side_files`, one after another.

        Raises:
            CheckpointError: there is no such file, or it cannot be read.
        """
        if names:
            raise CheckpointError(f"{self.path} has no file {quote(names[0])}")
        return ()

    def file_sizes(self) -> dict[str, int]:
        """Return the bytes of each of `side_files` by name, without reading them where that can be told."""
        return dict(zip(self.side_files, map(len, self.read_files(self.side_files)), strict=True))


class CheckpointSeries(Protocol):
    """The checkpoints of a run, one for each of its steps, all of the same tensors.

    A class that implements it sets `steps` when it is made, and has `checkpoint` and `read_into`. What
    `TensorReader` says of elements, bits, threads, memory and errors holds here too.

    Attributes:
        steps: increasing, at least one, each from 0 to 2^53.
    """

    steps: Sequence[int]

    @abstractmethod
    def checkpoint(self, index: int) -> TensorReader:
        """Return the checkpoint of ``steps[index]``, opened: asking again costs nothing.

        Raises:
            CheckpointError: it cannot be read, or its tensors have other names, dtypes or shapes than those of the
                first; the message names step and tensor.
        """

    @abstractmethod
    def read_into(self, name: str, lo: int, out: Bits) -> None:
        """Fill the rows of `out` from element `lo` of a tensor on: one row for each of the first ``len(out)`` steps.

        Args:
            name: one of `names`.
            lo: the first element.
            out: [rows, elements], of the tensor's `bits_dtype`. Each row is contiguous; between them there may be
                memory of somebody else. At most ``len(steps)`` rows, none too.

        Raises:
            CheckpointError, Truncated, ValueError: as `TensorReader.read_into`.
        """

    @property
    def names(self) -> list[str]:
        """Names of the tensors, in the order of the first checkpoint."""
        return list(self.checkpoint(0).tensors)

    def info(self, name: str) -> TensorInfo:
        """Return name, dtype and shape of a tensor, the same at every step, or raise CheckpointError."""
        return self.checkpoint(0).info(name)

    def check(self) -> None:
        """Open all checkpoints, so that a run that does not fit together is refused before any work.

        Raises:
            CheckpointError: as `checkpoint`.
        """
        for index in range(len(self.steps)):
            self.checkpoint(index)

    def read(self, name: str, lo: int = 0, hi: int | None = None) -> Bits:
        """Return the bits of elements `lo` to `hi` (default: all) of a tensor at all steps: an array [T, hi - lo].

        Raises:
            CheckpointError, Truncated, ValueError: as `read_into`.
        """
        info = self.info(name)
        out: Bits = np.empty((len(self.steps), (info.size if hi is None else hi) - lo), bits_dtype(info.dtype))
        self.read_into(name, lo, out)
        return out


def check_same_tensors(
    found: Mapping[str, TensorInfo], where: str, expected: Mapping[str, TensorInfo], elsewhere: str
) -> None:
    """Check that two checkpoints of a run have tensors of the same names, dtypes and shapes.

    Args:
        found: of one checkpoint.
        where: what it is called in messages: "step 20".
        expected: of the other.
        elsewhere: what that is called.

    Raises:
        CheckpointError: they do not; the message names the tensor.
    """
    if found is expected:
        return
    for name in expected.keys() ^ found.keys():
        there, missing = (elsewhere, where) if name in expected else (where, elsewhere)
        raise CheckpointError(f"tensor {quote(name)} is part of {there}, but not of {missing}")
    for name, wanted in expected.items():
        info = found[name]
        for one, other, at in ((info, wanted, where), (wanted, info, elsewhere)):
            if is_placeholder(one, other):
                raise CheckpointError(placeholder_message(name, at))
        if (info.dtype, info.shape) != (wanted.dtype, wanted.shape):
            raise CheckpointError(
                f"tensor {quote(name)} of {where} is {info.dtype} {list(info.shape)}, "
                f"expected {wanted.dtype} {list(wanted.shape)} as in {elsewhere}"
            )


def is_placeholder(found: TensorInfo, expected: TensorInfo) -> bool:
    """Tell whether a tensor stands for one that DeepSpeed did not gather: it has the shape [0], the other elements."""
    return found.shape == (0,) and expected.size > 0


def placeholder_message(name: str, where: str) -> str:
    """Say that a checkpoint has placeholders."""
    return (
        f"tensor {quote(name)} of {where} is empty, expected weights: DeepSpeed ZeRO-3 saved placeholders; set "
        "stage3_gather_16bit_weights_on_model_save, or make weights of the ZeRO checkpoint with zero_to_fp32.py"
    )
