"""What the vLLM integration decides without an engine: requests, parts of tensors, changes, switching in order."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import relex_codec
from relex_codec.errors import Corrupt, InvalidArgument, RelexError
from relex_codec.format.tensor_record import TensorRecord
from relex_codec.integrations.vllm import bits, client, engines, patching, request, slices
from relex_codec.integrations.vllm.held import HeldRun, held
from relex_codec.integrations.vllm.request import Request, as_path, from_config, from_path
from support.runs import Made


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bits."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def test_nothing_of_vllm_is_imported() -> None:
    code = "import sys, relex_codec, relex_codec.integrations.vllm as v; v.switch; print('vllm' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


# -- requests --------------------------------------------------------------------------------------------------------


def test_a_request_is_what_the_configuration_says() -> None:
    found = from_config({"file": "s3://bucket/run.relex", "step": "800", "tier": "line", "resident": False})
    assert found == Request("s3://bucket/run.relex", 800.0, "line", resident=False)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ([], "expected the like of {"),
        ({"step": 8}, "has no 'file'"),
        ({"file": "a"}, "has no 'step'"),
        ({"file": "a", "step": 8, "teir": "line"}, "has 'teir', expected some of file, step, tier"),
        ({"file": "a", "step": "x"}, "step is 'x', expected a finite number"),
        ({"file": 3, "step": 8}, "'file' is 3"),
        ({"file": "a", "step": 8, "tier": "best"}, "'tier' is 'best', expected one of auto"),
        ({"file": "a", "step": 8, "resident": "no"}, "'resident' is 'no', expected true or false"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(extra: Any, words: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        from_config(extra)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_paths_say_what_they_were_made_of() -> None:
    asked = {"step": 2.5, "tier": "line", "file": "s3://b/a&b=c d.relex", "base": None}
    assert from_path(as_path(asked)) == {"step": "2.5", "tier": "line", "file": "s3://b/a&b=c d.relex"}
    start = from_config({"file": "run.relex", "step": 20, "tier": "exact"})
    assert start.changed(from_path("relex:step=30"), "x") == Request("run.relex", 30.0)
    assert start.changed({"step": 30, "tier": "line", "file": "b.relex"}, "x") == Request("b.relex", 30.0, "line")


@pytest.mark.parametrize("path", ["relex:", "relex:30", "relex:step=1&step=2", "relex:step="])
def test_paths_that_say_nothing_are_refused(path: str) -> None:
    with pytest.raises(InvalidArgument, match="expected the like of relex:step=200"):
        from_path(path)


def test_a_change_needs_a_step_and_nothing_unknown() -> None:
    start = Request("run.relex", 20)
    with pytest.raises(InvalidArgument, match="weights_path has no step"):
        start.changed({"tier": "line"}, "weights_path")
    with pytest.raises(InvalidArgument, match="has 'device', expected some of step, tier, file, base"):
        start.changed({"step": 1, "device": "cpu"}, "weights_path")


# -- runs that are held ----------------------------------------------------------------------------------------------


def test_a_held_run_gives_each_step_and_stays_open(zoo_file: Callable[..., Path], zoo_run: Made) -> None:
    path = zoo_file(exact=True)
    start = Request(str(path), 5)
    run = held(start, str(zoo_run.root / "base"))
    assert held(start.changed({"step": 9}, "x"), str(zoo_run.root / "base")) is run
    with relex_codec.open(path, base=zoo_run.root / "base") as expected:
        for step, tier in ((5, "exact"), (23, "exact"), (5, "track"), (0, "auto")):
            found = dict(run.tensors(Request(str(path), step, tier)))
            whole = expected.state_dict(step, tier=tier)
            assert list(found) == list(whole)
            for name, tensor in whole.items():
                assert same_bits(found[name], tensor), name


def test_a_part_is_decoded_where_a_part_is_needed(tmp_path: Path) -> None:
    path, base = _plain_run(tmp_path)
    needed = {"a": (slice(2, 4), slice(0, 6)), "b": None}
    for resident in (True, False):
        start = Request(str(path), 15, "line", resident=resident)
        run = HeldRun(start, str(base))
        found = dict(run.tensors(start, needed))
        with relex_codec.open(path, base=base) as expected:
            whole = expected.state_dict(15, tier="line")
        assert same_bits(found["a"][2:4], whole["a"][2:4]) and not found["a"][:2].any() and not found["a"][4:].any()
        assert found["b"].shape == whole["b"].shape and not found["b"].any()
        assert same_bits(found["c"], whole["c"])
        assert (run.resident_bytes > 0) == resident
    whole_run = HeldRun(Request(str(path), 15, "line"), str(base))
    assert len(list(whole_run.tensors(Request(str(path), 15, "line")))) == 3
    part = HeldRun(start := Request(str(path), 15, "line"), str(base))
    list(part.tensors(start, needed))
    assert part.resident_bytes < 0.6 * whole_run.resident_bytes


def test_a_step_that_is_not_there_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    path, base = _plain_run(tmp_path)
    run = HeldRun(Request(str(path), 15), str(base))
    with pytest.raises(InvalidArgument, match="reaches from step 10 to 20"):
        run.tier(Request(str(path), 25, "track"))


def _plain_run(folder: Path) -> tuple[Path, Path]:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    shapes = {"a": (6, 6), "b": (40, 40), "c": (5,)}
    start = {name: torch.randn(shape).bfloat16() for name, shape in shapes.items()}
    drift = {name: torch.randn(shape) * 0.01 for name, shape in shapes.items()}
    for step in (0, 10, 20):
        at = folder / ("base" if not step else f"run/checkpoint-{step}")
        at.mkdir(parents=True)
        moved = {name: (one.float() + step * drift[name]).bfloat16() for name, one in start.items()}
        save_file(moved, at / "model.safetensors", {"format": "pt"})
    relex_codec.encode(folder / "run", folder / "run.relex", base=folder / "base")
    return folder / "run.relex", folder / "base"


# -- parts of tensors ------------------------------------------------------------------------------------------------


class _Rank(torch.nn.Module):
    """Loads as a rank of vLLM's does: rows, columns, parts of fused parameters, converted copies, and nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = torch.nn.Parameter(torch.zeros(6, 4))
        self.norm = torch.nn.Parameter(torch.zeros(3))

    def load_weights(self, weights: Any) -> None:
        for name, tensor in weights:
            if name == "q":
                self.fused.data[:2].copy_(tensor.narrow(0, 2, 2))
            elif name == "k":
                self.fused.data[2:4].copy_(tensor.t().narrow(0, 4, 2))
            elif name == "norm":
                self.norm.data.copy_(tensor.float() + 1)
            elif name == "expert":
                self.fused.data[4:].copy_(tensor[3, 1:3])
            elif name == "twice":
                self.norm.data[:1].copy_(tensor[1:2])
                self.norm.data[1:].copy_(tensor[4:6])


