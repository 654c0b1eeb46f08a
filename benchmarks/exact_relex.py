"""The exact tier as exact.py measures it, behind the same steps as its peers.

usage: python benchmarks/exact_relex.py FOLDER

FOLDER holds base/ and run/ as exact_source.py reads them, small ones. Prints the seconds that the first use of all
compiled functions takes over the second as JSON: what numba needs to compile them, or to load them from its cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import IO

import numpy as np
import torch
from exact_source import Bits, Source, Tensor

import relex_codec
from relex_codec.core.digests import part_digest
from relex_codec.exact.segment_writer import CodedGroup, GroupCoder
from relex_codec.exact.segments import SegmentShape, groups_of, parts_of
from relex_codec.exact.tier_writer import assemble
from relex_codec.format import constants as f

NAME = "relex-codec"


def write_tier(source: Source, out: Path) -> int:
    """Write the exact tier alone, from the same maps that the peers read; returns its bytes, which the file has too.

    The file is that of `relex_codec.encode` without its other entries: nothing reads it.
    """
    maps = [source.read(position) for position in range(len(source.numbers) + 1)]
    with ExitStack() as stack, open(out, "wb") as file:

        def scratch() -> IO[bytes]:
            return stack.enter_context(tempfile.TemporaryFile(dir=out.parent))

        blobs, shape = scratch(), SegmentShape.after([], len(source.numbers))
        moving = {number: tensor for number, tensor in enumerate(source.tensors) if _moves(maps, tensor)}
        parts = parts_of([(number, "BF16", tensor.size) for number, tensor in moving.items()])
        coder, coded = GroupCoder(scratch, shape.count), []

        def read(at: int, length: int) -> bytes:
            blobs.seek(at)
            return blobs.read(length)

        for first, end in pairwise(groups_of(parts, shape.limit)):
            for part in parts[first:end]:
                begin = moving[part.tensor].begin + part.piece * f.PIECE
                rows = [bits[begin : begin + part.elements] for bits in maps]
                if any((row != rows[0]).any() for row in rows[1:]):
                    coder.add(part, rows)
                else:
                    coder.add_still(part, part_digest(rows[0]))
            coded.append(CodedGroup(read, blobs.seek(0, os.SEEK_END), coder.close(blobs.write)))
        assembly = assemble(shape, coded)
        for block in assembly.data():
            file.write(block)
        file.write(assembly.segments.tobytes() + assembly.frames.tobytes())
        return file.tell()


def _moves(maps: list[Bits], tensor: Tensor) -> bool:
    whole = slice(tensor.begin, tensor.begin + tensor.size)
    return any((bits[whole] != maps[0][whole]).any() for bits in maps[1:])


def write_file(source: Source, out: Path) -> int:
    """Do what ``relex-codec encode --exact --quality micro`` does; returns the bytes of the file."""
    first, last = source.numbers[0], source.numbers[-1]
    every = source.numbers[1] - first if len(source.numbers) > 1 else 1
    return relex_codec.encode(
        source.folder / "run",
        out,
        base=source.folder / "base",
        steps=f"{first}:{last}:{every}",
        quality="micro",
        exact=True,
        overwrite=True,
    )


def tier_size(file: Path) -> int:
    """Return the bytes of the exact tier in a file: records, blocks with their indexes, checksums and digests."""
    with relex_codec.open(file) as run:
        entries = run._reader.container.index.entries
        return sum(entries[name].end - entries[name].begin for name in f.FRAME_ENTRIES)


def restore(file: Path, step: int) -> dict[str, Bits]:
    """Open the file anew and return all tensors at a step, checked against the digests of the step."""
    with relex_codec.open(file) as run:
        names = run.keys()
        return {name: run._reader.bits(name, step, tier="exact") for name in names}


def replay(file: Path) -> Iterator[dict[str, torch.Tensor]]:
    """Open the file anew and yield all tensors at every stored step, checked in the same way."""
    with relex_codec.open(file) as run:
        for _, tensors in run.iter_steps():
            yield tensors


def equal(tensors: dict[str, Bits] | dict[str, torch.Tensor], wanted: Bits, source: Source) -> bool:
    """Whether all tensors have the bits of a checkpoint."""

    def bits(name: str) -> Bits:
        found = tensors[name]
        return found.view(torch.int16).numpy().view("<u2").reshape(-1) if isinstance(found, torch.Tensor) else found

    return sorted(tensors) == sorted(tensor.name for tensor in source.tensors) and all(
        np.array_equal(bits(tensor.name), wanted[tensor.begin : tensor.begin + tensor.size])
        for tensor in source.tensors
    )


def use(source: Source) -> float:
    """Write, restore and replay a run; returns the seconds."""
    with tempfile.TemporaryDirectory() as work:
        file = Path(work) / "run.relex"
        start = time.perf_counter()
        write_tier(source, Path(work) / "tier")
        write_file(source, file)
        restore(file, source.numbers[0])
        for _ in replay(file):
            pass
        return time.perf_counter() - start


def first_use(folder: Path) -> dict[str, float]:
    """Return how many seconds longer the first use in a process is than the second, without and with numba's cache."""
    found = {}
    with tempfile.TemporaryDirectory() as cache:
        for name in ("compiling", "from the cache"):
            command = [sys.executable, __file__, str(folder)]
            done = subprocess.run(
                command, env=os.environ | {"NUMBA_CACHE_DIR": cache}, check=True, stdout=subprocess.PIPE
            )
            found[name] = float(json.loads(done.stdout))
    return found


if __name__ == "__main__":
    run_on_disk = Source(Path(sys.argv[1]))
    print(json.dumps(round(use(run_on_disk) - use(run_on_disk), 2)))
