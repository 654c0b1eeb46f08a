"""URLs and local paths as text."""

from __future__ import annotations

import os

import pytest

from relex_codec.storage.open import Item, list_directory, open_source
from relex_codec.storage.urls import is_url, join_path, local_path, normalized, without_secrets

DATA = bytes(range(256)) * 1000


@pytest.mark.parametrize(
    ("path", "url"),
    [("s3://b/x", True), ("memory://x", True), ("simplecache::s3://b/x", True), ("/a/b", False), ("a/b:c", False),
     ("file:///a", False), ("local:///a", False), ("C:\\x", False), ("~/x", False)],
)  # fmt: skip
def test_urls_are_told_from_paths(path, url):
    assert is_url(path) is url


@pytest.mark.parametrize(
    ("path", "lower"),
    [("S3://Bucket/Key", "s3://Bucket/Key"), ("HTTPS://Host/X?u=HTTP://Y", "https://Host/X?u=HTTP://Y"),
     ("SimpleCache::S3://B/X", "simplecache::s3://B/X"), ("zip://In::HF://Org/X.zip", "zip://In::hf://Org/X.zip"),
     ("Dir://In::Folder", "dir://In::Folder"), ("/A/B::C", "/A/B::C"), ("/A/S3://b", "/A/S3://b"), ("C:\\X", "C:\\X")],
)  # fmt: skip
def test_schemes_are_in_lower_case_and_nothing_else(path, lower):
    assert normalized(path) == lower


def test_schemes_may_be_in_upper_case(tmp_path, memory):
    (tmp_path / "x").write_bytes(DATA)
    memory.pipe_file("/D/x", DATA)
    assert not is_url("FILE:///a") and local_path("FILE:///A") == "/A" and is_url("HF://Org/Name")
    for url in (f"FILE://{tmp_path}/x", "Memory://D/x", "SimpleCache::MEMORY://D/x"):
        with open_source(url) as source:
            assert source.read(1, 9) == DATA[1:9]
    assert list_directory("MEMORY://D") == [Item("x", False, len(DATA))]


def test_names_inside_directories(tmp_path):
    assert join_path("s3://bucket/run", "a") == "s3://bucket/run/a"
    assert join_path("s3://bucket/run/", "a") == "s3://bucket/run/a"
    assert join_path("simplecache::s3://b/x", "a") == "simplecache::s3://b/x/a"
    assert join_path("zip://in::s3://b/x.zip", "a") == "zip://in/a::s3://b/x.zip"
    assert join_path("hf://org/name@main", "a") == "hf://org/name@main/a"
    assert join_path(tmp_path, "a") == str(tmp_path / "a")
    assert join_path("file:///x", "a") == "/x/a"
    assert local_path("~/x") == os.path.expanduser("~/x")


def test_passwords_are_not_shown():
    assert without_secrets("https://me:secret@host/x?sig=abc#f") == "https://host/x"
    assert without_secrets("hf://org/name@main") == "hf://org/name@main"
    assert without_secrets("s3://b/x?versionId=1") == "s3://b/x?versionId=1"
