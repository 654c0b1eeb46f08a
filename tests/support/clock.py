"""Time for tests of retries that does not depend on how busy the machine is."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from relex_codec.storage import retry


def count_attempts_as_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on a second passes with each attempt, and waits between attempts take no time."""
    clock = itertools.count()
    monkeypatch.setattr(retry, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(retry, "pause", lambda seconds: None)