def _record(name: str, *shape: int) -> TensorRecord:
    class Record:
        pass

    found: Any = Record()
    found.name, found.shape, found.dtype = name, shape, "BF16"
    return found  # type: ignore[no-any-return]


def test_a_load_without_memory_tells_what_a_rank_takes() -> None:
    model = _Rank()
    shapes = {"q": (8, 4), "k": (4, 8), "norm": (3,), "expert": (5, 4, 4), "twice": (9,), "other": (7, 7)}
    needed = slices.find(model, [_record(name, *shape) for name, shape in shapes.items()])
    assert needed == {
        "q": (slice(2, 4), slice(0, 4)),
        "k": (slice(0, 4), slice(4, 6)),
        "expert": (slice(3, 4), slice(1, 3), slice(0, 4)),
        "twice": (slice(1, 6),),
        "other": None,
    }
    assert not model.fused.any() and not model.norm.any()


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t,
        lambda t: t[2],
        lambda t: t[1:3, 2:, 1],
        lambda t: t.narrow(2, 1, 2),
        lambda t: t.transpose(0, 2)[1:],
        lambda t: t[3:3],
        lambda t: t[::2],
        lambda t: t.reshape(-1)[5:40],
    ],
)
def test_a_box_holds_all_that_a_view_shows(view: Callable[[torch.Tensor], torch.Tensor]) -> None:
    whole = torch.arange(5 * 4 * 3).reshape(5, 4, 3)
    shown = view(whole)
    box = slices.box_of_view((5, 4, 3), shown.storage_offset(), shown.shape, shown.stride())
    if box is not None:
        held_in_box = whole[tuple(slice(*one) for one in box)]
        assert set(shown.flatten().tolist()) <= set(held_in_box.flatten().tolist())


