"""Damage, hostile files, kills and full disks: what fails says so, and leaves nothing half done."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import textwrap
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

import relex_codec
from relex_codec import Corrupt, InvalidArgument, RelexError, Truncated, Unsupported
from relex_codec.decoding.stored_pieces import embedded_file
from support.checkpoints import write_checkpoint, write_run
from support.commands import ELSEWHERE
from support.plain import COVERED_ELSEWHERE, FRAME_ENTRIES, Array, File
from support.runs import Made
from support.sources import Held
from support.tensors import bf16, f32, random_bits


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Callable[..., relex_codec.Run]:
    """Open bytes as if they were a file."""

    def open_bytes(data: bytes | bytearray, base: Path | None = None) -> relex_codec.Run:
        monkeypatch.setattr("relex_codec.run.run_reader.open_source", lambda path, options: Held(data))
        return relex_codec.open("held.relex", base=base)

    return open_bytes


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A run of three steps with a tensor of each kind, as small as can be."""
    root = tmp_path_factory.mktemp("small")
    rng = np.random.default_rng(0)
    start, drift = rng.standard_normal((2, 9, 8)) * 0.1
    steps = [2, 3, 7]
    base = {"a": bf16(start), "s": ("I32", np.array([1, 2], np.uint32)), "z": random_bits("BF16", (20,), 3)}

    def at(step: int) -> dict[str, Any]:
        noise = np.random.default_rng(step).standard_normal((9, 8)) * 0.01
        moved = bf16(start + drift * step / 10 + noise)
        return {"a": moved, "s": ("I32", np.array([1, step], np.uint32)), "z": base["z"], "n": moved}

    write_checkpoint(root / "base", base, side={"config.json": b"{}"})
    write_run(root / "run", steps, at)
    return Made(root, steps, base, at)


@pytest.fixture(scope="module")
def small_file(small: Made) -> Path:
    """The run, coded, with its base inside: every entry has bytes."""
    relex_codec.encode(small.run, small.root / "x.relex", base=small.base_path, quality=0.3, embed_base=True)
    file = File(small.root / "x.relex")
    assert all(len(data) for data in file.entries.values()) and len(file.data) < 5000
    return small.root / "x.relex"


def everything(run: relex_codec.Run) -> dict[Any, Any]:
    """All that can be read of a file, with errors where they are raised."""
    found: dict[Any, Any] = {}
    for name in list(run.keys()):
        for step, tier in ((0, "auto"), (2, "auto"), (5, "track"), (9, "line")):
            try:
                found[name, step] = run._reader.bits(name, step, tier).tobytes()
            except RelexError as error:
                found[name, step] = error
    for i in range(len(run._reader.container.index.manifest.files)):
        try:
            found[i] = b"".join(embedded_file(run._reader.container, i))
        except RelexError as error:
            found[i] = error
    return found


LATER = {*COVERED_ELSEWHERE, *FRAME_ENTRIES}
"""Entries that are checked when something of them is read."""


def failed(found: dict[Any, Any], key: Any) -> bool:
    return isinstance(found[key], Corrupt)


# ---- Flips and truncations ----


@pytest.mark.slow
def test_every_flipped_byte_is_found(small_file: Path, opened: Callable[..., relex_codec.Run]) -> None:
    file = File(small_file)
    good = everything(opened(file.data))
    assert not any(isinstance(value, Exception) for value in good.values())
    chances = random.Random(0)
    at_open = dict.fromkeys(file.entries, 0)
    for at in range(len(file.data)):
        damaged = bytearray(file.data)
        damaged[at] ^= chances.choice((0xFF, 1 << chances.randrange(8)))
        where = next((name for name, (lo, hi) in file.places.items() if lo <= at < hi), "header")
        try:
            run = opened(damaged)
        except RelexError:
            at_open[where] = at_open.get(where, 0) + 1
            continue
        assert where in LATER, (where, at)  # everything else is checked on opening
        with pytest.raises(Corrupt, match=where):
            run.verify()
        found = everything(run)
        wrong = {key for key in good if failed(found, key)}
        assert wrong and all(found[key] == good[key] for key in good if key not in wrong), (where, at)
        if where == "relex.coefficients":
            assert {key[1] for key in wrong} <= {2, 5}  # the others need none
    assert all(at_open[name] == (0 if name in LATER else len(data)) for name, data in file.entries.items())
    assert at_open["header"] == file.places["relex.root"][0]


