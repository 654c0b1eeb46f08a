"""The Triton kernels give the bits of the reference decoder: interpreted, or on a GPU where there is one.

Without a GPU they are compiled all the same, for two kinds of it, and the instructions looked at.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings

import relex_codec
from relex_codec.core.dtypes import FLOATS
from relex_codec.errors import InvalidArgument
from relex_codec.format.constants import BYTE, FLOAT32, NIBBLE, NONE, PACKINGS, QUINARY, TERNARY, WORD, Packing
from relex_codec.kernels.interface import Prepare, Window, flat
from relex_codec.run import resident
from support.kernel_cases import (
    Case,
    Drawn,
    block_ends,
    converted,
    far_cases,
    make,
    random_case,
    several_cases,
    several_pieces,
    to_be_rounded,
)
from support.kernel_checks import check_torch, torch_job

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module")
def gpu() -> Any:
    """The module of the kernel."""
    pytest.importorskip("triton", reason="triton is not installed")
    from relex_codec.kernels.triton import launch

    assert (DEVICE == "cpu") == launch.INTERPRETED
    return launch


@pytest.fixture(scope="module")
def prepare(gpu: Any) -> Prepare:
    found: Prepare = gpu.prepare
    return found


@pytest.mark.slow
@settings(max_examples=40)
@given(cases=several_cases(3))
def test_any_jobs(prepare: Prepare, cases: list[Case]) -> None:
    check_torch(prepare, cases, DEVICE)


@pytest.mark.parametrize("packing", PACKINGS[1:], ids=lambda packing: packing.name)
def test_ends_of_blocks(prepare: Prepare, packing: Packing) -> None:
    check_torch(prepare, block_ends(packing), DEVICE)


@pytest.mark.slow
def test_several_pieces(prepare: Prepare) -> None:
    """Also rows shorter and longer than a tile, and several matrices."""
    cases = [
        several_pieces(NIBBLE, 0, (270_000,)),
        several_pieces(TERNARY, 2, (3, 60, 1500)),
        several_pieces(FLOAT32, 1, (2, 7000, 19)),
    ]
    check_torch(prepare, cases, DEVICE)


@pytest.mark.parametrize("dtype", sorted(FLOATS))
@pytest.mark.parametrize("origin_dtype", sorted(FLOATS))
def test_whole_blocks_of_all_dtypes(prepare: Prepare, origin_dtype: str, dtype: str) -> None:
    """Aligned tensors of whole blocks, with and without factors."""
    rng = np.random.default_rng(1)
    cases = []
    for shape, packing, rank in (((8192,), NIBBLE, 0), ((8, 1536), QUINARY, 3), ((2, 4, 512), WORD, 2)):
        terms = [Drawn.random(rng, shape, packing, rank)]
        window = flat(0, int(np.prod(shape)))
        cases.append(
            make(rng, shape, origin_dtype, dtype, terms, window=window, layout="contiguous", aligned=True, steps=2)
        )
    check_torch(prepare, cases, DEVICE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "packings", [(NIBBLE, NIBBLE), (TERNARY, BYTE, NONE), (NIBBLE, TERNARY), (BYTE, NIBBLE, WORD, FLOAT32), (BYTE,) * 6]
)
def test_several_directions(prepare: Prepare, packings: tuple[Packing, ...]) -> None:
    """Of equal and different codes, and more than are unrolled."""
    rng = np.random.default_rng(len(packings))
    shape = (5, 2100)
    terms = [Drawn.random(rng, shape, packing, 2 if packing is NONE else None) for packing in packings]
    for layout in ("contiguous", "transposed"):
        window = Window(2100, 0, 5, 0, 2100, 0, 10500)
        check_torch(prepare, [make(rng, shape, "BF16", "F16", terms, window=window, layout=layout, steps=2)], DEVICE)


@pytest.mark.parametrize("layout", ["contiguous", "rows apart", "columns apart", "transposed"])
def test_rows_and_columns(prepare: Prepare, layout: str) -> None:
    """Slices of a matrix as tensor parallelism cuts it, into targets of any strides."""
    rng = np.random.default_rng(2)
    shape = (96, 130)
    cases = []
    for packing in (NIBBLE, TERNARY):
        terms = [Drawn.random(rng, shape, packing, 2)]
        for window in (Window(130, 32, 32, 0, 130, 0, 12480), Window(130, 0, 96, 65, 65, 0, 12480)):
            cases.append(make(rng, shape, "BF16", "BF16", terms, window=window, layout=layout))
    check_torch(prepare, cases, DEVICE)


@pytest.mark.slow
def test_elements_beyond_32_bits(prepare: Prepare) -> None:
    check_torch(prepare, far_cases(), DEVICE)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", sorted(FLOATS))
def test_rounding(prepare: Prepare, dtype: str) -> None:
    values = to_be_rounded()
    if DEVICE == "cpu":  # interpreted: a fifth of them, but all beside powers of two, infinities and NaNs
        top = values >> 16 & 0x7F
        values = values[(np.arange(len(values)) % 5 == 0) | (top == 0) | (top == 0x7F)]
    check_torch(prepare, [converted(values, "F32", dtype)], DEVICE)
    if dtype != "F32":
        check_torch(prepare, [converted(np.arange(1 << 16, dtype="<u2"), dtype, "F32")], DEVICE)


@pytest.mark.slow
def test_one_prepared_decoder_serves_many_calls(gpu: Any) -> None:
    """With other coefficients, numbers of steps and forms of targets; few plans are kept."""
    rng = np.random.default_rng(3)
    shape = (40, 300)
    origin = np.array(rng.integers(0, 1 << 16, 12000), "<u2")
    terms = [Drawn.random(rng, shape, NIBBLE, 1)]
    prepared: Any = None

    def once(jobs: Any) -> Callable[..., None]:
        nonlocal prepared
        prepared = gpu.prepare(jobs) if prepared is None else prepared
        found: Callable[..., None] = prepared
        return found

    window = Window(300, 0, 40, 0, 300, 0, 12000)
    for call in range(12):
        layout = ("contiguous", "transposed", "contiguous", "rows apart")[call % 4]
        case = make(
            rng, shape, "BF16", "BF16", terms, window=window, layout=layout, aligned=True, origin=origin,
            steps=1 + call % 3,
        )  # fmt: skip
        check_torch(once, [case], DEVICE)
    assert len(prepared._plans) <= gpu.PLANS


@pytest.mark.slow
def test_many_tensors_take_few_launches(gpu: Any) -> None:
    """Three hundred matrices and vectors: a launch for whole blocks and one for the others."""
    rng = np.random.default_rng(4)
    big, small = ((9, 1000), [Drawn.random(rng, (9, 1000), NIBBLE, 0)]), ((64,), [Drawn.random(rng, (64,), NIBBLE, 0)])
    cases = [
        make(rng, shape, "BF16", "BF16", terms, window=flat(0, int(np.prod(shape))), layout="contiguous", aligned=True)
        for shape, terms in (big, small)
    ]
    prepared = gpu.prepare([torch_job(case.job, DEVICE) for case in cases * 150])
    launches = prepared._plan(prepared._best.astype(np.int8))
    assert len(launches) == 2
    check_torch(gpu.prepare, cases * 10, DEVICE)


def test_nothing_to_decode(prepare: Prepare) -> None:
    prepare([])([], [])
    case = random_case(0, (5, 5), "BF16", "BF16", 1, 1)
    job = torch_job(case.job, DEVICE)
    prepare([job])([np.zeros((0, 1), np.float32)], [[]])


def test_tensors_elsewhere_are_refused(prepare: Prepare) -> None:
    job = torch_job(random_case(0, (5, 5), "BF16", "BF16", 1, 1).job, "meta")
    with pytest.raises(InvalidArgument, match=r"tensors on meta, but .* move them there$"):
        prepare([job])


def test_arrays_with_gaps_are_refused(prepare: Prepare) -> None:
    job = torch_job(random_case(0, (5, 5), "BF16", "BF16", 1, 1).job, DEVICE)
    with pytest.raises(InvalidArgument, match="not contiguous; pass contiguous tensors"):
        prepare([dataclasses.replace(job, origin=torch.zeros(100, dtype=torch.int16, device=DEVICE)[::2])])


@pytest.mark.slow
def test_a_resident_run(gpu: Any, zoo_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """All kinds of tensors of a file, at several steps, as they are without the kernel."""
    if DEVICE == "cpu":
        monkeypatch.setattr(resident, "is_host", lambda _: False)
        monkeypatch.setattr(resident, "device_kernel", lambda _: gpu.prepare)
    with relex_codec.open(zoo_file("default", rank=2)) as opened:
        held = opened.resident(device=DEVICE)
        for step, state in zip((9, 40), held.state_dicts([9, 40]), strict=True):
            expected = opened.state_dict(step)
            assert list(state) == list(expected)
            for name, value in expected.items():
                got = state[name].cpu().reshape(-1).view(torch.uint8)
                assert torch.equal(got, value.reshape(-1).view(torch.uint8)), name


def run(*arguments: str, **environment: str) -> str:
    """Run Python in a process of its own that does not interpret Triton; return what it prints."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, *arguments]
    result = subprocess.run(
        command, env=inherited | environment, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_package_does_not_import_triton() -> None:
    assert run("-c", "import sys, relex_codec; print('triton' in sys.modules)") == "False\n"


def test_without_triton_it_says_what_to_install() -> None:
    code = """
import sys
sys.modules["triton"] = None
from relex_codec.errors import InvalidArgument
try:
    from relex_codec.kernels.triton import launch
except InvalidArgument as error:
    print(error)
"""
    assert "relex-codec[gpu]" in run("-c", code)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "names"), [("90", []), ("80", ["nibble", "ternary"])], ids=["H100", "A100"])
def test_compiled_code(gpu: Any, tmp_path: Path, kind: str, names: list[str]) -> None:
    """Nothing is fused, no subnormal flushed; whole blocks are read and written by 16 bytes."""
    script = Path(__file__).parents[1] / "support" / "compile_kernels.py"
    found = json.loads(run(str(script), kind, *names, TRITON_CACHE_DIR=str(tmp_path)))
    assert len(found) == (len(names) or 7)
    for name, code in found.items():
        products = {word for word in code["ptx"] if word.startswith(("mul", "add", "sub")) and word.endswith("f32")}
        assert {"mul.rn.f32", "add.rn.f32"} <= products and {"FMUL", "FADD"} <= set(code["sass"]), name
        assert not [word for word in code["ptx"] if word.startswith(("fma", "mad.rn.f")) or ".ftz" in word], name
        assert not [word for word in code["sass"] if word.startswith(("FFMA", "FADD.FTZ", "FMUL.FTZ"))], name
    for name in ("nibble", "ternary"):
        assert {"ld.global.v4.b32", "st.global.v4.b32"} <= set(found[name]["ptx"]), name
    assert not [x for x in found["nibble"]["ptx"] if ".global" in x and x.endswith(("b8", "b16"))]
