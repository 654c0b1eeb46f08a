"""Two workers, each with a part of the weights: it decodes no more than that part."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from served_run import PROMPTS, engine, expected_tokens

import relex_codec
from relex_codec.integrations.vllm import switch, verify


def main(folder: Path) -> None:
    """Run the checks."""
    cores = sorted(os.sched_getaffinity(0))
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"{cores[0]}|{cores[-1]}"  # or vLLM wants a NUMA node for each
    from vllm import SamplingParams

    llm = engine(folder, 20, tensor_parallel_size=2, dtype="float32")
    with relex_codec.open(folder / "run.relex", base=folder / "base") as run:
        whole = run.resident().nbytes
    switch(llm, 300)
    for one in llm.collective_rpc("relex_state"):  # half of the base, and of directions the chunks that a part lies in
        assert one["step"] == 300 and 0.5 * whole <= one["resident_bytes"] < 0.7 * whole, (one, whole)
    for step in (20, 0, 50, 35):
        found = switch(llm, step)
        assert len(found.digests) == 2
        # of 16 tokens, padded to 64, the second worker has none: all that it has of the embeddings is padding
        assert found.unchecked == ("model.embed_tokens.weight",), found
    assert verify(llm).step == 35
    greedy = SamplingParams(temperature=0, max_tokens=8)
    for step in (20, 35, 0):
        switch(llm, step)
        answers = llm.generate([{"prompt_token_ids": one} for one in PROMPTS], greedy, use_tqdm=False)
        found = [list(one.outputs[0].token_ids) for one in answers]
        assert found == [expected_tokens(folder, step, one) for one in PROMPTS], step


if __name__ == "__main__":
    main(Path(sys.argv[1]))
