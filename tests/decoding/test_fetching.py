"""What is planned is fetched, and nothing else is read; it counts as under way for as long as anyone has planned it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import Made

import relex_codec
from relex_codec.decoding import fetching
from relex_codec.decoding.read_plan import ReadPlan
from relex_codec.decoding.tensors import box_at, plan_boxes
from relex_codec.decoding.tiers import StepTier
from relex_codec.storage.prefetch import PlannedRange
from relex_codec.storage.remote import RemoteSource


class Reading:
    """Takes the place of storage/prefetch.py: every range needs a request, and what is read ahead is counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun: list[Sequence[Any]] = []
        monkeypatch.setattr(fetching, "PrefetchingSource", object)
        monkeypatch.setattr(fetching, "ranges_to_fetch", list)
        monkeypatch.setattr(fetching, "prefetching", self.reading)

    @contextmanager
    def reading(self, uses: Sequence[PlannedRange]) -> Iterator[None]:
        self.begun.append(uses)
        yield


def test_a_plan_is_under_way_as_long_as_anyone_has_it(
    zoo_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with relex_codec.open(zoo_file("default", embed_base=True)) as run:
        reading = Reading(monkeypatch)
        ahead = run._reader.decoder.fetcher.ahead

        def plan(*names: str, step: float = 9.0) -> ReadPlan:
            return plan_boxes(
                run._reader.decoder, [box_at(run._reader.entry(name)) for name in names], [StepTier(step, "line")]
            )

        def begins(one: ReadPlan) -> bool:
            before = len(reading.begun)
            with ahead(one):
                return len(reading.begun) > before

        a, b, c = "layers.0.proj.weight", "layers.0.experts", "frozen"
        assert not begins(plan())
        with ahead(plan(a, b)):
            assert not begins(plan(a)) and not begins(plan(b, a)) and begins(plan(c)) and begins(plan(a, step=10.0))
            with ahead(plan(b, c)):
                assert not begins(plan(a, b, c))
            assert not begins(plan(a, b)) and begins(plan(c))
        assert begins(plan(a)) and begins(plan(b))
        assert [tuple(use) for use in reading.begun[0]] == [
            (run._reader.container.source, at.start, at.end) for at in plan(a, b).ranges(run._reader.container.index)
        ]


def test_local_files_are_not_read_ahead(zoo_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "prefetching", None)  # nothing of it is begun
    with relex_codec.open(zoo_file("default", exact=True)) as run:
        run.state_dict(9)
        run.check_exact()


@pytest.mark.parametrize("coefficients_at_open", [0, 1 << 20])
@pytest.mark.parametrize("options", [{}, {"rank": 2, "embed_base": True}, {"exact": True}], ids=str)
def test_nothing_is_read_that_was_not_planned(
    zoo_run: Made,
    zoo_file: Callable[..., Path],
    memory: Any,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    coefficients_at_open: int,
) -> None:
    monkeypatch.setattr("relex_codec.format.reader.COEFFICIENTS_AT_OPEN", coefficients_at_open)
    memory.put(str(zoo_run.base_path), "/base", recursive=True)
    memory.pipe_file("/x.relex", zoo_file("default", **options).read_bytes())
    unplanned: list[tuple[int, int]] = []
    read_many = RemoteSource.read_many

    def watched(self: RemoteSource, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        unplanned.extend(ranges)
        return read_many(self, ranges)

    monkeypatch.setattr(RemoteSource, "is_cached", lambda *_: False)  # not what came when the files were opened either
    monkeypatch.setattr(RemoteSource, "read_many", watched)
    tiers = ["line", "track", *(["exact"] if "exact" in options else [])]
    base = None if "embed_base" in options else "memory://base"
    with (
        relex_codec.open("memory://x.relex", base=base) as run,
        relex_codec.open(zoo_file("default", **options)) as local,
    ):
        boxes = [box_at(tensor) for tensor in run._reader.container.index.tensors]
        for steps in [[StepTier(14.0, tier)] for tier in tiers] + [[StepTier(float(t), "line") for t in (3, 9, 300)]]:
            plan = plan_boxes(run._reader.decoder, boxes, steps)
            unplanned.clear()
            with run._reader.decoder.fetcher.ahead(plan):
                for tensor in plan.tensors:
                    for window in tensor.windows:
                        found = run._reader.decoder.decode_window(window, steps)
                        for bits, (step, tier) in zip(found, steps, strict=True):
                            assert (bits.reshape(-1) == local._reader.bits(tensor.tensor.name, step, tier)).all()
            assert unplanned == []
