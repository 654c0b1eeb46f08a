"""The engine of Ray on a cluster of several nodes, some of which are lost on the way."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'relex-codec[ray]'")
pytest.importorskip("psutil")

import psutil
import ray

import relex_codec
from relex_codec.encoding import unit_plan
from relex_codec.engines import ray as ray_engine
from relex_codec.engines.protocol import Finished, Unit, WorkerLost
from relex_codec.engines.ray import RayEngine, RayOptions
from relex_codec.errors import CheckpointError, InvalidArgument, MissingCheckpoint
from relex_codec.run import replay_units
from support.commands import ELSEWHERE, process
from support.ray_clusters import NODE, Cluster, cluster_of, lose, workers_of
from support.ray_units import Counted, Dies, Fails, Plain, Waits
from support.runs import Made

pytestmark = [pytest.mark.slow, pytest.mark.servers, pytest.mark.filterwarnings("ignore")]
BUDGET = 256 << 20


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head and two nodes of one processor."""
    with cluster_of(2) as made:
        yield made


@pytest.fixture
def nodes(cluster: Cluster) -> list[Any]:
    """Two nodes that do work; those that another test killed are made anew."""
    while len(cluster.worker_nodes) < 2:
        cluster.add_node(**NODE)
    return list(cluster.worker_nodes)


@pytest.fixture
def engine(cluster: Cluster, nodes: list[Any], tmp_path: Path) -> Callable[..., RayEngine]:
    """Makes the engine, connected to the cluster."""
    (tmp_path / "results").mkdir()

    def make(**options: Any) -> RayEngine:
        return RayEngine(RayOptions(cluster.address, **options), BUDGET, str(tmp_path / "results"))

    return make


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], dict[str, int]]:
    """A unit for each tensor, however small; tells how often each was begun."""
    log = tmp_path / "begun"
    submit = RayEngine.submit
    monkeypatch.setattr(unit_plan, "SMALLEST_UNIT", 1)
    monkeypatch.setattr(RayEngine, "submit", lambda self, unit: submit(self, Counted(unit, log)))

    def begun() -> dict[str, int]:
        lines = log.read_text().split()
        log.unlink()
        return {key: lines.count(key) for key in lines}

    return begun


def at_result(monkeypatch: pytest.MonkeyPatch, number: int, do: Callable[[], object]) -> None:
    """Do something once, when so many results have come."""
    finished, come = RayEngine.finished, []

    def count(self: RayEngine) -> Finished:
        come.append(1)
        if len(come) == number:
            do()
        return finished(self)

    monkeypatch.setattr(RayEngine, "finished", count)


def do(engine: RayEngine, *units: Unit) -> dict[str, Finished]:
    """Have units done."""
    with engine:
        for unit in units:
            engine.submit(unit)
        found = [engine.finished() for _ in units]
    assert not ray.is_initialized()
    return {one.key: one for one in found}


