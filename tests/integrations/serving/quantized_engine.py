"""An engine that quantises to FP8 as it loads: its weights are those of the step, rounded, and are compared as such."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from served_run import engine, model_of, refused

import relex_codec
from relex_codec.errors import Corrupt
from relex_codec.integrations.vllm import patching, switch, verify


def main(folder: Path) -> None:
    """Run the checks."""
    llm = engine(folder, 20, quantization="fp8_per_tensor")
    model = model_of(llm)
    assert not patching.takes_patches(model, "fp8_per_tensor")
    assert_near(model, folder, 20)
    first = verify(llm)
    assert first.unchecked == ()
    for step in (300, 0, 50):
        assert switch(llm, step).digests != first.digests
        assert_near(model, folder, step)
    assert switch(llm, 20).digests == first.digests
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.view(torch.uint8)[5, 7] ^= 1
    refused(Corrupt, "not those of step 20: 1 elements of 'model.layers.1.mlp.down_proj.weight'", verify, llm)
    assert switch(llm, 20).digests == first.digests


def assert_near(model: torch.nn.Module, folder: Path, step: float) -> None:
    """Compare what is left of a matrix in FP8 with the decoded one: three bits of mantissa, scaled by the largest."""
    with relex_codec.open(folder / "run.relex", base=folder / "base") as run:
        for n in range(4):
            name = f"model.layers.{n}.mlp.down_proj"
            expected = run.tensor(f"{name}.weight", step).float()
            layer = model.get_submodule(name)
            assert layer.weight.dtype == torch.float8_e4m3fn
            found = layer.weight.float() * layer.weight_scale
            found = found if found.shape == expected.shape else found.t()
            allowed = expected.abs() / 15 + expected.abs().max() / 448 / 512
            assert ((found - expected).abs() <= allowed).all(), (step, name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
