"""The plan of what a step takes, against what decoding then reads, for every kind of tensor and every tier."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import relex_codec
from relex_codec.decoding.read_plan import FramePass, KernelPass, OriginPass, ReadPlan
from relex_codec.decoding.tensors import box_at, plan_boxes
from relex_codec.decoding.tiers import StepTier
from relex_codec.kernels.interface import flat
from relex_codec.storage.source import LocalSource, Source
from support.checkpoints import write_checkpoint, write_run
from support.runs import Made
from support.specification import VECTORS
from support.tensors import bf16

PIECE = 1 << 18


class Watched(Source):
    """A source that remembers what was read of it."""

    def __init__(self, inner: Source, name: str, reads: list[tuple[str, int, int]]) -> None:
        self.inner, self.name, self.reads = inner, name, reads
        self.path, self.size = inner.path, inner.size

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        self.reads += [(self.name, a, b) for a, b in ranges if a < b]
        return self.inner.read_many(ranges)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """What is read of files and shards while the test runs."""
    found: list[tuple[str, int, int]] = []

    def watched(path: Any, *args: Any, **options: Any) -> Source:
        name = Path(path).name
        return Watched(LocalSource(path), "file" if name.endswith(".relex") else name, found)

    monkeypatch.setattr("relex_codec.run.run_reader.open_source", watched)
    monkeypatch.setattr("relex_codec.checkpoints.safetensors.open_source", watched)
    return found


@pytest.fixture(scope="module")
def long_files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], tuple[Path, Path]]:
    """A run with a tensor of several pieces."""
    root = tmp_path_factory.mktemp("long")
    size = 5 * PIECE + 1000

    def at(step: int) -> Any:
        values = np.zeros(size, np.float32)
        values[:: PIECE // 2] = step
        values[-500:] = 2 * step
        return {"long": bf16(values + 1), "m": bf16(np.outer(np.arange(40) + step, np.ones(30)))}

    write_checkpoint(root / "base", at(0))
    write_run(root / "run", [1, 2], at)
    for exact in (False, True):
        relex_codec.encode(root / "run", root / f"{exact}.relex", base=root / "base", quality="small", exact=exact)
    return lambda exact: (root / f"{exact}.relex", root / "base")


def covered(ranges: Iterator[tuple[str, int, int]] | Sequence[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """Union of ranges, in order."""
    found: list[tuple[str, int, int]] = []
    for name, start, end in sorted(ranges):
        if found and found[-1][0] == name and start <= found[-1][2]:
            found[-1] = name, found[-1][1], max(end, found[-1][2])
        else:
            found.append((name, start, end))
    return found


def check(
    path: Path, base: Path | None, step: float, tier: str, reads: list[Any], part: Callable[[int], tuple[int, int]]
) -> None:
    """Compare plan and reads: for all tensors together where all of them is read, else tensor by tensor."""
    with relex_codec.open(path, base=base) as run:
        index, decoder = run._reader.container.index, run._reader.decoder
        if index.has_frames:
            # what the exact tier reads to plan: its tables, and the indexes of blocks
            _ = decoder.exact
        wanted = [(tensor, [flat(*part(tensor.size))] if tensor.size else []) for tensor in index.tensors]
        for group in [wanted] if part is everything else [[one] for one in wanted]:
            compare(run, decoder.plan(group, [StepTier(step, run.tier(step, tier=tier))]), reads)


def compare(run: relex_codec.Run, plan: ReadPlan, reads: list[Any]) -> None:
    ranges = list(plan.ranges(run._reader.container.index))
    shards = run._reader.base_reader().checkpoint.shards if any(at.shard is not None for at in ranges) else []
    reads.clear()
    for tensor in plan.tensors:
        for window in tensor.windows:
            run._reader.decoder.decode_window(window, plan.steps)
    planned = [("file" if shard is None else shards[shard], a, b) for shard, a, b in ranges]
    assert covered(planned) == covered(reads)


def everything(size: int) -> tuple[int, int]:
    return 0, size


def middle(size: int) -> tuple[int, int]:
    return size // 3, size // 2


@pytest.mark.slow
@pytest.mark.parametrize("part", [everything, middle])
@pytest.mark.parametrize(
    "options", [{}, {"rank": 2}, {"embed_base": True}, {"exact": True}, {"exact": True, "embed_base": True}], ids=str
)
def test_every_kind_of_tensor(
    zoo_run: Made, zoo_file: Callable[..., Path], options: dict[str, Any], part: Any, reads: Any
) -> None:
    path = zoo_file("default", **options)
    bases = [None, zoo_run.base_path] if "embed_base" in options else [zoo_run.base_path]
    tiers = [(0, "auto"), (9, "line"), (7.5, "track"), (300, "auto"), *([(14, "exact")] if "exact" in options else [])]
    for base in bases:
        for step, tier in tiers:
            check(path, base, step, tier, reads, part)


@pytest.mark.parametrize("part", [everything, middle])
@pytest.mark.parametrize("name", ["sources-concatenated", "sources-ranges", "sources-renamed", "sources-embedded"])
def test_origins_in_parts(name: str, part: Any, reads: Any) -> None:
    """Of each source that an element comes from, what is read is planned, and nothing else."""
    path = VECTORS / "valid" / f"{name}.relex"
    base = None if name == "sources-embedded" else path.with_suffix(".safetensors")
    for step, tier in ((27.5, "auto"), (0, "auto"), (100, "line")):
        check(path, base, step, tier, reads, part)


def test_another_name_reads_what_it_is_a_name_of(reads: Any) -> None:
    path = VECTORS / "valid" / "tied.relex"
    with relex_codec.open(path, base=path.with_suffix(".safetensors")) as run:
        own, other = (plan_boxes(run._reader.decoder, [box_at(run._reader.entry(name))], [StepTier(27.5, "track")])
                      for name in ("embed.weight", "lm_head.weight"))  # fmt: skip
        assert own == other and own.tensors[0].tensor.name == "embed.weight"
        compare(run, other, reads)


@pytest.mark.parametrize("exact", [False, True])
def test_tensors_of_more_pieces_than_are_decoded_at_a_time(
    long_files: Any, exact: bool, reads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relex_codec.decoding.planning.BATCH", 2)
    path, base = long_files(exact)
    for part in (everything, lambda size: (size - 700, size - 100), lambda size: (size // 5, size // 2)):
        check(path, base, 2, "exact" if exact else "track", reads, part)


def test_the_base_is_not_opened_where_nothing_needs_it(zoo_file: Callable[..., Path], reads: Any) -> None:
    with relex_codec.open(zoo_file("default", embed_base=True)) as run:
        boxes = [box_at(tensor) for tensor in run._reader.container.index.tensors]
        plan = plan_boxes(run._reader.decoder, boxes, [StepTier(9, "line"), StepTier(0, "base")])
        assert {at.shard for at in plan.ranges(run._reader.container.index)} == {
            None
        } and run._reader.decoder.base.sources == []
    with relex_codec.open(zoo_file("default"), base="/none") as run:
        run.tensor("added", 9)  # the file has all of it
        with pytest.raises(relex_codec.CheckpointError):
            plan_boxes(run._reader.decoder, [box_at(run._reader.entry("frozen"))], [StepTier(9, "line")])


@pytest.mark.parametrize("index", [(slice(3, 9), slice(4, 20)), (slice(None), slice(10, 30)), 5, ...], ids=str)
@pytest.mark.parametrize("tier", ["track", "exact"])
@pytest.mark.parametrize("whole_windows", [False, True])
def test_boxes_at_several_steps(long_files: Any, index: Any, tier: str, whole_windows: bool, reads: Any) -> None:
    path, base = long_files(tier == "exact")
    with relex_codec.open(path, base=base) as run:
        if tier == "exact":
            _ = run._reader.decoder.exact
        steps = [StepTier(1.0, tier), StepTier(2.0, tier)]
        compare(
            run,
            plan_boxes(
                run._reader.decoder, [box_at(run._reader.entry("m"), index)], steps, whole_windows=whole_windows
            ),
            reads,
        )


def test_steps_of_the_same_bytes_share_a_pass(long_files: Any) -> None:
    path, base = long_files(True)
    steps = [StepTier(1.0, "line"), StepTier(0.0, "base"), StepTier(1.0, "exact"), StepTier(9.0, "line"),
             StepTier(0.0, "base"), StepTier(2.0, "exact"), StepTier(1.0, "exact")]  # fmt: skip
    with relex_codec.open(path, base=base) as run:
        (tensor,) = plan_boxes(run._reader.decoder, [box_at(run._reader.entry("long"))], steps).tensors
        ((window,), passes) = tensor.windows, tensor.windows[0].passes
        assert [(type(one), tuple(one.steps)) for one in passes] == [
            (KernelPass, (0, 3)), (OriginPass, (1, 4)), (FramePass, (2, 6)), (FramePass, (5,)),
        ]  # fmt: skip
        found = run._reader.decoder.decode_window(window, steps)
        for bits, (step, tier) in zip(found, steps, strict=True):
            np.testing.assert_array_equal(
                bits.reshape(-1), run._reader.bits("long", step, "auto" if step == 0 else tier)
            )


def test_a_window_is_read_in_batches_or_as_one(long_files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relex_codec.decoding.planning.BATCH", 2)
    path, base = long_files(False)
    with relex_codec.open(path, base=base) as run:
        size = run._reader.entry("long").size
        for whole, spans in (
            (False, [(0, 2 * PIECE), (2 * PIECE, 4 * PIECE), (4 * PIECE, size)]),
            (True, [(0, size)]),
        ):
            plan = plan_boxes(
                run._reader.decoder, [box_at(run._reader.entry("long"))], [StepTier(2.0, "line")], whole_windows=whole
            )
            (one,) = plan.tensors[0].windows[0].passes
            assert isinstance(one, KernelPass)
            assert [(batch.origin.start, batch.origin.end) for batch in one.batches] == spans
