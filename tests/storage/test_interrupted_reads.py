"""Ctrl-C while a server has stalled: the command ends, however long the server may be waited for."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import relex_codec
from support.checkpoints import write_checkpoint, write_run
from support.commands import ELSEWHERE
from support.servers.counting import CountingServer
from support.tensors import random_bits


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A run with its base in it and the exact tier; none of it compresses, so that opening reads little of it."""
    root = tmp_path_factory.mktemp("made")
    start = {f"w.{i}": random_bits("BF16", (256, 256), i) for i in range(4)}

    def at(step: int) -> dict[str, Any]:
        return {name: ("BF16", bits ^ np.uint16(step % 3)) for name, (_, bits) in start.items()}

    write_checkpoint(root / "base", start)
    write_run(root / "run", [10, 20, 30], at)
    relex_codec.encode(root / "run", root / "x.relex", base=root / "base", quality="raw", embed_base=True, exact=True)
    return (root / "x.relex").read_bytes()


@pytest.fixture(params=["http", "s3"])
def place(request: pytest.FixtureRequest, file: bytes, monkeypatch: pytest.MonkeyPatch) -> tuple[CountingServer, str]:
    monkeypatch.setenv("RELEX_TIMEOUT", "500")
    monkeypatch.setenv("RELEX_RETRY_SECONDS", "500")
    if request.param == "http":
        web = request.getfixturevalue("own_web")
        web.put("x.relex", file)
        return web.proxy, web.url("x.relex")
    bucket = request.getfixturevalue("moto_bucket")
    bucket.put("x.relex", file)
    bucket.proxy.clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.proxy.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return bucket.proxy, bucket.url("x.relex")


def stalls_from(number: int) -> Callable[[str, str], bool]:
    """Match every request but the first ones."""
    seen = itertools.count()
    return lambda method, path: next(seen) >= number


@pytest.mark.parametrize("answered", [1, 2], ids=["tables", "data"])
@pytest.mark.parametrize(
    "command",
    [
        ["decode", "--step", "15", "--tier", "line"],
        ["decode", "--step", "20", "--tier", "exact"],
        ["verify"],
        ["restore"],
    ],
    ids=lambda command: "-".join(command[::4]),
)
def test_a_stalled_server_does_not_hold_up_an_interruption(
    place: tuple[CountingServer, str], tmp_path: Path, command: list[str], answered: int
) -> None:
    proxy, url = place
    proxy.fail("stall", 1000, stalls_from(answered))
    output = [] if command[0] == "verify" else ["-o", str(tmp_path / "out")]
    code = "from relex_codec.cli.main import main; main()"
    worker = subprocess.Popen(
        [sys.executable, "-c", code, command[0], url, *command[1:], *output],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ELSEWHERE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while len(proxy.seen) <= answered:
            assert worker.poll() is None and time.monotonic() < deadline, worker.communicate()
            time.sleep(0.01)
        worker.send_signal(signal.SIGINT)
        _, said = worker.communicate(timeout=30)  # a stalled answer ends after 60 seconds
    finally:
        worker.kill()
        worker.communicate()
    assert worker.returncode == 130
    assert len(said.strip().splitlines()) == 1 and "Traceback" not in said
    assert os.listdir(tmp_path) == []
