"""How tensors come to host memory, and how what is found is handed to the thread that writes."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from relex_codec.core.torch_dtypes import DTYPES
from relex_codec.journal.boxes import Box
from relex_codec.journal.format import Part
from relex_codec.recording import lots
from relex_codec.recording.handover import Broken, Handover
from relex_codec.recording.lots import Stage


def test_tensors_of_all_kinds_come_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place or through the buffers, in lots and batches of every size, in order."""
    generator = torch.Generator().manual_seed(0)
    values = {
        "in place": torch.randn(70, 30, generator=generator).bfloat16(),
        "another dtype": torch.randn(500, generator=generator),
        "transposed": torch.randn(40, 30, generator=generator).bfloat16().T,
        "every other": torch.randn(400, generator=generator).bfloat16()[::2],
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 3, dtype=torch.bfloat16),
        "of a device": torch.arange(900, dtype=torch.float32),
        "bytes": torch.arange(200, dtype=torch.uint8).reshape(10, 20).T,
    }
    dtypes = {name: "U8" if name == "bytes" else "BF16" for name in values}
    parts = [Part(name, dtypes[name], Box.whole(value.shape), None) for name, value in values.items()]
    expected = [value.to(DTYPES[dtypes[name]]).contiguous() for name, value in values.items()]
    monkeypatch.setattr(lots, "LOT", 64)
    for many, room in ((1, 1 << 20), (3, 512), (1000, 256), (1000, 1 << 20)):
        monkeypatch.setattr(lots, "cpu_count", lambda many=many: many)
        monkeypatch.setattr(lots, "LOTS", 1)
        monkeypatch.setattr(lots, "STAGE", room)
        found: list[list[np.ndarray]] = [[] for _ in parts]
        for batch in Stage().batches(parts, list(values.values())):
            assert len(batch.lots) <= many
            for number, lo, hi in batch.lots:
                bits = batch.read(number, lo, hi)
                assert bits is not None and len(bits) == hi - lo
                found[number].append(bits.copy())
        for part, pieces, value in zip(parts, found, expected, strict=True):
            whole = np.concatenate(pieces) if pieces else np.empty(0, np.uint8)
            assert whole.tobytes() == lots.bits_of(value, part.dtype).tobytes(), part.name


def test_the_other_thread_begins_when_all_is_there() -> None:
    handover: Handover[int] = Handover(10)
    taken: list[int] = []
    thread = threading.Thread(target=lambda: taken.extend(handover))
    thread.start()
    assert handover.put(1, 4) and handover.put(2, 4)
    time.sleep(0.05)
    assert not taken
    handover.end()
    thread.join(10)
    assert taken == [1, 2]


def test_or_when_there_is_no_more_room() -> None:
    handover: Handover[int] = Handover(10)
    taken: list[int] = []
    thread = threading.Thread(target=lambda: taken.extend(handover))
    thread.start()
    assert all(handover.put(number, 4) for number in range(50))
    assert handover.put(50, 1000)  # more than there is ever room for
    assert len(taken) >= 48
    handover.end()
    thread.join(10)
    assert taken == list(range(51))


def test_each_side_may_fail() -> None:
    handover: Handover[int] = Handover(1)
    handover.put(1, 1)
    handover.end(broken=True)
    with pytest.raises(Broken):
        list(handover)
    handover = Handover(1)
    handover.put(1, 1)
    leaving = threading.Timer(0.05, handover.leave)
    leaving.start()
    assert not handover.put(2, 1)  # it had waited for room
    leaving.join()
    assert not handover.put(3, 1)
