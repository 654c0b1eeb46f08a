"""Where a file says that its base is: followed with care, and without the caller's credentials."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import relex_codec
from relex_codec import CheckpointError
from relex_codec.decoding import base_locator
from relex_codec.storage.urls import Options, PathLike, options_for, without_secrets
from support.checkpoints import write_checkpoint
from support.filesystems import upload
from support.runs import Made
from support.tensors import bf16


def made(zoo_run: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, base: Path | None = None) -> Path:
    """A file that says that its base is at `uri`."""
    with monkeypatch.context() as patch:
        patch.setattr("relex_codec.encoding.prepare.uri_of_base", lambda base, file: uri)
        relex_codec.encode(zoo_run.run, tmp_path / "x.relex", base=base or zoo_run.base_path, quality="raw")
    return tmp_path / "x.relex"


@pytest.mark.parametrize(
    "uri",
    [
        "reference::file:///tmp/refs.json",
        "relex://step_1::file:///tmp/self.relex",
        "simplecache::s3://bucket/base",
        "ftp://host/base",
        "zip://base::https://host/x.zip",
        "github://org:repo@main/base",
        "http://127.0.0.1:8080/base/model.safetensors",
        "HTTPS://host/model.safetensors",
        "s3://key:secret@bucket/base",
        "//server/share/base",
        "\\\\server\\share\\base",
    ],
)
def test_places_that_are_not_read_on_a_files_word(
    zoo_run: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    path = made(zoo_run, tmp_path, monkeypatch, uri)
    monkeypatch.setattr(base_locator, "open_base", None)  # nothing is opened
    with relex_codec.open(path) as run, pytest.raises(CheckpointError, match="not read on its word; pass --base"):
        run.state_dict(2)


def test_credentials_stay_where_the_caller_points(
    zoo_run: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made(zoo_run, tmp_path, monkeypatch, "s3://elsewhere/base")
    asked: list[tuple[PathLike, Options]] = []
    open_base: Callable[..., Any] = base_locator.open_base

    def watched(uri: PathLike, options: Options = None, likely: Any = ()) -> Any:
        asked.append((uri, options))
        return open_base(zoo_run.base_path)

    monkeypatch.setattr(base_locator, "open_base", watched)
    own = {"timeout": 5}
    for options in ({"key": "k", "secret": "s", "relex": own}, {"s3": {"key": "k"}, "relex": own}):
        with relex_codec.open(path, storage_options=options) as run:
            run.tensor("layers.0.proj.weight", 2)
        with relex_codec.open(path, base=zoo_run.base_path, storage_options=options) as run:
            run.tensor("layers.0.proj.weight", 2)
        assert asked == [("s3://elsewhere/base", {"relex": own}), (zoo_run.base_path, options)]
        asked.clear()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:secret@h/base?sig=abc", "https://h/base"),
        ("simplecache::http://me:secret@h/base?sig=abc", "simplecache::http://h/base"),
        ("sftp://me:secret@h/base", "sftp://h/base"),
        ("http://me:secret@[h/base?sig=abc", "http://[h/base"),
        ("relex://step_1::https://me:secret@h/run.relex?X-Amz-Signature=1", "relex://step_1::https://h/run.relex"),
        ("abfs://container@account.dfs.core.windows.net/x", "abfs://container@account.dfs.core.windows.net/x"),
        ("hf://org/name@main/x", "hf://org/name@main/x"),
        ("s3://bucket/a@b:c/x", "s3://bucket/a@b:c/x"),
        ("/local/a::b", "/local/a::b"),
    ],
)
def test_passwords_are_not_shown(url: str, shown: str) -> None:
    assert without_secrets(url) == shown


def test_options_by_protocol_know_other_names_of_it() -> None:
    options: dict[str, Any] = {"s3": {"key": "k"}, "relex": {"timeout": 1}}
    assert options_for("s3a://bucket/x", options) == {"key": "k", "relex": {"timeout": 1}}
    assert options_for("S3A://bucket/x", options) == {"key": "k", "relex": {"timeout": 1}}
    assert options_for("hf://org/x", options) == {"relex": {"timeout": 1}}
    with pytest.raises(relex_codec.InvalidArgument, match="storage_options is 'abc'"):
        options_for("s3://bucket/x", "abc")  # type: ignore[arg-type]


def save(path: Path, output: Path, **options: Any) -> set[str]:
    with relex_codec.open(path, **options) as run:
        run.save(output, 2)
    return {file.name for file in output.iterdir()}


def test_file_and_base_move_together(zoo_run: Made, tmp_path: Path) -> None:
    here = tmp_path / "here"
    shutil.copytree(zoo_run.base_path, here / "models" / "base")
    (here / "runs").mkdir()
    file = here / "runs" / "x.relex"
    relex_codec.encode(zoo_run.run, file, base=here / "models" / "base", quality="raw", steps="1:2")
    with relex_codec.open(file) as run:
        assert run.info()["base"] == "../models/base"
        expected = [run._reader.bits(name, 2).tolist() for name in run]
    assert str(tmp_path).encode() not in file.read_bytes()
    here.rename(tmp_path / "there")
    with relex_codec.open(tmp_path / "there" / "runs" / "x.relex") as run:
        assert [run._reader.bits(name, 2).tolist() for name in run] == expected
    relex_codec.encode(zoo_run.run, tmp_path / "y.relex", base=zoo_run.base_path, quality="raw", steps="1", base_uri="")
    with relex_codec.open(tmp_path / "y.relex") as run, pytest.raises(relex_codec.InvalidArgument, match="pass --base"):
        run.state_dict(1)


def test_a_path_from_a_file_in_a_bucket(zoo_run: Made, memory: Any) -> None:
    upload(memory, zoo_run.base_path, "/bucket/base")
    folder = "memory://bucket/runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("relex_codec.encoding.prepare.uri_of_base", lambda base, file: "../base")
        relex_codec.encode(zoo_run.run, f"{folder}/x.relex", base=zoo_run.base_path, quality="raw", steps="1")
        patch.setattr("relex_codec.encoding.prepare.uri_of_base", lambda base, file: "../../other/base")
        relex_codec.encode(zoo_run.run, f"{folder}/y.relex", base=zoo_run.base_path, quality="raw", steps="1")
    with relex_codec.open(f"{folder}/x.relex") as run:
        assert len(run.state_dict(1)) == len(run.keys())
    with (
        relex_codec.open(f"{folder}/y.relex") as run,
        pytest.raises(CheckpointError, match="not read on its word"),
    ):
        run.state_dict(1)


@pytest.fixture
def private(zoo_run: Made, tmp_path: Path) -> Path:
    """A directory of the reader's, with weights and more."""
    folder = tmp_path / "private"
    shutil.copytree(zoo_run.base_path, folder)
    (folder / "credentials.json").write_text("{}")
    (folder / "notes.txt").write_text("mine")
    return folder


