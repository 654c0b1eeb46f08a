"""What ranks save, against what the trainers' own tools make of it: verl's model_merger, accelerate, torch itself."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import relex_codec

if find_spec("verl") is None and find_spec("peft") is None:
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


def restored(run: Path, to: Path) -> dict[int, Path]:
    """Encode a run, and restore its steps from the file alone."""
    relex_codec.encode(run, to / "x.relex", base=checks.BASE, exact=True, allow_pickle=True)
    with relex_codec.open(to / "x.relex") as opened:
        steps = opened.restore(to / "steps")
    return {step: next(path for path in (to / "steps").rglob(f"*{step}") if path.is_dir()) for step in steps}


def weights_below(folder: Path) -> Path:
    """The directory with the weights of a restored step."""
    return next(folder.rglob("*.safetensors")).parent


def test_shards_against_model_merger_of_verl(saved: tuple[int, Path], tmp_path: Path) -> None:
    pytest.importorskip("verl")
    ranks, folder = saved
    runs = {"verl": STEPS} | ({"verl-fsdp1": (3,)} if ranks > 1 else {})
    for name, steps in runs.items():
        (tmp_path / name).mkdir()
        found = restored(folder / name, tmp_path / name)
        assert sorted(found) == list(steps)
        for step in steps[-2:]:
            merged = tmp_path / name / f"merged-{step}"
            actor = folder / name / f"global_step_{step}" / "actor"
            merger = ["-m", "verl.model_merger", "merge", "--backend", "fsdp", "--local_dir", actor]
            checks.run_all([[*merger, "--target_dir", merged]], tmp_path)
            ours = weights_below(found[step])
            checks.assert_same(checks.load(ours), checks.load(merged))
            assert checks.tokens(ours) == checks.tokens(merged)


def test_accelerate_against_its_merge_weights(saved: tuple[int, Path], tmp_path: Path) -> None:
    from accelerate.utils.fsdp_utils import merge_fsdp_weights

    _, folder = saved
    found = restored(folder / "accelerate", tmp_path)
    assert sorted(found) == list(STEPS)
    for step in STEPS:
        checkpoint = folder / "accelerate" / f"checkpoint-{step}" / "pytorch_model_fsdp_0"
        merge_fsdp_weights(str(checkpoint), str(tmp_path / f"merged-{step}"), safe_serialization=True)
        checks.assert_same(checks.load(weights_below(found[step])), checks.load(tmp_path / f"merged-{step}"))


def test_prime_rl_against_torch(saved: tuple[int, Path], tmp_path: Path) -> None:
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    _, folder = saved
    found = restored(folder / "prime-rl", tmp_path)
    assert sorted(found) == list(STEPS)
    for step in STEPS:
        whole = tmp_path / f"{step}.pt"
        dcp_to_torch_save(folder / "prime-rl" / "checkpoints" / f"step_{step}" / "trainer", whole)
        expected = torch.load(whole, weights_only=False)["app"]["model"]
        checks.assert_same(checks.load(weights_below(found[step])), expected)


def test_nemo_rl_against_consolidation(saved: tuple[int, Path], tmp_path: Path) -> None:
    from torch.distributed.checkpoint._consolidate_hf_safetensors import consolidate_safetensors_files

    _, folder = saved
    found = restored(folder / "nemo-rl", tmp_path)
    assert sorted(found) == list(STEPS)
    for step in STEPS:
        slices = folder / "nemo-rl" / f"step_{step}" / "policy" / "weights" / "model"
        whole = tmp_path / f"merged-{step}"
        whole.mkdir()
        names = checks.load(weights_below(found[step]))
        consolidate_safetensors_files(str(slices), str(whole), dict.fromkeys(names, 1))
        checks.assert_same(names, checks.load(whole))


def test_steps_of_several_kinds_are_one_run(saved: tuple[int, Path], tmp_path: Path) -> None:
    _, folder = saved
    for step, source in ((1, "verl/global_step_1/actor"), (2, "prime-rl/checkpoints/step_2"),
                         (3, "accelerate/checkpoint-3")):  # fmt: skip
        (tmp_path / "run" / f"step_{step}").parent.mkdir(exist_ok=True)
        (tmp_path / "run" / f"step_{step}").symlink_to(folder / source)
    mixed = restored(tmp_path / "run", tmp_path)
    (tmp_path / "alone").mkdir()
    alone = restored(folder / "verl", tmp_path / "alone")
    for step in STEPS:
        checks.assert_same(checks.load(weights_below(mixed[step])), checks.load(weights_below(alone[step])))
