"""The way from a file to a device, with the CPU in the device's place."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import relex_codec
from relex_codec import InvalidArgument
from relex_codec.core.threads import prefetched
from relex_codec.decoding import device_transfer, planning
from relex_codec.decoding.tensors import box_at, plan_boxes
from relex_codec.decoding.tiers import StepTier
from relex_codec.kernels import torch_eager
from support.checkpoints import write_checkpoint, write_run
from support.runs import moving
from support.tensors import bf16

Zoo = Callable[..., Path]


@pytest.mark.parametrize("quality", ["raw", "default"])
def test_a_device_gives_the_same_bits(zoo_file: Zoo, monkeypatch: pytest.MonkeyPatch, quality: str) -> None:
    """All kinds of tensors and tiers at several steps at once, whole and in slices."""
    index: dict[str, Any] = {
        "layers.0.proj.weight": (slice(3, 9), slice(5, 50)),
        "layers.0.experts": (slice(1, 2), ...),
    }
    with relex_codec.open(zoo_file(quality, exact=True)) as run:
        expected = run.state_dicts([0, 3, 9, 40], slices=index)
        monkeypatch.setattr("relex_codec.decoding.tensors.is_host", lambda _: False)
        monkeypatch.setattr("relex_codec.decoding.tensors.device_kernel", lambda _: torch_eager.prepare)
        got = run.state_dicts([0, 3, 9, 40], slices=index)
    for one, other in zip(got, expected, strict=True):
        assert list(one) == list(other)
        for name, value in other.items():
            assert one[name].shape == value.shape and one[name].dtype == value.dtype
            assert torch.equal(one[name].reshape(-1).view(torch.uint8), value.reshape(-1).view(torch.uint8)), name


@pytest.mark.slow
def test_a_large_tensor_comes_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several batches of one tensor; host memory is kept until the events say that the device has read it."""
    monkeypatch.setattr(planning, "BATCH", 1)
    waited: list[int] = []
    made: list[int] = []

    class Event:
        def __init__(self) -> None:
            self.number = len(made)
            made.append(self.number)

        def record(self, stream: Any) -> None:
            assert stream == "stream"

        def synchronize(self) -> None:
            waited.append(self.number)

    class DeviceMemory(device_transfer.DeviceMemory):
        def queued(self, host: Any) -> None:
            device, self.device = self.device, torch.device("cuda")
            try:
                super().queued(host)
            finally:
                self.device = device

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: "stream")
    monkeypatch.setattr(device_transfer, "DeviceMemory", DeviceMemory)
    movers = {"w": moving((700, 1200), 1, bf16), "v": moving((90,), 2, bf16)}
    write_checkpoint(tmp_path / "base", {name: base for name, (base, _) in movers.items()})
    write_run(tmp_path / "run", [1, 2], lambda step: {name: at(step) for name, (_, at) in movers.items()})
    relex_codec.encode(tmp_path / "run", tmp_path / "run.relex", base=tmp_path / "base", quality="small")
    with relex_codec.open(tmp_path / "run.relex") as run:
        boxes = [box_at(run._reader.entry(name)) for name in ("w", "v")]
        plan = plan_boxes(run._reader.decoder, boxes, [StepTier(2.0, "track")])
        found = list(device_transfer.decode_on_device(run._reader.decoder, plan, "cpu", torch_eager.prepare))
        for (got,), name in zip(found, ("w", "v"), strict=True):
            value = run.tensor(name, 2)
            assert torch.equal(got.view(torch.uint8), value.reshape(-1).view(torch.uint8))
    assert len(made) >= 4 and waited == made  # in order, all of them in the end


# ---- Working ahead ----


def test_ahead_is_in_order_and_bounded() -> None:
    made: list[int] = []

    def values() -> Iterator[int]:
        for i in range(10):
            made.append(i)
            yield i

    found = []
    for value in prefetched(values(), 2):
        time.sleep(0.005)
        found.append(value)
        assert len(made) <= value + 3
    assert found == list(range(10))


def test_ahead_passes_errors_on_and_stops() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise InvalidArgument("no more")

    found = prefetched(broken(), 3)
    assert next(found) == 1
    with pytest.raises(InvalidArgument, match="no more"):
        next(found)
    made: list[int] = []
    before = threading.active_count()

    def endless() -> Iterator[int]:
        while True:
            made.append(1)
            yield len(made)

    stopped = prefetched(endless(), 2)
    assert next(stopped) == 1
    stopped.close()
    count = len(made)
    time.sleep(0.02)
    assert len(made) == count and threading.active_count() == before


def test_nothing_ahead() -> None:
    assert list(prefetched([], 2)) == []
    assert np.array_equal(list(prefetched(range(3), 1)), [0, 1, 2])
