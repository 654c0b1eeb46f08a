"""Runs that are no files at all: what implements the protocols is encoded as checkpoints on disk are."""

from __future__ import annotations

import doctest
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest

import relex_codec
from relex_codec.checkpoints import checkpoint
from relex_codec.checkpoints.checkpoint import TensorInfo, TensorReader
from relex_codec.checkpoints.safetensors import open_checkpoint
from relex_codec.checkpoints.series import ReaderSeries
from relex_codec.core.dtypes import Bits
from relex_codec.encoding.appended_series import RestoredStep
from relex_codec.encoding.pipeline import RunEncoder
from relex_codec.encoding.planning import plan_run
from relex_codec.encoding.quality import Quality
from relex_codec.encoding.run_source import OpenHere, OpenRun
from relex_codec.encoding.surroundings import surroundings
from relex_codec.errors import CheckpointError
from relex_codec.format.constants import PIECE
from relex_codec.format.writer import FileWriter
from relex_codec.run.run import open as open_run
from support.checkpoints import write_checkpoint, write_run
from support.tensors import Tensor, bf16, f32, random_bits

STEPS = [1, 2, 3, 5, 8]
BUDGET = 64 * 10**6
SIDE = {"config.json": b"{}", "tokenizer.json": b"words"}
RNG = np.random.default_rng(0)
START, DRIFT, LONG = RNG.standard_normal((40, 64)), RNG.standard_normal((40, 64)), RNG.standard_normal(PIECE + 300)


class InMemory(TensorReader):
    """A checkpoint in memory."""

    def __init__(self, weights: Mapping[str, Tensor], files: Mapping[str, bytes] | None = None) -> None:
        self.path = "memory"
        self.tensors = {name: TensorInfo(name, dtype, bits.shape) for name, (dtype, bits) in weights.items()}
        self._weights, self._files = weights, files or {}
        self.side_files = list(self._files)

    def read_into(self, name: str, lo: int, out: Bits) -> None:
        self.check_range(name, lo, out.size)
        out[:] = self._weights[name][1].reshape(-1)[lo : lo + out.size]

    def read_files(self, names: Sequence[str]) -> Iterable[bytes]:
        return [self._files[name] for name in names] if self._files else super().read_files(names)


def weights(step: int) -> dict[str, Tensor]:
    """Matrix, vector of two pieces, scalar and integers; at step 0, the base: a tensor less, and one as float32."""
    wide = START + 0.01 * step * DRIFT
    tensors = {
        "w": bf16(wide) if step else f32(wide),
        "long": bf16(LONG * (1 + 0.001 * step)),
        "scalar": bf16(1 + step),
    }
    if step:
        tensors["extra"] = bf16(START[0] * step)
    return {**tensors, "ids": random_bits("I64", (5,), step % 3), "same": random_bits("U8", (3, 4), 1)}


def in_memory(change: Mapping[int, Mapping[str, Tensor]] | None = None) -> ReaderSeries:
    """The run, with other tensors at some steps."""

    def open_step(index: int) -> InMemory:
        return InMemory({**weights(STEPS[index]), **(change or {}).get(STEPS[index], {})})

    return ReaderSeries(STEPS, open_step)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("embed", [False, True])
