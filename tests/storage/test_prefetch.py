"""Reading ahead: order, bounds, and that it never changes what is read."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from relex_codec.core.cancellation import CancelScope, check_cancelled
from relex_codec.errors import Corrupt, Truncated
from relex_codec.storage import prefetch as prefetch_module
from relex_codec.storage.prefetch import PlannedRange, Prefetcher, PrefetchingSource

DATA = random.Random(1).randbytes(100_000)


class Inner:
    """What stands for a remote file: remembers what was fetched, waits where it is told to."""

    path, size, version = "inner", len(DATA), None

    def __init__(self) -> None:
        self.fetched: list[tuple[int, int]] = []
        self.direct: list[tuple[int, int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None

    def fetch(self, start: int, end: int) -> bytes:
        self.fetched.append((start, end))
        for _ in range(2000):  # as a request does: until there is an answer, or nobody wants it
            if self.gate.wait(0.01):
                break
            check_cancelled()
        else:
            raise AssertionError("the gate stayed closed")
        if self.error:
            raise self.error
        return DATA[start:end]

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        self.direct += ranges
        return [DATA[a:b] for a, b in ranges]

    def read_into(self, start: int, out: memoryview) -> None:
        out[:] = self.read_many([(start, start + len(out))])[0]

    def is_cached(self, start: int, end: int) -> bool:
        return end <= 100

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch_module, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(prefetch_module, "LONGEST_READ", 1000)


def source() -> tuple[PrefetchingSource, Any]:
    inner = Inner()
    return PrefetchingSource(inner), inner  # type: ignore[arg-type]


def test_planned_reads_come_from_blocks_and_others_from_the_file() -> None:
    file, inner = source()
    ranges = [(i, i + 300) for i in range(0, 30_000, 300)]
    with Prefetcher([PlannedRange(file, *r) for r in ranges]):
        assert file.is_available(600, 900) and file.is_available(0, 50) and not file.is_available(50_000, 50_001)
        for a, b in ranges:
            assert file.read(a, b) == DATA[a:b]
        assert not file.is_available(600, 900)  # used up
        assert inner.direct == []
        assert file.read(600, 900) == DATA[600:900] and file.read(50_000, 50_010) == DATA[50_000:50_010]
        assert inner.direct == [(600, 900), (50_000, 50_010)]
    assert len(inner.fetched) == 30 and sorted(inner.fetched) == [(i, i + 1000) for i in range(0, 30_000, 1000)]
    inner.direct.clear()
    assert file.read(0, 10) == DATA[:10] and inner.direct == [(0, 10)]  # nothing is ahead any more


def test_reads_of_any_shape_and_order_are_right() -> None:
    rng = random.Random(2)
    file, _ = source()
    ranges = [(a, a + rng.randrange(1, 2500)) for a in (rng.randrange(90_000) for _ in range(200))]
    with Prefetcher([PlannedRange(file, *r) for r in ranges], limit=3000):
        rng.shuffle(ranges)
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(lambda r: file.read_many([r, (5, 5)])[0], ranges[:100]))
        assert found == [DATA[a:b] for a, b in ranges[:100]]
        for a, b in ranges[100:]:
            out = bytearray(b - a)
            file.read_into(a, memoryview(out))
            assert out == DATA[a:b]
        with pytest.raises(Truncated):
            file.read(99_999, 100_001)


def test_what_waits_is_bounded() -> None:
    file, inner = source()
    ranges = [(i, i + 1000) for i in range(0, 50_000, 1000)]
    inner.gate.clear()
    with Prefetcher([PlannedRange(file, *r) for r in ranges], limit=4000) as ahead:
        assert ahead._held == 4000
        inner.gate.set()
        for i, (a, b) in enumerate(ranges):
            assert file.read(a, b) == DATA[a:b]
            assert ahead._held <= 4000
            assert len(inner.fetched) <= i + 5
    assert sorted(inner.fetched) == ranges


def test_files_are_fetched_in_the_order_of_their_use() -> None:
    first, inner = source()
    second, other = source()
    uses = [
        use
        for i in range(0, 20_000, 1000)
        for use in (PlannedRange(first, i, i + 1000), PlannedRange(second, i, i + 1000))
    ]
    with Prefetcher(uses, limit=6000, requests=1):
        for use in uses:
            assert use.source.read(use.start, use.end) == DATA[use.start : use.end]
            assert abs(len(inner.fetched) - len(other.fetched)) <= 1
    assert inner.fetched == other.fetched == sorted(inner.fetched)


def test_ranges_that_are_asked_for_twice_are_fetched_once() -> None:
    file, inner = source()
    uses = [PlannedRange(file, 0, 500), PlannedRange(file, 400, 900), PlannedRange(file, 0, 500)]
    with Prefetcher(uses):
        for use in uses:
            assert file.read(use.start, use.end) == DATA[use.start : use.end]
    assert inner.fetched == [(0, 900)] and inner.direct == []


def test_failures_reach_who_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    file, inner = source()
    inner.error = Corrupt("broken")
    with (
        Prefetcher([PlannedRange(file, i, i + 1000) for i in range(0, 50_000, 1000)]),
        pytest.raises(Corrupt, match="broken"),
    ):
        file.read(0, 10)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("relex-prefetch")]
    assert len(inner.fetched) < 50


def test_a_reader_whose_fetching_was_ended_by_another_thread_is_on_its_own() -> None:
    file, inner = source()
    inner.gate.clear()
    ahead = Prefetcher([PlannedRange(file, i, i + 1000) for i in range(0, 5000, 1000)], requests=1)
    with ThreadPoolExecutor(2) as pool:
        with ahead:
            waiting = pool.submit(file.read, 3000, 4000)  # its block waits behind others
            ending = pool.submit(ahead.__exit__)
            inner.gate.set()
            ending.result(20)
        assert waiting.result(20) == DATA[3000:4000]
    assert ahead.take(file, 3000, 3500) is None
    assert file.read(3000, 3500) == DATA[3000:3500]


@pytest.mark.parametrize("how", ["ended", "stopped"])
def test_who_reads_along_goes_on_when_the_one_who_read_ahead_is_gone(how: str) -> None:
    """Blocks that were not begun are cancelled, and those under way are let go of: others fetch them themselves."""
    file, inner = source()
    uses = [PlannedRange(file, start, start + 1000) for start in range(0, 40_000, 1000)]
    inner.gate.clear()
    scope, found = CancelScope(), []
    ahead = scope.bind(Prefetcher)(uses)
    reader = threading.Thread(target=lambda: found.append(CancelScope().bind(file.read)(39_000, 40_000)), daemon=True)
    with ahead:
        reader.start()
        time.sleep(0.2)
        if how == "stopped":
            scope.cancel()
        else:
            threading.Timer(0.3, inner.gate.set).start()  # leaving waits for what is under way
    inner.gate.set()
    reader.join(10)
    assert found == [DATA[39_000:40_000]]
