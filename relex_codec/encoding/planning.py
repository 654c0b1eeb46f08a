"""What is encoded of a run, from which elements of the base, and in which order: the plan that the pipeline follows.

Headers say most of it (run_plan.py, name_matching.py); copies are found by reading a little (copies.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from relex_codec.checkpoints.checkpoint import CheckpointSeries, TensorInfo, TensorReader
from relex_codec.checkpoints.name_matching import (
    RenameRule,
    Sources,
    compatible,
    match_tensors,
    nothing_in_common,
    unmatched_message,
)
from relex_codec.checkpoints.quantized import held_together
from relex_codec.core.steps import spell_steps
from relex_codec.core.text import quote
from relex_codec.errors import CheckpointError, InvalidArgument
from relex_codec.format.index import Index
from relex_codec.format.manifest import BaseRange, TensorEntry
from relex_codec.format.tensor_record import TensorRecord

from .appended_series import AppendedSeries
from .copies import find_copies, first_difference
from .origin import Origin
from .run_plan import Key, PlannedTensor, Table, check_one_layout, is_held, plan_tensors, tie
from .tensor_steps import TensorSteps


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """A tensor of the file, and all that what is stored of it depends on.

    Attributes:
        number: its place in the file.
        planned: name, dtype, shape, and what the steps call it.
        series: reads it at every step.
        origin: what it starts from.
        sources: where that is in the base; empty: it is stored in the file.
        held: whether no line may go through it.
        codes: the codes that it belongs to, if it is codes or their scales.
        record: number of the tensor of a file that it starts from, where that is appended to.
    """

    number: int
    planned: PlannedTensor
    series: TensorSteps
    origin: Origin
    sources: tuple[BaseRange, ...]
    held: bool
    codes: str | None = None
    record: int | None = None

    @property
    def info(self) -> TensorInfo:
        """Name, dtype and shape."""
        return self.planned.info

    @property
    def entry(self) -> TensorEntry:
        """What the manifest says of it."""
        key, shape = self.planned.key, self.planned.shape
        return TensorEntry(key.name, key.dtype, shape, self.origin.dtype, self.sources)


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """Another name of a tensor.

    Attributes:
        target: the number of that tensor in the file.
    """

    planned: PlannedTensor
    target: int

    @property
    def entry(self) -> TensorEntry:
        """What the manifest says of it."""
        return TensorEntry(*self.planned.key, self.planned.shape, self.planned.key.dtype)


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What is encoded.

    Attributes:
        run: the checkpoints.
        tensors: in the order of the file.
        main: the number of the last observed step, from 0 on.
        notes: what is worth saying about it.
    """

    run: CheckpointSeries
    tensors: list[TensorPlan | CopyPlan]
    main: int
    notes: list[str]

    @property
    def tables(self) -> list[Table]:
        """The tensors of each step."""
        return tables_of(self.run)


def tables_of(run: CheckpointSeries) -> list[Table]:
    """Return the tensors of each step of a run, whose checkpoints are opened."""
    return [run.checkpoint(i).tensors for i in range(len(run.steps))]


