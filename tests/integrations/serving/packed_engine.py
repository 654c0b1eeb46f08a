"""An engine as it is on CPUs, whose matrices are packed: weights at many steps, messages, and what is noticed."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from served_run import assert_at, engine, model_of, refused, weights

import relex_codec
from relex_codec.errors import Corrupt, InvalidArgument
from relex_codec.integrations.vllm import patching, switch, verify


def main(folder: Path) -> None:
    """Run the checks."""
    with relex_codec.open(folder / "run.relex", base=folder / "base") as run:
        run.state_dict(20)
    assert "llvmlite" in sys.modules  # beside which vLLM 0.32 would start no engine on CPUs
    llm = engine(folder, 20, dtype=packed_dtype())
    assert not patching.takes_patches(model_of(llm), None)
    assert_at(llm, folder, 20)
    assert verify(llm).unchecked == ()
    digests = {}
    for step in (10, 0, 35, 40, 50, 300, 7.5, 10, 20, 45):
        found = switch(llm, step)
        assert found.step == step and found.digests is not None and found.unchecked == ()
        assert digests.setdefault(step, found.digests) == found.digests
        assert_at(llm, folder, step)
    assert len(set(digests.values())) == 9
    assert switch(llm, 20, tier="line").tier == "line"
    assert_at(llm, folder, 20, "line")

    def reload(path: str) -> None:
        llm.collective_rpc("reload_weights", kwargs={"weights_path": path})

    reload("relex:step=30")
    assert_at(llm, folder, 30)
    reload("relex:step=30&tier=track")
    assert_at(llm, folder, 30, "track")
    llm.collective_rpc("reload_weights")
    assert_at(llm, folder, 30, "track")
    messages(llm, reload)
    assert_at(llm, folder, 30, "track")
    tampering(llm)
    assert_at(llm, folder, 30, "track")
    stale_head(llm, folder)


def packed_dtype() -> str:
    """Return a dtype whose matrices vLLM packs here: of bfloat16 oneDNN does not on processors without AVX-512."""
    import vllm._custom_ops as ops

    try:
        ops.create_onednn_mm(torch.zeros(64, 64, dtype=torch.bfloat16).t(), 32)
    except RuntimeError:
        return "float32"
    return "bfloat16"


def messages(llm: object, reload: object) -> None:
    """What cannot be is refused in one line, and leaves the engine as it was."""
    refused(InvalidArgument, "expected a finite number", switch, llm, "later")
    refused(InvalidArgument, "the nearest is 30", switch, llm, 31, tier="exact")
    refused(InvalidArgument, "reaches from step 10 to 50", switch, llm, 51, tier="track")
    refused(InvalidArgument, "expected one of auto, line, track, exact", switch, llm, 30, tier="best")
    refused(InvalidArgument, "does not exist", switch, llm, 30, file="/no/such.relex")
    refused(InvalidArgument, "expected a vllm.LLM or the URL", switch, None, 30)
    refused(InvalidArgument, "expected the like of http://", switch, "localhost:8000", 30)
    refused(InvalidArgument, "it is the like of relex:step=200", reload, "/some/checkpoint")
    refused(InvalidArgument, "expected some of step, tier, file, base", reload, "relex:stp=30")
    refused(InvalidArgument, "expected the like of relex:step=200", reload, "relex:30")
    refused(InvalidArgument, "the nearest is 30", reload, "relex:step=31&tier=exact")


def tampering(llm: object) -> None:
    """Weights that are not those of the step are noticed, wherever they are, and written again by the next switch."""
    model = model_of(llm)
    before = verify(llm)
    with torch.no_grad():
        model.model.norm.weight[3] += 1
    refused(Corrupt, "not those of step 30: 1 elements of 'model.norm.weight'", verify, llm)
    assert verify_after_switch(llm) == before.digests
    with torch.no_grad():
        model.model.layers[2].self_attn.qkv_proj.bias[100] += 1
    refused(Corrupt, "qkv_proj.bias", verify, llm)
    assert verify_after_switch(llm) == before.digests
    # stale ones: what multiplies is of another time than what was loaded
    layer, other = model.model.layers[1].mlp.down_proj, model.model.layers[2].mlp.down_proj
    layer.cpu_linear = other.cpu_linear
    refused(Corrupt, "model.layers.1.mlp.down_proj.weight, packed", verify, llm)
    assert verify_after_switch(llm) == before.digests
    stale = model.lm_head.cpu_linear
    switch(llm, 40)
    model.lm_head.cpu_linear = stale
    refused(Corrupt, "lm_head.weight, packed", verify, llm)
    assert verify_after_switch(llm) == before.digests


def stale_head(llm: object, folder: Path) -> None:
    """vLLM's own reload of a checkpoint with tied embeddings leaves the head as it was, as docs/vllm.md says."""

    def load_format(name: str, extra: object) -> None:
        config = {"load_config": {"load_format": name, "model_loader_extra_config": extra}}
        llm.collective_rpc("update_config", args=(config,))

    with relex_codec.open(folder / "run.relex", base=folder / "base") as run:
        run.save(folder / "decoded", 50)
    assert verify(llm).step == 30
    load_format("auto", {})
    llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder / "decoded")})
    found = dict(weights(model_of(llm)))
    assert not torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])
    load_format("relex", {"file": str(folder / "run.relex"), "step": 50})
    llm.collective_rpc("reload_weights", kwargs={"weights_path": "relex:step=50"})
    assert_at(llm, folder, 50)


def verify_after_switch(llm: object) -> object:
    """Switch to the step that the checks began with, and return the digests."""
    return switch(llm, 30, tier="track").digests


if __name__ == "__main__":
    main(Path(sys.argv[1]))
