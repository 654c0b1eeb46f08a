"""On a CUDA device: both kernels for it give the bits of the reference decoder, also while earlier work is queued.

``test_triton`` and ``test_torch_ops`` run on the device too where there is one; here is what only a device shows.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from relex_codec.format.constants import BYTE, NIBBLE, NONE, PACKINGS
from relex_codec.kernels import torch_eager
from relex_codec.kernels.interface import DecodeJob, PackedDirection, Prepare, flat
from support.kernel_cases import Case, Drawn, by_the_reference, number, patterns, random_case, several_pieces
from support.kernel_checks import check_torch, same, to_torch, torch_job

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.fixture(scope="module")
def prepare() -> Prepare:
    pytest.importorskip("triton", reason="triton is not installed")
    from relex_codec.kernels.triton import launch

    assert not launch.INTERPRETED
    found: Prepare = launch.prepare
    return found


SHAPE = (40, 3000)


def weights(seed: int, steps: int) -> tuple[DecodeJob, list[np.ndarray], list[np.ndarray]]:
    """A job with factors and codes, coefficients for some calls of a step, and the bits that they give."""
    rng = np.random.default_rng(seed)
    n = int(np.prod(SHAPE))
    origin = patterns(rng, n, "BF16")
    terms = [Drawn.random(rng, SHAPE, NIBBLE, 2)]
    job = DecodeJob(origin, 0, n, "BF16", "BF16", [terms[0].direction(SHAPE, 0, n)], flat(0, n), 0, n)
    g = [np.array([[number(rng)]], np.float32) for _ in range(steps)]
    return job, g, [by_the_reference(origin, "BF16", "BF16", SHAPE, terms, x[0]) for x in g]


def test_all_packings_over_several_pieces(prepare: Prepare) -> None:
    cases = [
        several_pieces(packing, rank, (2, 150, 1777))
        for packing in PACKINGS
        for rank in (0, 3)
        if packing is not NONE or rank
    ]
    for kernel in (prepare, torch_eager.prepare):
        check_torch(kernel, cases, "cuda")


def test_many_random_jobs_at_once(prepare: Prepare) -> None:
    dtypes = ("BF16", "F16", "F32")
    cases: list[Case] = []
    for seed in range(300):
        shape = ((500,), (17, 23), (3, 9, 7), (60, 1100))[seed % 4]
        cases.append(random_case(seed, shape, dtypes[seed % 3], dtypes[seed // 3 % 3], 1 + seed % 3, 2))
    check_torch(prepare, cases, "cuda")


def test_calls_while_earlier_ones_are_queued(prepare: Prepare) -> None:
    """Nothing waits in between, so every call must have its own coefficients and addresses."""
    job, g, expected = weights(1, 30)
    decode = prepare([torch_job(job, "cuda")])
    targets = [torch.zeros((1, job.size), dtype=torch.int16, device="cuda") for _ in g]
    torch.cuda._sleep(200_000_000)  # cycles: the first call's work begins after the last call
    for x, target in zip(g, targets, strict=True):
        decode([x], [[target]])
    for target, bits in zip(targets, expected, strict=True):
        same(target[0].cpu().numpy().view("<u2"), bits, job)


def test_another_stream(prepare: Prepare) -> None:
    job, g, expected = weights(2, 1)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        decode = prepare([torch_job(job, "cuda")])
        target = torch.zeros((1, job.size), dtype=torch.int16, device="cuda")
        decode([g[0]], [[target]])
        got = target[0].cpu()
    same(got.numpy().view("<u2"), expected[0], job)


def test_a_captured_graph_decodes_again(prepare: Prepare) -> None:
    """Kernels are compiled and plans made by a call before the capture; replays read the captured coefficients."""
    job, g, expected = weights(3, 2)
    decode = prepare([torch_job(job, "cuda")])
    target = torch.zeros((1, job.size), dtype=torch.int16, device="cuda")
    decode([g[0]], [[target]])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        decode([g[1]], [[target]])
    other = torch.empty_like(target)
    for _ in range(20):  # other calls, whose buffers must not be the graph's
        decode([g[0]], [[other]])
    target.zero_()
    graph.replay()
    same(target[0].cpu().numpy().view("<u2"), expected[1], job)


def test_a_tensor_beyond_32_bits(prepare: Prepare) -> None:
    """The last elements of a tensor of more than 2^31, all of which is on the device."""
    n = (1 << 31) + 100_003
    if torch.cuda.mem_get_info()[0] < 4 * n:
        pytest.skip("needs 9 GB of device memory")
    tail = n - n // 262144 * 262144
    rng = np.random.default_rng(5)
    drawn = Drawn.random(rng, (tail,), BYTE)
    origin = patterns(rng, tail, "BF16")
    held = torch.zeros(n, dtype=torch.int16, device="cuda")
    held[-tail:] = to_torch(origin, "cuda")
    packed = torch.full((n,), 127, dtype=torch.uint8, device="cuda")
    packed[-tail:] = to_torch(drawn.direction((tail,), 0, tail).packed, "cuda")
    g = np.array([[number(rng)]], np.float32)
    direction = PackedDirection(None, BYTE, packed, drawn.scale, drawn.shift)
    whole = DecodeJob(held, 0, n, "BF16", "BF16", [direction], flat(0, n), 0, n)
    prepare([whole])([g], [[held.view(1, -1)]])  # in place
    expected = by_the_reference(origin, "BF16", "BF16", (tail,), [drawn], g[0])
    same(held[-tail:].cpu().numpy().view("<u2"), expected, whole)
    assert not held[:-tail].any()
