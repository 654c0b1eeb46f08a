"""The callback for transformers' Trainer, in a real GRPO run of TRL that is killed and resumed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import relex_codec
from relex_codec import InvalidArgument
from relex_codec.checkpoints.base_model import open_base
from relex_codec.demo.run_demo import BASE
from relex_codec.journal.reader import Journal
from relex_codec.journal.series import JournalSeries
from relex_codec.journal.verify import check_journal
from support.commands import ELSEWHERE

pytest.importorskip("transformers")

from relex_codec.integrations.trainer import RelexCallback


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


class Model(torch.nn.Module):
    """The demonstration's base, as a module without transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.values = weights(BASE)
        self.name_or_path = str(BASE)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return dict(self.values)

    def move(self) -> None:
        for value in self.values.values():
            value += 0.01


def drive(callback: RelexCallback, model: Model, first: int, last: int, end: bool = True) -> None:
    """What a Trainer calls."""
    state = SimpleNamespace(global_step=first - 1, max_steps=last)
    control = SimpleNamespace(should_training_stop=False)
    callback.on_train_begin(None, state, control, model=model)
    for step in range(first, last + 1):
        model.move()
        state.global_step = step
        callback.on_step_end(None, state, control, model=model)
    callback.on_save(None, state, control)
    if end:
        callback.on_train_end(None, state, control)


def test_which_steps_are_recorded(tmp_path: Path) -> None:
    model = Model()
    drive(RelexCallback(tmp_path / "j", every=2, output=tmp_path / "x.relex"), model, 1, 5)
    assert Journal(tmp_path / "j").numbers == [2, 4, 5]
    with relex_codec.open(tmp_path / "x.relex") as run:
        assert run.steps == [2, 4, 5]
        assert all(torch.equal(value, model.values[name]) for name, value in run.state_dict(5).items())
    with pytest.raises(InvalidArgument, match="every is 0"):
        RelexCallback(tmp_path / "j", every=0)


@pytest.mark.parametrize("name", ["org/tiny", str(BASE)])
def test_the_base_is_where_the_model_was_loaded_from(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where that is a name on the Hub: its files are in the cache, and the journal says which commit."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    shutil.copytree(BASE, tmp_path / "hub" / "models--org--tiny" / "snapshots" / commit)
    model = Model()
    model.name_or_path = name
    model.config = SimpleNamespace(_commit_hash=commit if name == "org/tiny" else None)
    drive(RelexCallback(tmp_path / "j"), model, 1, 2)
    assert Journal(tmp_path / "j").numbers == [1, 2]
    if name == "org/tiny":
        assert Journal(tmp_path / "j").base_uri == f"hf://org/tiny@{commit}"


def test_a_base_that_is_nowhere_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("org/tiny", "a/b/c"):
        model = Model()
        model.name_or_path = name
        with pytest.raises(relex_codec.RelexError, match=f"{name} does not exist"):
            drive(RelexCallback(tmp_path / "j"), model, 1, 2)


def test_training_that_resumes_leaves_later_steps_behind(tmp_path: Path) -> None:
    callback = RelexCallback(tmp_path / "j", base=BASE)
    drive(callback, Model(), 1, 4, end=False)
    drive(callback, Model(), 4, 5)  # the same process may train again
    journal = Journal(tmp_path / "j")
    assert (journal.numbers, journal.left_behind) == ([1, 2, 3, 4, 5], [4])


@pytest.mark.slow
@pytest.mark.skipif(find_spec("trl") is None or find_spec("datasets") is None, reason="TRL is not installed")
def test_a_grpo_run_that_is_killed_and_resumed(tmp_path: Path) -> None:
    tests = Path(__file__).parents[1]
    paths = os.pathsep.join([str(tests), *filter(None, [os.environ.get("PYTHONPATH")])])
    script, environment = tests / "support" / "grpo_run.py", {**os.environ, "PYTHONPATH": paths}

    def train(killed_after: int) -> int:
        command = [sys.executable, "-W", "ignore", str(script), str(tmp_path), "6", str(killed_after)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ELSEWHERE, env=environment)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr[-3000:]
        return done.returncode

    assert train(5) == -signal.SIGKILL
    before = Journal(tmp_path / "j").numbers
    assert before in ([1, 2, 3, 4], [1, 2, 3, 4, 5])  # the one in work may be lost, none before it
    assert train(99) == 0
    journal = Journal(tmp_path / "j")
    check_journal(journal)
    assert journal.numbers == [1, 2, 3, 4, 5, 6] and journal.left_behind == before[4:]
    series = JournalSeries(journal, open_base(BASE))
    for step in (2, 4, 6):
        saved = weights(tmp_path / "out" / f"checkpoint-{step}")
        assert set(saved) == set(series.names)
        for name, value in saved.items():
            found = series.checkpoint(step - 1).read(name)
            assert (found == value.view(torch.int16).numpy().view(np.uint16).reshape(-1)).all(), (step, name)
    assert any((series.read(name)[1:] != series.read(name)[:-1]).any() for name in series.names)
    relex_codec.encode(tmp_path / "out", tmp_path / "a.relex", base=BASE, exact=True, base_uri="")
    relex_codec.encode(tmp_path / "j", tmp_path / "b.relex", base=BASE, exact=True, base_uri="", steps="2:6:2")
    assert (tmp_path / "a.relex").read_bytes() == (tmp_path / "b.relex").read_bytes()
