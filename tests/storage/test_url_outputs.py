"""Encoding, appending, decoding and restoring to URLs: what is there afterwards, and after an interruption."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import relex_codec
from relex_codec.checkpoints.safetensors import open_checkpoint
from relex_codec.errors import CheckpointError, InvalidArgument
from relex_codec.storage.outputs import output_directory
from support.checkpoints import write_checkpoint, write_run
from support.commands import ELSEWHERE, cli, cli_process, failed
from support.faulty import Faulty, waiting
from support.filesystems import upload
from support.servers.fixtures import bucket_on
from support.tensors import Tensor, bf16, f32

pytestmark = pytest.mark.usefixtures("scratch")
STORES = ["moto", "emulator", "azurite"]
STEPS = [10, 20, 30, 40]
SIDE = {"config.json": {"model_type": "test"}, "tokenizer.json": b"{}", "zz.txt": b"the last by name"}


def tensors(step: int) -> dict[str, Tensor]:
    rng = np.random.default_rng(1)
    start, drift = rng.standard_normal((6, 24, 32)) * 0.1, rng.standard_normal((6, 24, 32)) * 0.002
    found = {f"layer.{i}": bf16(start[i] + drift[i] * step) for i in range(5)}
    return {**found, "norm": f32(1 + drift[5, 0] * step), "still": bf16(start[5])}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose base has three shards, ``run.relex`` with the exact tier, and ``single.relex`` of one shard."""
    root = tmp_path_factory.mktemp("made")
    write_checkpoint(root / "base", tensors(0), shards=3, side=SIDE)
    write_checkpoint(root / "single", tensors(0), side=SIDE)
    write_run(root / "run", STEPS, tensors, shards=3)
    relex_codec.encode(root / "run", root / "run.relex", base=root / "base", quality="raw", exact=True, steps="10:30")
    write_run(root / "one", STEPS, tensors)
    relex_codec.encode(root / "one", root / "single.relex", base=root / "single", quality="raw", exact=True)
    return root