def plan_run(
    run: CheckpointSeries, base: TensorReader, observed: int, *, exact: bool, rules: Sequence[RenameRule] = ()
) -> RunPlan:
    """Plan the encoding of a run.

    Args:
        run: its checkpoints may differ in their tensors.
        base: what it started from.
        observed: how many steps are fitted.
        exact: every step is kept as it is; otherwise steps may differ in copies only.
        rules: about names of run and base.

    Raises:
        InvalidArgument: run and base have nothing in common, or a rule fits nothing.
        CheckpointError: steps differ in what the file cannot have.
    """
    main = observed - 1
    _check_one_kind(run)
    planned = plan_tensors(tables_of(run), run.steps, main)
    sources = _sources(planned, base, rules)
    planned = tie(planned, find_copies(run, planned, base, sources))
    if not exact:
        check_one_layout(planned, run.steps)
        planned = [tensor for tensor in planned if tensor.main]
    own = {tensor.key.name: tensor.info for tensor in planned if tensor.target is None and tensor.main}
    of_adapters = run.checkpoint(main).is_adapter
    if not (of_adapters or any(name in sources for name in own)):
        raise InvalidArgument(f"run and base {base.path} share no tensor: {nothing_in_common(own, base.tensors)}")
    unmatched = None if of_adapters else unmatched_message(own, sources, base.tensors)
    planned = _in_order_of(base, planned, sources)
    held = held_together(run.checkpoint(main).tensors)
    numbers = {tensor.key: number for number, tensor in enumerate(planned)}
    plans: list[TensorPlan | CopyPlan] = []
    for tensor in planned:
        if tensor.target is not None:
            plans.append(CopyPlan(tensor, numbers[tensor.target]))
            continue
        series = TensorSteps(run, tensor)
        ranges = sources.get(tensor.key.name, ())
        if not (ranges and compatible(base.info(ranges[0].name), tensor.info)):
            ranges = ()
        origin = Origin.in_base(base, ranges) if ranges else Origin.in_run(series, tensor.key.name)
        plans.append(_plan(len(plans), tensor, series, origin, ranges, held, planned))
    return RunPlan(run, plans, main, [unmatched] if unmatched else [])


def _check_one_kind(run: CheckpointSeries) -> None:
    """Refuse adapters among whole weights: neither has tensors of the other, so no line goes through both."""
    adapters = [step for i, step in enumerate(run.steps) if run.checkpoint(i).is_adapter]
    if adapters and len(adapters) < len(run.steps):
        rest = [step for step in run.steps if step not in set(adapters)]
        kinds = [f"--steps {spell_steps(steps, run.steps)}" for steps in (adapters, rest)]
        raise CheckpointError(
            f"step {adapters[0]} is an adapter, step {rest[0]} whole weights: encode them apart, the adapters with "
            f"{kinds[0]} into one file, the others with {kinds[1]} into another"
        )


def _sources(planned: Sequence[PlannedTensor], base: TensorReader, rules: Sequence[RenameRule]) -> Sources:
    """Return what tensors start from in the base: those of the main step, then what else other steps have."""
    main = {tensor.key.name: tensor.info for tensor in planned if tensor.main}
    sources = match_tensors(main, base.tensors, rules)
    called = {name: tensor.key.name for tensor in planned if tensor.main for name in tensor.values if name is not None}
    others = {tensor.key.name: tensor.info for tensor in planned if tensor.key.name not in main}
    for name in others.keys() & called.keys():
        if called[name] in sources:
            sources[name] = sources[called[name]]
    rest = {name: info for name, info in others.items() if name not in sources}
    return match_tensors(rest, base.tensors) | sources


def _in_order_of(base: TensorReader, planned: Sequence[PlannedTensor], sources: Sources) -> list[PlannedTensor]:
    """Return tensors in the order in which the base has what they start from; what it lacks comes last."""
    places = {name: number for number, name in enumerate(base.tensors)}

    def place(tensor: PlannedTensor) -> tuple[int, int]:
        ranges = sources.get(tensor.key.name)
        return (places[ranges[0].name], ranges[0].first) if ranges else (len(places), 0)

    return sorted(planned, key=place)


def _plan(
    number: int,
    tensor: PlannedTensor,
    series: TensorSteps,
    origin: Origin,
    ranges: tuple[BaseRange, ...],
    held: Mapping[str, str],
    planned: Iterable[PlannedTensor],
) -> TensorPlan:
    names = [tensor.key.name, *(copy.key.name for copy in planned if copy.target == tensor.key)]
    codes = next((held[name] for name in names if name in held), None)
    return TensorPlan(number, tensor, series, origin, ranges, codes is not None or is_held(tensor), codes)


