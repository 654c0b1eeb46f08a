"""Files with random ties, sources and layouts: the package gives what the reference decoder gives, bit for bit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generate.contents import bits as bits_of
from generate.contents import drift
from generate.exact_recipe import Exact, Plan
from generate.recipe import Recipe, Tensor, quantised
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import relex_codec
from relex_codec.core.torch_dtypes import bytes_of
from support.specification import ref

STEPS = [[5], [0, 3], [2, 4, 9]]
SHARDS = ["a.safetensors", "b.safetensors"]


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """A valid file of a few small tensors."""
    steps, exact = draw(st.sampled_from(STEPS)), draw(st.booleans())
    base = [
        Tensor(f"base {i}", dtype, [n], bits_of(f"base {i}", n, dtype), shard=draw(st.integers(0, 1)))
        for i in range(draw(st.integers(1, 3)))
        for dtype in [draw(st.sampled_from(["BF16", "F32", "U8"]))]
        for n in [draw(st.integers(0, 9))]
    ]
    tensors: list[Tensor] = []
    rows: dict[str, Any] = {}
    for i in range(draw(st.integers(1, 6))):
        found = draw(one_tensor(f"t{draw(st.integers(0, 3))}", base, tensors))
        if any((other.name, other.dtype) == (found.name, found.dtype) for other in tensors):
            continue
        if found.origin != "tied" and found.n:
            line = found.dtype in ref.FLOAT and draw(st.booleans())
            if line:
                row = [draw(st.floats(-2, 2)) for _ in steps]
                found.directions = [quantised(f"q {i}", found.n, "byte", row, intercept=draw(st.floats(-9, 9)))]
            if draw(st.booleans()) and (exact or not line):
                found.framed = not line and (not exact or draw(st.booleans()))
                if exact or found.framed:
                    rows[f"{found.name} {found.dtype}"] = drift(f"d {i}", same(found), len(steps), 2, 3)
        tensors.append(found)
    layouts = [draw(one_layout(tensors)) for _ in range(draw(st.integers(1, 3)) if exact else 1)]
    places: list[list[Any]] = [[None, draw(st.integers(0, len(layouts) - 1))] for _ in steps]
    recipe = Recipe(steps, tensors, [], exact=exact, base_tensors=base, base_shards=SHARDS, shards=SHARDS)
    recipe.layouts, recipe.rows, recipe.observed = layouts, places, draw(st.integers(1, len(steps)))
    recipe.embedded = draw(st.booleans())
    recipe.base_beside = draw(st.booleans())
    if exact or any(tensor.framed and tensor.n for tensor in tensors):
        recipe.frames = Exact(rows, [Plan(len(steps))])
    return recipe


@st.composite
def one_tensor(draw: st.DrawFn, name: str, base: list[Tensor], before: list[Tensor]) -> Tensor:
    """Another name of a tensor, one that is stored, or one that starts from parts of the base."""
    targets = [i for i, other in enumerate(before) if other.origin != "tied"]
    kind = draw(st.sampled_from(["tied", "stored", "sources"]))
    if kind == "tied" and targets:
        target = before[number := draw(st.sampled_from(targets))]
        return Tensor(name, target.dtype, target.shape, origin="tied", target=number)
    if kind == "stored":
        dtype, n = draw(st.sampled_from(["BF16", "F32", "I16", "F8_E4M3"])), draw(st.integers(0, 7))
        return Tensor(name, dtype, [n], bits_of(f"stored {name}", n, dtype), "stored")
    first = draw(st.sampled_from(base))
    sources, parts = [], []
    for _ in range(draw(st.integers(1, 3)) if first.n else 1):
        one = draw(
            st.sampled_from([other for other in base if other.dtype == first.dtype and other.n >= min(first.n, 1)])
        )
        low = draw(st.integers(0, max(one.n - 1, 0))) if first.n else 0
        high = draw(st.integers(low + 1, one.n)) if first.n else 0
        sources.append([one.shard, one.name, list(one.shape), low, high - low])
        parts.append(one.bits[low:high])
    origin = np.concatenate(parts)
    dtype = draw(st.sampled_from(ref.FLOAT)) if first.dtype in ref.FLOAT else first.dtype
    rows = draw(st.sampled_from([d for d in range(1, len(origin) + 1) if len(origin) % d == 0] or [1]))
    shape = [rows, len(origin) // rows]
    return Tensor(name, dtype, shape, origin, origin_dtype=first.dtype, sources=sources)


@st.composite
def one_layout(draw: st.DrawFn, tensors: list[Tensor]) -> dict[str, Any]:
    """Tensors of different names, in two shards."""
    names, places = set[str](), list[int | None]()
    for tensor in tensors:
        there = tensor.name not in names and draw(st.sampled_from([True, True, False]))
        places.append(draw(st.integers(0, 1)) if there else None)
        names |= {tensor.name} if there else set()
    return {"shards": SHARDS, "indexed": draw(st.booleans()), "tensors": places, "files": []}


def same(tensor: Tensor) -> Any:
    """The bits of kind `same`."""
    own = tensor.origin_dtype or tensor.dtype
    if own == tensor.dtype:
        return tensor.bits
    return np.frombuffer(
        ref.narrow(ref.widen(tensor.bits.tobytes(), own), tensor.dtype), f"<u{ref.WIDTH[tensor.dtype]}"
    )


def outcome(action: Any, kind: type[Exception]) -> Any:
    """What an action gives, or the name of its error."""
    try:
        return action()
    except kind as error:
        return type(error).__name__


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(recipe=recipes())
def test_both_decoders_give_the_same(tmp_path: Path, recipe: Recipe) -> None:
    data, base = recipe.build(), recipe.base()
    path, beside = tmp_path / "x.relex", tmp_path / "x.safetensors"
    path.write_bytes(data)
    if base is not None:
        beside.write_bytes(base)
    file, given_base = ref.RelexFile(data), None if base is None else ref.read_safetensors(beside)
    file.check_all()
    names = {tensor.name for tensor in recipe.tensors} | {"lacking"}
    ends = recipe.steps[0], recipe.steps[-1]
    reads = [
        (float(t), tier) for t in {*recipe.steps, 0, ends[1] + 1, sum(ends) / 2} for tier in ("auto", "line", "track")
    ]
    reads += [(float(t), "exact") for t in recipe.steps]
    with relex_codec.open(path, base=None if base is None else beside) as run:
        run.verify()
        for step, tier in reads:
            expected = {
                name: outcome(lambda n=name, s=step, t=tier: file.tensor(n, s, t, given_base), ref.RelexError)
                for name in names
            }
            found = {
                name: outcome(
                    lambda n=name, s=step, t=tier: run._reader.bits(n, s, t).tobytes(), relex_codec.RelexError
                )
                for name in names
            }
            assert found == expected, (step, tier)
            state = outcome(lambda s=step, t=tier: run.state_dict(s, tier=t), relex_codec.RelexError)
            there = {name: value for name, value in expected.items() if isinstance(value, bytes)}
            if isinstance(state, dict):
                assert {name: bytes(bytes_of(value)) for name, value in state.items()} == there, (step, tier)
                assert all(math.prod(value.shape) == value.numel() for value in state.values())
            else:
                assert state in expected.values()
        if recipe.exact:
            for step, state in run.iter_steps():
                wanted = {
                    n: file.tensor(n, step, "exact", given_base) for n in run._reader.keys(run._reader.layout(step))
                }
                assert {name: bytes(bytes_of(value)) for name, value in state.items()} == wanted
