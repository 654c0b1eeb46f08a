"""Where a file says that its base is: followed with care, and without the caller's credentials."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import relex_codec
from relex_codec import CheckpointError
from relex_codec.decoding import base_locator
from relex_codec.storage.urls import Options, PathLike, options_for, without_secrets
from support.runs import Made


def made(zoo_run: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str) -> Path:
    """A file that says that its base is at `uri`."""
    with monkeypatch.context() as patch:
        patch.setattr("relex_codec.encoding.encode.canonical_uri", lambda _: uri)
        relex_codec.encode(zoo_run.run, tmp_path / "x.relex", base=zoo_run.base_path, quality="raw")
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
