"""What tensors the file of a run will have, from the headers of its checkpoints. Pure functions, no I/O.

Steps may differ: lack tensors, have them in another dtype, or under other names since transformers was upgraded. The
last observed step is the main one: what it has gets lines, of whatever dtype and name the other steps have it. What
other steps have besides is kept for those steps only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from relex_codec.checkpoints.checkpoint import TensorInfo, is_placeholder, placeholder_message
from relex_codec.checkpoints.name_matching import match_tensors
from relex_codec.core.dtypes import FLOATS
from relex_codec.core.steps import spell_steps
from relex_codec.core.text import quote
from relex_codec.errors import CheckpointError

Table = Mapping[str, TensorInfo]
"""The tensors of one checkpoint by name."""


class Key(NamedTuple):
    """A tensor of the file: a name may occur with several dtypes."""

    name: str
    dtype: str


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor of the file.

    Attributes:
        key: its name and dtype.
        shape: the same at every step.
        at: what each step calls it; None where a step does not have it in this dtype.
        values: what each step calls it, whatever its dtype is there; other than `at` only for tensors with lines.
        main: whether the last observed step has it, under its own name or that of a copy.
        target: the tensor that it is another name of, if it is one.
    """

    key: Key
    shape: tuple[int, ...]
    at: tuple[str | None, ...]
    values: tuple[str | None, ...]
    main: bool
    target: Key | None = None

    @property
    def info(self) -> TensorInfo:
        """Name, dtype and shape."""
        return TensorInfo(self.key.name, self.key.dtype, self.shape)


def plan_tensors(tables: Sequence[Table], steps: Sequence[int], main: int) -> list[PlannedTensor]:
    """Return the tensors of the file, before copies are looked for.

    Args:
        tables: the tensors of each step; steps that have the same ones may share a table.
        steps: their numbers, for messages.
        main: which of them is the last observed one.

    Returns:
        Those of the main step in its order, then those of other steps.

    Raises:
        CheckpointError: a tensor has two shapes.

    Examples:
        >>> old, new = TensorInfo("norm.weight", "BF16", (8,)), TensorInfo("model.norm.weight", "BF16", (8,))
        >>> planned = plan_tensors([{old.name: old}, {new.name: new}], [1, 2], main=1)
        >>> for tensor in planned:
        ...     print(tensor.key.name, tensor.at, tensor.target)
        model.norm.weight ('norm.weight', 'model.norm.weight') None
        norm.weight ('norm.weight', None) Key(name='model.norm.weight', dtype='BF16')
    """
    kinds, which = _distinct(tables)
    middle = kinds[which[main]]
    first_step = [steps[which.index(kind)] for kind in range(len(kinds))]
    for kind, table in enumerate(kinds):
        _check_shapes(table, f"step {first_step[kind]}", middle, f"step {steps[main]}")
    called = [_called(table, middle) for table in kinds]
    found = [
        PlannedTensor(
            Key(name, info.dtype),
            info.shape,
            tuple(_if_dtype(kinds[kind], called[kind].get(name), info.dtype) for kind in which),
            tuple(_if_like(kinds[kind], called[kind].get(name), info.dtype) for kind in which),
            True,
        )
        for name, info in middle.items()
    ]
    known = {tensor.key for tensor in found}
    others: dict[Key, tuple[int, ...]] = {}
    targets: dict[Key, Key] = {}
    for kind, table in enumerate(kinds):
        back = {own: name for name, own in called[kind].items() if own != name}
        for name, info in table.items():
            key = Key(name, info.dtype)
            if key in known:
                continue
            if others.setdefault(key, info.shape) != info.shape:
                raise CheckpointError(_two_shapes(name, f"step {first_step[kind]}", info.shape, others[key]))
            if name in back and middle[back[name]].dtype == info.dtype:
                targets[key] = Key(back[name], info.dtype)
    for key, shape in others.items():
        at = tuple(_if_dtype(kinds[kind], key.name, key.dtype) for kind in which)
        found.append(PlannedTensor(key, shape, at, at, False, targets.get(key)))
    return found


def tie(planned: Iterable[PlannedTensor], targets: Mapping[Key, Key]) -> list[PlannedTensor]:
    """Make tensors other names of others, which then have their values where they lack them themselves.

    Args:
        targets: by the key of each copy the tensor that it is a copy of, which is none itself.

    Examples:
        >>> tables = [{n: TensorInfo(n, "BF16", (8,)) for n in names} for names in (["a", "b"], ["a"])]
        >>> planned = plan_tensors(tables, [1, 2], main=0)
        >>> [tensor.target for tensor in tie(planned, {Key("b", "BF16"): Key("a", "BF16")})]
        [None, Key(name='a', dtype='BF16')]
    """
    planned = list(planned)
    copies = {tensor.key: tensor for tensor in planned if tensor.key in targets}
    found = []
    for tensor in planned:
        if tensor.key in targets:
            found.append(replace(tensor, target=targets[tensor.key]))
            continue
        at, values, main = tensor.at, tensor.values, tensor.main
        for copy, target in targets.items():
            if target == tensor.key:
                at = tuple(a or b for a, b in zip(at, copies[copy].at, strict=True))
                values = tuple(a or b for a, b in zip(values, copies[copy].values, strict=True))
                main = main or copies[copy].main
        own = targets.get(tensor.target, tensor.target) if tensor.target else None
        found.append(replace(tensor, at=at, values=values, main=main, target=own))
    return found