def test_every_truncation_is_found(small_file: Path, opened: Callable[..., relex_codec.Run]) -> None:
    data = small_file.read_bytes()
    kinds = set()
    for length in range(len(data)):
        with pytest.raises((Truncated, Corrupt)) as raised:
            opened(data[:length])
        kinds.add(raised.type)
    assert Truncated in kinds
    with pytest.raises(Truncated, match=str(len(data))):
        opened(data[:-1])
    with pytest.raises(Corrupt, match=str(len(data) + 1)):
        opened(data + b"\0")


def test_files_of_another_kind(small: Made, opened: Callable[..., relex_codec.Run]) -> None:
    for data in (
        b"", b"\0" * 7, b"\0" * 1000, b"relex" * 100, (1 << 63).to_bytes(8, "little") * 10,
        next(small.base_path.glob("*.safetensors")).read_bytes(), b"PK\3\4" + b"\0" * 500,
    ):  # fmt: skip
        with pytest.raises((Truncated, Corrupt)):
            opened(data)


# ---- Files that lie, with checksums that fit ----


def test_a_rebuilt_file_reads_the_same(small_file: Path, opened: Callable[..., relex_codec.Run]) -> None:
    """The lies below are told with this; without a lie the file is good."""
    file = File(small_file)
    again = file.rebuilt({})
    assert everything(opened(again)) == everything(opened(file.data))
    opened(again).verify()


def with_field(file: File, entry: str, offset: int, value: bytes) -> bytes:
    data = file.entries[entry]
    return file.rebuilt({entry: data[:offset] + value + data[offset + len(value) :]})


def with_manifest(file: File, **changes: Any) -> bytes:
    return file.rebuilt({"relex.manifest": json.dumps({**file.manifest, **changes}).encode()})


