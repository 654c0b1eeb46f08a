"""Which tensor of a file goes where in a live model: names, prefixes, fused parameters, ties; all checked at first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from relex_codec.core.indexing import Box, TensorIndex, box_of
from relex_codec.core.text import quote
from relex_codec.errors import InvalidArgument

if TYPE_CHECKING:
    import torch

Where = str | tuple[str, TensorIndex] | None
"""A parameter, or a part of one as an index of it; None leaves a tensor of the file out."""
Names = Mapping[str, Where] | Callable[[str], Where] | None
"""Where each tensor of the file goes; a mapping may name only those that go elsewhere than their name says."""


class Target(NamedTuple):
    """A tensor of the file and the memory that it goes to.

    Attributes:
        name: in the file.
        tensor: of the module, or a view of a part of it; shaped as the tensor of the file.
        owner: the module's own tensor.
    """

    name: str
    tensor: torch.Tensor
    owner: torch.Tensor


def match(
    shapes: Mapping[str, Sequence[int]],
    module: torch.nn.Module,
    names: Names = None,
    prefix: str = "",
    tied: Mapping[str, int] | None = None,
) -> list[Target]:
    """Find the memory of each tensor of a file in a module.

    Args:
        shapes: of the tensors that are loaded.
        names: where they go, if not to the parameter or buffer of their name.
        prefix: before all names in the module, as wrappers put it there (``module.``, ``_orig_mod.``).
        tied: for each tensor that is loaded the number of the one that it is another name of, or its own. Two that are
            one may go to one tensor of the module, which is then written once.

    Raises:
        InvalidArgument: the module lacks a name or the file something that the module has; a shape differs; a part of a
            parameter is named twice or by nothing; a tensor is on the meta device or distributed.
    """
    import torch

    state = module.state_dict(keep_vars=True)
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}  # no extra state
    found: list[Target] = []
    boxes: dict[str, list[tuple[str, Box]]] = {}
    unexpected = []
    for name, shape in shapes.items():
        where = _where(name, names)
        if where is None:
            continue
        target, index = (where, ...) if isinstance(where, str) else where
        owner = tensors.get(prefix + target)
        if owner is None:
            unexpected.append((name, prefix + target))
            continue
        _check_kind(prefix + target, owner)
        box, part = box_of(owner.shape, index)
        if part != tuple(shape):
            what = "the module" if index is ... else f"{index} of the module's {quote(prefix + target)}"
            raise InvalidArgument(f"{quote(name)} is {list(part)} in {what}, {list(shape)} in the file")
        boxes.setdefault(prefix + target, []).append((name, box))
        found.append(Target(name, owner if index is ... else owner[index], owner))
    there = {memory for target in boxes if (memory := _memory(tensors[target])) is not None}
    missing = [n for n, t in tensors.items() if n not in boxes and not (_memory(t) in there or t.numel() == 0)]
    if missing or unexpected:
        if missing:
            _check_kind(missing[0], tensors[missing[0]])
            what = f"the file lacks {quote(missing[0])}"
        else:
            name, target = unexpected[0]
            what = f"the module lacks {quote(target)}" + ("" if name == target else f", where {quote(name)} goes")
        raise InvalidArgument(
            f"module and file differ: {what} ({len(missing)} missing, {len(unexpected)} unexpected); "
            "see the arguments prefix and names"
        )
    owners: dict[object, str] = {}
    numbers, again = tied or {}, set[str]()
    for target, parts in boxes.items():
        _check_cover(target, tensors[target], parts)
        other = owners.setdefault(_memory(tensors[target]) or target, target)
        if other == target:
            continue
        if len(parts) == len(boxes[other]) and all(
            numbers.get(one[0], one[0]) == numbers.get(two[0], two[0]) and one[1] == two[1]
            for one, two in zip(parts, boxes[other], strict=True)
        ):
            again.update(name for name, _ in parts)
        else:
            raise InvalidArgument(
                f"{quote(other)} and {quote(target)} of the module are one tensor, the file has two: leave one out in "
                "names"
            )
    return [target for target in found if target.name not in again]


def _memory(tensor: torch.Tensor) -> object | None:
    """What tells tied tensors: where their elements lie; None for a tensor without memory."""
    if tensor.is_meta or tensor.numel() == 0:
        return None
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def check_dtypes(targets: Sequence[Target], dtypes: Mapping[str, torch.dtype]) -> None:
    """Refuse to round weights to integers; other dtypes are converted as torch does.

    Raises:
        InvalidArgument: a tensor of floats goes to one of integers.
    """
    for target in targets:
        if dtypes[target.name].is_floating_point and not (
            target.tensor.is_floating_point() or target.tensor.is_complex()
        ):
            kinds = f"{dtypes[target.name]} in the file, {target.tensor.dtype} in the module"
            raise InvalidArgument(f"{quote(target.name)} is {kinds}; weights are not rounded to integers")


def _where(name: str, names: Names) -> Where:
    if names is None:
        return name
    return names(name) if callable(names) else names.get(name, name)


def _check_kind(name: str, tensor: torch.Tensor) -> None:
    """Refuse what cannot be written in place, before anything is."""
    import torch

    where = f"{quote(name)} of the module"
    if tensor.is_meta:
        raise InvalidArgument(f"{where} is on the meta device; materialise it: module.to_empty(device=...)")
    if hasattr(tensor, "to_local"):
        raise InvalidArgument(f"{where} is a DTensor; load it with torch.distributed.checkpoint")
    if tensor.is_quantized or tensor.layout is not torch.strided:
        raise InvalidArgument(f"{where} is quantised or sparse; weights are loaded into dense tensors only")
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        raise InvalidArgument(f"{where} was made in inference mode; load it in torch.inference_mode()")
    if any(n > 1 and stride == 0 for n, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        raise InvalidArgument(f"{where} is expanded: several of its elements are one; load into a clone of it")


def _check_cover(name: str, tensor: torch.Tensor, parts: Sequence[tuple[str, Box]]) -> None:
    """Each element of a parameter has one tensor of the file that goes to it."""
    for i, (first, box) in enumerate(parts):
        for second, other in parts[:i]:
            if all(max(a, c) < min(b, d) for (a, b), (c, d) in zip(box, other, strict=True)):
                raise InvalidArgument(
                    f"{quote(second)} and {quote(first)} both go to {quote(name)}; name the part of each"
                )
    covered = 0
    for _, box in parts:
        size = 1
        for lo, hi in box:
            size *= hi - lo
        covered += size
    if covered != tensor.numel():
        raise InvalidArgument(
            f"module and file differ: {tensor.numel() - covered} of {tensor.numel()} elements of {quote(name)} have no "
            "tensor in the file that goes to them"
        )
