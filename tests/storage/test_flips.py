"""A byte that comes wrong once is fetched again; nothing keeps it, and nothing is reported of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import relex_codec
from relex_codec import BaseMismatch, CheckpointError, Corrupt, RelexError
from relex_codec.checkpoints.safetensors import open_checkpoint
from relex_codec.core.filenames import INDEX
from relex_codec.storage.header_cache import HEADER_CACHE
from relex_codec.storage.open import open_source
from relex_codec.storage.prefetch import PrefetchingSource
from relex_codec.storage.remote import RemoteSource
from support.checkpoints import write_checkpoint, write_run
from support.servers.counting import fetched
from support.servers.fixtures import Bucket, Web
from support.servers.runs import weights

SHAPES = {"a": (300, 200), "b": (70, 90), "norm": (7,)}
SPREAD = 30
"""Bytes that are tried of each file."""
FILE, BASE = "x.relex", "model.safetensors"
Read = dict[tuple[int, str], dict[str, list[float]]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of one file, ``x.relex`` with all tiers, and what is read of them."""
    folder = tmp_path_factory.mktemp("flips")
    write_checkpoint(folder / "base", weights(0, SHAPES))
    write_run(folder / "run", [1, 2], lambda step: weights(step, SHAPES))
    relex_codec.encode(folder / "run", folder / FILE, base=folder / "base", quality="raw", exact=True)
    return folder


@pytest.fixture(scope="module")
def right(made: Path) -> Read:
    return read(made / FILE, made / "base")


@pytest.fixture
def served(made: Path, own_web: Web) -> Iterator[Web]:
    """The file and the base on a web server; nothing is known of them."""
    own_web.put(FILE, (made / FILE).read_bytes())
    own_web.put(BASE, (made / "base" / BASE).read_bytes())
    HEADER_CACHE.clear()
    yield own_web
    HEADER_CACHE.clear()


def read(file: object, base: object, options: dict[str, Any] | None = None) -> Read:
    """All weights of the file, from each tier."""
    found = {}
    with relex_codec.open(str(file), base=str(base), storage_options=options) as run:
        for step, tier in ((2, "exact"), (2, "track"), (9, "line")):
            state = run.state_dict(step, tier=tier)
            found[step, tier] = {name: tensor.float().flatten().tolist() for name, tensor in state.items()}
        run.verify()
    return found


def read_remote(served: Web, folder: Path | None = None) -> Read:
    """As a new process does, with a cache on disk if a folder for one is given."""
    HEADER_CACHE.clear()
    options = {"relex": {"cache": str(folder)}} if folder else None
    return read(served.url(FILE), served.url(BASE), options)


