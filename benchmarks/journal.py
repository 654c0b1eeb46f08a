"""What recording costs, and what a journal takes.

usage: python benchmarks/journal.py [--parameters 134217728] [--changed 0.01 0.001] [--repeats 20] [--kills 50]

Weights in bf16, of which a share moves to a neighbouring number at each step. Reports, as the least of the repeats,
which take turns:

- `read`: reading the weights once: numpy's XOR over their 64-bit words, on all cores; - `copy`: torch's copy to memory
that is there already; - `compare`: finding what changed; - `add`: `Recorder.add`, which its caller waits for; -
`write`: what follows on its thread: compressing, writing and two `fsync`;

as wall and as processor time of all threads; ratios are of processor times, which other work on the machine disturbs
less; and the bytes of a step beside gap-coded patches: for each tensor the gaps between changed positions as LEB128 and
the new values, each compressed by zstd at level 3 (`patches`), or the values' XOR with the old ones (`patches_xor`).
Then it kills recording and watching, 50 times each (`tests/support/killed.py`). Writes benchmarks/results/journal.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
import zstandard
from safetensors.torch import save_file

import relex_codec
from relex_codec.core.threads import parallel_map
from relex_codec.journal.difference import LOT, find_changes

RESULTS = Path(__file__).parent / "results"
TESTS = Path(__file__).parents[1] / "tests"
SIDE = 4096


def bits_of(value: torch.Tensor) -> Any:
    """The bits of a bf16 tensor."""
    return value.view(torch.int16).numpy().view(np.uint16).reshape(-1)


def weights(parameters: int) -> dict[str, torch.Tensor]:
    """Matrices of 4096 columns, and a norm for each."""
    generator = torch.Generator().manual_seed(0)
    rows = min(4096, parameters // SIDE)
    found = {}
    for i in range(parameters // (rows * SIDE)):
        found[f"layers.{i}.proj"] = (torch.randn(rows, SIDE, generator=generator) * 0.02).bfloat16()
        found[f"layers.{i}.norm"] = torch.ones(SIDE, dtype=torch.bfloat16)
    return found


def moved(state: dict[str, torch.Tensor], share: float, seed: int) -> dict[str, torch.Tensor]:
    """Some weights, moved to the next number or the one before."""
    rng, found = np.random.default_rng(seed), {}
    for name, value in state.items():
        bits = bits_of(value).copy()
        places = np.flatnonzero(rng.random(bits.size, np.float32) < share)
        bits[places] += rng.choice(np.array([1, 0xFFFF], np.uint16), places.size)
        found[name] = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).reshape(value.shape)
    return found


class Times:
    """Wall and processor time (of all threads) of what is done again and again, in turn with other things."""

    def __init__(self) -> None:
        self.found: dict[str, list[tuple[float, float]]] = {}

    def measure(self, name: str, call: Callable[[], Any]) -> None:
        """Do something once."""
        wall, processor = time.perf_counter(), time.process_time()
        call()
        self.found.setdefault(name, []).append((time.perf_counter() - wall, time.process_time() - processor))

    def least(self) -> dict[str, dict[str, float]]:
        """The quickest of each, in milliseconds."""
        return {
            name: {
                "wall_ms": round(1e3 * min(wall for wall, _ in times), 2),
                "processor_ms": round(1e3 * min(processor for _, processor in times), 2),
            }
            for name, times in self.found.items()
        }


def leb128(gaps: Any) -> bytes:
    """Gaps as LEB128."""
    out = []
    while len(gaps):
        more = gaps >= 128
        out.append((gaps & 127) | (more << 7))
        break_at = more.any()
        if not break_at:
            break
        gaps = np.where(more, gaps >> 7, 0)
    planes = np.stack(out) if out else np.empty((0, 0), np.int64)
    used = np.zeros(planes.shape, np.bool_)
    for i in range(len(planes)):
        used[i] = True if i == 0 else used[i - 1] & (planes[i - 1] >= 128)
    return bytes(planes.T[used.T].astype(np.uint8).tobytes())


def patch_bytes(old: dict[str, torch.Tensor], new: dict[str, torch.Tensor]) -> tuple[int, int]:
    """Bytes of gap-coded patches with new values, and with the XOR of old and new ones."""
    plain = xor = 0
    coder = zstandard.ZstdCompressor(level=3)
    for name in old:
        a, b = bits_of(old[name]), bits_of(new[name])
        places = np.flatnonzero(a != b)
        where = len(coder.compress(leb128(np.diff(places, prepend=-1) - 1)))
        plain += where + len(coder.compress(b[places].tobytes()))
        xor += where + len(coder.compress((a[places] ^ b[places]).tobytes()))
    return plain, xor


def measure(root: Path, parameters: int, share: float, repeats: int) -> dict[str, Any]:
    """One share of weights that move."""
    base = weights(parameters)
    size = sum(value.nbytes for value in base.values())
    folder = root / f"base-{share}"
    folder.mkdir()
    save_file(base, folder / "model.safetensors")
    words = [
        bits.view(np.uint64)[i : i + LOT // 4]
        for bits in map(bits_of, base.values())
        for i in range(0, bits.size // 4, LOT // 4)
    ]
    steps = [base, moved(base, share, 0)]
    place = {name: value.clone() for name, value in base.items()}
    pairs = [
        (bits_of(steps[0][name])[i : i + LOT], bits_of(steps[1][name])[i : i + LOT])
        for name in base
        for i in range(0, base[name].numel(), LOT)
    ]
    times = Times()
    with relex_codec.Recorder(root / f"j-{share}", base=folder) as recorder:
        recorder.add(1, steps[1])
        recorder.flush()
        for step in range(2, 2 + repeats):
            times.measure("read", lambda: parallel_map(np.bitwise_xor.reduce, words))
            times.measure("copy", lambda: [place[name].copy_(value) for name, value in base.items()])
            times.measure("compare", lambda: parallel_map(lambda pair: find_changes(*pair, "BF16"), pairs))
            state = steps[step % 2]
            times.measure("add", lambda step=step, state=state: recorder.add(step, state))  # type: ignore[misc]
            times.measure("write", recorder.flush)
    row: dict[str, Any] = {"parameters": parameters, "changed": share, "step_bytes": size, **times.least()}
    from relex_codec.journal.reader import Journal

    recorded = Journal(root / f"j-{share}").steps[-1]
    commit = recorded.generation.ranks[0].commits[recorded.number]
    row["journal_bytes"] = commit.end - commit.begin
    row["patches_bytes"], row["patches_xor_bytes"] = patch_bytes(*steps)
    for clock in ("processor_ms", "wall_ms"):
        once = row["read"][clock]
        row[f"times_reading_once_{clock[:-3]}"] = {
            "copy": round(row["copy"][clock] / once, 2),
            "compare": round(row["compare"][clock] / once, 2),
            "add": round(row["add"][clock] / once, 2),
            "add_and_write": round((row["add"][clock] + row["write"][clock]) / once, 2),
        }
    row["bytes_to_patches"] = round(row["journal_bytes"] / row["patches_bytes"], 3)
    row["bytes_to_patches_xor"] = round(row["journal_bytes"] / row["patches_xor_bytes"], 3)
    return row


def kills(times: int) -> dict[str, str]:
    """Kill recording and watching; what it says when nothing was lost."""
    found = {}
    for what in ("record", "watch"):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-W", "ignore", "-m", "support.killed", what, folder, str(times), "2", "2.0"]
            paths = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
            environment = {**os.environ, "PYTHONPATH": paths}
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            found[what] = done.stdout.strip()
    return found


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=1 << 27)
    parser.add_argument("--changed", type=float, nargs="+", default=[0.01, 0.001])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "journal.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(Path(folder), arguments.parameters, share, arguments.repeats) for share in arguments.changed]
    document = {
        "machine": {
            "processor": next(
                (line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?"
            ),
            "cores": os.cpu_count(),
            "load": round(os.getloadavg()[0], 1),
            "system": platform.platform(),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "numba": numba.__version__,
            "zstandard": zstandard.__version__,
            "relex-codec": relex_codec.__version__,
        },
        "rows": rows,
        "kills": kills(arguments.kills) if arguments.kills else {},
    }
    print(json.dumps(document, indent=1))
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
