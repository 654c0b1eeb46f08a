"""What changes between two steps, as a served model takes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import relex_codec
from relex_codec import InvalidArgument
from relex_codec.checkpoints.base_model import open_base
from relex_codec.journal.reader import Journal
from relex_codec.journal.series import JournalSeries
from support.runs import Made
from support.tensors import bits_of

Zoo = Callable[..., Path]


class CheckpointWeightPatch(NamedTuple):
    """The fields of vLLM's."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    values: torch.Tensor
    indices: torch.Tensor | None


@pytest.mark.parametrize(
    ("before", "after", "tier"), [(5, 9, "exact"), (9, 2, "exact"), (0, 1, "auto"), (9, 60, "line")]
)
def test_applied_to_one_step_they_give_the_other(before: float, after: float, tier: str, zoo_file: Zoo) -> None:
    with relex_codec.open(zoo_file("default", exact=True)) as run:
        old, new = run.state_dict(before, tier=tier), run.state_dict(after, tier=tier)
        seen = []
        for found in run.patches(before, after, tier=tier):
            patch = CheckpointWeightPatch(*found)  # by position
            assert patch.indices is not None and len(patch.indices) == len(patch.values) > 0
            assert (patch.shape, patch.dtype) == (tuple(old[patch.name].shape), old[patch.name].dtype)
            assert bool((patch.indices[1:] > patch.indices[:-1]).all())
            old[patch.name].reshape(-1)[patch.indices] = patch.values
            seen.append(patch.name)
        assert len(set(seen)) == len(seen)
        assert all((bits_of(old[name]) == bits_of(new[name])).all() for name in new)
        assert [patch.name for patch in run.patches(9, 9)] == []


def test_what_a_run_refuses(zoo_file: Zoo) -> None:
    with relex_codec.open(zoo_file("raw")) as run, pytest.raises(InvalidArgument):
        run.patches(1, 2, tier="exact")


def test_patches_are_recorded(zoo_run: Made, zoo_file: Zoo, tmp_path: Path) -> None:
    """A stream of patches is a run."""
    journal = tmp_path / "j"
    with (
        relex_codec.open(zoo_file("default", exact=True)) as run,
        relex_codec.Recorder(journal, base=zoo_run.base_path) as recorder,
    ):
        recorder.add(1, run.state_dict(1))
        for before, after in ((1, 2), (2, 5)):
            patches: list[Any] = [CheckpointWeightPatch(*patch) for patch in run.patches(before, after)]
            whole = run.tensor("layers.0.norm.weight", after)
            dense = CheckpointWeightPatch("layers.0.norm.weight", (64,), whole.dtype, whole, None)
            recorder.patch(after, [patch for patch in patches if patch.name != dense.name] + [dense])
        for bad, message in (
            (CheckpointWeightPatch("none", (1,), whole.dtype, whole, None), "'none', which is not part"),
            (dense._replace(values=whole.float()), "64 values of torch.float32, expected 64 of torch.bfloat16"),
            (dense._replace(indices=torch.tensor([1])), "64 values of torch.bfloat16, expected 1"),
            (dense._replace(values=whole[:1], indices=torch.tensor([64])), "beyond its 64 elements"),
        ):
            with pytest.raises(InvalidArgument, match=message):
                recorder.patch(9, [bad])
        expected = run.state_dict(5)
    series = JournalSeries(Journal(journal), open_base(zoo_run.base_path))
    assert series.steps == [1, 2, 5]
    assert all((series.checkpoint(2).read(name) == bits_of(value)).all() for name, value in expected.items())
    with relex_codec.Recorder(journal) as recorder:  # goes on by patches alone
        recorder.patch(6, [dense._replace(values=torch.ones(2, dtype=dense.dtype), indices=torch.tensor([3, 5]))])
    row = JournalSeries(Journal(journal), open_base(zoo_run.base_path)).read(dense.name)[-1]
    assert row[3] == row[5] == 0x3F80
