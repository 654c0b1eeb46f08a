"""Models and tokenizers of transformers, straight from a run.

`from_pretrained` takes weights as a mapping, and its values need not be tensors: it asks each for ``[...]`` when its
turn comes, as it does with slices of a safetensors file. So nothing is decoded earlier, and no checkpoint is written.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from relex_codec.core.indexing import split_index
from relex_codec.core.text import quote
from relex_codec.errors import InvalidArgument, RelexError
from relex_codec.format.step_layout import StepLayout
from relex_codec.run.export import check_room, stored_bytes
from relex_codec.run.run_reader import RunReader
from relex_codec.storage.leftovers import ScratchDirectory
from relex_codec.storage.urls import Options, PathLike, without_secrets

if TYPE_CHECKING:
    import torch

_DTYPE_SINCE: Final = (4, 56)
"""The release in which `torch_dtype` became `dtype`."""


def load_model(
    url: PathLike,
    step: float,
    *,
    tier: str = "auto",
    base: PathLike | None = None,
    dtype: Any = None,
    device_map: Any = None,
    model_class: Any = None,
    storage_options: Options = None,
    **kwargs: Any,
) -> Any:
    """Return a model of transformers with the weights of a step; no checkpoint is written.

    Weights are decoded as the model takes them, so memory is the model's own and that of the tensors in work.
    The result is that of ``from_pretrained`` on the directory that `Run.save` writes, bit for bit.

    Args:
        url: path or URL of the ``.relex`` file.
        step: as of `Run.tensor`.
        tier: as of `Run.tensor`.
        base: as of `relex_codec.open`.
        storage_options: as of `relex_codec.open`.
        dtype: of the model; by default what the configuration says.
        device_map: as in ``from_pretrained``; needs the package accelerate, if given.
        model_class: a model class or auto class; by default the first of the configuration's ``architectures``.
        kwargs: for ``from_pretrained``.

    Returns:
        The model; with ``output_loading_info=True`` also a dictionary, as from ``from_pretrained``.

    Raises:
        InvalidArgument: transformers is not installed or does not know the model, its weights and the file's are not
            those of one model, or as `Run.tensor`.
        BaseMismatch, CheckpointError, Corrupt, Truncated: as `Run.tensor`.

    Examples:
        >>> model = relex_codec.load_model("run.relex", step=60)
        >>> type(model).__name__, model.dtype, model.model.norm.weight.shape
        ('Qwen3ForCausalLM', torch.bfloat16, torch.Size([16]))
    """
    transformers = _transformers()
    with RunReader(url, base=base, storage_options=storage_options) as reader:
        layout = reader.layout(step, tier)  # a step that cannot be is refused here, not in the midst of loading
        with side_files(reader, layout) as folder:
            config, kwargs = _config(transformers, folder, kwargs)
            generation = None
            if "generation_config" not in kwargs and os.path.exists(os.path.join(folder, "generation_config.json")):
                generation = transformers.GenerationConfig.from_pretrained(folder)
            chosen = _class(transformers, model_class, config, reader.path, kwargs)
        give_info, allow = kwargs.pop("output_loading_info", False), kwargs.pop("ignore_mismatched_sizes", False)
        failed: list[RelexError] = []
        names = reader.keys(layout)
        sharded = kwargs.get("tp_plan") is not None  # then each rank asks for its part only
        ahead = reader.ahead([] if sharded else [(name, ...) for name in names], step, tier)
        try:
            with ahead:
                model, info = chosen.from_pretrained(
                    None,
                    config=config,
                    state_dict={name: LazyTensor(reader, name, step, tier, failed) for name in names},
                    device_map=device_map,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                    **{_dtype_word(transformers): "auto" if dtype is None else dtype},
                    **kwargs,
                )
        except Exception:
            if failed:  # transformers reports what goes wrong while it converts weights in its own words
                raise failed[0] from None
            raise
        if failed:
            raise failed[0]
    _check_complete(info, chosen, reader.path, allow_mismatched=allow)
    if generation is not None and model.can_generate():
        model.generation_config = generation
    model.name_or_path = model.config.name_or_path = f"relex://step_{step:g}::{without_secrets(url)}"
    return (model, info) if give_info else model


def load_tokenizer(
    url: PathLike, *, base: PathLike | None = None, storage_options: Options = None, **kwargs: Any
) -> Any:
    """Return the tokenizer of a run, as its last observed step has it.

    Args:
        url: path or URL of the ``.relex`` file.
        base: as of `relex_codec.open`.
        storage_options: as of `relex_codec.open`.
        kwargs: for ``AutoTokenizer.from_pretrained``.

    Raises:
        InvalidArgument: transformers is not installed.
        CheckpointError: the base is not there.

    Examples:
        >>> relex_codec.load_tokenizer("run.relex")("12+34=")["input_ids"]
        [1, 2, 10, 3, 4, 13]
    """
    transformers = _transformers()
    with (
        RunReader(url, base=base, storage_options=storage_options) as reader,
        side_files(reader, reader.container.index.layout) as folder,
    ):
        return transformers.AutoTokenizer.from_pretrained(folder, **kwargs)


@contextmanager
def side_files(reader: RunReader, layout: StepLayout) -> Iterator[str]:
    """Write the files of a layout that are no weights to a temporary directory, and give its path."""
    with ScratchDirectory() as scratch:
        folder = scratch.path
        size = stored_bytes(layout)
        check_room(folder, folder, "the files beside the weights have", size, "set TMPDIR to a place with more room")
        for name, content in reader.side_files(layout).read_all():
            path = os.path.join(folder, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as out:
                out.writelines(content)
        yield folder


class LazyTensor:
    """A tensor at a step that is decoded when it is indexed, and has what transformers asks for before that.

    Args:
        failed: takes the first error of all tensors that share it; once there is one, no more is decoded.
    """

    def __init__(
        self, reader: RunReader, name: str, step: float, tier: str, failed: list[RelexError], device: Any = None
    ) -> None:
        self._reader, self._name, self._step, self._tier = reader, name, step, tier
        self._failed, self._device = failed, device
        self._entry = reader.entry(name, step, tier)

    def get_shape(self) -> list[int]:
        """Shape, as safetensors' slices give it."""
        return list(self._entry.shape)

    def get_dtype(self) -> str:
        """Safetensors' name of the dtype."""
        return self._entry.dtype

    @property
    def shape(self) -> torch.Size:
        """Shape, as of a tensor."""
        import torch

        return torch.Size(self._entry.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype, as of a tensor."""
        from relex_codec.core.torch_dtypes import DTYPES

        return DTYPES[self._entry.dtype]

    def is_floating_point(self) -> bool:
        """Tell whether the dtype is one of floats."""
        return self.dtype.is_floating_point

    def numel(self) -> int:
        """Number of elements."""
        return self._entry.size

    def to(self, device: Any) -> LazyTensor:
        """Return the tensor, to be decoded later, for another device."""
        return LazyTensor(self._reader, self._name, self._step, self._tier, self._failed, device)

    def __getitem__(self, index: Any) -> torch.Tensor:
        """Decode; slices and integers decode what they need, any other index the whole tensor."""
        if self._failed:
            raise self._failed[0]
        try:
            part, rest = split_index(index)
            found = self._reader.tensor(self._name, self._step, self._tier, part)[rest]
        except RelexError as error:
            self._failed.append(error)
            raise
        return found if self._device is None else found.to(self._device)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise InvalidArgument("transformers is not installed: pip install 'relex-codec[transformers]'") from None
    return transformers


def _dtype_word(transformers: Any) -> str:
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    return "dtype" if version >= _DTYPE_SINCE else "torch_dtype"


def _config(transformers: Any, folder: str, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the configuration, changed as `kwargs` say, and those of them that are for the model."""
    kwargs = dict(kwargs)
    given = kwargs.pop("config", None)
    if given is not None:
        return given, kwargs
    kept = {name: kwargs[name] for name in ("trust_remote_code", "quantization_config") if name in kwargs}
    kwargs.pop("quantization_config", None)  # it is for loading; the configuration keeps its own
    config, rest = transformers.AutoConfig.from_pretrained(folder, return_unused_kwargs=True, **kwargs)
    return config, rest | kept


def _class(transformers: Any, given: Any, config: Any, path: str, kwargs: dict[str, Any]) -> Any:
    """Return the class of the model: the one given, what an auto class makes of it, or the first architecture."""
    if given is None:
        names = getattr(config, "architectures", None) or []
        given = next((found for name in names if (found := getattr(transformers, name, None)) is not None), None)
        if given is None:
            raise InvalidArgument(
                f"transformers {transformers.__version__} has no class for the architectures {quote(names)} of {path}; "
                "pass model_class"
            )
    if issubclass(given, transformers.PreTrainedModel):
        return given
    import torch

    trust = {name: kwargs[name] for name in ("trust_remote_code",) if name in kwargs}
    with torch.device("meta"):  # auto classes tell their choice only by making a model: here, of no weights
        return type(given.from_config(copy.deepcopy(config), **trust))


def _check_complete(info: dict[str, Any], model_class: Any, path: str, *, allow_mismatched: bool) -> None:
    """Raise InvalidArgument where weights are missing, left over or of another shape: some would be random."""
    mismatched = [] if allow_mismatched else sorted(map(_key, info["mismatched_keys"]))
    wrong = {
        "lacks": sorted(info["missing_keys"]),
        "has no place for": sorted(info["unexpected_keys"]),
        "has another shape of": mismatched,
    }
    name = model_class.__name__
    for what, keys in wrong.items():
        if keys:
            count = f"{len(keys)} in all" if len(keys) > 1 else "and nothing else"
            who = f"{path} lacks" if what == "lacks" else f"{name} {what}"
            raise InvalidArgument(
                f"{who} {quote(keys[0])} ({count}): the weights are not those of {name}; pass another model_class"
            )


def _key(mismatch: Any) -> str:
    """The key of an entry of ``mismatched_keys``, which is that, or since transformers 5 key and both shapes."""
    return mismatch if isinstance(mismatch, str) else str(mismatch[0])
