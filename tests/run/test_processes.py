"""Open runs in other processes, forked or unpickled, and runs that are closed while other threads read them."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import relex_codec
from relex_codec import InvalidArgument, RelexError
from relex_codec.core.blas import single_threaded_blas
from relex_codec.storage.header_cache import HEADER_CACHE
from support.checkpoints import write_checkpoint, write_run
from support.commands import ELSEWHERE
from support.servers.fixtures import Web
from support.tensors import bf16

STEPS = [10, 20, 30]
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


def tensors(step: int) -> dict[str, Any]:
    rng = np.random.default_rng(5)
    start, drift = rng.standard_normal((2, 90, 70))
    return {"w": bf16(start + 0.002 * step * drift), "v": bf16(np.arange(40) + step)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, ``run.relex``, ``other.relex`` of fewer steps, and the base on its own."""
    root = tmp_path_factory.mktemp("processes")
    write_checkpoint(root / "base", tensors(0))
    write_run(root / "run", STEPS, tensors)
    for name, steps in (("run.relex", None), ("other.relex", "10:20")):
        relex_codec.encode(root / "run", root / name, base=root / "base", exact=True, quality="raw", steps=steps)
    return root


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "base", tmp_path / "base")
    shutil.copy(made / "run.relex", tmp_path)
    return tmp_path


def sums(run: relex_codec.Run) -> list[float]:
    return [float(run.tensor("w", step, tier=tier).float().sum()) for step, tier in ((20, "exact"), (25, "track"))]


def python(code: str, *arguments: object) -> str:
    """Run a program, and return what it prints; Python may warn of forks beside threads, which is what is tested."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ELSEWHERE, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- Pickles ----


def test_a_run_is_opened_again_where_it_is_used(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    with relex_codec.open("run.relex", base="base", device="cpu") as run:
        expected, raw = sums(run), pickle.dumps(run)
        for found in (copy.copy(run), copy.deepcopy(run)):
            assert sums(found) == expected
    monkeypatch.chdir("/")  # paths mean what they meant
    found = pickle.loads(raw)
    assert found._reader._opened is None  # nothing yet
    assert (found.steps, found.path, sums(found)) == (STEPS, "run.relex", expected)
    assert "base" in repr(found)
    found.close()
    with pytest.raises(InvalidArgument, match=r"run.relex is closed; open it again before it goes"):
        pickle.dumps(found)
    with pytest.raises(InvalidArgument, match="is closed"):
        pickle.dumps(run)


def test_safe_open_and_its_slices(place: Path) -> None:
    with relex_codec.safe_open(place / "run.relex", step=20) as handle:
        part = handle.get_slice("w")
        found, again = pickle.loads(pickle.dumps((handle, part)))
        assert torch.equal(found.get_tensor("w"), handle.get_tensor("w"))
        assert torch.equal(again[3:5], part[3:5]) and found.keys() == handle.keys()


@pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)")
def test_a_storage_reader(place: Path) -> None:
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    from relex_codec.integrations.dcp import RelexStorageReader
    from support.torch_dcp import ALONE

    reader = pickle.loads(pickle.dumps(RelexStorageReader(place / "run.relex", 20, tier="exact")))
    state = {"w": torch.zeros(90, 70, dtype=torch.bfloat16)}
    dcp.load(state, storage_reader=reader, **ALONE)
    with relex_codec.open(place / "run.relex") as run:
        assert torch.equal(state["w"], run.tensor("w", 20))
    reader.close()


def test_what_was_replaced_meanwhile_is_refused(made: Path, place: Path) -> None:
    run = relex_codec.open(place / "run.relex")
    handle = relex_codec.safe_open(place / "run.relex", step=20)
    raw = pickle.dumps((run, handle))
    shutil.copy(place / "run.relex", place / "same")
    os.utime(place / "same", (1, 1))
    os.replace(place / "same", place / "run.relex")  # the same content is the same file
    assert sums(pickle.loads(raw)[0]) == sums(run)
    shutil.copy(made / "other.relex", place / "run.relex2")
    os.replace(place / "run.relex2", place / "run.relex")
    for found in pickle.loads(raw):
        with pytest.raises(InvalidArgument, match=r"run.relex is another file than the one that was opened before"):
            found.keys()
    os.unlink(place / "run.relex")
    with pytest.raises(FileNotFoundError):
        pickle.loads(raw)[0].tensor("w", 20)
    assert len(sums(run)) == 2  # here it is open


def test_a_resident_run_is_refused(made: Path) -> None:
    with relex_codec.open(made / "run.relex") as run:
        resident = run.resident()
    for make in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(InvalidArgument, match=r"cannot be pickled or copied, it holds .* bytes .*: pickle the Run"):
            make(resident)


def test_with_cloudpickle(made: Path) -> None:
    """As Ray sends what functions refer to."""
    cloudpickle = pytest.importorskip("cloudpickle")
    with relex_codec.open(made / "run.relex") as run:
        assert pickle.loads(cloudpickle.dumps(lambda: sums(run)))() == sums(run)


WORKERS = """
    import sys, torch, relex_codec
    from torch.utils.data import DataLoader, Dataset
    class Steps(Dataset):
        def __init__(self, run): self.run = run
        def __len__(self): return 3
        def __getitem__(self, i): return self.run.tensor("w", self.run.steps[i])
    if __name__ == "__main__":
        run = relex_codec.open(sys.argv[1])
        run.tensor("w", 10)
        loader = DataLoader(Steps(run), batch_size=None, num_workers=1, multiprocessing_context=sys.argv[2])
        assert [torch.equal(t, run.tensor("w", s)) for s, t in zip(run.steps, loader)] == [True] * 3
        print("equal")
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", pytest.param("fork", marks=needs_fork)])
def test_workers_of_a_data_loader(made: Path, tmp_path: Path, method: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(WORKERS))
    command = [sys.executable, "-W", "ignore", str(program), str(made / "run.relex"), method]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert (done.returncode, done.stdout) == (0, "equal\n"), done.stderr


