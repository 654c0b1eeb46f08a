"""Runs of TRL's GRPOTrainer: whole weights and LoRA, against what it saved and what peft makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import relex_codec

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