# -- changes ---------------------------------------------------------------------------------------------------------


def test_changes_make_one_tensor_another() -> None:
    before = torch.arange(100, dtype=torch.float32).reshape(10, 10)
    few, many, unknown = before.clone(), before + 1, before.clone()
    few[3, 4], few[0, 0] = 7.5, -0.0
    unknown[2, 2] = torch.nan
    assert patching.change("x", before, before.clone()) is None
    found = patching.change("x", before, few)
    assert found is not None and found.indices is not None
    assert found.indices.tolist() == [0, 34]  # the sign of zero is a change
    assert found.values.tolist() == [0.0, 7.5] and found.shape == (10, 10)
    for other in (many, unknown):
        whole = patching.change("x", before, other)
        assert whole is not None and whole.indices is None and same_bits(whole.values.reshape(10, 10), other)
    integers = patching.change("x", torch.zeros(9, dtype=torch.int64), torch.eye(3, dtype=torch.int64).reshape(-1))
    assert integers is not None and integers.indices is None


def test_digests_are_of_bits() -> None:
    assert bits.differing(torch.tensor([0.0, torch.nan]), torch.tensor([-0.0, torch.nan])) == 1
    assert bits.sha256([torch.tensor([0.0])]) != bits.sha256([torch.tensor([-0.0])])
    assert bits.sha256([torch.eye(3)]) == bits.sha256([torch.eye(3).t()])


# -- switching -------------------------------------------------------------------------------------------------------


class _Engine:
    """Answers as workers do, and notes in which order it is asked."""

    def __init__(self, *, transfer: bool, different: list[dict[str, int]], cache: bool = True) -> None:
        self.said: list[str] = []
        self._transfer, self._different, self._cache = transfer, different, cache

    def rpc(self, method: str, **kwargs: Any) -> list[Any]:
        self.said.append(method)
        if method == "relex_prepare":
            if kwargs["asked"]["step"] > 1000:
                return [{"error": "InvalidArgument", "message": "no such step"}]
            return [{"tier": "line", "transfer": self._transfer}]
        return [{"different": self._different.pop(0), "unchecked": ["scale"], "digest": "d", "values": 1}]

    def update(self, asked: Any, *, whole: bool, transfer: bool) -> None:
        self.said.append(f"update {asked['step']:g}{' whole' if whole else ''}{' transfer' if transfer else ''}")

    def reset_cache(self) -> bool:
        self.said.append("reset")
        return self._cache

    def pause(self, mode: str) -> None:
        self.said.append(f"pause {mode}")

    def resume(self) -> None:
        self.said.append("resume")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., _Engine]:
    def make(**options: Any) -> _Engine:
        found = _Engine(**options)
        monkeypatch.setattr(client, "engine", lambda *_: found)
        return found

    return make


def test_a_switch_pauses_writes_compares_empties_and_goes_on(engine: Callable[..., _Engine]) -> None:
    one = engine(transfer=False, different=[{}])
    found = client.switch(None, 8)
    assert found == client.Switched(8.0, "line", ("d",), ("scale",))
    assert one.said == ["relex_prepare", "pause wait", "update 8", "relex_check", "reset", "resume"]
    one = engine(transfer=False, different=[])
    assert client.switch(None, 8, check=False, pause="keep").digests is None
    assert one.said == ["relex_prepare", "pause keep", "update 8", "reset", "resume"]


