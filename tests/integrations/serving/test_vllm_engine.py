"""Engines of vLLM that serve a run. `tools/vllm.sh` runs these, in an environment that has vLLM."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from served_run import PROMPTS, expected_tokens

HERE = Path(__file__).parent
pytestmark = [
    pytest.mark.servers,
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None,
        reason="vLLM is not installed; tools/vllm.sh sets up an environment for these",
    ),
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``base/`` and ``run.relex``."""
    folder = tmp_path_factory.mktemp("served")
    python("-c", "import pathlib, sys, served_run; served_run.make(pathlib.Path(sys.argv[1]))", str(folder))
    return folder


def python(*arguments: str, timeout: float = 500) -> str:
    """Run Python in this directory; what it prints is shown if it fails."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=HERE, timeout=timeout, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


# vLLM makes no second engine in one process, so each kind of engine is a program, whose checks are assertions.
@pytest.mark.parametrize("program", ["packed_engine", "unpacked_engine", "parallel_engine", "adapters_engine"])
def test_an_engine_has_the_weights_of_each_step(program: str, served: Path) -> None:
    python(f"{program}.py", str(served))


class Serving:
    """A server that ``vllm serve`` has started."""

    def __init__(self, folder: Path, port: int, *options: str) -> None:
        self.url, self.log = f"http://127.0.0.1:{port}", folder / f"server-{port}.log"
        config = json.dumps({"file": str(folder / "run.relex"), "step": 20, "tier": "auto"})
        command = [
            str(Path(sys.executable).parent / "vllm"), "serve", str(folder / "base"), "--load-format", "relex",
            "--model-loader-extra-config", config, "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32",
            "--max-model-len", "64", "--enforce-eager", "--served-model-name", "model", *options,
        ]  # fmt: skip
        environment = {
            **os.environ, "VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    def wait(self, seconds: float = 500) -> None:
        """Wait until it answers."""
        end = time.monotonic() + seconds
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except OSError:
                assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()[-4000:]
                time.sleep(0.5)

    def post(self, path: str, body: Any = None) -> Any:
        """Ask the server as a user would, with nothing of this package."""
        data = b"" if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method="POST")
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.loads(answer.read() or b"null")

    def tokens(self, prompt: list[int]) -> list[int]:
        """What it generates greedily."""
        body = {"model": "model", "prompt": prompt, "max_tokens": 8, "temperature": 0, "logprobs": 0,
                "return_tokens_as_token_ids": True}  # fmt: skip
        found = self.post("/v1/completions", body)["choices"][0]["logprobs"]["tokens"]
        return [int(one.removeprefix("token_id:")) for one in found]

    def stop(self) -> None:
        """End it and its workers."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def server(served: Path) -> Iterator[Serving]:
    """A server with the weight-transfer engine ``relex``."""
    found = Serving(served, free_port(), "--weight-transfer-config", '{"backend": "relex"}')
    try:
        found.wait()
        yield found
    finally:
        found.stop()


@pytest.fixture(scope="module")
def expected(served: Path) -> Callable[[float, list[int]], list[int]]:
    """What transformers generates at a step after a prompt."""
    return partial(expected_tokens, served)


def test_a_server_that_is_started_once_answers_at_ten_steps(server: Serving, expected: Any) -> None:
    from relex_codec.integrations.vllm import switch, verify

    said = set()
    for step in (20, 0, 10, 300, 50, 35, 7.5, 40, 150, 20):
        found = switch(server.url, step)
        assert found.step == step and found.digests is not None and found.unchecked == ()
        tokens = [server.tokens(prompt) for prompt in PROMPTS]
        assert tokens == [expected(step, prompt) for prompt in PROMPTS], step
        said.add(str(tokens))
    assert len(said) > 2  # or the steps could not be told apart
    assert verify(server.url).step == 20


def test_the_servers_own_endpoints_switch(server: Serving, expected: Any) -> None:
    from relex_codec.integrations.vllm import verify

    server.post("/start_weight_update")
    server.post("/update_weights", {"update_info": {"step": 300, "tier": "line"}})
    server.post("/finish_weight_update")
    server.post("/reset_prefix_cache")
    assert verify(server.url)[:2] == (300, "line")
    assert server.tokens(PROMPTS[0]) == expected(300, PROMPTS[0])
    server.post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": "relex:step=10"}})
    server.post("/reset_prefix_cache")
    assert verify(server.url)[:2] == (10, "exact")
    assert server.tokens(PROMPTS[0]) == expected(10, PROMPTS[0])


def test_a_server_refuses_what_cannot_be_and_goes_on(server: Serving, expected: Any) -> None:
    from relex_codec.errors import InvalidArgument, RelexError
    from relex_codec.integrations.vllm import switch, verify

    before = switch(server.url, 40)
    with pytest.raises(InvalidArgument, match="the nearest is 30"):
        switch(server.url, 31, tier="exact")
    with pytest.raises(InvalidArgument, match="does not exist; check the path"):
        switch(server.url, 31, file="/no/such.relex")
    with pytest.raises(RelexError, match="does not answer"):
        switch(f"http://127.0.0.1:{free_port()}", 31)
    assert verify(server.url).digests == before.digests
    assert server.tokens(PROMPTS[0]) == expected(40, PROMPTS[0])


def test_stale_weights_in_a_server_are_noticed(server: Serving) -> None:
    from relex_codec.errors import Corrupt
    from relex_codec.integrations.vllm import switch, verify

    before = switch(server.url, 40)
    server.post("/weight_checker", {"action": "reset"})  # vLLM's own: all parameters become zero
    with pytest.raises(Corrupt, match=r"not those of step 40: .* elements of .* differ"):
        verify(server.url)
    assert switch(server.url, 40) == before


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"step": 800}, "has no 'file'"),
        ({"file": "run.relex"}, "has no 'step'"),
        ({"file": "/no/such.relex", "step": 800}, "does not exist; check the path"),
        ({"file": "run.relex", "step": 800, "teir": "line"}, "has 'teir', expected some of file, step, tier"),
    ],
)
def test_what_a_server_cannot_start_with_is_said_in_one_line(config: Any, words: str, served: Path) -> None:
    code = (
        "import sys, json; from relex_codec.integrations.vllm import plugin; plugin.register()\n"
        "from vllm.config.load import LoadConfig; from vllm.model_executor.model_loader import get_model_loader\n"
        "from relex_codec.integrations.vllm.held import held\n"
        "try: loader = get_model_loader(LoadConfig(load_format='relex', model_loader_extra_config=json.loads("
        "sys.argv[1]))); held(loader.request, '')\n"
        "except ValueError as error: print(error)"
    )
    assert words in python("-c", code, json.dumps(config))