def test_side_files_of_the_base_itself(
    zoo_run: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, private: Path
) -> None:
    path = made(zoo_run, tmp_path, monkeypatch, str(private))
    names = save(path, tmp_path / "out")
    assert "config.json" in names and "credentials.json" not in names


@pytest.mark.parametrize("how", ["another model", "few tensors", "none"])
def test_documents_of_what_is_not_the_base_are_not_taken(
    zoo_run: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, private: Path, how: str
) -> None:
    """Nothing in the file vouches for their content; digests do for that of other files."""
    own = tmp_path / "own"
    shutil.copytree(zoo_run.base_path, own)
    (own / "README.md").write_text("a card")
    (private / "README.md").write_text("mine")
    path = made(zoo_run, tmp_path, monkeypatch, str(private), own)
    other = dict(zoo_run.base)
    if how == "another model":  # all that the exact tier and `info` need would still be there
        dtype, bits = other["layers.0.proj.weight"]
        other["layers.0.proj.weight"] = dtype, bits ^ 1
    else:
        other["secret"] = bf16(np.ones((400, 400)))
    for shard in private.glob("*.safetensors*"):
        shard.unlink()
    write_checkpoint(private, other)
    if how == "none":
        monkeypatch.setattr(base_locator.BaseLocator, "_expected", lambda self: [])
    with relex_codec.open(path) as run, pytest.raises(relex_codec.BaseMismatch, match=r"pass --base"):
        run._reader.side_files().sizes()
    with relex_codec.open(path) as run, pytest.raises(relex_codec.BaseMismatch, match=r"pass --base"):
        list(run._reader.side_files().read_all())
    with relex_codec.open(path) as run:
        assert run._reader.side_files().read("config.json") == (zoo_run.base_path / "config.json").read_bytes()
    if how == "few tensors":  # the user says so
        with relex_codec.open(path, base=private) as run:
            assert "config.json" in run._reader.side_files().sizes()