def spread(path: Path) -> list[int]:
    """Some bytes of a file, more of them where its header and tables are."""
    size = path.stat().st_size
    near = np.linspace(0, min(size, 6000) - 1, SPREAD // 2).astype(int)
    return sorted({*near.tolist(), *np.linspace(0, size - 1, SPREAD // 2).astype(int).tolist()})


@pytest.mark.parametrize("name", [FILE, BASE])
@pytest.mark.parametrize("on_disk", [False, True])
def test_a_flip_is_read_again(
    made: Path,
    right: Read,
    served: Web,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    on_disk: bool,
) -> None:
    places = spread(made / name if name == FILE else made / "base" / name)
    for number, position in enumerate(places if not on_disk else places[::2]):
        folder = tmp_path / str(number) if on_disk else None
        served.proxy.flip(name, position)
        assert read_remote(served, folder) == right, position
        assert read(served.url(FILE), served.url(BASE)) == right, position  # from what is kept in memory
        if folder is not None:
            with monkeypatch.context() as patch:  # nothing that is wrong has stayed on disk
                patch.setattr(RemoteSource, "forget", lambda self, start, end: False)
                assert read_remote(served, folder) == right, position


@pytest.mark.parametrize(("name", "error"), [(FILE, Corrupt), (BASE, BaseMismatch)])
def test_what_an_earlier_process_kept_is_not_believed(
    made: Path,
    right: Read,
    served: Web,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    error: type[RelexError],
) -> None:
    """A cache on disk with wrong bytes, whose own digests are right."""
    position = (made / name if name == FILE else made / "base" / name).stat().st_size - 20_000
    served.proxy.flip(name, position)
    with monkeypatch.context() as patch:
        patch.setattr(RemoteSource, "forget", lambda self, start, end: False)
        with pytest.raises(error):
            read_remote(served, tmp_path)
        with pytest.raises(error):
            read_remote(served, tmp_path)
    assert read_remote(served, tmp_path) == right
    monkeypatch.setattr(RemoteSource, "forget", lambda self, start, end: False)
    assert read_remote(served, tmp_path) == right


@pytest.mark.parametrize(("name", "error"), [(FILE, Corrupt), (BASE, BaseMismatch)])
def test_what_is_wrong_twice_is_reported(made: Path, served: Web, name: str, error: type[RelexError]) -> None:
    position = (made / name if name == FILE else made / "base" / name).stat().st_size - 20_000
    served.proxy.flip(name, position, times=100)
    with pytest.raises(error):
        read_remote(served)
    asked = [place for place in fetched(served.proxy) if place[0] == name and place[1] <= position < place[2]]
    assert 2 <= len(asked) <= 3


@pytest.mark.usefixtures("nothing_kept")
@pytest.mark.parametrize("name", [INDEX, "model-00001-of-00002.safetensors"])
def test_a_flip_in_a_sharded_base(moto_bucket: Bucket, tmp_path: Path, name: str) -> None:
    base = write_checkpoint(tmp_path / "base", weights(0, SHAPES), shards=2)
    moto_bucket.upload(base, "base")
    config = moto_bucket.options.get("config_kwargs", {}) | {"response_checksum_validation": "when_required"}
    unchecked = moto_bucket.options | {"config_kwargs": config}  # or botocore itself finds what is wrong
    data = (base / name).read_bytes()
    for position in (1, data.index(b'"a"') + 1, data.index(b"a") + 30):
        HEADER_CACHE.clear()
        options = unchecked | {"relex": {"cache": str(tmp_path / f"cache-{position}")}}
        moto_bucket.proxy.flip(name, position)
        found = open_checkpoint(moto_bucket.url("base"), options)
        assert set(found.tensors) == set(SHAPES) and not found.absent and not found.notes, position
        HEADER_CACHE.clear()
    with pytest.raises(CheckpointError):
        open_checkpoint(moto_bucket.url("none"), moto_bucket.options)


def test_a_local_file_is_read_once(made: Path, tmp_path: Path) -> None:
    data = bytearray((made / FILE).read_bytes())
    data[-20_000] ^= 1
    (tmp_path / FILE).write_bytes(data)
    with pytest.raises(Corrupt, match="checksum"):
        read(tmp_path / FILE, made / "base")


def test_a_copy_of_the_whole_file_is_not_believed_where_it_is_wrong(made: Path, served: Web, tmp_path: Path) -> None:
    """Which `append` makes of a remote file."""
    data = (made / FILE).read_bytes()
    at = len(data) - 20_000
    served.proxy.flip(FILE, at)
    with open(tmp_path / "copy", "w+b") as copy, open_source(served.url(FILE)) as source:
        assert isinstance(source, PrefetchingSource)
        source.copy_to(copy)
        assert source.read(at - 5, at + 5) != data[at - 5 : at + 5]
        assert source.forget(at, at + 1)
        served.proxy.clear()
        assert source.read_many([(0, 9), (at - 5, at + 5)]) == [data[:9], data[at - 5 : at + 5]]
        out = bytearray(10)
        source.read_into(at - 5, memoryview(out))
        assert out == data[at - 5 : at + 5]
        assert len(served.proxy.seen) == 2  # the rest is read here
