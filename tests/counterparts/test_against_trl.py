"""Runs of TRL's GRPOTrainer: whole weights, LoRA, FSDP2, against what it saved and what its own tools make of that."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch

import relex_codec
from relex_codec.errors import CheckpointError

pytest.importorskip("trl")
pytest.importorskip("peft")
pytest.importorskip("datasets")
import checks
from trl_run import STEPS

pytestmark = [pytest.mark.slow, pytest.mark.servers, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module", params=["full", "lora", "rslora"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """What was trained, the run, and the file that it became."""
    folder = tmp_path_factory.mktemp(request.param)
    checks.run_all([[checks.HERE / "trl_run.py", folder / "run", request.param]], folder)
    relex_codec.encode(folder / "run", folder / "x.relex", base=checks.BASE, exact=True)
    return request.param, folder / "run", folder / "x.relex"


def test_every_step_comes_back(trained: tuple[str, Path, Path], tmp_path: Path) -> None:
    kind, run, file = trained
    with relex_codec.open(file, base=checks.BASE) as opened:
        assert opened.steps == list(range(1, STEPS + 1))
        opened.restore(tmp_path / "again")
        for step in opened.steps:
            there = run / f"checkpoint-{step}"
            here = next((tmp_path / "again").glob(f"*{step}"))
            checks.assert_same(checks.load(here), checks.load(there))
            if kind != "full":
                assert (here / "adapter_config.json").read_bytes() == (there / "adapter_config.json").read_bytes()
    if kind == "full":
        for step in (1, STEPS):
            here = next((tmp_path / "again").glob(f"*{step}"))
            assert checks.tokens(here) == checks.tokens(run / f"checkpoint-{step}")


def test_adapters_are_merged_as_peft_merges_them(trained: tuple[str, Path, Path], tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    kind, run, file = trained
    if kind == "full":
        pytest.skip("of adapters")
    torch.set_num_threads(1)
    for step in (1, 4, STEPS):
        model = AutoModelForCausalLM.from_pretrained(checks.BASE, dtype=torch.bfloat16)
        merged = PeftModel.from_pretrained(model, run / f"checkpoint-{step}").merge_and_unload()
        merged.save_pretrained(tmp_path / f"peft-{step}")
        with relex_codec.open(file, base=checks.BASE) as opened:
            opened.save(tmp_path / f"ours-{step}", step, merge=True)
        checks.assert_same(checks.load(tmp_path / f"ours-{step}"), checks.load(tmp_path / f"peft-{step}"))
        assert checks.tokens(tmp_path / f"ours-{step}") == checks.tokens(tmp_path / f"peft-{step}")


def test_a_step_that_was_never_trained_loads_as_an_adapter(trained: tuple[str, Path, Path], tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    kind, _, file = trained
    if kind == "full":
        pytest.skip("of adapters")
    with relex_codec.open(file) as opened:
        opened.save(tmp_path / "out", 2 * STEPS)
    model = AutoModelForCausalLM.from_pretrained(checks.BASE, dtype=torch.bfloat16)
    loaded = PeftModel.from_pretrained(model, tmp_path / "out")
    saved = checks.load(tmp_path / "out")
    found = {name.replace(".default.", "."): value for name, value in loaded.state_dict().items() if "lora_" in name}
    assert set(found) == set(saved)
    assert all(torch.equal(found[name].float(), value.float()) for name, value in saved.items())


# ---- two ranks under FSDP2 ----


@pytest.fixture(scope="module", params=["fsdp2", "fsdp2-lora"])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What two ranks trained, and the run."""
    folder = tmp_path_factory.mktemp(request.param)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = checks.HERE / "trl_run.py"
    checks.run_all([[program, folder / "run", request.param, rank, 2, port] for rank in range(2)], folder)
    return request.param, folder / "run"


def merged_by_accelerate(checkpoint: Path, to: Path) -> dict[str, torch.Tensor]:
    """What accelerate makes of a sharded checkpoint, under the names that it has there."""
    from accelerate.utils.fsdp_utils import merge_fsdp_weights

    merge_fsdp_weights(str(checkpoint / "pytorch_model_fsdp_0"), str(to), safe_serialization=True)
    return checks.load(to)


def test_fsdp2_against_merge_weights_of_accelerate(ranks: tuple[str, Path], tmp_path: Path) -> None:
    kind, run = ranks
    if kind != "fsdp2":
        pytest.skip("of whole weights")
    found = checks.restored(run, tmp_path / "again")
    assert sorted(found) == list(range(1, STEPS + 1))
    last: dict[str, torch.Tensor] = {}
    for step in found:
        ours = checks.weights_below(found[step])
        weights = checks.load(ours)
        checks.assert_same(weights, merged_by_accelerate(run / f"checkpoint-{step}", tmp_path / f"{step}"))
        assert not last or any(not torch.equal(last[name], weights[name]) for name in last)
        last = weights
        if step in (1, STEPS):
            for name in ("config.json", "generation_config.json"):
                (tmp_path / f"{step}" / name).write_bytes((checks.BASE / name).read_bytes())
            assert checks.tokens(ours) == checks.tokens(tmp_path / f"{step}")


def test_adapters_under_fsdp2_against_peft(ranks: tuple[str, Path], tmp_path: Path) -> None:
    """The trainer saves the adapter's tensors, and its configuration nowhere: that is asked for, once."""
    from peft import LoraConfig, PeftModel
    from transformers import AutoModelForCausalLM

    kind, run = ranks
    if kind == "fsdp2":
        pytest.skip("of adapters")
    with pytest.raises(CheckpointError, match=r"has an adapter without its adapter_config\.json; write it once into"):
        relex_codec.encode(run, tmp_path / "x.relex", base=checks.BASE, exact=True, allow_pickle=True)
    LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"]).save_pretrained(run)
    found = checks.restored(run, tmp_path / "again")
    assert sorted(found) == list(range(1, STEPS + 1))
    torch.set_num_threads(1)
    for step in (1, STEPS):
        theirs = merged_by_accelerate(run / f"checkpoint-{step}", tmp_path / f"{step}")
        ours = checks.weights_below(found[step])
        checks.assert_same(checks.load(ours), theirs)
        assert (ours / "adapter_config.json").read_bytes() == (run / "adapter_config.json").read_bytes()
        model = AutoModelForCausalLM.from_pretrained(checks.BASE, dtype=torch.bfloat16)
        PeftModel.from_pretrained(model, ours).merge_and_unload().save_pretrained(tmp_path / f"peft-{step}")
        with relex_codec.open(tmp_path / "again" / "x.relex", base=checks.BASE) as opened:
            opened.save(tmp_path / f"merged-{step}", step, merge=True)
        checks.assert_same(checks.load(tmp_path / f"merged-{step}"), checks.load(tmp_path / f"peft-{step}"))
        assert checks.tokens(tmp_path / f"merged-{step}") == checks.tokens(tmp_path / f"peft-{step}")
