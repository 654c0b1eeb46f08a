"""Switching step in an engine of vLLM, against decoding a checkpoint to disk and reloading that.

usage: python benchmarks/vllm_switch.py [--parameters 12] [--rounds 2] [--part PART] [--work DIR]

To be run where tools/vllm.sh put vLLM; each part takes some minutes, and what it measured is kept at once.

A generated run (generator.py, 1 % of the weights change a step; parameters in millions) of eight steps is encoded with
the exact tier. An engine in a process of its own goes from step 4 to the next stored one, bit for bit, and to step 40
of the line, in each way by turns: it is put back to step 4 in between, which is not counted. Processor time of all
threads and wall time, the least of the rounds after one that is not counted, in which the engine's weights are compared
with those of the step. Bytes read are those of system calls, and a checkpoint that is mapped counts as its size.

This is done twice: in bfloat16 with oneDNN turned off, where parameters are used as they were loaded, as on
accelerators, and in float32 with matrices that vLLM 0.32 packs for oneDNN, as it does on all CPUs in float32, and where
there is AVX-512 in bfloat16. Then `vllm serve` is started once, switched to ten steps and asked at each (`server`).
Writes benchmarks/results/vllm_switch.json.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from generator import write_run
from sizes import RESULTS
from speed import processor

import relex_codec

START, STEPS = 4, 8
MOVES = {"next stored step": (5, "exact"), "step 40 of the line": (40, "line")}
ASKED = (1, 2, 3, 5, 6, 8, 12, 16, 24, 40)
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
    "VLLM_SERVER_DEV_MODE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}  # fmt: skip
PARTS = ("as loaded", "packed", "server")
WRITTEN = {"weights": 0}


def engine(folder: Path, kind: str) -> Any:
    """Return an engine in this process, at the step where moves begin, that notes how many weights it writes."""
    from relex_codec.integrations.vllm import patching

    if kind == "as loaded":
        operations: Any = importlib.import_module("vllm._custom_ops")
        layers: Any = importlib.import_module("vllm.model_executor.layers.utils")
        operations._supports_onednn = False
        layers.check_cpu_sgl_kernel = lambda *_: False
    apply = patching.apply

    def noted(model: Any, found: Any) -> int:
        WRITTEN["weights"] = apply(model, found)
        return WRITTEN["weights"]

    patching.apply = noted
    vllm: Any = importlib.import_module("vllm")
    return vllm.LLM(
        str(folder / "base"), load_format="relex", max_model_len=64, enforce_eager=True,
        dtype="bfloat16" if kind == "as loaded" else "float32",
        model_loader_extra_config={"file": str(folder / "run.relex"), "step": START},
        weight_transfer_config={"backend": "relex"},
    )  # fmt: skip


def read_bytes() -> tuple[int, int]:
    """Return the bytes that this process has read and written by system calls."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["rchar"]), int(lines["wchar"])


def timed(function: Callable[[], Any]) -> dict[str, float]:
    """Call a function, and return seconds and bytes."""
    before, used, wall = read_bytes(), time.process_time(), time.perf_counter()
    function()
    seconds = {"processor": time.process_time() - used, "wall": time.perf_counter() - wall}
    after = read_bytes()
    return {**seconds, "read": after[0] - before[0], "written_to_disk": after[1] - before[1]}


