"""What users can set for reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from relex_codec.errors import InvalidArgument
from relex_codec.storage.config import StorageConfig, split_options, without_credentials


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RELEX_RETRY_SECONDS", "RELEX_TIMEOUT", "RELEX_CACHE", "RELEX_CACHE_BYTES"):
        monkeypatch.delenv(name, raising=False)


def test_settings_come_from_the_options_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert split_options(None) == (StorageConfig(60, 30, None, 10 << 30), {})
    monkeypatch.setenv("RELEX_RETRY_SECONDS", "5")
    monkeypatch.setenv("RELEX_CACHE", "~/cache")
    monkeypatch.setenv("RELEX_CACHE_BYTES", "1e9")
    monkeypatch.setenv("RELEX_TIMEOUT", "")
    found, rest = split_options({"key": "k", "relex": {"retry_seconds": 0, "timeout": 2.5}})
    assert found == StorageConfig(0, 2.5, str(Path("~/cache").expanduser()), 10**9)
    assert rest == {"key": "k"}
    assert split_options({"relex": {"cache": None}})[0].cache is None


@pytest.mark.parametrize(
    "own", [{"retries": 3}, 7, {"retry_seconds": -1}, {"timeout": 0}, {"timeout": "soon"}, {"cache": 1},
            {"cache_bytes": float("nan")}, {"retry_seconds": float("inf")}, {"retry_seconds": True}],
)  # fmt: skip
def test_settings_that_cannot_be(own: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"storage_options\['relex'\]"):
        split_options({"relex": own})


def test_the_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELEX_TIMEOUT", "soon")
    with pytest.raises(InvalidArgument, match="RELEX_TIMEOUT is 'soon', expected a number of seconds"):
        split_options(None)


def test_credentials_stay_where_they_were_given() -> None:
    assert without_credentials({"key": "k", "relex": {"timeout": 1}}) == {"relex": {"timeout": 1}}
    assert without_credentials({"key": "k"}) is None and without_credentials(None) is None
