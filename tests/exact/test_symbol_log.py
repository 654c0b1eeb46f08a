"""Symbols are kept in a scratch file where they are many, compressed beyond a bound; they come back as they were."""

from __future__ import annotations

import tempfile
from typing import IO

import numpy as np
import pytest

from relex_codec.exact import segment_writer, symbol_log
from relex_codec.exact.part_coder import Symbols
from relex_codec.exact.segments import PartInfo
from relex_codec.exact.symbol_log import PartSymbols, SymbolLog


def some(seed: int) -> Symbols:
    rng = np.random.default_rng(seed)
    count = [0, 1, 100, 5000, 70_000][seed % 5]
    wide = seed % 2
    records = rng.integers(0, 1 << [3, 16][wide], count, np.uint16)
    raws = rng.integers(0, 1 << [3, 32][wide], count // 3, np.uint32)
    return Symbols(records, raws, seed, [None, b"", b"plain" * seed][seed % 3])


@pytest.mark.parametrize("as_they_are", [0, 10**6, 1 << 30])
@pytest.mark.parametrize("memory", [0, 1000, 1 << 30])
def test_they_come_back(monkeypatch: pytest.MonkeyPatch, memory: int, as_they_are: int) -> None:
    monkeypatch.setattr(symbol_log, "MEMORY", memory)
    monkeypatch.setattr(symbol_log, "AS_THEY_ARE", as_they_are)
    opened: list[IO[bytes]] = []

    def scratch() -> IO[bytes]:
        opened.append(tempfile.TemporaryFile())
        return opened[-1]

    log = SymbolLog(scratch)
    for _ in range(2):  # a group after the other
        parts = [PartSymbols(log, 20) for _ in range(3)]
        for number, part in enumerate(parts):
            for step in (20, *range(1, 20)):
                part.put(step, some(31 * number + step))
        for number, part in enumerate(parts):
            for step in range(1, 21):
                found, wanted = part.get(step), some(31 * number + step)
                assert np.array_equal(found.records, wanted.records) and np.array_equal(found.raws, wanted.raws)
                assert (found.dense, found.plain) == (wanted.dense, wanted.plain)
                assert found.records.flags.writeable and found.records.dtype == np.uint16
                assert found.raws.flags.writeable and found.raws.dtype == np.uint32
                assert part.bounds()[step] == 64 + found.records.nbytes + found.raws.nbytes
        assert sum(int(part.bounds().sum()) - 64 * 21 for part in parts) > 3 * 10**6
        log.clear()
        assert log.size == 0
    assert len(opened) == (memory < 1 << 30)
    for file in opened:
        assert file.seek(0, 2) == 0
        file.close()


def coded(steps: int, kind: str) -> bytes:
    """All blocks of a segment of one group of three parts, one of which never moves."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryFile() as symbols:
        coder = segment_writer.GroupCoder(lambda: symbols, steps)
        for number in range(3):
            bits = np.cumsum(rng.integers(0, 2, (steps + 1, 3000)) * (number != 1), axis=0) + 15_000
            rows = bits.astype(np.uint16 if kind == "BF16" else np.uint32)
            if number == 1:
                coder.add_still(PartInfo(number, 0, kind, 3000), b"\1" * 8)
            else:
                coder.add(PartInfo(number, 0, kind, 3000), list(rows))
        written = bytearray()
        blobs = coder.close(written.extend)
    group = segment_writer.CodedGroup(lambda at, length: bytes(written[at : at + length]), 0, blobs)
    return b"".join(data for _, _, block in segment_writer.blocks_of([group], steps) for data in block)


@pytest.mark.parametrize("kind", ["BF16", "F32"])
def test_memory_does_not_change_what_is_written(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    expected = coded(9, kind)
    monkeypatch.setattr(symbol_log, "MEMORY", 100)
    monkeypatch.setattr(symbol_log, "AS_THEY_ARE", 5000)
    monkeypatch.setattr(segment_writer, "LOT", 1)
    assert coded(9, kind) == expected
