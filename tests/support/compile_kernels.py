"""Prints, as JSON, which instructions Triton's kernels become on a kind of GPU, without one.

usage: python compile_kernels.py KIND [NAME ...], KIND as in 80 or 90

Triton must not be in its interpreter mode, so this is a process of its own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from relex_codec.kernels.triton import kernels
from relex_codec.kernels.triton.launch import OPTIONS
from relex_codec.kernels.triton.plan import Class, GeneralClass, PlanarClass

DISASSEMBLER = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
FACTORS = 8
CLASSES: dict[str, Class] = {
    "nibble": PlanarClass("BF16", "BF16", 2, 1, 4, 2048, False, True),
    "ternary": PlanarClass("BF16", "BF16", 5, 1, 2, 1024, False, True),
    "nibble, factors": PlanarClass("F32", "F16", 2, 1, FACTORS + 4, 1024, True, True),
    "nibble, factors of short rows": PlanarClass("F16", "F32", 2, 1, FACTORS + 4, 1024, False, False),
    "two directions": PlanarClass("BF16", "BF16", 2, 2, ((FACTORS + 4) << 4) + 4, 1024, True, True),
    "any": GeneralClass("BF16", "BF16", -1, True, 1024),
    "columns": GeneralClass("BF16", "BF16", 4, False, 1024),
}


def instructions(chosen: Class, capability: int) -> dict[str, list[str]]:
    """Return the instructions of a kernel, in PTX and in machine code."""
    kernel = kernels.planar if isinstance(chosen, PlanarClass) else kernels.general
    constants = chosen._asdict()
    signature = {"units": "*i32", "table": "*i64", "call": "*i64", "steps": "i32"}
    source = ASTSource(kernel, signature | dict.fromkeys(constants, "constexpr"), constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=OPTIONS)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        sass = subprocess.run([DISASSEMBLER, "-c", file.name], capture_output=True, text=True, check=True).stdout
    ptx = re.findall(r"^\s+(?:@!?%p\d+ )?([a-z]+\.[a-z0-9_.:]+)", compiled.asm["ptx"], re.M)
    memory = re.findall(r"(?:ld|st)\.global[a-z0-9_.:]*", compiled.asm["ptx"])
    return {"ptx": sorted({*ptx, *memory}), "sass": sorted(set(re.findall(r"\b[A-Z][A-Z0-9]+(?:\.[A-Z0-9_]+)*", sass)))}


if __name__ == "__main__":
    names = sys.argv[2:] or list(CLASSES)
    print(json.dumps({name: instructions(CLASSES[name], int(sys.argv[1])) for name in names}))  # noqa: T201
