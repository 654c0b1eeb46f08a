"""What verl's own FSDPCheckpointManager saves, against its model_merger, and against torch where that gives up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import relex_codec

pytest.importorskip("verl")
pytest.importorskip("peft")
pytest.importorskip("PIL", reason="verl's checkpoint manager imports pillow")
import checks
from verl_run import SCALING, STEPS

pytestmark = [pytest.mark.slow, pytest.mark.servers, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module", params=[1, 2, 4])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """Number of ranks, and what they saved."""
    folder = tmp_path_factory.mktemp(f"verl-{request.param}")
    program = checks.HERE / "verl_run.py"
    checks.run_all([[program, rank, request.param, folder] for rank in range(request.param)], folder)
    return request.param, folder


def merged(runs: list[Path], to: Path) -> list[Path]:
    """Let verl's model_merger join the last step of runs, all at the same time."""
    targets = [to / f"verl-{run.name}" for run in runs]
    checks.run_all(
        [
            ["-m", "verl.model_merger", "merge", "--backend", "fsdp", "--local_dir",
             run / f"global_step_{STEPS[-1]}" / "actor", "--target_dir", target]
            for run, target in zip(runs, targets, strict=True)
        ],
        to,
    )  # fmt: skip
    return targets


def test_whole_models(saved: tuple[int, Path], tmp_path: Path) -> None:
    ranks, folder = saved
    runs = [folder / "fsdp2", *([folder / "fsdp1"] if ranks > 1 else []), *([folder / "hsdp"] if ranks == 4 else [])]
    for run, theirs in zip(runs, merged(runs, tmp_path), strict=True):
        found = checks.restored(run, tmp_path / run.name)
        assert sorted(found) == list(STEPS)
        ours = checks.weights_below(found[STEPS[-1]])
        checks.assert_same(checks.load(ours), checks.load(theirs))
        assert checks.tokens(ours) == checks.tokens(theirs)


def test_adapters(saved: tuple[int, Path], tmp_path: Path) -> None:
    """Within the whole model: as model_merger takes it out. Alone: the same, which model_merger does not read."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    _, folder = saved
    (theirs,) = merged([folder / "lora"], tmp_path)
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(checks.BASE, dtype=torch.bfloat16)
    PeftModel.from_pretrained(model, theirs / "lora_adapter").merge_and_unload().save_pretrained(tmp_path / "peft")
    for name in ("lora", "lora-only"):
        found = checks.restored(folder / name, tmp_path / name)
        assert sorted(found) == list(STEPS)
        ours = checks.weights_below(found[STEPS[-1]])
        checks.assert_same(checks.load(ours), checks.load(theirs / "lora_adapter"))
        config = json.loads((ours / "adapter_config.json").read_bytes())
        expected = json.loads((theirs / "lora_adapter" / "adapter_config.json").read_bytes())
        expected["target_modules"] = sorted(expected["target_modules"])
        assert config == {key: expected[key] for key in config}
        assert SCALING.items() <= config.items()
        assert not (ours / "config.json").exists()
        with relex_codec.open(tmp_path / name / "x.relex", base=checks.BASE) as opened:
            opened.save(tmp_path / f"{name}-merged", STEPS[-1], merge=True)
        checks.assert_same(checks.load(tmp_path / f"{name}-merged"), checks.load(tmp_path / "peft"))
        assert checks.tokens(tmp_path / f"{name}-merged") == checks.tokens(tmp_path / "peft")


@pytest.mark.parametrize("kind", ["hsdp", "tp"])
def test_meshes_of_two_dimensions_against_torch(saved: tuple[int, Path], tmp_path: Path, kind: str) -> None:
    ranks, folder = saved
    if ranks != 4:
        pytest.skip("takes four ranks")
    found = checks.restored(folder / kind, tmp_path)
    for step in STEPS:
        checks.assert_same(checks.load(checks.weights_below(found[step])), torch.load(folder / f"{kind}-{step}.pt"))