def measure(folder: Path, kind: str, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each move and way."""
    from relex_codec.integrations.vllm import patching, switch, verify

    run = relex_codec.open(folder / "run.relex", base=folder / "base")
    parameters = int(run.info()["parameters"])
    llm = engine(folder, kind)
    out = folder / "decoded"
    patches = patching.takes_patches(llm.llm_engine.model_executor.driver_worker.worker.get_model(), None)
    if patches != (kind == "as loaded"):
        raise SystemExit(f"matrices of the engine {kind!r} are not as they should be")

    def reload(path: str) -> None:
        llm.collective_rpc("reload_weights", kwargs={"weights_path": path})
        llm.reset_prefix_cache()

    def from_disk() -> dict[str, float]:
        load_format: dict[str, Any] = {"load_format": "auto", "model_loader_extra_config": {}}
        llm.collective_rpc("update_config", args=({"load_config": load_format},))
        found = timed(lambda: reload(str(out)))
        found["read"] += (out / "model.safetensors").stat().st_size
        extra = {"file": str(folder / "run.relex"), "step": START}
        load_format = {"load_format": "relex", "model_loader_extra_config": extra}
        llm.collective_rpc("update_config", args=({"load_config": load_format},))
        return found

    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for turn in range(rounds + 1):
        for move, (step, tier) in MOVES.items():
            # a reload from disk is not known to what switches, so that a whole reload comes next
            ways: dict[str, Callable[[], dict[str, float]]] = {
                "decode to disk": partial(timed, partial(run.save, out, step, tier=tier)),
                "reload_weights of that": from_disk,
                "reload_weights relex:": partial(timed, partial(reload, f"relex:step={step}&tier={tier}")),
                "switch, not compared": partial(timed, partial(switch, llm, step, tier=tier, check=False)),
                "switch": partial(timed, partial(switch, llm, step, tier=tier)),
            }
            for way, function in ways.items():
                if way != "decode to disk":
                    reload(f"relex:step={START}&tier=exact")
                WRITTEN["weights"] = 0 if way == "decode to disk" else parameters
                found = function()
                if not turn and way != "decode to disk" and way != "reload_weights of that":
                    verify(llm)
                row = rows.setdefault((move, way), {"move": move, "way": way})
                row["weights_written"] = WRITTEN["weights"]
                if turn:
                    for name, value in found.items():
                        row[name] = round(min(value, row.get(name, value)), 3)
                print(kind, turn, move, way, {k: round(v, 3) for k, v in found.items()}, WRITTEN, file=sys.stderr)
            shutil.rmtree(out)
    return list(rows.values())


def served(folder: Path) -> dict[str, Any]:
    """Start a server once, and ask it at ten steps; return seconds."""
    from relex_codec.integrations.vllm import switch

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [
        str(Path(sys.executable).parent / "vllm"), "serve", str(folder / "base"), "--load-format", "relex",
        "--model-loader-extra-config", json.dumps({"file": str(folder / "run.relex"), "step": START}),
        "--weight-transfer-config", '{"backend": "relex"}', "--host", "127.0.0.1", "--port", str(port),
        "--dtype", "bfloat16", "--max-model-len", "64", "--enforce-eager", "--served-model-name", "model",
    ]  # fmt: skip
    begin = time.perf_counter()
    with open(folder / "server.log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        while True:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except OSError:
                if server.poll() is not None:
                    raise SystemExit((folder / "server.log").read_text()[-4000:]) from None
                time.sleep(0.5)
        started = time.perf_counter() - begin
        switches, answers = [], []
        body = json.dumps({"model": "model", "prompt": [1, 2, 3, 10, 4], "max_tokens": 8, "temperature": 0}).encode()
        for step in ASKED:
            begin = time.perf_counter()
            switch(url, step)
            switches.append(round(time.perf_counter() - begin, 3))
            begin = time.perf_counter()
            asked = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(asked, timeout=300) as answer:
                json.load(answer)
            answers.append(round(time.perf_counter() - begin, 3))
    finally:
        server.terminate()
        server.wait(120)
    return {"steps": ASKED, "start": round(started, 1), "switch": switches, "answer": answers}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--part", choices=PARTS, help="default: all of them, one after another")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--engine", nargs=2, metavar=("KIND", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    if args.engine:
        folder = Path(args.engine[1])
        (folder / "rows.json").write_text(json.dumps(measure(folder, args.engine[0], args.rounds)))
        return
    with tempfile.TemporaryDirectory(dir=args.work) as name:
        work = Path(name)
        write_run(work, args.parameters * 1_000_000, STEPS)
        demonstration = Path(relex_codec.__file__).parent / "demo" / "base"
        for tokenizer in demonstration.glob("tokenizer*.json"):
            shutil.copy(tokenizer, work / "base")
        relex_codec.encode(work / "run", work / "run.relex", base=work / "base", exact=True)
        with relex_codec.open(work / "run.relex") as run:
            info = run.info()
        document: dict[str, Any] = {
            "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform()},
            "versions": {one: version(one) for one in ("vllm-cpu", "torch", "relex-codec")},
            "parameters": info["parameters"], "checkpoint_bytes": info["checkpoint_bytes"],
            "file_bytes": info["bytes"]["total"], "rounds": args.rounds,
        }  # fmt: skip
        results = RESULTS / "vllm_switch.json"
        before = json.loads(results.read_text()) if results.exists() else {}
        if before.items() >= document.items():  # the other parts were measured on the same
            document = before
        for part in [args.part] if args.part else PARTS:
            if part == "server":
                document[part] = served(work)
            else:
                own = [sys.executable, __file__, "--engine", part, str(work), "--rounds", str(args.rounds)]
                subprocess.run(own, check=True)
                document[part] = json.loads((work / "rows.json").read_text())
            results.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
