"""The compiled loop as what runs it calls it: machine code from disk, for which numba is not imported."""

from __future__ import annotations

from typing import Final

from relex_codec.core.machine_code import MachineCode

decode: Final = MachineCode("relex_codec.kernels.cpu.loops", "decode", "q" * 10 + "f")
"""`loops.decode`."""
