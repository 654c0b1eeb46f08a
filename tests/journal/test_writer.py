"""Writing a journal: kills, tails, damage, two writers; every committed step is whole, and nothing else is there."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import relex_codec.journal.writer as module
from relex_codec.errors import CheckpointError, Corrupt, InvalidArgument, RelexError, Truncated
from relex_codec.journal.boxes import Box
from relex_codec.journal.difference import encode_difference
from relex_codec.journal.format import Head, Part
from relex_codec.journal.reader import Journal, is_journal, open_journal
from relex_codec.journal.verify import check_journal
from relex_codec.journal.writer import JournalLock, RankWriter, make_journal, next_generation
from support.tensors import Array

PARTS = [Part("a", "BF16", Box.whole((50, 20)), None), Part("b", "F32", Box.whole((7,)), None)]


def rows(step: int) -> list[Array]:
    rng = np.random.default_rng(step)
    return [rng.integers(0, 9, 1000).astype(np.uint16), rng.integers(0, 9, 7).astype(np.uint32)]


def blobs(before: int, step: int) -> Iterable[Iterable[bytes]]:
    old = rows(before) if before else [np.zeros(1000, np.uint16), np.zeros(7, np.uint32)]
    return [[encode_difference(a, b, part.dtype)] for part, a, b in zip(PARTS, old, rows(step), strict=True)]


def written(folder: Path, steps: Iterable[int] = (1, 2, 3)) -> Path:
    make_journal(folder, None)
    writer = RankWriter(str(folder), Head(0, 0, 1, None, PARTS))
    before = 0
    for step in steps:
        writer.write(step, blobs(before, step))
        before = step
    writer.close()
    return folder


def steps_of(folder: Path) -> list[int]:
    journal = Journal(folder)
    check_journal(journal)
    return journal.numbers


def test_what_is_committed_is_there_after_a_cut_anywhere(tmp_path: Path) -> None:
    """A file of either kind that ends anywhere: the steps before are whole, the tail is cut or the loss is told."""
    folder = written(tmp_path / "j")
    steps, data = folder / "0000-00000.steps", folder / "0000-00000.data"
    commits, differences = steps.read_bytes(), data.read_bytes()
    head = len(commits) - 3 * 40
    for end in range(head, len(commits) + 1):
        steps.write_bytes(commits[:end])
        assert steps_of(folder) == [1, 2, 3][: (end - head) // 40]
    for end in range(0, head, 7):
        steps.write_bytes(commits[:end])
        with pytest.raises(Truncated):
            Journal(folder)
    steps.write_bytes(commits)
    for end in range(0, len(differences), 11):  # they are on disk before the commit record
        data.write_bytes(differences[:end])
        with pytest.raises(Truncated):
            steps_of(folder)
    data.write_bytes(differences + b"of a step that was not finished")
    journal = Journal(folder)
    assert journal.numbers == [1, 2, 3] and journal.unfinished == 31


def test_a_flipped_bit_anywhere_is_found(tmp_path: Path) -> None:
    folder = written(tmp_path / "j")
    for name in ("0000-00000.steps", "0000-00000.data"):
        whole = (folder / name).read_bytes()
        for at in range(0, len(whole), 1 if name.endswith("steps") else 5):
            (folder / name).write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
            try:
                found = steps_of(folder)
            except RelexError:
                continue
            assert name.endswith("steps") and at >= len(whole) - 40, at  # the last record cannot be told from a tail
            assert found == [1, 2]
        (folder / name).write_bytes(whole)


@pytest.mark.parametrize("failing", ["pwrite", "fsync"])
def test_a_step_that_cannot_be_written_is_cut_off(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error at every operation in turn; then there is room again, and recording goes on."""
    real = getattr(os, failing)
    for fail_at in range(8):
        folder = tmp_path / str(fail_at)
        make_journal(folder, None)
        writer = RankWriter(str(folder), Head(0, 0, 1, None, PARTS))
        writer.write(1, blobs(0, 1))
        calls = 0

        def limited(*arguments: Any, fail_at: int = fail_at) -> Any:
            nonlocal calls
            calls += 1
            if calls - 1 == fail_at:
                if failing == "pwrite" and len(arguments[1]) > 1:
                    real(arguments[0], arguments[1][:1], arguments[2])
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(module.os, failing, limited)
            message = ""
            try:
                writer.write(2, blobs(1, 2))
            except InvalidArgument as error:
                message = str(error)
        done = not message
        assert done or "No space left on device; free some space" in message
        assert done == (calls <= fail_at)
        assert steps_of(folder) == ([1, 2] if done else [1])
        assert Journal(folder).unfinished == 0
        writer.write(3, blobs(2 if done else 1, 3))
        writer.close()
        assert steps_of(folder) == ([1, 2, 3] if done else [1, 3])


