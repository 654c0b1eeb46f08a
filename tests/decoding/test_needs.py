"""The plan of what a step needs, against what decoding then reads, for every kind of tensor and every tier."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import relex_codec
from relex_codec.core.indexing import box_of
from relex_codec.decoding.read_plan import Wanted, needs, reads_base
from relex_codec.decoding.reading import wanted_of
from relex_codec.kernels.windows import windows
from relex_codec.storage.source import LocalSource, Source
from support.checkpoints import write_checkpoint, write_run
from support.runs import Made
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
        chosen = run.tier(step, tier=tier)
        if index.has_exact:
            # what the exact tier reads to plan: its tables, and the indexes of blocks
            _ = decoder.exact
        names = run.keys()
        wanted = []
        for name in names:
            lo, hi = part(run._reader.entry(name).size)
            wanted.append(Wanted(decoder.number(name), step, chosen, ((lo, hi),)))
        needs_base = reads_base(index, wanted, decoder.use_embedded)
        checkpoint = run._reader.base_reader().checkpoint if needs_base else None
        for group in [wanted] if part is everything else [[one] for one in wanted]:
            compare(run, group, checkpoint, reads)


def compare(run: relex_codec.Run, wanted: list[Wanted], checkpoint: Any, reads: list[Any]) -> None:
    decoder, index = run._reader.decoder, run._reader.container.index
    plan = list(
        needs(
            index,
            wanted,
            use_embedded=decoder.use_embedded,
            base=checkpoint.tensors if checkpoint else {},
            exact=lambda: decoder.exact,
        )
    )
    reads.clear()
    for one in wanted:
        decoder.read(run.keys()[one.number], one.step, one.tier, *one.spans[0])
    shards = checkpoint.shards if checkpoint else []
    planned = [("file" if shard is None else shards[shard], a, b) for shard, a, b in plan]
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


@pytest.mark.parametrize("exact", [False, True])
def test_tensors_of_more_pieces_than_are_decoded_at_a_time(
    long_files: Any, exact: bool, reads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relex_codec.decoding.tensor_decoder.BATCH", 2, raising=False)
    monkeypatch.setattr("relex_codec.decoding.read_plan.BATCH", 2)
    path, base = long_files(exact)
    for part in (everything, lambda size: (size - 700, size - 100), lambda size: (size // 5, size // 2)):
        check(path, base, 2, "exact" if exact else "track", reads, part)


def test_the_base_is_not_opened_where_nothing_needs_it(zoo_file: Callable[..., Path], reads: Any) -> None:
    with relex_codec.open(zoo_file("default", embed_base=True)) as run:
        wanted = [Wanted(i, 9, "line", ((0, run._reader.entry(name).size),)) for i, name in enumerate(run.keys())]
        assert not reads_base(run._reader.container.index, wanted, True) and reads_base(
            run._reader.container.index, wanted, False
        )
    with relex_codec.open(zoo_file("default"), base="/none") as run:
        for name in ("added", "added_frozen", "added_counter"):  # the file has all of them
            run.tensor(name, 9)


@pytest.mark.parametrize("index", [(slice(3, 9), slice(4, 20)), (slice(None), slice(10, 30)), 5, ...], ids=str)
@pytest.mark.parametrize("tier", ["track", "exact"])
def test_boxes_at_several_steps(long_files: Any, index: Any, tier: str, reads: Any) -> None:
    path, base = long_files(tier == "exact")
    steps = [(1.0, tier), (2.0, tier)]
    with relex_codec.open(path, base=base) as run:
        decoder, shape = run._reader.decoder, run._reader.entry("m").shape
        for window in windows(shape, box_of(shape, index)[0]):
            if tier == "exact":
                decoder._exact = None
                _ = decoder.exact
            checkpoint = run._reader.base_reader().checkpoint
            plan = list(
                needs(
                    run._reader.container.index,
                    wanted_of(decoder, "m", window, steps),
                    use_embedded=False,
                    base=checkpoint.tensors,
                    exact=lambda: decoder.exact,
                )
            )
            reads.clear()
            decoder.read_window("m", steps, window)
            planned = [("file" if shard is None else checkpoint.shards[shard], a, b) for shard, a, b in plan]
            assert covered(planned) == covered(reads)