def plan_append(run: AppendedSeries, index: Index, observed: int) -> RunPlan:
    """Plan the encoding of a file's run with further steps: what the file has stays where it is, and starts from.

    Args:
        run: the steps of the file, and further ones.
        index: of the file.
        observed: how many steps are fitted.

    Raises:
        CheckpointError: further steps are not equal in what the file has as copies, have tensors of other shapes, or
            are adapters where the file has whole weights, or the other way round.
    """
    main = observed - 1
    _check_one_kind(run)
    found = plan_tensors(tables_of(run), run.steps, main)
    records = {Key(record.name, record.dtype): record for record in index.tensors}
    copies = _copies_in_file(index)
    _check_copies(run, {tensor.key: tensor for tensor in found}, copies)
    for tensor in found:
        if tensor.target is not None:
            _join(copies, records, tensor.key, tensor.target)
    alone = sorted((tensor for tensor in found if tensor.key not in copies), key=lambda one: one.key not in records)
    known: Sources = {record.name: record.sources for record in index.tensors}
    untied = [replace(tensor, target=None) for tensor in alone]
    found_now = find_copies(run, untied, None, known, first=run.old, kept_as_they_are=records)
    copies = {key: found_now.get(target, target) for key, target in copies.items()} | found_now
    planned = tie([replace(tensor, target=None) for tensor in found], copies)
    by_key = {tensor.key: tensor for tensor in planned}
    if lost := next((key for key in records if key not in by_key), None):
        raise InvalidArgument(
            f"{index.path} has tensor {quote(lost.name)}, which no step has: it cannot be appended to"
        )
    held = held_together(run.checkpoint(main).tensors)
    order = [*records, *(key for key in by_key if key not in records)]
    numbers = {key: number for number, key in enumerate(order)}
    plans: list[TensorPlan | CopyPlan] = []
    for key in order:
        tensor = by_key[key]
        if tensor.target is not None:
            plans.append(CopyPlan(tensor, numbers[tensor.target]))
            continue
        series = TensorSteps(run, tensor, run, records.get(key))
        record = records.get(key) or _like(run, tensor)
        origin = run.origin(record) if record else Origin.in_run(series, key.name)
        ranges = record.sources if record else ()
        number = record.number if record else None
        plans.append(replace(_plan(len(plans), tensor, series, origin, ranges, held, planned), record=number))
    return RunPlan(run, plans, main, [])


def _copies_in_file(index: Index) -> dict[Key, Key]:
    """Return which tensors of a file are other names of which others."""
    return {
        Key(record.name, record.dtype): Key(index.target(record).name, record.dtype)
        for record in index.tensors
        if record.target is not None
    }


def _join(copies: dict[Key, Key], records: Mapping[Key, TensorRecord], one: Key, other: Key) -> None:
    """Make one tensor of two: what a file has of its own keeps its place. Two that it both has so stay two."""
    one, other = copies.get(one, one), copies.get(other, other)
    if one == other or (one in records and other in records):
        return
    kept, gone = (one, other) if one in records else (other, one)
    copies[gone] = kept
    for key, target in copies.items():
        if target == gone:
            copies[key] = kept


def _check_copies(run: AppendedSeries, planned: Mapping[Key, PlannedTensor], copies: Mapping[Key, Key]) -> None:
    """Check that further steps have equal bits where the file has one tensor under two names."""
    for copy, original in copies.items():
        one, other = planned[original], planned[copy]
        step = first_difference(run, one, other, run.old)
        if step is not None:
            raise CheckpointError(
                f"tensor {quote(copy.name)} is a copy of {quote(original.name)} in the file, but not at step "
                f"{run.steps[step]}; encode the whole run again to keep both"
            )


def _like(run: AppendedSeries, tensor: PlannedTensor) -> TensorRecord | None:
    """Return what a file has of a tensor under another name or dtype, if a new one may start from the same."""
    for step, name in enumerate(tensor.values[: run.old]):
        if name is not None:
            record = run.record(step, name)
            origin = TensorInfo(record.name, record.origin_dtype, record.shape)
            if record.sources and compatible(origin, tensor.info):
                return record
    return None