def test_two_writers_are_refused(tmp_path: Path) -> None:
    folder = make_journal(tmp_path / "j", None)
    lock = JournalLock(folder)
    with pytest.raises(InvalidArgument, match="another recorder does"):
        JournalLock(folder)
    writer = RankWriter(folder, Head(0, 0, 1, None, PARTS))
    lock.close()
    with pytest.raises(InvalidArgument, match="another recorder does"):  # a rank of it is still there
        JournalLock(folder)
    writer.close()
    JournalLock(folder).close()
    with pytest.raises(InvalidArgument, match="File exists"):  # files are never written twice
        RankWriter(folder, Head(0, 0, 1, None, PARTS))


def test_a_later_generation_says_what_it_follows(tmp_path: Path) -> None:
    folder = written(tmp_path / "j", [1, 2, 3])
    assert next_generation(str(folder)) == 1
    RankWriter(str(folder), Head(1, 0, 1, 1, PARTS)).close()  # nothing was committed: it does not count
    assert Journal(folder).numbers == [1, 2, 3]
    writer = RankWriter(str(folder), Head(2, 0, 1, 2, PARTS))
    writer.write(5, blobs(2, 5))
    writer.close()
    journal = Journal(folder)
    assert (journal.numbers, journal.left_behind) == ([1, 2, 5], [3])
    writer = RankWriter(str(folder), Head(3, 0, 1, 3, PARTS))
    writer.write(6, blobs(3, 6))
    writer.close()
    with pytest.raises(Corrupt, match="follows step 3, which is not there"):
        Journal(folder)


def test_what_a_directory_may_be(tmp_path: Path) -> None:
    assert not is_journal(tmp_path) and not is_journal(tmp_path / "none") and not is_journal("memory://bucket/j")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(InvalidArgument, match="is no journal and holds x"):
        make_journal(tmp_path / "full", None)
    with pytest.raises(InvalidArgument, match="a journal is a local directory"):
        make_journal("s3://bucket/j", None)
    folder = make_journal(tmp_path / "a" / "b", "../base")
    assert is_journal(folder) and make_journal(folder, "other") == folder
    assert Journal(folder).base_uri == "../base"
    assert Journal(folder).base_place() == str(tmp_path / "a" / "base")
    with pytest.raises(CheckpointError, match="no committed step"):
        open_journal(folder)


def test_a_large_claim_costs_nothing(tmp_path: Path) -> None:
    """Tensors that no file has: refused by arithmetic."""
    parts = [Part("a", "BF16", Box.whole((1 << 46,)), "BF16")]
    folder = make_journal(tmp_path / "j", None)
    RankWriter(folder, Head(0, 0, 1, None, parts)).close()
    with pytest.raises(Corrupt, match="its digests are not those"):
        Journal(folder)
    shutil.rmtree(folder)
    folder = make_journal(tmp_path / "j", None)
    RankWriter(folder, Head(0, 0, 1, None, [Part("a", "BF16", Box.whole((1 << 46,)), None)])).close()
    assert Journal(folder).numbers == []