def lies(file: File) -> dict[str, bytes]:
    """Files whose declared sizes have nothing behind them."""
    huge = 1 << 46
    tensors = file.manifest["tensors"]

    def reshaped(name: str, shape: list[int]) -> list[Any]:
        return [[n, d, shape if n == name else s, o] for n, d, s, o in tensors]

    chunks, records = file.entries["relex.chunks"], file.entries["relex.tensors"]
    return {
        "a shape of a moving tensor": with_manifest(file, tensors=reshaped("a", [huge])),
        "a shape of a framed tensor": with_manifest(file, tensors=reshaped("s", [huge])),
        "a shape of a still tensor": with_manifest(file, tensors=reshaped("z", [huge])),
        "a shape of a stored tensor": with_manifest(file, tensors=reshaped("n", [huge])),
        "a shape that overflows": with_manifest(file, tensors=reshaped("a", [1 << 40, 1 << 40])),
        "an empty shape that overflows": with_manifest(file, tensors=reshaped("a", [0, 1 << 60, 1 << 60])),
        "many dimensions": with_manifest(file, tensors=reshaped("a", [1] * 100)),
        "a file's length": with_manifest(file, files=[[one[0], huge, *one[2:]] for one in file.manifest["files"]]),
        "elements of the base": with_manifest(
            file,
            tensors=[
                [n, d, [huge] if n == "a" else s, [d, [[0, n, [huge], 0, huge]]] if n == "a" else o]
                for n, d, s, o in tensors
            ],
        ),
        "raw lengths of chunks": file.rebuilt(
            {
                "relex.chunks": b"".join(
                    chunks[i : i + 12] + struct.pack("<I", 1 << 21) + chunks[i + 16 : i + 24]
                    for i in range(0, len(chunks), 24)
                )
            }
        ),
        "a raw length beyond the limit": with_field(file, "relex.chunks", 12, struct.pack("<I", 0xFFFFFFFF)),
        "a stored length": with_field(file, "relex.chunks", 8, struct.pack("<I", 0xFFFFFFFF)),
        "a position": with_field(file, "relex.chunks", 0, struct.pack("<Q", (1 << 64) - 8)),
        "a number of directions": with_field(file, "relex.tensors", 2, struct.pack("<H", 0xFFFF)),
        "a rank": with_field(file, "relex.directions", 24, struct.pack("<H", 0xFFFF)),
        "a span's chunk": with_field(file, "relex.directions", 28, struct.pack("<I", 0xFFFFFFFF)),
        "a span's offset": with_field(file, "relex.directions", 32, struct.pack("<I", 0xFFFFFFFF)),
        "no records": file.rebuilt({"relex.tensors": b""}, {"relex.tensors": [0, 32]}),
        "too many records": file.rebuilt(
            {"relex.tensors": records * 50}, {"relex.tensors": [len(records) // 32 * 50, 32]}
        ),
    }


def peak(call: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        call()
    finally:
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return held


LIES = (
    "a shape of a moving tensor", "a shape of a framed tensor", "a shape of a still tensor",
    "a shape of a stored tensor",
    "a shape that overflows", "an empty shape that overflows", "many dimensions", "a file's length",
    "elements of the base",
    "raw lengths of chunks", "a raw length beyond the limit", "a stored length", "a position",
    "a number of directions", "a rank", "a span's chunk", "a span's offset", "no records", "too many records",
)  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_no_declared_size_is_believed(small_file: Path, opened: Callable[..., relex_codec.Run], lie: str) -> None:
    told = lies(File(small_file))
    assert tuple(told) == LIES

    def read() -> None:
        with pytest.raises((Corrupt, Truncated)):
            opened(told[lie])

    assert peak(read) < 1 << 20


@pytest.mark.parametrize("codec", [1, 2])
def test_a_frame_that_says_more_than_its_chunk(
    small_file: Path, opened: Callable[..., relex_codec.Run], codec: int
) -> None:
    """A frame of a gigabyte of zeros in the place of the embedded file's bytes."""
    file = File(small_file)
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(1 << 26))
    if codec == 2:
        bomb = struct.pack("<I", len(bomb)) + bomb
    number = len(file.chunks) - 1
    position, _, raw, *_ = file.chunks[number]
    base = file.entries["relex.data.base"][: position - file.places["relex.data.base"][0]] + bomb
    file.chunks[number] = (position, len(bomb), raw, zlib.crc32(bomb), codec, 0)
    data = file.rebuilt({"relex.data.base": base})
    run = opened(data)

    def read() -> None:
        with pytest.raises(Corrupt, match=r"relex\.data\.base"):
            run.verify()

    assert peak(read) < len(bomb) * 4 + (1 << 20)


@pytest.mark.parametrize("length", [0, 1 << 20, 25_000_001, 1 << 40, (1 << 64) - 1])
def test_a_header_length_that_lies(small_file: Path, opened: Callable[..., relex_codec.Run], length: int) -> None:
    data = struct.pack("<Q", length) + small_file.read_bytes()[8:]

    def read() -> None:
        with pytest.raises((Corrupt, Truncated)):
            opened(data)

    assert peak(read) < 1 << 20


@pytest.mark.slow
def test_tables_of_random_numbers_are_refused_or_read(small_file: Path, opened: Callable[..., relex_codec.Run]) -> None:
    """Any value in any field of a table: an error of this package, or weights; never another error, never memory."""
    file = File(small_file)
    chances = random.Random(1)
    tables = ("relex.tensors", "relex.directions", "relex.chunks", "relex.steps", "relex.digests")
    outcomes = {"refused": 0, "read": 0}
    for _ in range(200):
        name = chances.choice(tables)
        size, data = chances.choice((1, 2, 4, 8)), file.entries[name]
        offset = chances.randrange(0, len(data) - size + 1, size)
        old = int.from_bytes(data[offset : offset + size], "little")
        new = (
            chances.choice((0, 1, 255, 2**31, old + 1, old - 1, chances.getrandbits(8 * size), 2 ** (8 * size) - 1))
            % 256**size
        )
        mutant = with_field(file, name, offset, new.to_bytes(size, "little"))

        def read(mutant: bytes = mutant) -> None:
            try:
                run = opened(mutant)
                run.verify()
            except RelexError:
                outcomes["refused"] += 1
            else:
                outcomes["read"] += 1
                everything(run)

        assert peak(read) < 8 << 20, (name, offset, new)
    assert min(outcomes.values()) > 10


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"relex_version": "2", "reader": "9.1.0"}, Unsupported, "9.1.0"),
        ({"requires": "teleport", "reader": "9.1.0"}, Unsupported, "teleport.*9.1.0"),
        ({"format": "pt"}, Corrupt, "format"),
    ],
)
def test_other_versions(
    small_file: Path, opened: Callable[..., relex_codec.Run], changes: Any, kind: Any, message: str
) -> None:
    file = File(small_file)
    file.metadata |= changes
    with pytest.raises(kind, match=message):
        opened(file.rebuilt({}))