# ---- Forks ----

FORKS = """
    import os, sys, threading, time
    import relex_codec
    run = relex_codec.open(sys.argv[1], base=sys.argv[2])
    def read(run, steps=(20, 25, 99)):
        return [run.tensor(name, step).float().sum().item() for name in ("w", "v") for step in steps]
    expected, stop = read(run), threading.Event()
    def go_on():
        while not stop.is_set():
            assert read(run) == expected
            time.sleep(0.002)
    threads = [threading.Thread(target=go_on) for _ in range(2)]
    [thread.start() for thread in threads]
    steps = run.iter_steps()
    next(steps)
    for number in range(int(sys.argv[3])):
        time.sleep(0.01)
        child = os.fork()
        if not child:
            code = 1
            try:
                assert read(run) == expected
                code = 0
            finally:
                os._exit(code) if number else sys.exit(code)
        until = time.monotonic() + 60
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            if time.monotonic() > until:
                os.kill(child, 9)
                stop.set()
                sys.exit("a child hangs")
            time.sleep(0.001)
        assert status == 0, status
    if run.path.startswith("http"):
        child = os.fork()
        if not child:
            code = 1
            try:
                for _ in steps:
                    pass
                code = 0  # all of it was in memory
            except relex_codec.RelexError as error:
                code = 0 if "before this process was forked" in str(error) else 2
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
    stop.set()
    [thread.join() for thread in threads]
    print("equal")
"""


@pytest.mark.slow
@needs_fork
def test_forked_beside_reading_threads(made: Path) -> None:
    assert python(FORKS, made / "run.relex", made / "base", 4) == "equal\n"


@pytest.mark.slow
@needs_fork
def test_a_remote_run_after_a_fork(made: Path, own_web: Web) -> None:
    own_web.put("run.relex", (made / "run.relex").read_bytes())
    own_web.put("model.safetensors", (made / "base" / "model.safetensors").read_bytes())
    assert python(FORKS, own_web.url("run.relex"), own_web.url("model.safetensors"), 2) == "equal\n"


