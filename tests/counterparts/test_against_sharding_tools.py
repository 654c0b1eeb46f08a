"""What ranks save, against what the trainers' own tools make of it: accelerate, torch itself."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

if find_spec("peft") is None:
    pytest.skip("these comparisons take minutes; tools/counterparts.sh runs them", allow_module_level=True)
import checks
from sharded_run import STEPS

pytestmark = [pytest.mark.slow, pytest.mark.servers, pytest.mark.filterwarnings("ignore")]
RANKS = [1, 2, 4]


@pytest.fixture(scope="module", params=RANKS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """Number of ranks, and what they saved."""
    folder = tmp_path_factory.mktemp(f"ranks-{request.param}")
    program = checks.HERE / "sharded_run.py"
    checks.run_all([[program, rank, request.param, folder] for rank in range(request.param)], folder)
    return request.param, folder


def test_accelerate_against_its_merge_weights(saved: tuple[int, Path], tmp_path: Path) -> None:
    from accelerate.utils.fsdp_utils import merge_fsdp_weights

    _, folder = saved
    found = checks.restored(folder / "accelerate", tmp_path)
    assert sorted(found) == list(STEPS)
    for step in STEPS:
        checkpoint = folder / "accelerate" / f"checkpoint-{step}" / "pytorch_model_fsdp_0"
        merge_fsdp_weights(str(checkpoint), str(tmp_path / f"merged-{step}"), safe_serialization=True)
        checks.assert_same(checks.load(checks.weights_below(found[step])), checks.load(tmp_path / f"merged-{step}"))


def test_prime_rl_against_torch(saved: tuple[int, Path], tmp_path: Path) -> None:
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    _, folder = saved
    found = checks.restored(folder / "prime-rl", tmp_path)
    assert sorted(found) == list(STEPS)
    for step in STEPS:
        whole = tmp_path / f"{step}.pt"
        dcp_to_torch_save(folder / "prime-rl" / "checkpoints" / f"step_{step}" / "trainer", whole)
        expected = torch.load(whole, weights_only=False)["app"]["model"]
        checks.assert_same(checks.load(checks.weights_below(found[step])), expected)


def test_nemo_rl_against_consolidation(saved: tuple[int, Path], tmp_path: Path) -> None:
    from torch.distributed.checkpoint._consolidate_hf_safetensors import consolidate_safetensors_files

    _, folder = saved
    found = checks.restored(folder / "nemo-rl", tmp_path)
    assert sorted(found) == list(STEPS)
    for step in STEPS:
        slices = folder / "nemo-rl" / f"step_{step}" / "policy" / "weights" / "model"
        whole = tmp_path / f"merged-{step}"
        whole.mkdir()
        names = checks.load(checks.weights_below(found[step]))
        consolidate_safetensors_files(str(slices), str(whole), dict.fromkeys(names, 1))
        checks.assert_same(names, checks.load(whole))


def test_steps_of_several_kinds_are_one_run(saved: tuple[int, Path], tmp_path: Path) -> None:
    _, folder = saved
    for step, source in ((1, "shards/global_step_1/actor"), (2, "prime-rl/checkpoints/step_2"),
                         (3, "accelerate/checkpoint-3")):  # fmt: skip
        (tmp_path / "run" / f"step_{step}").parent.mkdir(exist_ok=True)
        (tmp_path / "run" / f"step_{step}").symlink_to(folder / source)
    mixed = checks.restored(tmp_path / "run", tmp_path)
    (tmp_path / "alone").mkdir()
    alone = checks.restored(folder / "shards", tmp_path / "alone")
    for step in STEPS:
        checks.assert_same(
            checks.load(checks.weights_below(mixed[step])), checks.load(checks.weights_below(alone[step]))
        )
