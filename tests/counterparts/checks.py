"""What the comparisons share: running programs, and comparing directories of weights bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import relex_codec

BASE = Path(relex_codec.__file__).parent / "demo" / "base"
HERE = Path(__file__).parent


def run_all(commands: Sequence[Sequence[object]], folder: Path, timeout: float = 400) -> None:
    """Run programs of Python at the same time; one that fails or hangs fails here."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "HF_HUB_OFFLINE": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, *map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            cwd=folder, env=environment,
        )
        for command in commands
    ]  # fmt: skip
    deadline = time.monotonic() + timeout
    try:
        ends = [process.communicate(timeout=max(1.0, deadline - time.monotonic())) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    for process, (_, errors) in zip(started, ends, strict=True):
        assert process.returncode == 0, errors[-3000:]


def restored(run: Path, to: Path) -> dict[int, Path]:
    """Encode a run, restore its steps, and return the directory of each."""
    to.mkdir(exist_ok=True)
    relex_codec.encode(run, to / "x.relex", base=BASE, exact=True, allow_pickle=True)
    with relex_codec.open(to / "x.relex", base=BASE) as opened:
        steps = opened.restore(to / "steps")
    return {step: next(path for path in (to / "steps").rglob(f"*{step}") if path.is_dir()) for step in steps}


def weights_below(folder: Path) -> Path:
    """Return the directory with the weights of a restored step."""
    return next(folder.rglob("*.safetensors")).parent


def load(folder: Path) -> dict[str, torch.Tensor]:
    """Read the weights of a directory with the safetensors library."""
    from safetensors.torch import load_file

    found = {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}
    assert found, f"no weights in {folder}"
    return found


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Compare tensors bit for bit; a tied copy of the input embeddings may be missing among what is expected."""
    more = set(found) - set(expected)
    assert more <= {"lm_head.weight"}
    assert set(expected) <= set(found)
    for name in more:
        assert torch.equal(found[name], found["model.embed_tokens.weight"])
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name


def tokens(folder: Path) -> list[list[int]]:
    """What a model says, by the greedy tokens after a few questions."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    inputs = tokenizer(["123+456=", "907+118=", "555+555="], return_tensors="pt")
    with torch.no_grad():
        said = model.generate(inputs["input_ids"], max_new_tokens=12, do_sample=False, pad_token_id=14)
    return [list(map(int, row)) for row in said]
