"""Several steps at once: the adapters that `Run.save_adapter` writes of them, over the base and over another step."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from served_run import PROMPTS, engine, expected_tokens

import relex_codec
from relex_codec.integrations.vllm import switch, verify

STEPS = (40, 300)


def main(folder: Path) -> None:
    """Run the checks."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    llm = engine(folder, 0, dtype="float32", enable_lora=True, max_loras=2, max_lora_rank=8)
    with relex_codec.open(folder / "run.relex", base=folder / "base") as run:
        run.save_adapter(folder / "adapters", STEPS, rank=8, embeddings=False)
    places = [folder / "adapters" / f"step-{step}" for step in STEPS]
    changes = [change_of(place) for place in places]
    requests = [LoRARequest(f"step-{step}", step, str(place)) for step, place in zip(STEPS, places, strict=True)]
    greedy = SamplingParams(temperature=0, max_tokens=8)
    for step in (0, 20):
        if step:
            switch(llm, step)
        assert verify(llm).unchecked == ()
        said = []
        for use, change in [(None, {}), *zip(requests, changes, strict=True)]:
            answers = llm.generate(
                [{"prompt_token_ids": one} for one in PROMPTS], greedy, use_tqdm=False, lora_request=use
            )
            found = [list(one.outputs[0].token_ids) for one in answers]
            assert found == [expected_tokens(folder, step, one, change) for one in PROMPTS], (step, use)
            said.append(found)
        assert said[0] != said[2]  # or the adapters could not be told apart


def change_of(place: Path) -> dict[str, torch.Tensor]:
    """Return what an adapter of PEFT adds to the weights of its base."""
    config, tensors = (
        json.loads((place / "adapter_config.json").read_text()),
        load_file(place / "adapter_model.safetensors"),
    )
    assert not config.get("rank_pattern") and not config.get("use_rslora")
    found = {}
    for name, a in tensors.items():
        if name.endswith(".lora_A.weight"):
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            b = tensors[name.replace("lora_A", "lora_B")].float()
            found[f"{module}.weight"] = (b @ a.float()) * (config["lora_alpha"] / config["r"])
    assert len(found) == 7 * 4
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
