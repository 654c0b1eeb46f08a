"""Safetensors files of other writers, odd names of directories, another user."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from support.commands import process
from support.tiny import (
    State,
    assert_same,
    bytes_of,
    decoded,
    encode,
    encoded,
    moved,
    put,
    read,
    weights,
    write,
    write_steps,
)

BASE = weights()
WRITERS: dict[str, dict[str, Any]] = {
    "unaligned": {"pad": False, "metadata": {"format": "pt", "a": "xyz"}},
    "no metadata": {},
    "unsorted": {"order": lambda names: sorted(names, key=lambda name: name[::-1])},
    "spaces after the header": {"header_tail": b" " * 4096},
    "newlines after the header": {"header_tail": b"\n\n"},
    "bytes at the end": {"tail": bytes(512)},
    "numbers in the metadata": {"metadata": {"step": 3, "format": "pt"}},
    "nested metadata": {"metadata": {"config": {"a": 1}}},
    "metadata null": {"metadata": None},
}


def by_hand(
    state: State, *, order: Any = list, pad: bool = True, tail: bytes = b"", header_tail: bytes = b"", **more: Any
) -> bytes:
    header: dict[str, Any] = {"__metadata__": more["metadata"]} if "metadata" in more else {}
    data = b""
    for name in order(state):
        content = bytes_of(state[name])
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": "BF16", "shape": list(state[name].shape), "data_offsets": offsets}
        data += content
    text = json.dumps(header).encode() + header_tail
    text += b" " * (-len(text) % 8 if pad else 0)
    return len(text).to_bytes(8, "little") + text + data + tail


@pytest.mark.parametrize("kind", WRITERS)
def test_what_the_library_reads_is_read_and_nothing_else(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "base", BASE)
    for step in (1, 2):
        put(tmp_path / f"run/step_{step}/model.safetensors", by_hand(moved(BASE, step), **WRITERS[kind]))
    try:
        load_file(tmp_path / "run/step_2/model.safetensors")
    except Exception:
        done = encode(tmp_path, "--exact")
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        return
    encoded(tmp_path, "--exact")
    assert_same(decoded(tmp_path, 2), moved(BASE, 2))


@pytest.mark.parametrize(
    "name", ["a b", "Прогон-1", "run[1]", "50%", "a#b", "what?", "{x}", "10:30::v2", "~tilde", "a*b"]
)
def test_directories_may_be_called_anything(tmp_path: Path, name: str) -> None:
    home = tmp_path / name
    write(home / "base", BASE)
    write_steps(home / "run", lambda n: moved(BASE, n), (1, 2))
    encoded(home, "--exact")
    assert_same(decoded(home, 2), moved(BASE, 2))


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv"
)
def test_another_user_without_a_home() -> None:
    with tempfile.TemporaryDirectory() as folder:  # those of pytest are closed to others
        check_another_user(Path(folder))


def check_another_user(tmp_path: Path) -> None:
    write(tmp_path / "base", BASE)
    write_steps(tmp_path / "run", lambda n: moved(BASE, n), (1, 2))
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (tmp_path / "out").mkdir(mode=0o777)
    (tmp_path / "out").chmod(0o777)
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    if subprocess.run([*user, sys.executable, "-c", "import relex_codec"], capture_output=True).returncode:
        pytest.skip("another user cannot import the package here")
    variables = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}

    def nobody(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [*user, *process(arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, cwd="/", env={**variables, "HOME": "/nonexistent"}
        )

    file = tmp_path / "out/r.relex"
    encode_to = ["encode", tmp_path / "run", "--base", tmp_path / "base", "--quality", "raw", "-o"]
    done = nobody(*encode_to, file, "--exact")
    assert done.returncode == 0, done.stderr
    done = nobody("decode", file, "--step", 2, "-o", tmp_path / "out/2")
    assert done.returncode == 0, done.stderr
    assert_same(read(tmp_path / "out/2"), moved(BASE, 2))
    refused = nobody(*encode_to, tmp_path / "r.relex")
    assert (refused.returncode, refused.stderr.strip().count("\n")) == (1, 0)
    assert "r.relex" in refused.stderr
    (tmp_path / "run/checkpoint-2/model.safetensors").chmod(0o600)
    refused = nobody(*encode_to, tmp_path / "out/q.relex")
    assert (refused.returncode, refused.stderr.strip().count("\n")) == (1, 0)
    assert "checkpoint-2" in refused.stderr