def test_what_changes_did_not_mend_is_loaded_whole(engine: Callable[..., _Engine]) -> None:
    one = engine(transfer=True, different=[{"a": 3}, {}])
    assert client.switch(None, 8).digests == ("d",)
    assert one.said[2:5] == ["update 8 transfer", "relex_check", "update 8 whole transfer"]


@pytest.mark.parametrize("transfer", [True, False])
def test_an_engine_with_other_weights_stays_paused(engine: Callable[..., _Engine], transfer: bool) -> None:
    one = engine(transfer=transfer, different=[{"a": 3}, {"a": 1, "b": 2}] if transfer else [{"a": 1, "b": 2}])
    with pytest.raises(Corrupt, match="not those of step 8: 1 elements of 'a' differ"):
        client.switch(None, 8)
    assert "resume" not in one.said and "reset" not in one.said
    one = engine(transfer=False, different=[{}], cache=False)
    with pytest.raises(RelexError, match="could not empty its prefix cache"):
        client.switch(None, 8)
    assert "resume" not in one.said


def test_a_refusal_changes_nothing(engine: Callable[..., _Engine]) -> None:
    one = engine(transfer=True, different=[])
    with pytest.raises(InvalidArgument, match="no such step"):
        client.switch(None, 8000)
    assert one.said == ["relex_prepare"]
    for wrong in ({"pause": "stop"}, {"step": "later"}):
        with pytest.raises(InvalidArgument, match=r"pause is 'stop'|step is 'later'"):
            client.switch(None, **{"step": 8, **wrong})
    assert one.said == ["relex_prepare"]


@pytest.mark.parametrize("what", ["127.0.0.1:8000", None, object()])
def test_what_is_no_engine_is_refused(what: Any) -> None:
    with pytest.raises(InvalidArgument, match="expected"):
        engines.engine(what, None, 1)


@pytest.fixture
def web() -> Iterator[tuple[str, list[tuple[str, Any, str | None]]]]:
    """A server that notes what it is asked; paths with ``no`` are unknown to it, those with ``bad`` fail."""
    said: list[tuple[str, Any, str | None]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            said.append((self.path, json.loads(body or b"null"), self.headers.get("Authorization")))
            code = 404 if "pause" in self.path else 500 if "finish" in self.path else 200
            answer = json.dumps({"results": [{"x": 1}], "success": True, "detail": "bad\nnews"}).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", said
        server.shutdown()
        thread.join()


@pytest.mark.servers
def test_a_server_is_asked_as_vllm_has_its_endpoints(web: tuple[str, list[tuple[str, Any, str | None]]]) -> None:
    url, said = web
    one = engines.engine(f"{url}/v1/", {"Authorization": "Bearer KEY"}, 10)
    assert one.rpc("relex_check") == [{"x": 1}]
    one.update({"step": 8.0, "tier": "auto"}, whole=False, transfer=False)
    assert one.reset_cache()
    assert said == [
        ("/collective_rpc", {"method": "relex_check", "kwargs": {}}, "Bearer KEY"),
        (
            "/collective_rpc",
            {"method": "reload_weights", "kwargs": {"weights_path": "relex:step=8.0&tier=auto"}},
            "Bearer KEY",
        ),
        ("/reset_encoder_cache", None, "Bearer KEY"),
        ("/reset_prefix_cache?reset_running_requests=true&reset_external=true", None, "Bearer KEY"),
    ]
    with pytest.raises(InvalidArgument, match="has no /pause: start the server with VLLM_SERVER_DEV_MODE=1"):
        one.pause("wait")
    with pytest.raises(RelexError, match=r"answered 500: .*bad\\nnews"):
        one.update({"step": 8.0}, whole=True, transfer=True)
    assert said[-2][:2] == ("/update_weights", {"update_info": {"step": 8.0, "whole": True}})


def test_nobody_listens() -> None:
    with pytest.raises(RelexError, match="does not answer"):
        engines.engine("http://127.0.0.1:9", None, 5).resume()
    assert request.SCHEME == "relex:"