@pytest.fixture
def store(
    request: pytest.FixtureRequest, stores: Any, new_clients: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """A bucket that the environment says how to reach, as for a user of the command line."""
    with bucket_on(stores(request.param)) as bucket:
        options = bucket.options
        settings = {
            "s3": {
                "AWS_ENDPOINT_URL": options.get("endpoint_url"),
                "AWS_ACCESS_KEY_ID": options.get("key"),
                "AWS_SECRET_ACCESS_KEY": options.get("secret"),
                "AWS_DEFAULT_REGION": "us-east-1",
            },
            "gs": {"STORAGE_EMULATOR_HOST": options.get("endpoint_url")},
            "az": {"AZURE_STORAGE_CONNECTION_STRING": options.get("connection_string")},
        }
        for name, value in settings[bucket.server.scheme].items():
            monkeypatch.setenv(name, str(value))
        yield bucket


def names(bucket: Any, folder: str = "") -> list[str]:
    bucket.filesystem.invalidate_cache()
    root = f"{bucket.name}/{folder}"
    return sorted(name.removeprefix(root).lstrip("/") for name in bucket.filesystem.find(root))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def contents_of(filesystem: Any, root: str) -> dict[str, bytes]:
    return {name.removeprefix(root).lstrip("/"): filesystem.cat_file(name) for name in filesystem.find(root)}


# ---- From Python ----


def test_what_is_at_a_url_is_what_is_on_disk(made: Path, memory: Any, tmp_path: Path, scratch: Path) -> None:
    upload(memory, made / "run", "/run")
    upload(memory, made / "base", "/base")
    size = relex_codec.encode(
        "memory://run", "memory://out/x.relex", base="memory://base", quality="raw", exact=True, steps="10:30"
    )
    assert memory.size("/out/x.relex") == size
    with relex_codec.open("memory://out/x.relex") as run:
        run.save("memory://decoded", 25)
        assert run.restore("memory://restored", steps="20:") == [20, 30]
    with relex_codec.open(made / "run.relex") as run:
        run.save(tmp_path / "decoded", 25)
        run.restore(tmp_path / "restored", steps="20:")
    for name in ("decoded", "restored"):
        assert contents_of(memory, f"/{name}") == contents(tmp_path / name)
    assert len(memory.find("/decoded")) == 3 + 1 + len(SIDE)
    assert relex_codec.append("memory://out/x.relex", ["memory://run/global_step_40"]) == memory.size("/out/x.relex")
    relex_codec.append(made / "run.relex", [made / "run" / "global_step_40"], output=tmp_path / "appended.relex")
    with relex_codec.open("memory://out/x.relex") as run, relex_codec.open(tmp_path / "appended.relex") as other:
        assert run.steps == other.steps == STEPS
        run.verify()
        assert run.check_exact() == 4
        for name in tensors(0):
            assert run._reader.bits(name, 33).tobytes() == other._reader.bits(name, 33).tobytes()
    relex_codec.append(tmp_path / "appended.relex", [made / "run" / "global_step_40"], step=50,
                       output="memory://out/y.relex")  # fmt: skip
    assert memory.size("/out/y.relex") > 0
    assert waiting(scratch) == []


@pytest.mark.parametrize(("file", "last"), [("run", "model.safetensors.index.json"), ("single", "config.json")])
def test_the_file_that_completes_a_checkpoint_comes_last(made: Path, tmp_path: Path, file: str, last: str) -> None:
    with relex_codec.open(made / f"{file}.relex") as run:
        run.save(f"faulty://{tmp_path}/decoded", 15)
        moved = [os.path.basename(name) for kind, name in Faulty.calls if kind == "mv"]
        assert moved[-1] == last and moved.count(last) == 1
        assert "zz.txt" in moved[:-1] and len(moved) == len(os.listdir(tmp_path / "decoded"))
        Faulty.reset()
        run.restore(f"faulty://{tmp_path}/restored", steps="10:30")
        moved = [name.removeprefix(f"{tmp_path}/restored/") for kind, name in Faulty.calls if kind == "mv"]
        assert sorted(moved[-3:]) == [f"global_step_{step}/{last}" for step in (10, 20, 30)]
        weights = [at for at, name in enumerate(moved) if name.endswith(".safetensors")]
        assert max(weights) == len(weights) - 1  # all weights before all else


@pytest.mark.parametrize("fault", ["error", "interrupt"])
def test_wherever_it_fails_nothing_looks_complete(made: Path, tmp_path: Path, scratch: Path, fault: str) -> None:
    for spared in range(7):
        Faulty.reset()
        Faulty.fault, Faulty.spared = fault, spared
        target = tmp_path / f"out-{spared}"
        with relex_codec.open(made / "run.relex") as run:
            with pytest.raises((InvalidArgument, KeyboardInterrupt)):
                run.save(f"faulty://{target}", 15)
            assert not target.exists()
            Faulty.spared = spared
            with pytest.raises((InvalidArgument, KeyboardInterrupt)):
                run.restore(f"faulty://{target}", steps="10:20")
            assert not target.exists()
    assert waiting(scratch) == []


def test_little_room_restores_in_lots(made: Path, memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    largest = max(path.stat().st_size for path in (made / "base").glob("*.safetensors"))
    with relex_codec.open(made / "run.relex") as run:
        run.restore(tmp_path / "out")
        monkeypatch.setattr("relex_codec.run.restore.shutil.disk_usage", lambda path: usage._replace(free=3 * largest))
        run.restore("memory://out")
        assert contents_of(memory, "/out") == contents(tmp_path / "out")
        monkeypatch.setattr("relex_codec.run.restore.shutil.disk_usage", lambda path: usage._replace(free=largest))
        with pytest.raises(InvalidArgument, match=r"are free in .*; set TMPDIR to a place with more room"):
            run.restore("memory://other")
        assert memory.find("/other") == []
        monkeypatch.setattr("relex_codec.run.restore.shutil.disk_usage", lambda path: usage._replace(total=0, free=0))
        run.restore("memory://unknown")  # a file system that does not tell
        assert contents_of(memory, "/unknown") == contents(tmp_path / "out")


def test_a_lot_holds_no_more_than_its_files(
    made: Path, memory: Any, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither decoding nor restoring keeps a copy of the model here: a file is removed when it is uploaded."""
    held: list[int] = []
    put = type(memory).put_file

    def looking(self: Any, path: str, *args: Any, **kwargs: Any) -> None:
        held.append(len([p for p in scratch.rglob("*") if p.is_file()]))
        put(self, path, *args, **kwargs)

    monkeypatch.setattr(type(memory), "put_file", looking)
    with relex_codec.open(made / "run.relex") as run:
        run.save("memory://decoded", 15)
        assert set(held) == {1}
        held.clear()
        run.restore("memory://restored")
        assert max(held) <= 3  # of each file, that of three steps


def test_a_target_that_is_not_empty_is_refused_before_decoding(
    made: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any) -> None:
        raise AssertionError("decoded")

    memory.pipe_file("/full/x", b"1")
    monkeypatch.setattr("relex_codec.decoding.tensor_decoder.TensorDecoder.plan", never)
    monkeypatch.setattr("relex_codec.exact.replay.replay_all", never)
    with relex_codec.open(made / "run.relex") as run:
        for write in (lambda: run.save("memory://full", 15), lambda: run.restore("memory://full")):
            with pytest.raises(InvalidArgument, match="cannot write memory://full: it exists and is not empty"):
                write()
    assert memory.find("/") == ["/full/x"]


def test_what_cannot_be_written_is_refused_before_anything_is_read(made: Path) -> None:
    for url in ("https://host/x.relex", "hf://org/name/x.relex"):
        with pytest.raises(InvalidArgument, match=f"cannot write {url}"):
            relex_codec.encode("/none", url, base="/none")
        with pytest.raises(InvalidArgument, match=f"cannot write {url}"):
            relex_codec.append(made / "run.relex", ["/none"], output=url)
    for name in ("x.safetensors", "config.json", "thesis.tex", "relex", ".relex", "x.relex/", "x.relex.bak"):
        with pytest.raises(InvalidArgument, match=r"called NAME\.relex"):
            relex_codec.encode("/none", f"memory://{name}", base="/none", overwrite=True)
        with pytest.raises(InvalidArgument, match=r"called NAME\.relex"):
            relex_codec.append(made / "run.relex", ["/none"], output=f"/none/{name}", overwrite=True)


@pytest.mark.parametrize("store", ["emulator", "azurite"], indirect=True)
def test_other_object_stores(made: Path, store: Any, tmp_path: Path, scratch: Path) -> None:
    options, scheme = store.options, store.server.scheme
    store.upload(made / "run", "run")
    store.upload(made / "base", "base")
    file, base = store.url("files.relex/x.relex"), store.url("base")
    size = relex_codec.encode(
        store.url("run"), file, base=base, quality="raw", exact=True, steps="10:30", storage_options={scheme: options}
    )
    there = f"{store.name}/files.relex/x.relex"
    assert (names(store, "files.relex"), store.filesystem.size(there)) == (["x.relex"], size)
    relex_codec.append(file, [store.url("run/global_step_40")], storage_options=options)
    with relex_codec.open(file, storage_options=options) as run:
        run.save(store.url("decoded"), 15, storage_options=options)
        assert run.restore(store.url("again/"), storage_options=options) == STEPS
        run.save(tmp_path / "decoded", 15)
        before = names(store)
        for write in (run.save, lambda url, _, **more: run.restore(url, **more)):
            with pytest.raises(InvalidArgument, match="not empty; choose another place"):
                write(store.url("decoded"), 15, storage_options=options)
            with pytest.raises(InvalidArgument, match="check that the bucket or directory exists") as nowhere:
                write(f"{scheme}://no-such-bucket/x", 15, storage_options=options)
            assert "\n" not in str(nowhere.value) and "RequestId" not in str(nowhere.value)
            store.proxy.fail("403", 1000)
            with pytest.raises(InvalidArgument, match="check the credentials and what they allow"):
                write(store.url("forbidden"), 15, storage_options=options)
            store.proxy.clear()
    with pytest.raises(InvalidArgument, match="is a directory"):
        relex_codec.encode(store.url("run"), store.url("files.relex"), base=base, storage_options=options)
    assert names(store) == before
    assert contents_of(store.filesystem, f"{store.name}/decoded") == contents(tmp_path / "decoded")
    for step in STEPS:
        found = open_checkpoint(store.url(f"again/global_step_{step}"), options)
        for name, (_, bits) in tensors(step).items():
            assert found.read(name).tobytes() == bits.tobytes()
    assert json.loads(cli("info", file, "--json").stdout)["steps"] == STEPS
    assert waiting(scratch) == []


def test_options_reach_every_url(made: Path, moto_bucket: Any, memory: Any, tmp_path: Path) -> None:
    moto_bucket.upload(made / "run", "run")
    upload(memory, made / "base", "/base")
    by = {"s3": moto_bucket.options, "memory": {}}
    out = moto_bucket.url("x.relex")
    relex_codec.encode(moto_bucket.url("run"), out, base="memory://base", quality="raw", storage_options=by)
    with relex_codec.open(out, storage_options=by) as run:
        run.save(moto_bucket.url("decoded"), 15)  # with the options of the file
        run.save("memory://decoded", 15, storage_options={})
    with relex_codec.open(made / "run.relex") as run:
        run.restore(moto_bucket.url("restored"), storage_options=moto_bucket.options)
        run.restore(tmp_path / "restored")
    root = f"{moto_bucket.name}/restored"
    assert contents_of(moto_bucket.filesystem, root) == contents(tmp_path / "restored")
    assert contents_of(memory, "/decoded") == contents_of(moto_bucket.filesystem, f"{moto_bucket.name}/decoded")


# ---- The commands ----


@pytest.mark.parametrize("store", ["moto"], indirect=True)
def test_the_commands(made: Path, store: Any, tmp_path: Path, scratch: Path) -> None:
    store.upload(made / "run", "run")
    store.upload(made / "base", "base")
    file = store.url("files.relex/x.relex")
    done = cli("encode", store.url("run"), "--base", store.url("base"), "-o", file, "--exact", "--steps", "10:30",
               "--quality", "raw")  # fmt: skip
    assert done.returncode == 0 and done.stdout.startswith(f"{file}: 3 steps"), done.stderr
    assert names(store, "files.relex") == ["x.relex"]
    done = cli("encode", store.url("run/global_step_{step}"), "--base", store.url("base"), "-o", store.url("y.relex"))
    assert json.loads(cli("info", store.url("y.relex"), "--json").stdout)["steps"] == STEPS, done.stderr
    done = cli_process("append", file, store.url("run/global_step_40"))
    assert "1 step more: 40; now 4 steps" in done.stdout, done.stderr
    assert json.loads(cli("info", file, "--json").stdout)["base"] == store.url("base")
    assert "as they were written" in cli("verify", file).stdout
    done = cli("decode", file, "--step", 15, "-o", store.url("step-15/"))
    assert done.stdout.startswith(f"{store.url('step-15/')}: step 15 from tier track"), done.stderr
    done = cli("restore", file, "-o", store.url("again"), "--json")
    assert json.loads(done.stdout)["steps"] == STEPS, done.stderr
    with relex_codec.open(made / "single.relex") as run:
        run.restore(tmp_path / "again")
    for step in STEPS:
        found = open_checkpoint(store.url(f"again/global_step_{step}"), store.options)
        for name, (_, bits) in tensors(step).items():
            assert found.read(name).tobytes() == bits.tobytes()
    before = names(store)
    failed(cli_process("decode", file, "--step", 15, "-o", store.url("step-15")), "not empty", "choose another place")
    failed(cli("decode", file, "--step", 15, "-o", "s3://no-such-bucket/x"), "bucket", "exist")
    failed(
        cli("encode", store.url("run"), "--base", store.url("base"), "-o", store.url("files.relex")), "is a directory"
    )
    again = cli("encode", store.url("run"), "--base", store.url("base"), "-o", file)
    failed(again, "4 steps, 10 to 40, of the same base", "`relex-codec append`", "-f")
    failed(
        cli("encode", store.url("run"), "--base", store.url("base"), "-o", "https://h/x.relex"), "https://", "reading"
    )
    failed(cli("restore", file, "-o", "hf://org/run"), "hf upload")
    assert names(store) == before
    assert waiting(scratch) == []


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("store", "sent"),
    [
        *(("moto", sent) for sent in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)),
        ("emulator", signal.SIGINT),
        ("azurite", signal.SIGINT),
    ],
    indirect=["store"],
    ids=str,
)
@pytest.mark.parametrize("command", ["decode", "restore"])
def test_an_interrupted_upload_is_never_taken_for_complete(
    made: Path, store: Any, scratch: Path, command: str, sent: signal.Signals
) -> None:
    store.proxy.latency = 0.15
    step = ("--step", "15") if command == "decode" else ()
    code = "from relex_codec.cli.main import main; main()"
    worker = subprocess.Popen(
        [sys.executable, "-c", code, command, str(made / "run.relex"), *step, "-o", store.url("out")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ELSEWHERE, text=True,
    )  # fmt: skip
    try:
        wait_for(lambda: any("00001-of" in name for name in names(store, "out")), worker)
        worker.send_signal(sent)
        assert worker.wait(30) == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[sent]
        if sent is not signal.SIGKILL:
            assert worker.communicate()[1].endswith("nothing incomplete was left\n")
            assert names(store, "out") == []
            assert waiting(scratch) == []
            return
    finally:
        worker.kill()
        worker.communicate()
    left = names(store, "out")
    assert left and not any(name.endswith(".json") for name in left)
    folder = store.url("out") if command == "decode" else store.url(f"out/{left[0].partition('/')[0]}")
    with pytest.raises(CheckpointError, match=r"shard .* is missing"):
        open_checkpoint(folder, store.options)
    store.proxy.latency = 0
    failed(cli(command, made / "run.relex", *step, "-o", store.url("out")), "not empty", "-f")
    assert [os.path.exists(f"/proc/{name.split('-')[1]}") for name in waiting(scratch)] == [False]  # of the one killed
    done = cli(command, made / "run.relex", *step, "-o", store.url("out"), "-f")
    assert done.returncode == 0, done.stderr
    assert open_checkpoint(folder, store.options).tensors
    assert waiting(scratch) == []


@pytest.mark.parametrize("store", STORES, indirect=True)
def test_an_interrupted_encode_leaves_what_was_there(made: Path, store: Any, scratch: Path) -> None:
    store.put("x.relex", b"old")
    store.proxy.latency = 0.5
    code = "from relex_codec.cli.main import main; main()"
    arguments = ["encode", str(made / "run"), "--base", str(made / "base"), "-f", "-o", store.url("x.relex")]
    worker = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ELSEWHERE, text=True,
    )  # fmt: skip
    try:
        # the empty file that shows that writing is allowed has come and is about to go
        wait_for(lambda: any(seen.method in ("PUT", "POST") for seen in store.proxy.seen), worker)
        worker.send_signal(signal.SIGINT)
        assert worker.wait(30) == 130
        # gcsfs may add, as Python ends, that a request of its own was begun and never awaited
        assert "Error: interrupted; nothing incomplete was left\n" in worker.communicate()[1]
    finally:
        worker.kill()
        worker.communicate()
    assert store.filesystem.cat_file(f"{store.name}/x.relex") == b"old"
    assert waiting(scratch) == []


# ---- Memory ----


SAVE = """
import json, sys
import relex_codec
with relex_codec.open(sys.argv[1]) as run:
    run.save(sys.argv[2], 15, storage_options=json.loads(sys.argv[3]))
# not ru_maxrss, which begins with the resident size of the process that started this one
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.parametrize("store", ["moto", "azurite"], indirect=True)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_the_peak_of_an_upload_is_that_of_its_parts(store: Any, tmp_path: Path) -> None:
    """A file of 240 MB is uploaded with ten parts of 4 or 8 MiB in memory, twice each.

    s3fs and adlfs by themselves hold all of it.
    """
    peaks = {}
    for name, rows in (("small", 8), ("large", 8_000)):
        big = {f"big.{i}": ("BF16", np.zeros((rows, 1000), np.uint16)) for i in range(15)}
        base = write_checkpoint(tmp_path / name / "base", {**big, **tensors(0)})
        for step in (10, 20):  # nothing moves, and nothing is written twice
            shutil.copytree(base, tmp_path / name / f"run/step_{step}", copy_function=os.link)
        file = tmp_path / f"{name}.relex"
        relex_codec.encode(tmp_path / name / "run", file, base=tmp_path / name / "base", quality="raw")
        done = subprocess.run(
            [sys.executable, "-c", SAVE, str(file), store.url(name), json.dumps(store.server.options())],
            capture_output=True, text=True, cwd=ELSEWHERE,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        peaks[name] = int(done.stdout) * 1024
        root = f"{store.name}/{name}/model.safetensors"
        assert store.filesystem.size(root) > 15 * rows * 2000
        store.filesystem.rm(root)
    assert peaks["large"] - peaks["small"] < 220 * 10**6


def test_directories_in_a_directory(memory: Any, tmp_path: Path) -> None:
    """They are made where they are needed, locally and at a URL, and are gone again if anything fails."""

    def write(place: str, *, fail: bool) -> None:
        with output_directory(place) as directory:
            with directory.file("a/b/x.txt") as out:
                out.write(b"x")
            if fail:
                raise RuntimeError("enough")

    before = os.listdir(tmp_path)
    for place in (f"{tmp_path}/out", "memory://out"):
        with pytest.raises(RuntimeError, match="enough"):
            write(place, fail=True)
        assert os.listdir(tmp_path) == before and not memory.exists("/out/a")
    for place in (f"{tmp_path}/out", "memory://out"):
        write(place, fail=False)
    assert (tmp_path / "out" / "a" / "b" / "x.txt").read_bytes() == memory.cat("/out/a/b/x.txt") == b"x"
