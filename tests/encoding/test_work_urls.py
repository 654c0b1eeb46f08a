"""Work directories at URLs."""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest

import relex_codec
from relex_codec.encoding import pipeline, unit_plan
from relex_codec.encoding.work_owner import STALE, owner_document, refuse_owner
from relex_codec.errors import InvalidArgument
from support import bands

PLACE = "memory://works/one.work"


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(unit_plan, "SMALLEST_UNIT", 1 << 20)
    monkeypatch.setattr(unit_plan, "LARGEST_UNIT", 4 << 20)
    return bands.make(tmp_path)


def names() -> set[str]:
    filesystem = fsspec.filesystem("memory")
    found = filesystem.ls("/works/one.work", detail=False) if filesystem.exists("/works/one.work") else []
    return {str(name).rpartition("/")[2] for name in found}


def test_it_goes_on_from_a_url(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(name: str, **options: Any) -> bytes:
        path = made / f"{name}.relex"
        relex_codec.encode(made / "run", path, base=made / "base", base_uri="base", exact=True, **options)
        return path.read_bytes()

    expected = encode("one")
    original = pipeline.run_units

    def some(*arguments: Any) -> Any:
        for number, done in enumerate(original(*arguments)):
            if number == 2:
                raise KeyboardInterrupt
            yield done

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "run_units", some)
        with pytest.raises(KeyboardInterrupt):
            encode("two", work_dir=PLACE, engine="local")
    kept = {name for name in names() if name.endswith(".unit")}
    assert names() == {*kept, "plan.json"} and len(kept) == 2
    again: list[str] = []
    run = pipeline.TensorsUnit.run
    monkeypatch.setattr(
        pipeline.TensorsUnit, "run", lambda self, *rest: (again.append(f"{self.key}.unit"), run(self, *rest))[1]
    )
    assert encode("two", work_dir=PLACE, engine="local") == expected
    assert again and not kept & set(again)
    assert names() == set()


def test_who_works_there() -> None:
    refuse_owner(owner_document(), PLACE)  # this process itself
    for text in (b"", b"{", b"[]", b'{"machine": 1}'):
        refuse_owner(text, PLACE)
    other = {"machine": "elsewhere", "process": 1, "time": time.time() - STALE / 2}
    with pytest.raises(InvalidArgument, match=r"process 1 on elsewhere works in memory://works"):
        refuse_owner(json.dumps(other).encode(), PLACE)
    refuse_owner(json.dumps({**other, "time": time.time() - STALE - 1}).encode(), PLACE)
    here = {"machine": platform.node(), "process": os.getppid(), "time": 0}
    with pytest.raises(InvalidArgument, match="works in"):
        refuse_owner(json.dumps(here).encode(), PLACE)