def test_the_file_is_the_same_as_from_directories(tmp_path: Path, exact: bool, embed: bool) -> None:
    write_checkpoint(tmp_path / "base", weights(0), side=SIDE)
    write_run(tmp_path / "run", STEPS, weights, side={})
    relex_codec.encode(
        tmp_path / "run", tmp_path / "disk.relex", base=tmp_path / "base", base_uri="base", exact=exact,
        embed_base=embed, observe=5,
    )  # fmt: skip
    series = in_memory()
    with FileWriter(tmp_path / "memory.relex") as writer:
        base = InMemory(weights(0), SIDE)
        plan = plan_run(series, base, 4, exact=exact)
        here = OpenHere(OpenRun(series, base))
        encoder = RunEncoder(plan, here, here, writer, 4, Quality.parse(), 1, embed, BUDGET, exact)
        directories = [None for _ in STEPS]  # called global_step_N, as those of the run are
        around = surroundings(plan, base, encoder.embed_file, embed, exact, "base", directories, [])
        encoder.write(around, progress=False)
    assert (tmp_path / "memory.relex").read_bytes() == (tmp_path / "disk.relex").read_bytes()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base, the run, and a file with everything in it."""
    root = tmp_path_factory.mktemp("readers")
    write_checkpoint(root / "base", weights(0), side=SIDE, shards=2)
    write_run(root / "run", STEPS, weights)
    relex_codec.encode(root / "run", root / "x.relex", base=root / "base", exact=True, embed_base=True, quality="raw")
    return root


Opened = tuple[TensorReader, dict[str, Tensor]]
"""A reader and what it must read."""


@contextmanager
def memory(made: Path) -> Iterator[Opened]:
    yield InMemory(weights(0), SIDE), weights(0)


@contextmanager
def files(made: Path) -> Iterator[Opened]:
    yield open_checkpoint(made / "base"), weights(0)


@contextmanager
def base_with_digests(made: Path) -> Iterator[Opened]:
    with open_run(made / "x.relex", base=made / "base") as run:
        yield run._reader.base_reader(), weights(0)


@contextmanager
def restored_step(made: Path) -> Iterator[Opened]:
    with open_run(made / "x.relex") as run:
        tensors = {name: TensorInfo(name, dtype, bits.shape) for name, (dtype, bits) in weights(3).items()}
        decoder = run._reader.decoder
        yield RestoredStep(decoder, 3, decoder.container.index.layout_of(3), tensors), weights(3)


@pytest.mark.parametrize("kind", [memory, files, base_with_digests, restored_step])
def test_every_kind_keeps_the_contract(made: Path, kind: Callable[[Path], AbstractContextManager[Opened]]) -> None:
    with kind(made) as (reader, expected):
        assert set(reader.tensors) == set(expected)
        slices = []
        for name, (dtype, bits) in expected.items():
            info, size = reader.info(name), bits.size
            assert (info.name, info.dtype, info.shape, info.size) == (name, dtype, bits.shape, size)
            assert 0 <= info.shard < len(reader.shards)
            slices += [(name, 0, size), (name, size, size), (name, size // 3, size - size // 3), (name, size - 1, size)]
            for lo, hi in ((0, size + 1), (-1, 1), (size, size - 1)):
                with pytest.raises(ValueError, match=f"'{name}', which has {size}"):
                    reader.read(name, lo, hi)
        slices += [("long", PIECE - 1, PIECE + 1), ("long", PIECE, PIECE + 2)]
        with ThreadPoolExecutor(4) as pool:
            for (name, lo, hi), found in zip(slices, pool.map(lambda one: reader.read(*one), slices), strict=True):
                wanted = expected[name][1].reshape(-1)[lo:hi]
                assert found.dtype == wanted.dtype
                assert np.array_equal(found, wanted)
        with pytest.raises(CheckpointError, match="has no tensor 'x'"):
            reader.read("x")
        side = {} if kind is restored_step else SIDE
        assert dict(zip(reader.side_files, reader.read_files(reader.side_files), strict=True)) == side
        assert reader.file_sizes() == {name: len(data) for name, data in side.items()}


def test_the_example_runs() -> None:
    failed, tried = doctest.testmod(checkpoint)
    assert (failed, tried > 2) == (0, True)


def test_weights_without_files_have_defaults() -> None:
    reader = InMemory(weights(1))
    assert (reader.shards, reader.indexed, reader.side_files) == (("model.safetensors",), False, [])
    with pytest.raises(CheckpointError, match=r"memory has no file 'config\.json'"):
        reader.read_file("config.json")


def test_what_implements_half_of_it_is_refused() -> None:
    class Half(TensorReader):
        pass

    with pytest.raises(TypeError, match="read_into"):
        Half()  # type: ignore[abstract]  # which is what is tested


def test_steps_with_other_tensors_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"'same' of step 3 is U8 \[4, 3\], expected U8 \[3, 4\] as in step 1"):
        in_memory({3: {"same": random_bits("U8", (4, 3), 1)}}).check()
    with pytest.raises(CheckpointError, match="'new' is part of step 8, but not of step 1"):
        in_memory({8: {"new": bf16([1.0])}}).read("w")
    with pytest.raises(CheckpointError, match="at least one"):
        ReaderSeries([], lambda _: InMemory({}))


def test_a_step_is_opened_once_and_tables_are_shared() -> None:
    opened: list[int] = []
    lock = threading.Lock()

    def open_step(index: int) -> InMemory:
        with lock:
            opened.append(index)
        return InMemory(weights(STEPS[index]))

    series = ReaderSeries(STEPS, open_step)
    assert opened == []  # nothing before it is needed
    series.check()
    expected = np.stack([weights(step)["long"][1] for step in STEPS])
    assert np.array_equal(series.read("long"), expected)
    held = np.zeros((3, 10), np.uint16)
    series.read_into("long", PIECE - 3, held[:, 2:8])
    assert np.array_equal(held[:, 2:8], expected[:3, PIECE - 3 : PIECE + 3])
    assert not held[:, :2].any() and not held[:, 8:].any()
    assert sorted(opened) == list(range(len(STEPS)))
    assert all(series.checkpoint(i).tensors is series.checkpoint(0).tensors for i in range(len(STEPS)))
