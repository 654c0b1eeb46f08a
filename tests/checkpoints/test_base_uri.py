"""What a file says of its base, and where that is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from relex_codec.checkpoints.base_uri import carried_over, place_of_base, uri_of_base

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("base", "uri"),
    [
        ("hf://org/name@main", "hf://org/name@main"),
        ("s3://bucket/base/", "s3://bucket/base/"),
        ("S3://Bucket/base", "s3://Bucket/base"),
        ("https://me:secret@host/model.safetensors?sig=1", "https://host/model.safetensors"),
    ],
)
def test_urls_are_kept_without_secrets(base: str, uri: str) -> None:
    assert uri_of_base(base, "x.relex") == uri_of_base(base, "s3://bucket/x.relex") == uri
    assert place_of_base(uri, "/anywhere/x.relex") == uri


@pytest.mark.parametrize(
    ("base", "file", "uri"),
    [
        ("base", "x.relex", "./base"),
        ("a/../base", "x.relex", "./base"),
        ("base", "runs/x.relex", "../base"),
        ("models/base/model.safetensors", "runs/a/x.relex", "../../models/base/model.safetensors"),
        (".", "x.relex", "."),
        ("~home::x", "x.relex", "./~home::x"),
        ("s3://b", "base/x.relex", "s3://b"),
    ],
)
def test_paths_begin_where_the_file_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str, file: str, uri: str
) -> None:
    monkeypatch.chdir(tmp_path)
    given = base if "~" not in base else f"./{base}"
    assert uri_of_base(given, file) == uri
    if "://" not in base:
        assert uri_of_base(os.path.abspath(given), Path(file)) == uri
        assert uri_of_base(f"file://{os.path.abspath(given)}", os.path.abspath(file)) == uri
        assert place_of_base(uri, file) == str(Path(tmp_path, *Path(os.path.normpath(given)).parts))
        assert place_of_base(uri, f"/moved/{os.path.abspath(file)}").startswith("/moved/")
    monkeypatch.chdir("/")
    assert str(tmp_path) not in uri


def test_a_base_here_of_a_file_elsewhere_is_not_told() -> None:
    assert uri_of_base("base", "s3://bucket/x.relex") is None


@pytest.mark.parametrize(("below", "ending"), [("", ""), ("/sub/model.safetensors", "/sub/model.safetensors")])
def test_the_cache_of_the_hub(tmp_path: Path, below: str, ending: str) -> None:
    folder = tmp_path / "models--org--a-name" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    assert uri_of_base(f"{folder}{below}", tmp_path / "x.relex") == f"hf://org/a-name@{COMMIT}{ending}"
    assert uri_of_base(f"{folder}{below}", "s3://bucket/x.relex") == f"hf://org/a-name@{COMMIT}{ending}"
    (tmp_path / "link").symlink_to(folder)
    assert uri_of_base(f"{tmp_path}/link{below}", tmp_path / "x.relex") == f"hf://org/a-name@{COMMIT}{ending}"


@pytest.mark.parametrize("name", ["models--gpt2/snapshots/" + COMMIT, "models--org--name/snapshots/main", "snapshots"])
def test_what_looks_like_the_cache_of_the_hub(tmp_path: Path, name: str) -> None:
    assert uri_of_base(tmp_path / name, tmp_path / "x.relex") == f"./{name}"


def test_links(tmp_path: Path) -> None:
    """A file is where it is, not where a link to it is; but the Hub's cache is all links."""
    for name in ("real/runs", "real/base", "links", "other/base"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "links" / "runs").symlink_to(tmp_path / "real" / "runs")
    (tmp_path / "real" / "runs" / "x.relex").touch()
    assert uri_of_base(tmp_path / "real" / "base", tmp_path / "links" / "runs" / "x.relex") == "../base"
    assert place_of_base("../base", tmp_path / "links" / "runs" / "x.relex") == str(tmp_path / "real" / "base")
    (tmp_path / "other" / "x.relex").symlink_to(tmp_path / "real" / "runs" / "x.relex")
    assert place_of_base("../base", tmp_path / "other" / "x.relex") == str(tmp_path / "real" / "base")
    assert place_of_base("./base", tmp_path / "other" / "x.relex") == str(tmp_path / "other" / "base")
    assert place_of_base("./none", tmp_path / "other" / "x.relex") == str(tmp_path / "real" / "runs" / "none")


def test_a_path_from_a_file_at_a_url() -> None:
    assert place_of_base("../base", "s3://bucket/runs/x.relex") == "s3://bucket/base"
    assert place_of_base("./base", "hf://org/name@main/x.relex") == "hf://org/name@main/base"
    assert place_of_base("/home/me/base", "s3://bucket/x.relex") == "/home/me/base"


def test_a_file_made_from_another_one(tmp_path: Path) -> None:
    old = tmp_path / "a" / "x.relex"
    assert carried_over("./base", old, old) == "./base"
    assert carried_over("./base", old, tmp_path / "a" / "y.relex") == "./base"
    assert carried_over("./base", old, tmp_path / "b" / "c" / "y.relex") == "../../a/base"
    assert carried_over("./base", old, "s3://bucket/y.relex") is None
    assert carried_over("./base", "s3://bucket/x.relex", tmp_path / "y.relex") == "s3://bucket/base"
    for uri in (None, "hf://org/name", "/abs/base"):
        assert carried_over(uri, old, tmp_path / "b" / "y.relex") == uri