def test_unknown_entries_are_ignored_but_checked(small_file: Path, opened: Callable[..., relex_codec.Run]) -> None:
    file = File(small_file)
    file.shapes["later"], file.entries["later"] = ("U8", [5]), b"hello"
    data = file.rebuilt({})
    run = opened(data)
    run.verify()
    assert everything(run) == everything(opened(file.data))
    with pytest.raises(Corrupt, match="'later'"):
        opened(data[:-1] + b"!").verify()


def test_an_embedded_base_that_differs_from_its_digests(
    small_file: Path, opened: Callable[..., relex_codec.Run]
) -> None:
    file = File(small_file)
    digests = file.entries["relex.digests"]
    run = opened(file.rebuilt({"relex.digests": bytes([digests[0] ^ 1]) + digests[1:]}))
    with pytest.raises(Corrupt, match=r"'a'.*digest"):
        run.verify()
    with pytest.raises(Corrupt):
        run._reader.bits("a", 5)


# ---- Kills ----


SCRIPT = """
import sys, threading, time
import relex_codec
from relex_codec.format import writer
stage, run, base, output = sys.argv[1:]
calls = 0
def stop():
    print("there", flush=True)
    time.sleep(60)
add, copy = writer.ChunkWriter._chunk, writer.shutil.copyfileobj
def chunk(*args):
    add(*args)
    global calls
    calls += 1
    if stage == "chunks" and calls == 2:
        stop()
def copyfileobj(source, target, length=0):
    copy(source, target, length)
    if stage == "layout" and threading.current_thread() is threading.main_thread():  # units are copied on others
        stop()
writer.ChunkWriter._chunk = chunk
writer.shutil.copyfileobj = copyfileobj
relex_codec.encode(run, output, base=base, quality="raw", embed_base=True, overwrite=True)
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT], ids=lambda s: s.name)
@pytest.mark.parametrize("stage", ["chunks", "layout"])
def test_a_killed_encode_leaves_what_was_there(zoo_run: Made, tmp_path: Path, stage: str, sent: signal.Signals) -> None:
    outputs = {"new": tmp_path / "new.relex", "old": tmp_path / "old.relex"}
    outputs["old"].write_bytes(b"what was there")
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, stage, str(zoo_run.run), str(zoo_run.base_path), str(output)],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ELSEWHERE,
        )
        for output in outputs.values()
    ]  # fmt: skip
    for worker in workers:
        assert worker.stdout is not None
        try:
            assert worker.stdout.readline() == b"there\n"
            worker.send_signal(sent)
            assert worker.wait(30) != 0
        finally:
            worker.kill()
            worker.wait()
            worker.stdout.close()
    assert not outputs["new"].exists()
    assert outputs["old"].read_bytes() == b"what was there"
    if sent is signal.SIGINT:
        assert os.listdir(tmp_path) == ["old.relex"]
    else:  # what SIGKILL leaves has no name that anything would read
        assert all(
            name.startswith(".") and not name.endswith(".relex") for name in os.listdir(tmp_path) if name != "old.relex"
        )
    relex_codec.encode(zoo_run.run, outputs["old"], base=zoo_run.base_path, quality="raw", steps="1:2", overwrite=True)
    relex_codec.open(outputs["old"]).close()


# ---- Full disks ----


class FullFile(io.FileIO):
    """A scratch file on a disk that takes so many bytes more."""

    room = 0

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        if size > FullFile.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        FullFile.room -= size
        return int(super().write(data))


@pytest.mark.parametrize("room", [0, 2000, 10_000])
@pytest.mark.parametrize("existing", [False, True])
def test_scratch_files_on_a_full_disk(
    zoo_run: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, existing: bool
) -> None:
    def temporary(dir: str) -> io.BufferedRandom:  # noqa: A002 (the name of tempfile's argument)
        fd, name = tempfile.mkstemp(dir=dir)
        os.unlink(name)
        return io.BufferedRandom(FullFile(fd, "r+b"), 1024)

    if existing:
        (tmp_path / "x.relex").write_bytes(b"what was there")
    monkeypatch.setattr("relex_codec.format.writer.tempfile.TemporaryFile", temporary)
    FullFile.room = room
    with pytest.raises(InvalidArgument, match=r"cannot write .*No space left"):
        relex_codec.encode(
            zoo_run.run, tmp_path / "x.relex", base=zoo_run.base_path, quality="raw", embed_base=True,
            overwrite=existing,
        )  # fmt: skip
    assert os.listdir(tmp_path) == (["x.relex"] if existing else [])
    if existing:
        assert (tmp_path / "x.relex").read_bytes() == b"what was there"


@pytest.mark.parametrize("share", [0, 0.5, 0.9999])
@pytest.mark.parametrize("existing", [False, True])
def test_the_file_itself_on_a_full_disk(
    zoo_run: Made,
    zoo_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    share: float,
    existing: bool,
) -> None:
    left = int(share * zoo_file("raw").stat().st_size)
    write, base = os.write, zoo_run.base_path

    def limited(fd: int, data: Any) -> int:
        nonlocal left
        if left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        part = memoryview(data)[:left]
        left -= len(part)
        return write(fd, part)

    if existing:
        (tmp_path / "x.relex").write_bytes(b"what was there")
    monkeypatch.setattr("relex_codec.storage.local_writer.os.write", limited)
    with pytest.raises(InvalidArgument, match=r"cannot write .*No space left"):
        relex_codec.encode(
            zoo_run.run, tmp_path / "x.relex", base=base, base_uri=str(base), quality="raw", overwrite=existing
        )
    monkeypatch.undo()
    assert os.listdir(tmp_path) == (["x.relex"] if existing else [])
    if existing:
        assert (tmp_path / "x.relex").read_bytes() == b"what was there"


def test_a_full_disk_while_a_step_is_saved(
    zoo_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with relex_codec.open(zoo_file("raw")) as run:
        left = 8000
        write = os.write

        def limited(fd: int, data: Any) -> int:
            nonlocal left
            if left < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            left -= len(data)
            return write(fd, data)

        monkeypatch.setattr("relex_codec.storage.local_writer.os.write", limited)
        with pytest.raises(InvalidArgument, match="No space left"):
            run.save(tmp_path / "out", 5)
    assert os.listdir(tmp_path) == []


def test_a_limit_on_the_size_of_files(zoo_run: Made, tmp_path: Path) -> None:
    """As the operating system stops it, in a process of its own: nothing is left and an existing file stays."""
    (tmp_path / "old.relex").write_bytes(b"what was there")
    script = textwrap.dedent("""
        import resource, sys
        import relex_codec
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
        for output in sys.argv[3:]:
            try:
                relex_codec.encode(sys.argv[1], output, base=sys.argv[2], quality="raw")
            except relex_codec.InvalidArgument as error:
                print(error)
    """)
    found = subprocess.run(
        [sys.executable, "-c", script, zoo_run.run, zoo_run.base_path, tmp_path / "new.relex", tmp_path / "old.relex"],
        cwd=ELSEWHERE, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    assert len(lines) == 2 and all("cannot write" in line for line in lines)
    assert os.listdir(tmp_path) == ["old.relex"] and (tmp_path / "old.relex").read_bytes() == b"what was there"
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 8192


# ---- Runs that change under the encoder ----


def test_a_checkpoint_that_vanishes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = {step: f32(rng.standard_normal((6, 6))) for step in (0, 1, 2)}
    write_checkpoint(tmp_path / "base", {"w": values[0]})
    write_run(tmp_path / "run", [1, 2], lambda step: {"w": values[step]})
    (tmp_path / "run" / "global_step_2" / "model.safetensors").unlink()
    with pytest.raises(relex_codec.CheckpointError, match="global_step_2"):
        relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=tmp_path / "base")
    assert not (tmp_path / "x.relex").exists()


def test_tensors_of_another_shape_in_one_step(tmp_path: Path) -> None:
    start: Array = np.zeros((4, 4))
    write_checkpoint(tmp_path / "base", {"w": f32(start)})
    write_run(tmp_path / "run", [1, 2, 3], lambda step: {"w": f32(start[: 3 if step == 2 else 4] + step)})
    with pytest.raises(relex_codec.CheckpointError, match=r"'w' of step 2 is \[3, 4\], expected \[4, 4\]"):
        relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=tmp_path / "base")
    write_run(tmp_path / "run", [2], lambda step: {"v": f32(start)})
    with pytest.raises(
        relex_codec.CheckpointError, match=r"'w' is part of step 1, but not of step 2; .*--exclude-steps 2, or"
    ):
        relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=tmp_path / "base")
