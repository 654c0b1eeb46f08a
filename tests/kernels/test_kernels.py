"""The reference and the compiled kernel give the bits of the reference decoder, whatever the bits that go in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relex_codec.core.dtypes import FLOATS, ITEMSIZE, NAN, from_float32, to_float32
from relex_codec.errors import Corrupt
from relex_codec.format.constants import BYTE, NIBBLE, NONE, PACKINGS, PIECE, QUINARY, TERNARY, Packing
from relex_codec.format.factors import from_stream
from relex_codec.format.packing import check_codes, pack_codes, packed_size, unpack_codes
from relex_codec.kernels import reference
from relex_codec.kernels.cpu import launch
from relex_codec.kernels.dispatch import host_kernel
from relex_codec.kernels.interface import Prepare, flat
from support.commands import ELSEWHERE
from support.kernel_cases import (
    DTYPES,
    SHAPES,
    Array,
    Case,
    Drawn,
    block_ends,
    converted,
    far_cases,
    make,
    patterns,
    random_case,
    several_cases,
    several_pieces,
    to_be_rounded,
)  # fmt: skip
from support.kernel_checks import check_numpy
from support.specification import ref

KERNELS = [reference.prepare, launch.prepare]
BOTH = pytest.mark.parametrize("prepare", KERNELS, ids=["reference", "cpu"])


@BOTH
@settings(max_examples=300)
@given(st.integers(0, 1 << 32), SHAPES, DTYPES, DTYPES, st.integers(1, 3), st.integers(1, 3))
def test_any_job(
    prepare: Prepare, seed: int, shape: tuple[int, ...], origin_dtype: str, dtype: str, directions: int, steps: int
) -> None:
    check_numpy(prepare, [random_case(seed, shape, origin_dtype, dtype, directions, steps)])


@BOTH
@settings(max_examples=60)
@given(several_cases(5))
def test_several_jobs_at_once(prepare: Prepare, cases: list[Case]) -> None:
    check_numpy(prepare, cases)


@BOTH
@pytest.mark.parametrize("packing", PACKINGS[1:], ids=lambda packing: packing.name)
def test_ends_of_blocks(prepare: Prepare, packing: Packing) -> None:
    check_numpy(prepare, block_ends(packing))


@BOTH
@pytest.mark.parametrize("rank", [0, 1, 3, 4, 5, 8, 11, 12, 16, 21])
def test_ranks(prepare: Prepare, rank: int) -> None:
    """Factors are summed in fours and eights, in tiles of columns that depend on the rank."""
    rng = np.random.default_rng(rank)
    for shape in ((23, 700), (3, 24, 90)):
        for packing in (NIBBLE, TERNARY, QUINARY, BYTE, *([NONE] if rank else [])):
            terms = [Drawn.random(rng, shape, packing, rank)]
            for window in (flat(0, int(np.prod(shape))), None):
                check_numpy(prepare, [make(rng, shape, "BF16", "BF16", terms, steps=2, window=window)])


@BOTH
@pytest.mark.parametrize("packing", PACKINGS, ids=lambda packing: packing.name)
def test_several_pieces(prepare: Prepare, packing: Packing) -> None:
    check_numpy(prepare, [several_pieces(packing, 2 if packing is NONE else 0, (3, 2 * PIECE // 3 + 1001))])


@BOTH
def test_beyond_two_to_the_thirty_first(prepare: Prepare) -> None:
    for case in far_cases():
        check_numpy(prepare, [case])


@BOTH
@pytest.mark.parametrize("dtype", sorted(FLOATS))
def test_rounding(prepare: Prepare, dtype: str) -> None:
    check_numpy(prepare, [converted(to_be_rounded(), "F32", dtype)])
    for origin_dtype in ("BF16", "F16"):
        check_numpy(prepare, [converted(np.arange(1 << 16, dtype="<u2"), origin_dtype, dtype)])


@BOTH
@pytest.mark.parametrize("packing", PACKINGS[2:6], ids=lambda packing: packing.name)
@pytest.mark.parametrize("scale", [0.0, 1e-45, 1.0])
@pytest.mark.parametrize("shift", [-0.0, 0.0, -0.25, 0.25, 1.0])
def test_zeros_of_the_quantiser(prepare: Prepare, packing: Packing, scale: float, shift: float) -> None:
    """A scale of 0 makes products of -0, and codes whose shift is their product cancel; the origin -0 shows either."""
    rng = np.random.default_rng(0)
    drawn = Drawn.random(rng, (301,), packing)
    drawn.scale, drawn.shift = np.float32(scale), np.float32(shift)
    for zero in (0x0000, 0x8000):
        origin = np.full(301, zero, "<u2")
        case = make(rng, (301,), "BF16", "BF16", [drawn], window=flat(0, 301), origin=origin, steps=3)
        check_numpy(prepare, [case])


@BOTH
def test_nothing_to_decode(prepare: Prepare) -> None:
    prepare([])([], [])
    rng = np.random.default_rng(0)
    check_numpy(prepare, [make(rng, (9, 9), "BF16", "F16", [Drawn.random(rng, (9, 9))], window=flat(5, 5))])
    case = make(rng, (9, 9), "BF16", "F16", [Drawn.random(rng, (9, 9))], steps=0)
    prepare([case.job])([case.coefficients], [[]])


@pytest.mark.slow
def test_small_work_needs_no_compiled_code() -> None:
    """The reference decodes a little where nothing is loaded yet; numba is imported by neither."""
    code = """
        import json, sys
        sys.path.insert(0, TESTS)
        from support.kernel_cases import random_case
        from relex_codec.kernels.dispatch import SMALL, host_kernel
        from relex_codec.kernels.interface import DecodeJob
        case = random_case(0, (20, 20), "BF16", "BF16", 1, 1)
        host_kernel([case.job])
        loaded = ["relex_codec.kernels.cpu" in sys.modules]
        host_kernel([case.job] * (SMALL // max(1, case.job.window.rows * case.job.window.columns) + 1))
        loaded += ["relex_codec.kernels.cpu" in sys.modules, "numba" in sys.modules]
        print(json.dumps(loaded))
    """
    code = textwrap.dedent(code).replace("TESTS", repr(str(Path(__file__).parents[1])))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ELSEWHERE, check=True)
    assert json.loads(done.stdout) == [False, True, False]
    assert host_kernel([])([], []) is None


def test_stacks_of_small_matrices_take_no_more_room() -> None:
    factors = from_stream(np.zeros(2000 * 3 * (3 + 3), "<u2"), (2000, 3, 3), 3)
    assert factors.b.base is not None and factors.b.base.size <= 2000 * 3 * 3 + 16


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["cpu", "reference"])
def test_a_thread_that_flushes_subnormals_is_refused(kernel: str) -> None:
    code = """
        import sys
        sys.path.insert(0, TESTS)
        import numpy as np, torch
        from support.kernel_cases import random_case
        from support.kernel_checks import check_numpy
        from relex_codec.errors import InvalidArgument
        from relex_codec.kernels import reference
        from relex_codec.kernels.cpu import launch as cpu
        prepare = KERNEL.prepare
        case = random_case(1, (20, 20), "BF16", "BF16", 1, 1)
        check_numpy(prepare, [case])
        if not torch.set_flush_denormal(True):
            print("cannot")
        else:
            try:
                check_numpy(prepare, [case])
            except InvalidArgument as error:
                print(error)
    """
    code = textwrap.dedent(code).replace("TESTS", repr(str(Path(__file__).parents[1]))).replace("KERNEL", kernel)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ELSEWHERE, check=True)
    if done.stdout.strip() == "cannot":
        pytest.skip("this processor has no mode in which subnormals are zeros")
    assert "subnormal" in done.stdout


@pytest.mark.slow
def test_nothing_is_contracted(tmp_path: Path) -> None:
    """No multiply-add in the compiled code: it would change the last bit of some weights where processors have it."""
    code = """
        import sys
        sys.path.insert(0, TESTS)
        from support.kernel_cases import random_case
        from support.kernel_checks import check_numpy
        from relex_codec.kernels.cpu import launch
        check_numpy(launch.prepare, [random_case(2, (30, 30), "BF16", "BF16", 1, 1)])
    """
    code = textwrap.dedent(code).replace("TESTS", repr(str(Path(__file__).parents[1])))
    shown = {"NUMBA_DUMP_OPTIMIZED": "1", "NUMBA_DUMP_ASSEMBLY": "1"}
    environment = {**os.environ, **shown, "NUMBA_CACHE_DIR": str(tmp_path)}  # compiled anew
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ELSEWHERE, check=True, env=environment)
    assert "fmul float" in done.stdout and "fadd float" in done.stdout
    for forbidden in ("llvm.fma", "llvm.fmuladd", "contract", "fast float", "reassoc", "vfmadd", "fmadd"):
        assert forbidden not in done.stdout


# ---- Codes ----


@settings(max_examples=400)
@given(st.sampled_from(PACKINGS[2:]), st.integers(1, 40), st.integers(0, 1 << 32))
def test_the_same_codes_are_refused(packing: Packing, n: int, seed: int) -> None:
    """A good piece with some bytes replaced: read as the reference decoder does, or refused as it does."""
    rng = np.random.default_rng(seed)
    raw = pack_codes(rng.integers(-packing.zero, packing.zero + 1, n).astype(np.int32), packing)
    assert len(raw) == packed_size(n, packing) * packing.planes
    raw[rng.random(len(raw)) < 0.1] = rng.integers(0, 256)
    try:
        codes: Array | None = ref.unpack_codes(raw.tobytes(), packing.id, n)
    except ref.Corrupt:
        codes = None
    if codes is None:
        with pytest.raises(Corrupt):
            check_codes(raw, n, packing)
        return
    check_codes(raw, n, packing)
    assert np.array_equal(unpack_codes(raw, n, packing), codes)


@pytest.mark.parametrize("packing", PACKINGS[2:], ids=lambda packing: packing.name)
def test_each_byte_is_refused_or_not(packing: Packing) -> None:
    """Every byte, as the only one and as the last of a block, against the reference decoder."""
    for n in (1, max(packing.per_byte, 1), 4096 * max(packing.per_byte, 1) + 1):
        good = pack_codes(np.zeros(n, np.int32), packing)
        for byte in range(256):
            raw = good.copy()
            raw[-1] = byte
            try:
                ref.unpack_codes(raw.tobytes(), packing.id, n)
            except ref.Corrupt:
                with pytest.raises(Corrupt):
                    check_codes(raw, n, packing)
            else:
                check_codes(raw, n, packing)


# ---- Conversions ----


def test_widening_is_exact_for_all_patterns() -> None:
    for dtype in ("BF16", "F16"):
        bits = np.arange(1 << 16, dtype="<u2")
        expected = ref.widen(bits.tobytes(), dtype)
        nan = np.isnan(expected)
        assert np.count_nonzero(nan) == 2 * ((1 << 7) - 1 if dtype == "BF16" else (1 << 10) - 1)
        got = to_float32(bits, dtype)
        assert got.dtype == np.float32 and np.array_equal(np.isnan(got), nan)
        assert np.array_equal(got[~nan].view(np.uint32), expected[~nan].view(np.uint32))
        back = from_float32(got, dtype)
        assert np.array_equal(back[~nan], bits[~nan]) and np.all(back[nan] == NAN[dtype])


@pytest.mark.parametrize("dtype", sorted(FLOATS))
def test_narrowing_is_that_of_the_reference(dtype: str) -> None:
    x = to_be_rounded().view(np.float32)
    expected = np.frombuffer(ref.narrow(x, dtype), f"<u{ITEMSIZE[dtype]}")
    before = x.tobytes()
    assert np.array_equal(from_float32(x, dtype), expected) and x.tobytes() == before


def test_factors_lie_apart() -> None:
    """The right factors of a matrix begin at lines of the cache, and not all in the same sets."""
    rng = np.random.default_rng(0)
    for shape, rank in (((64, 4096), 8), ((2, 50, 700), 3)):
        stream = patterns(rng, int(np.prod(shape[:-2])) * rank * sum(shape[-2:]), "BF16")
        factors = from_stream(stream, shape, rank)
        addresses = [factors.b[0, j].ctypes.data for j in range(rank)]
        assert all(address % 64 == 0 for address in addresses)
        assert len({address % 4096 for address in addresses}) == min(rank, 64)
        values = np.concatenate([factors.a.reshape(len(factors.a), -1), factors.b.reshape(len(factors.b), -1)], 1)
        assert np.array_equal(values.reshape(-1).view(np.uint32), stream.astype(np.uint32) << 16)
