"""What is read ahead counts as under way for as long as anyone has planned it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import relex_codec
from relex_codec.decoding import fetching
from relex_codec.decoding.read_plan import ReadPlan
from relex_codec.decoding.tensors import box_at, plan_boxes
from relex_codec.decoding.tiers import StepTier
from relex_codec.storage.prefetch import Use


class Reading:
    """Takes the place of storage/prefetch.py: every range needs a request, and what is read ahead is counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun: list[Sequence[Any]] = []
        monkeypatch.setattr(fetching, "PrefetchingSource", object)
        monkeypatch.setattr(fetching, "remote", list)
        monkeypatch.setattr(fetching, "reading", self.reading)

    @contextmanager
    def reading(self, uses: Sequence[Use]) -> Iterator[None]:
        self.begun.append(uses)
        yield


def test_a_plan_is_under_way_as_long_as_anyone_has_it(
    zoo_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with relex_codec.open(zoo_file("default", embed_base=True)) as run:
        reading = Reading(monkeypatch)
        ahead = run.decoder.fetcher.ahead

        def plan(*names: str, step: float = 9.0) -> ReadPlan:
            return plan_boxes(run.decoder, [box_at(run.entry(name)) for name in names], [StepTier(step, "line")])

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
            (run.container.source, at.start, at.end) for at in plan(a, b).ranges(run.container.index)
        ]


def test_local_files_are_not_read_ahead(zoo_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "reading", None)  # nothing of it is begun
    with relex_codec.open(zoo_file("default", exact=True)) as run:
        run.state_dict(9)
        run.check_exact()
