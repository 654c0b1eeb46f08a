"""Sizes and scores of real runs at every quality, against their own checkpoints.

usage: python benchmarks/sizes.py RUNS_DIR [--work DIR] [--run NAME ...] [--quality Q ...]

RUNS_DIR holds NAME.runpack files, unpack.py and score.py (see the README's section on figures). Writes
benchmarks/results/sizes.json and sizes.md; both are committed, so that a change of size is a diff. The peers are one
plain checkpoint of the same run and the same checkpoint compressed by zstd at level 19.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

import relex_codec
from relex_codec.format import constants as f
from relex_codec.format.index import PiecePlace
from relex_codec.format.packing import piece_lengths, unpack_codes

QUALITIES = ("raw", "fine", "default", "small", "micro")
RESULTS = Path(__file__).parent / "results"


def entropy_bytes(run: relex_codec.Run) -> tuple[float, int]:
    """Return (factors as stored plus order-0 entropy of each direction's codes, stored bytes with their records)."""
    container = run._reader.container
    index = container.index
    floor = 0.0
    chunks = index.first_chunk[f.DATA_BASE]

    def stored_share(parts: Sequence[PiecePlace]) -> float:
        found = [(index.chunks[part.chunk], part.length) for part in parts]
        return sum(int(chunk["stored"]) * length / int(chunk["raw"]) for chunk, length in found)

    for tensor in index.tensors:
        for number in tensor.directions:
            packing = f.PACKINGS[int(index.directions[number]["packing"])]
            factors, codes = index.direction_places(tensor, number)
            floor += stored_share(factors)
            if packing is f.FLOAT32:
                floor += stored_share(codes)
                continue
            raw = container.pieces(codes, lambda _, data: data)
            pieces = [np.concatenate(raw[i : i + packing.planes]) for i in range(0, len(raw), packing.planes or 1)]
            values = [unpack_codes(*p, packing) for p in zip(pieces, piece_lengths(tensor.size), strict=False)]
            if values:
                _, counts = np.unique(np.concatenate(values), return_counts=True)
                floor -= float(counts @ np.log2(counts / counts.sum())) / 8
    stored = int(index.chunks["stored"][:chunks].sum()) + chunks * f.CHUNK_RECORD.itemsize
    return floor, stored


def measure(name: str, folder: Path, quality: str, score: Any) -> dict[str, Any]:
    """Encode one run at one quality; return a row of the table."""
    file = folder / f"{name}-{quality}.relex"
    relex_codec.encode(folder / "run", file, base=folder / "base", quality=quality, overwrite=True, progress=True)
    with relex_codec.open(file) as run:
        document = run.info()
        floor, stored = entropy_bytes(run)
        last = run.steps[-1]
        out = folder / f"decoded-{quality}"
        subprocess.run(["rm", "-rf", str(out)], check=True)
        run.save(out, last, tier="track")
        moved = sum(row["kind"] == "moving" for row in document["tensor_rows"])
        overhead = document["bytes"]["coefficients"] + document["bytes"]["index"]
        row = {
            "run": name,
            "quality": quality,
            "bytes": document["bytes"],
            "bits_per_parameter": document["bits_per_parameter"],
            "ratio_to_run": document["ratio"],
            "share_of_a_checkpoint": round(document["bytes"]["total"] / document["checkpoint_bytes"], 4),
            "directions_over_entropy": round(stored / floor, 4),
            "overhead_allowed": 8 * len(run.steps) * moved + 400 * document["tensors"],
            "overhead": overhead,
            "error": relative_error(run, folder / "run" / f"global_step_{last}", folder / "base", "track"),
            "score": score(out),
        }
    print(json.dumps(row), flush=True)
    return row


def relative_error(run: relex_codec.Run, target: Path, base: Path, tier: str) -> float:
    """Return |W - W_decoded| / |W - W0| over all weights of the last step."""
    from safetensors.torch import load_file

    wanted, origin = load_file(target / "model.safetensors"), load_file(base / "model.safetensors")
    decoded = run.state_dict(run.steps[-1], tier=tier)
    miss = sum(float(((decoded[k].double() - wanted[k].double()) ** 2).sum()) for k in wanted)
    norm = sum(float(((origin[k].double() - wanted[k].double()) ** 2).sum()) for k in wanted)
    return round(float(np.sqrt(miss / norm)), 4)


def table(rows: list[dict[str, Any]], peers: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [
        "| run | quality | directions | coefficients | index | total | bits/parameter (directions) | of one checkpoint "
        "| smaller than the run | over entropy | weight error | score |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, peer in peers.items():
        lines.append(
            f"| {name} | one checkpoint | | | | {peer['checkpoint']:,} | 16 | 1 | {peer['steps']} | | 0 "
            f"| {peer['score']:.3f} |"
        )
        lines.append(f"| {name} | one checkpoint, zstd -19 | | | | {peer['zstd']:,} | {peer['zstd_bits']:.2f} "
                     f"| {peer['zstd'] / peer['checkpoint']:.3f} | | | 0 | {peer['score']:.3f} |")  # fmt: skip
        for row in (row for row in rows if row["run"] == name):
            size = row["bytes"]
            lines.append(
                f"| {name} | `{row['quality']}` | {size['directions']:,} | {size['coefficients']:,} "
                f"| {size['index']:,} | {size['total']:,} | {row['bits_per_parameter']['directions']:.2f} "
                f"| {row['share_of_a_checkpoint']:.3f} "
                f"| {row['ratio_to_run']:,.0f} | {row['directions_over_entropy']:.3f} | {row['error']:.3f} "
                f"| {row['score']:.3f} |"
            )
    return "\n".join(lines) + "\n"


def unpacked(runs: Path, work: Path, name: str) -> Path:
    """Return the folder of a run with its base, unpacked if it is not yet."""
    folder = work / name
    if not (folder / "base").exists():
        command = [sys.executable, str(runs / "unpack.py"), str(runs / f"addition-{name}.runpack"), str(folder)]
        subprocess.run(command, check=True)
    return folder


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--work", type=Path, default=Path("/tmp/relex-sizes"))
    parser.add_argument("--run", nargs="*", default=["sparse", "dense"])
    parser.add_argument("--quality", nargs="*", default=list(QUALITIES))
    args = parser.parse_args()
    sys.path.insert(0, str(args.runs))
    from score import score

    rows, peers = [], {}
    for name in args.run:
        folder = unpacked(args.runs, args.work, name)
        steps = sorted(int(p.name.rsplit("_", 1)[1]) for p in (folder / "run").iterdir())
        last = folder / "run" / f"global_step_{steps[-1]}"
        data = (last / "model.safetensors").read_bytes()
        packed = len(zstandard.ZstdCompressor(level=19).compress(data))
        peers[name] = {"steps": len(steps), "checkpoint": len(data), "zstd": packed,
                       "zstd_bits": 16 * packed / len(data), "score": round(score(str(last)), 4)}  # fmt: skip
        rows += [measure(name, folder, quality, lambda out: round(score(str(out)), 4)) for quality in args.quality]
    versions = {"python": platform.python_version(), "numpy": np.__version__, "zstandard": zstandard.__version__,
                "zstd": ".".join(map(str, zstandard.ZSTD_VERSION)), "relex-codec": relex_codec.__version__}  # fmt: skip
    if set(args.run) < {"sparse", "dense"} or set(args.quality) < set(QUALITIES):
        print(table(rows, peers))  # a part replaces no results
        return
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "sizes.json").write_text(
        json.dumps({"versions": versions, "peers": peers, "rows": rows}, indent=1) + "\n"
    )
    (RESULTS / "sizes.md").write_text(table(rows, peers))
    print(table(rows, peers))


if __name__ == "__main__":
    main()