def check_one_layout(planned: Sequence[PlannedTensor], steps: Sequence[int]) -> None:
    """Refuse steps that differ in more than copies: without the exact tier a file has one list of tensors.

    Raises:
        CheckpointError: they do; the message names the steps to leave out.
    """
    own = [tensor for tensor in planned if tensor.target is None or not tensor.main]
    kinds: dict[tuple[str | None, ...], list[int]] = {}
    for i in range(len(steps)):
        names = tuple(tensor.at[i] for tensor in own if tensor.target is None)
        kinds.setdefault(names, []).append(i)
    if len(kinds) == 1:
        return
    # Those that most steps are like stay; of as many, the later ones.
    kept = max(kinds.values(), key=lambda found: (len(found), found[-1]))
    rest = [i for found in kinds.values() if found is not kept for i in found]
    tensor = next(one for one in own if one.target is None and len({one.at[i] for i in (kept[0], rest[0])}) > 1)
    spelled = spell_steps([steps[i] for i in rest], list(steps))
    leave = f"leave {'it' if len(rest) == 1 else 'them'} out with --exclude-steps {spelled}"
    difference = _difference(tensor, own, steps, kept[0], rest[0])
    raise CheckpointError(f"steps differ: {difference}; {leave}, or keep every step as it is with --exact")


def is_held(tensor: PlannedTensor) -> bool:
    """Tell whether no line goes through a tensor: it is of no such dtype, or of other steps."""
    return not tensor.main or tensor.key.dtype not in FLOATS


def _distinct(tables: Sequence[Table]) -> tuple[list[Table], list[int]]:
    """Return the different tables, and which of them each step has."""
    kinds: list[Table] = []
    which: list[int] = []
    for table in tables:
        number = next((i for i, kind in enumerate(kinds) if kind is table or _same(kind, table)), None)
        if number is None:
            number = len(kinds)
            kinds.append(table)
        which.append(number)
    return kinds, which


def _same(one: Table, other: Table) -> bool:
    return one.keys() == other.keys() and all(
        (info.dtype, info.shape) == (other[name].dtype, other[name].shape) for name, info in one.items()
    )


def _called(table: Table, middle: Table) -> dict[str, str]:
    """Return what a step calls the tensors of the main one."""
    called = {name: name for name in middle if name in table}
    missing = {name: info for name, info in middle.items() if name not in table}
    more = {name: info for name, info in table.items() if name not in middle}
    if missing and more:
        for name, sources in match_tensors(missing, more).items():
            if len(sources) == 1 and more[sources[0].name].shape == missing[name].shape:
                called[name] = sources[0].name
    return called


def _if_dtype(table: Table, name: str | None, dtype: str) -> str | None:
    return name if name is not None and name in table and table[name].dtype == dtype else None


def _if_like(table: Table, name: str | None, dtype: str) -> str | None:
    """Return the name of a tensor whose values a line may go through, or that has the dtype itself."""
    if name is None or name not in table:
        return None
    return name if table[name].dtype == dtype or {table[name].dtype, dtype} <= FLOATS else None


def _check_shapes(table: Table, where: str, middle: Table, elsewhere: str) -> None:
    for name, info in table.items():
        there = middle.get(name)
        if there is None or there.shape == info.shape:
            continue
        for one, other, at in ((info, there, where), (there, info, elsewhere)):
            if is_placeholder(one, other):
                raise CheckpointError(placeholder_message(name, at))
        raise CheckpointError(_two_shapes(name, where, info.shape, there.shape))


def _two_shapes(name: str, where: str, shape: tuple[int, ...], other: tuple[int, ...]) -> str:
    return (
        f"tensor {quote(name)} of {where} is {list(shape)}, expected {list(other)} as at other steps; a run has one "
        "shape of a tensor: leave steps of another one out with --exclude-steps, or encode them as a run of their own"
    )


def _difference(
    tensor: PlannedTensor, planned: Sequence[PlannedTensor], steps: Sequence[int], kept: int, other: int
) -> str:
    """Say what a tensor is at one step and not at another."""
    name = quote(tensor.key.name)
    here, there = (kept, other) if tensor.at[kept] is not None else (other, kept)
    called = tensor.values[there]
    if called is not None and called != tensor.at[here]:
        return f"tensor {name} of step {steps[here]} is called {quote(called)} at step {steps[there]}"
    dtype = next((one.key.dtype for one in planned if one.key.name == tensor.key.name and one.at[there]), None)
    if dtype is not None:
        return f"tensor {name} of step {steps[here]} is {tensor.key.dtype}, at step {steps[there]} it is {dtype}"
    return f"tensor {name} is part of step {steps[here]}, but not of step {steps[there]}"
