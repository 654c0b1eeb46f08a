"""An engine that uses parameters as they were loaded, as GPUs do: only what changes is written.

On CPUs vLLM packs matrices for oneDNN; without it, it multiplies with the parameters themselves.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from served_run import assert_at, engine, model_of

from relex_codec.integrations.vllm import patching, switch, verify


def main(folder: Path) -> None:
    """Run the checks."""
    import vllm._custom_ops as ops
    import vllm.model_executor.layers.utils as layers

    ops._supports_onednn = False
    layers.check_cpu_sgl_kernel = lambda *_: False
    llm = engine(folder, 20)
    model = model_of(llm)
    assert patching.takes_patches(model, None)
    assert not patching.takes_patches(model, "fp8")
    kinds: list[str] = []
    written: list[int] = []
    apply, batches = patching.apply, patching._batches

    def noted(found):
        for together in batches(found):
            kinds.extend("all" if one.indices is None else "some" for one in together)
            yield together

    patching._batches = noted
    patching.apply = lambda *args: written.append(apply(*args)) or written[-1]
    total = sum(one.numel() for one in model.parameters())
    for step in (20, 50, 300, 300.02, 0, 10):
        switch(llm, step)
        assert_at(llm, folder, step)
    assert len(written) == 6 and written[0] == 0 < written[3] < total / 4 < written[1] <= total, written
    assert {"some", "all"} == set(kinds)
    switch(llm, 20, tier="line")
    assert_at(llm, folder, 20, "line")
    # changes alone do not mend what was wrong before; what is not equal afterwards is loaded as a whole
    with torch.no_grad():
        model.model.norm.weight.fill_(7)
        model.model.layers[0].mlp.down_proj.weight[3, 5] += 1
    count = len(written)
    switch(llm, 30, check=False)
    assert len(written) == count + 1
    switch(llm, 40)
    assert_at(llm, folder, 40)
    assert verify(llm).step == 40
    llm.collective_rpc("reload_weights", kwargs={"weights_path": "relex:step=10"})
    assert_at(llm, folder, 10)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