@needs_fork
def test_locks_and_counters_that_threads_of_the_parent_hold() -> None:
    code = """
        import os, sys, threading, time
        from relex_codec.core.blas import single_threaded_blas
        from relex_codec.core.cancellation import KeyedLock
        from relex_codec.core.forks import new_condition, new_lock
        lock, keys, condition, ready = new_lock(), KeyedLock(), new_condition(), threading.Event()
        def hold():
            with lock, keys.hold(["a"]), condition, single_threaded_blas():
                ready.set()
                time.sleep(60)
        threading.Thread(target=hold, daemon=True).start()
        ready.wait()
        child = os.fork()
        if not child:
            with lock, keys.hold(["a"]), condition, single_threaded_blas():
                os._exit(7)
        until = time.monotonic() + 20
        while not (found := os.waitpid(child, os.WNOHANG))[0]:
            assert time.monotonic() < until, "the child hangs"
            time.sleep(0.01)
        print(os.waitstatus_to_exitcode(found[1]))
        sys.stdout.flush()
        os._exit(0)
    """
    assert python(code) == "7\n"


# ---- Closing ----


@pytest.mark.parametrize("remote", [False, True])
def test_closing_beside_reading_threads(made: Path, own_web: Web, remote: bool) -> None:
    file, base = made / "run.relex", str(made / "base")
    where: Any = file
    if remote:
        own_web.put("run.relex", file.read_bytes())
        where = own_web.url("run.relex")
    others = [made / "other.relex", made / "base" / "model.safetensors"]
    with relex_codec.open(file) as run:
        expected = sums(run)
    for _ in range(3 if remote else 25):
        HEADER_CACHE.clear()
        run = relex_codec.open(where, base=base)
        failures: list[BaseException] = []
        begun = threading.Barrier(4)

        def read(
            run: relex_codec.Run = run, failures: list[BaseException] = failures, begun: threading.Barrier = begun
        ) -> None:
            begun.wait()
            try:
                while True:
                    assert sums(run) == expected
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        begun.wait()
        run.close()
        opened = [os.open(path, os.O_RDONLY) for path in others * 4]  # which get the number that was freed
        for thread in threads:
            thread.join(60)
        for fd in opened:
            os.close(fd)
        assert [type(failure) for failure in failures] == [InvalidArgument] * 3, failures
        assert all("is closed" in str(failure) for failure in failures)


def test_a_descriptor_is_closed_when_the_last_has_read(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = relex_codec.open(made / "run.relex")._reader.container.source
    fd = source._held  # type: ignore[attr-defined]
    pread, seen = os.pread, []

    def slow(number: int, size: int, at: int) -> bytes:
        source.close()
        source.close()
        seen.append(os.fstat(number).st_size)
        return pread(number, size, at)

    monkeypatch.setattr(os, "pread", slow)
    assert source.read(0, 8) == (made / "run.relex").read_bytes()[:8] and seen == [source.size]
    monkeypatch.undo()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    with pytest.raises(RelexError, match="is closed"):
        source.read(0, 8)


# ---- BLAS ----


def blas() -> list[int]:
    from threadpoolctl import threadpool_info

    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def test_blas_threads_are_put_back_after_overlapping_encodes() -> None:
    entered, leave = threading.Event(), threading.Event()

    def first() -> None:
        with single_threaded_blas():
            entered.set()
            leave.wait(60)

    before = blas()
    if not before or set(before) == {1}:
        pytest.skip("this BLAS has one thread")
    thread = threading.Thread(target=first)
    thread.start()
    entered.wait(60)
    with single_threaded_blas():
        assert set(blas()) == {1}
        leave.set()
        thread.join()
        assert set(blas()) == {1}  # one is still at work
    assert blas() == before
    with pytest.raises(KeyError), single_threaded_blas():
        raise KeyError
    assert blas() == before


def test_overlapping_encodes(made: Path, tmp_path: Path) -> None:
    before = blas()

    def encode(number: int) -> None:
        relex_codec.encode(made / "run", tmp_path / f"{number}.relex", base=made / "base")

    threads = [threading.Thread(target=encode, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert blas() == before
    assert (tmp_path / "0.relex").read_bytes() == (tmp_path / "1.relex").read_bytes()
