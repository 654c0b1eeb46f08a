"""Several LoRA adapters at once over a step of a run, and over another one after a switch."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from served_run import PROMPTS, engine, expected_tokens

from relex_codec.integrations.vllm import switch, verify

RANK = 4
MODULES = {"self_attn.q_proj": (192, 192), "mlp.down_proj": (192, 512)}


def main(folder: Path) -> None:
    """Run the checks."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    changes = [adapter(folder / f"adapter-{n}", seed=n) for n in (1, 2)]
    requests = [LoRARequest(f"adapter-{n}", n, str(folder / f"adapter-{n}")) for n in (1, 2)]
    llm = engine(folder, 20, dtype="float32", enable_lora=True, max_loras=2, max_lora_rank=8)
    greedy = SamplingParams(temperature=0, max_tokens=8)
    for step in (20, 40):
        if step != 20:
            switch(llm, step)
        assert verify(llm).unchecked == ()
        for use, change in [(None, {}), *zip(requests, changes, strict=True)]:
            answers = llm.generate(
                [{"prompt_token_ids": one} for one in PROMPTS], greedy, use_tqdm=False, lora_request=use
            )
            found = [list(one.outputs[0].token_ids) for one in answers]
            assert found == [expected_tokens(folder, step, one, change) for one in PROMPTS], (step, use)


def adapter(place: Path, seed: int) -> dict[str, torch.Tensor]:
    """Write an adapter as PEFT does, and return what it adds to the weights."""
    generator = torch.Generator().manual_seed(seed)
    place.mkdir()
    tensors, added = {}, {}
    for layer in range(4):
        for module, (rows, columns) in MODULES.items():
            a = torch.randn(RANK, columns, generator=generator) * 0.05
            b = torch.randn(rows, RANK, generator=generator) * 0.05
            name = f"model.layers.{layer}.{module}"
            tensors[f"base_model.model.{name}.lora_A.weight"], added[f"{name}.weight"] = a, b @ a
            tensors[f"base_model.model.{name}.lora_B.weight"] = b
    save_file(tensors, place / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": ["q_proj", "down_proj"], "bias": "none",
        "task_type": "CAUSAL_LM", "base_model_name_or_path": "base",
    }  # fmt: skip
    (place / "adapter_config.json").write_text(json.dumps(config))
    return added


if __name__ == "__main__":
    main(Path(sys.argv[1]))
