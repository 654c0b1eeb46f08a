"""Errors: one root, the built-in errors that they also are, and that they survive copying and pickling."""

from __future__ import annotations

import copy
import errno
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import relex_codec
from relex_codec import errors
from relex_codec.errors import MissingCheckpoint, MissingFile, RelexError, missing
from support.checkpoints import write_checkpoint
from support.commands import cli, failed
from support.tensors import bf16

KINDS: list[type[RelexError]] = [
    kind for name in errors.__all__ if isinstance(kind := getattr(errors, name), type) and issubclass(kind, RelexError)
]
BUILT_IN = {
    "InvalidArgument": (ValueError,),
    "MissingFile": (ValueError, OSError, FileNotFoundError),
    "MissingCheckpoint": (OSError, FileNotFoundError),
    "Truncated": (EOFError,),
}


def test_there_is_one_root() -> None:
    assert len(KINDS) == 9
    public = {name for name in relex_codec.__all__ if getattr(relex_codec, name) in KINDS}
    assert public == {kind.__name__ for kind in KINDS} - {"MissingFile", "MissingCheckpoint"}
    assert issubclass(MissingFile, relex_codec.InvalidArgument)
    assert issubclass(MissingCheckpoint, relex_codec.CheckpointError)


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_the_built_in_error_that_it_is(kind: type[RelexError]) -> None:
    expected = BUILT_IN.get(kind.__name__, ())
    every = (ValueError, OSError, FileNotFoundError, EOFError, KeyError, TypeError)
    assert tuple(other for other in every if issubclass(kind, other)) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_each_can_be_copied(kind: type[RelexError], copied: Callable[[Any], Any]) -> None:
    message = "x.relex: 'a' is wrong; [Errno 2] is not said"
    error = kind(message)
    error.note = "kept"  # type: ignore[attr-defined]
    found = copied(error)
    assert type(found) is kind and found is not error
    assert str(found) == str(error) == message and found.args == (message,) and found.note == "kept"
    if isinstance(error, FileNotFoundError):
        assert found.errno == error.errno == errno.ENOENT and error.strerror is None and error.filename is None


def test_what_is_missing_is_of_the_kind_that_is_asked_for() -> None:
    assert type(missing(errors.InvalidArgument, "x")) is MissingFile
    assert type(missing(errors.CheckpointError, "x")) is MissingCheckpoint
    assert type(missing(errors.Corrupt, "x")) is errors.Corrupt


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and a run of one tensor, and its file."""
    root = tmp_path_factory.mktemp("errors")
    for step in (0, 1, 2):
        folder = root / "base" if step == 0 else root / "run" / f"global_step_{step}"
        write_checkpoint(folder, {"w": bf16([0.5 + step / 64] * 8)})
    relex_codec.encode(root / "run", root / "x.relex", base=root / "base", exact=True)
    return root


NOWHERE = "nowhere/x"


def new(made: Path) -> Path:
    """An output that nothing has written."""
    return made / "n.relex"


MISSING: dict[str, tuple[Callable[[Path], Any], type[RelexError]]] = {
    "file": (lambda made: relex_codec.open(NOWHERE), relex_codec.InvalidArgument),
    "file at a URL": (lambda made: relex_codec.open("memory://nowhere/x.relex"), relex_codec.InvalidArgument),
    "handle": (lambda made: relex_codec.safe_open(NOWHERE, step=1), relex_codec.InvalidArgument),
    "run": (
        lambda made: relex_codec.encode(NOWHERE, new(made), base=made / "base"),
        relex_codec.CheckpointError,
    ),
    "base": (
        lambda made: relex_codec.encode(made / "run", new(made), base=NOWHERE),
        relex_codec.CheckpointError,
    ),
    "base of a file": (
        lambda made: relex_codec.open(made / "x.relex", base=NOWHERE).state_dict(2, tier="line"),
        relex_codec.CheckpointError,
    ),
    "file to append to": (
        lambda made: relex_codec.append(NOWHERE, [made / "run" / "global_step_2"], output=new(made)),
        relex_codec.InvalidArgument,
    ),
    "checkpoint to append": (
        lambda made: relex_codec.append(made / "x.relex", [NOWHERE], step=3, output=new(made)),
        relex_codec.CheckpointError,
    ),
}


@pytest.mark.parametrize("what", MISSING)
def test_a_path_that_does_not_exist_is_a_missing_file(made: Path, what: str) -> None:
    call, kind = MISSING[what]
    with pytest.raises(FileNotFoundError, match="does not exist") as caught:
        call(made)
    assert isinstance(caught.value, kind) and str(caught.value).count("\n") == 0
    assert not new(made).exists()


def test_a_base_that_only_the_file_names_is_none(tmp_path: Path, made: Path) -> None:
    write_checkpoint(tmp_path / "base", {"w": bf16([0.5] * 8)})
    relex_codec.encode(made / "run", tmp_path / "x.relex", base=tmp_path / "base")
    (tmp_path / "base").rename(tmp_path / "moved")
    with relex_codec.open(tmp_path / "x.relex") as run, pytest.raises(relex_codec.CheckpointError) as caught:
        run.state_dict(2)
    assert not isinstance(caught.value, FileNotFoundError)  # the caller asked for no such path


def test_a_truncated_file_is_no_interruption(made: Path, tmp_path: Path) -> None:
    """Click takes an EOFError for the end of what the user types."""
    (tmp_path / "short.relex").write_bytes((made / "x.relex").read_bytes()[:-9])
    with pytest.raises(EOFError, match="expected"):
        relex_codec.open(tmp_path / "short.relex")
    failed(cli("info", tmp_path / "short.relex"), "short.relex", "expected")