def wait_for(units: Sequence[Plain], count: int) -> None:
    """Wait until so many have begun."""
    deadline = time.monotonic() + 60
    while sum(len(unit.begun()) for unit in units) < count:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def error_of(engine: RayEngine, unit: Unit) -> BaseException:
    """What a unit fails with."""
    error = do(engine, unit)[unit.key].error
    assert error is not None
    assert "\n" not in str(error)
    return error


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"exact": True}, id="exact"),
        pytest.param({"quality": "small", "observe": 14, "embed_base": True, "steps": "1:20"}, id="line"),
    ],
)
def test_a_node_is_lost(
    options: dict[str, Any],
    zoo_run: Made,
    cluster: Cluster,
    nodes: list[Any],
    small_units: Callable[[], dict[str, int]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Tensors that move, stand still, or have no line; the file is that of one process."""
    arguments = {"base": zoo_run.base_path, "base_uri": "b", **options}
    relex_codec.encode(zoo_run.run, tmp_path / "here.relex", engine="local", **arguments)
    at_result(monkeypatch, 4, lambda: lose(cluster, nodes[0]))
    relex_codec.encode(zoo_run.run, tmp_path / "ray.relex", engine="ray", address=cluster.address, **arguments)
    assert len(cluster.worker_nodes) == 1
    assert (tmp_path / "here.relex").read_bytes() == (tmp_path / "ray.relex").read_bytes()
    begun = small_units()
    assert len(begun) > 12
    assert sum(begun.values()) - len(begun) <= ray_engine.SMALLEST_QUEUE


def test_a_node_leaves_while_steps_are_appended(
    zoo_run: Made,
    cluster: Cluster,
    nodes: list[Any],
    small_units: Callable[[], dict[str, int]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Old steps are restored by workers, from the file."""
    base = str(zoo_run.base_path)
    old, new = tmp_path / "old.relex", tmp_path / "new.relex"
    relex_codec.encode(zoo_run.run, old, base=base, base_uri=base, exact=True, steps="1:9")
    relex_codec.append(old, [zoo_run.run], output=tmp_path / "here.relex", refit=True, engine="local")
    at_result(monkeypatch, 3, lambda: cluster.remove_node(nodes[1]))
    relex_codec.append(old, [zoo_run.run], output=new, refit=True, engine="ray", address=cluster.address)
    assert new.read_bytes() == (tmp_path / "here.relex").read_bytes()
    assert len(small_units()) > 12


def test_steps_are_appended_without_fitting_again(
    zoo_run: Made, cluster: Cluster, nodes: list[Any], small_units: Callable[[], dict[str, int]], tmp_path: Path
) -> None:
    base = str(zoo_run.base_path)
    old, new = tmp_path / "old.relex", tmp_path / "new.relex"
    relex_codec.encode(zoo_run.run, old, base=base, base_uri=base, exact=True, steps="1:9")
    relex_codec.append(old, [zoo_run.run], output=tmp_path / "here.relex", engine="local")
    relex_codec.append(old, [zoo_run.run], output=new, engine="ray", address=cluster.address)
    assert new.read_bytes() == (tmp_path / "here.relex").read_bytes()
    assert small_units()


def test_steps_are_restored_and_compared(
    zoo_run: Made, cluster: Cluster, nodes: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By workers that write to the directory and read the run themselves; one node is lost on the way."""
    monkeypatch.setattr(replay_units, "SMALLEST_UNIT", 1)
    relex_codec.encode(
        zoo_run.run, tmp_path / "x.relex", base=zoo_run.base_path, base_uri=str(zoo_run.base_path), exact=True
    )

    def contents(name: str) -> dict[str, bytes]:
        found = (path for path in (tmp_path / name).rglob("*") if path.is_file())
        return {str(path.relative_to(tmp_path / name)): path.read_bytes() for path in found}

    with relex_codec.open(tmp_path / "x.relex") as run:
        run.restore(tmp_path / "here", engine="local")
        with monkeypatch.context() as patch:
            at_result(patch, 2, lambda: lose(cluster, nodes[0]))
            run.restore(tmp_path / "out", engine="ray", address=cluster.address)
        assert contents("out") == contents("here")
        shard = next((tmp_path / "out").glob("*_3/*.safetensors"))
        spoiled = bytearray(shard.read_bytes())
        spoiled[-1] ^= 1
        shard.write_bytes(spoiled)
        found = run.verify_against(tmp_path / "out", engine="ray", address=cluster.address)
        assert len(found.differences) == 1 and found == run.verify_against(tmp_path / "out", engine="local")


def test_a_work_directory_goes_on(
    zoo_run: Made,
    cluster: Cluster,
    nodes: list[Any],
    small_units: Callable[[], dict[str, int]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Results that came before the command was stopped are not made again."""
    arguments = {"base": zoo_run.base_path, "base_uri": "b", "exact": True}
    relex_codec.encode(zoo_run.run, tmp_path / "here.relex", engine="local", **arguments)

    def stop() -> None:
        raise KeyboardInterrupt

    def encode() -> None:
        relex_codec.encode(
            zoo_run.run, tmp_path / "ray.relex", engine="ray", address=cluster.address, work_dir=tmp_path / "work",
            **arguments,
        )  # fmt: skip

    with monkeypatch.context() as patch:
        at_result(patch, 9, stop)
        with pytest.raises(KeyboardInterrupt):
            encode()
    first = small_units()
    encode()
    again = small_units()
    assert len(first.keys() - again.keys()) == 8
    assert (tmp_path / "here.relex").read_bytes() == (tmp_path / "ray.relex").read_bytes()


def test_a_worker_is_killed(engine: Callable[..., RayEngine], tmp_path: Path) -> None:
    units = [Dies("d", tmp_path / "log", times=2), *(Plain(key, tmp_path / "log") for key in "abc")]
    found = do(engine(), *units)
    assert all(one.error is None for one in found.values())
    assert (tmp_path / "results" / "d.unit").read_bytes().startswith(b"dddd")
    assert len(units[0].begun()) == 3
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == [f"{key}.unit" for key in "abcd"]


def test_a_worker_is_killed_each_time(
    engine: Callable[..., RayEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "RETRIES", 1)
    unit = Dies("d", tmp_path / "log", times=99)
    error = error_of(engine(), unit)
    assert isinstance(error, WorkerLost)
    assert "2 times" in str(error)
    assert len(unit.begun()) == 2


def test_an_idle_worker_is_killed_with_its_result_unfetched(
    engine: Callable[..., RayEngine], nodes: list[Any], tmp_path: Path
) -> None:
    """A result that is there already goes with its node, and is made again."""
    cluster_units = [Plain(key, tmp_path / "log") for key in "ab"]
    made = engine()
    with made:
        for unit in cluster_units:
            made.submit(unit)
        wait_for(cluster_units, 2)
        time.sleep(1)
        for node in nodes:
            for worker in workers_of(node):
                worker.kill()
        assert sorted(made.finished().key for _ in cluster_units) == ["a", "b"]
    assert len(list((tmp_path / "results").glob("*.unit"))) == 2


@pytest.mark.parametrize("error", [CheckpointError("the shard is cut off"), InvalidArgument("no such thing")])
def test_errors_of_the_package_come_back(error: Exception, engine: Callable[..., RayEngine], tmp_path: Path) -> None:
    unit = Fails("f", tmp_path / "log", error=error)
    found = error_of(engine(), unit)
    assert type(found) is type(error) and str(found) == str(error)
    assert len(unit.begun()) == 1


def test_other_errors_come_back_with_where_they_were_raised(engine: Callable[..., RayEngine], tmp_path: Path) -> None:
    found = error_of(engine(), Fails("f", tmp_path / "log", error=ZeroDivisionError("by zero")))
    assert isinstance(found, ZeroDivisionError)
    assert "ray_units.py" in str(found.__cause__)


def test_a_run_that_workers_do_not_see(engine: Callable[..., RayEngine], tmp_path: Path) -> None:
    found = error_of(engine(), Fails("f", tmp_path / "log", error=MissingCheckpoint("/run does not exist")))
    assert isinstance(found, MissingCheckpoint)
    assert "same path or URL on every node" in str(found)


def test_another_version_on_the_workers(
    engine: Callable[..., RayEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "__version__", "9.9.9")
    unit = Plain("p", tmp_path / "log")
    found = error_of(engine(), unit)
    assert isinstance(found, InvalidArgument)
    assert relex_codec.__version__ in str(found) and "relex-codec==9.9.9" in str(found)
    assert not unit.begun()


def test_what_is_under_way_ends(engine: Callable[..., RayEngine], cluster: Cluster, tmp_path: Path) -> None:
    """Interrupted: tasks end at once, scratch files are gone, the cluster goes on."""
    units = [Waits(key, tmp_path / "log") for key in "abcdef"]
    made = engine()
    with suppress(KeyboardInterrupt), made:
        for unit in units:
            made.submit(unit)
        wait_for(units, 2)
        raise KeyboardInterrupt
    began = [line for unit in units for line in unit.begun()]
    assert len(began) == 2
    assert not any(Path(folder).exists() for _, folder in began)
    assert not list((tmp_path / "results").iterdir())
    shutil.rmtree(tmp_path / "results")
    (tmp_path / "results").mkdir()
    assert do(engine(), Plain("p", tmp_path / "log"))["p"].error is None


def test_what_does_not_hear_is_killed(
    engine: Callable[..., RayEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its scratch files go with the next unit on that node."""
    monkeypatch.setattr(ray_engine, "GRACE", 1.0)
    deaf = Waits("a", tmp_path / "log", hears=600.0)
    begun = time.monotonic()
    with suppress(KeyboardInterrupt), engine() as made:
        made.submit(deaf)
        wait_for([deaf], 1)
        begun = time.monotonic()
        raise KeyboardInterrupt
    assert time.monotonic() - begun < 30
    number, folder = deaf.begun()[0]
    psutil.wait_procs([psutil.Process(int(number))] if psutil.pid_exists(int(number)) else [], timeout=20)
    assert not psutil.pid_exists(int(number))
    assert do(engine(), Plain("p", tmp_path / "log"))["p"].error is None
    assert not Path(folder).exists()


def test_so_many_at_a_time(engine: Callable[..., RayEngine]) -> None:
    with engine() as made:
        assert made.ahead == ray_engine.SMALLEST_QUEUE
    with engine(workers=1) as made:
        assert made.ahead == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_command_that_started_a_cluster_ends(number: signal.Signals, zoo_run: Made, tmp_path: Path) -> None:
    """As from a terminal, which tells all processes of the command; the cluster ends with it."""
    (tmp_path / "scratch").mkdir()
    command = ["encode", zoo_run.run, "-o", tmp_path / "x.relex", "--base", zoo_run.base_path, "--exact"]
    with subprocess.Popen(
        process([*command, "--engine", "ray", "--address", "local", "--workers", 1]), stderr=subprocess.PIPE, text=True,
        start_new_session=True, cwd=ELSEWHERE,
        env={**os.environ, "TMPDIR": str(tmp_path / "scratch"), "RAY_TMPDIR": "/tmp"},
    ) as running:  # fmt: skip
        started = busy_below(running)
        os.killpg(running.pid, number)
        _, said = running.communicate(timeout=60)
    gone, alive = psutil.wait_procs(started, timeout=30)
    assert gone and not alive
    assert not (tmp_path / "x.relex").exists()
    if number == signal.SIGKILL:
        assert running.returncode == -signal.SIGKILL
        return
    assert running.returncode == 128 + number
    assert said.splitlines()[-1].endswith("; nothing incomplete was left"), said
    assert [path.name for path in tmp_path.iterdir()] == ["scratch"] and not list((tmp_path / "scratch").iterdir())


def busy_below(running: subprocess.Popen[str]) -> list[psutil.Process]:
    """Wait until a worker of a command has a unit; return all processes that the command started."""
    deadline = time.monotonic() + 90
    while True:
        assert running.poll() is None, running.communicate()[1]
        assert time.monotonic() < deadline
        found = psutil.Process(running.pid).children(recursive=True)
        for one in found:
            with suppress(psutil.Error):
                if one.cmdline()[:1] and one.cmdline()[0].startswith("ray::tensors"):
                    return found
        time.sleep(0.02)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_no_cluster_there(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = time.monotonic()
    with pytest.raises(InvalidArgument, match=f"no Ray cluster at {address}: start one") as error:
        RayEngine(RayOptions(address), BUDGET, str(tmp_path)).__enter__()
    assert "\n" not in str(error.value)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InvalidArgument, match=f"no Ray cluster at {address}, which RAY_ADDRESS says"):
        RayEngine(RayOptions(), BUDGET, str(tmp_path)).__enter__()
    assert time.monotonic() - begun < 30
