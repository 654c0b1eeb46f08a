"""`relex_codec.safe_open` beside `safetensors.safe_open` on the checkpoint that `Run.save` writes of the same step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import relex_codec
from relex_codec import InvalidArgument
from relex_codec.decoding.read_plan import WindowPlan
from relex_codec.kernels.interface import Window, flat
from support.checkpoints import write_checkpoint, write_run
from support.tensors import bf16, f16, f32, random_bits

STEP = 6.5
as_now = pytest.mark.skipif(
    not hasattr(safetensors.safe_open, "offset_keys"), reason="older releases of safetensors slice arrays otherwise"
)
Pair = tuple[Any, Any]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A file, and the checkpoint that a step of it is saved as."""
    root = tmp_path_factory.mktemp("handles")
    rng = np.random.default_rng(0)
    start = {
        "matrix": rng.standard_normal((14, 9)),
        "vector": rng.standard_normal(11),
        "cube": rng.standard_normal((4, 6, 5)),
        "half": rng.standard_normal((7, 3)),
        "brain": rng.standard_normal((6, 8)),
        "scalar": np.float32(3),
        "one": rng.standard_normal(1),
    }
    still = {
        "thin": f32(np.zeros((5, 0))),
        "ints": random_bits("I64", (6, 2)),
        "flags": random_bits("BOOL", (7,), 1),
        "small": random_bits("U8", (5, 3), 2),
        "wide": random_bits("U16", (3, 4), 3),
        "double": random_bits("F64", (3, 3), 4),
        "none": f32(np.zeros((0, 5))),
    }
    make: dict[str, Callable[[Any], Any]] = {"half": f16, "brain": bf16}

    def at(step: int) -> dict[str, Any]:
        found = {}
        for name, value in start.items():
            dtype, bits = make.get(name, f32)(value + 0.01 * step)
            found[name] = dtype, bits.reshape(np.shape(value))
        return found | still

    write_checkpoint(root / "base", at(0))
    write_run(root / "run", [2, 5, 9], at)
    relex_codec.encode(root / "run", root / "x.relex", base=root / "base", quality="raw")
    with relex_codec.open(root / "x.relex") as run:
        run.save(root / "out", STEP)
    return root / "x.relex", root / "out" / "model.safetensors"


@pytest.fixture(params=["pt", "np"])
def handles(request: pytest.FixtureRequest, paths: tuple[Path, Path]) -> Any:
    """Both handles, ours first."""
    with ExitStack() as stack:
        ours = stack.enter_context(relex_codec.safe_open(paths[0], request.param, step=STEP))
        theirs = stack.enter_context(safetensors.safe_open(paths[1], request.param))
        yield ours, theirs


def result(call: Callable[[], Any]) -> Any:
    """What a call returns, as type, dtype, shape and bytes; or what it raises."""
    try:
        found = call()
    except Exception as error:
        return error
    if isinstance(found, torch.Tensor):
        data = (
            found.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).numpy().tobytes()
            if found.numel()
            else b""
        )
        return "tensor", str(found.dtype), tuple(found.shape), data
    if isinstance(found, np.ndarray):
        return "array", found.dtype.str, found.shape, found.tobytes()
    return found


def test_the_listing_is_the_same(handles: Pair) -> None:
    ours, theirs = handles
    assert ours.keys() == theirs.keys()
    if hasattr(theirs, "offset_keys"):
        assert ours.offset_keys() == theirs.offset_keys()
    assert ours.metadata() == theirs.metadata()


def test_every_tensor_is_the_same(handles: Pair) -> None:
    ours, theirs = handles
    compared = 0
    for name in list(theirs.keys()):
        expected = result(lambda name=name: theirs.get_tensor(name))
        found = result(lambda name=name: ours.get_tensor(name))
        if isinstance(expected, Exception):  # numpy has no bfloat16
            assert name == "brain" and isinstance(found, InvalidArgument)
            continue
        assert found == expected, name
        theirs_slice, ours_slice = theirs.get_slice(name), ours.get_slice(name)
        assert ours_slice.get_shape() == theirs_slice.get_shape()
        assert ours_slice.get_dtype() == theirs_slice.get_dtype()
        compared += 1
    assert compared >= 13


INDICES: list[Any] = [
    (), 0, 3, -1, -6, slice(None), slice(2, 5), slice(-3, None), slice(-1000, 3), slice(5, 2), slice(5, 5),
    slice(0, 1000), slice(1000, 2000), slice(None, None, 2), slice(1, 60, 4), slice(None, None, 1), ..., (...,),
    (..., 0), (..., slice(0, 2)), (..., -1), (0, 0), (0, ...), (0, ..., 1), (slice(None), 1),
    (slice(None), slice(1, 3)), (slice(1, 4), slice(2, 6)), (slice(1, 4), -1), (0, slice(None)),
    (slice(None, None, 3), slice(1, None, 2)), (1, slice(1, 4), 2), (0, 0, 0), (slice(0, 3), ..., slice(1, 2)),
    (slice(0, 2), 1, slice(None)), np.int64(1), (np.int64(1),), slice(np.int64(1), np.int64(3)),
    # errors
    14, -15, 99, -99, (0, 9), (0, -10), (slice(None), 99), (0, 0, 0, 0), (..., ...), 1.5, "x", (0, "x"),
    slice("a", "b"), slice(0, 4, 0), slice(None, None, -1), slice(5, 1, -2),
    # what torch adds
    None, (None, 0), (slice(0, 4), None), True, False, (slice(None), [0, 1]),
]  # fmt: skip
NAMES = [
    "matrix",
    "vector",
    "cube",
    "half",
    "brain",
    "scalar",
    "one",
    "ints",
    "flags",
    "small",
    "double",
    "none",
    "thin",
]


@pytest.mark.parametrize("index", INDICES, ids=repr)
def test_slices_of_torch_tensors_behave_the_same(paths: tuple[Path, Path], index: Any) -> None:
    with (
        relex_codec.safe_open(paths[0], "pt", step=STEP) as ours,
        safetensors.safe_open(paths[1], "pt") as theirs,
    ):
        for name in NAMES:
            expected = result(lambda name=name: theirs.get_slice(name)[index])
            found = result(lambda name=name: ours.get_slice(name)[index])
            if isinstance(expected, Exception):
                assert type(found) is type(expected), (name, found, expected)
            else:
                assert found == expected, name


@as_now
@pytest.mark.parametrize("index", INDICES, ids=repr)
def test_slices_of_arrays_are_those_of_the_array(paths: tuple[Path, Path], index: Any) -> None:
    """Where safetensors indexes at all: its numpy slices know neither negative starts nor bounds beyond the end."""
    with (
        relex_codec.safe_open(paths[0], "np", step=STEP) as ours,
        safetensors.safe_open(paths[1], "np") as theirs,
    ):
        for name in NAMES:
            if name == "brain":
                continue
            if name != "scalar" and not any(i is True or i is False for i in (index,)):
                expected = result(lambda name=name: theirs.get_slice(name)[index])
                if not isinstance(expected, BaseException):
                    assert result(lambda name=name: ours.get_slice(name)[index]) == expected, name
            whole = theirs.get_tensor(name)
            expected = result(lambda whole=whole: np.asarray(whole[index]))
            found = result(lambda name=name: ours.get_slice(name)[index])
            if isinstance(found, ValueError) and "not positive" in str(found):
                continue
            if isinstance(expected, Exception):
                assert type(found) is type(expected), (name, found, expected)
            else:
                assert found == expected, name


def indices(shape: tuple[int, ...]) -> st.SearchStrategy[Any]:
    """Any index that safetensors takes: integers, slices with positive steps, an ellipsis."""
    parts = [
        st.one_of(
            st.integers(-n - 1, n),
            st.builds(
                slice,
                st.none() | st.integers(-n - 2, n + 2),
                st.none() | st.integers(-n - 2, n + 2),
                st.none() | st.integers(1, n + 1),
            ),
        )
        for n in shape
    ]
    return st.integers(0, len(shape)).flatmap(
        lambda count: st.tuples(*parts[:count]).flatmap(lambda chosen: st.sampled_from([chosen, (*chosen, ...)]))
    )


@settings(max_examples=150)
@given(st.data())
def test_any_index_of_a_torch_tensor_behaves_the_same(paths: tuple[Path, Path], data: st.DataObject) -> None:
    name, shape = data.draw(st.sampled_from([("matrix", (14, 9)), ("cube", (4, 6, 5)), ("vector", (11,))]))
    index = data.draw(indices(shape))
    with (
        relex_codec.safe_open(paths[0], "pt", step=STEP) as ours,
        safetensors.safe_open(paths[1], "pt") as theirs,
    ):
        expected, found = (result(lambda h=h: h.get_slice(name)[index]) for h in (theirs, ours))
        assert type(found) is type(expected) if isinstance(expected, Exception) else found == expected


@as_now
def test_all_tensors_at_once(paths: tuple[Path, Path]) -> None:
    with (
        relex_codec.safe_open(paths[0], "pt", step=STEP) as ours,
        safetensors.safe_open(paths[1], "pt") as theirs,
    ):
        found = ours.get_tensors()
        assert list(found) == theirs.offset_keys()
        for name, value in found.items():
            assert result(lambda value=value: value) == result(lambda name=name: theirs.get_tensor(name))


def test_unknown_names_are_refused(handles: Pair) -> None:
    ours, theirs = handles
    for method in ("get_tensor", "get_slice"):
        with pytest.raises(safetensors.SafetensorError, match="nothing"):
            getattr(theirs, method)("nothing")
        with pytest.raises(InvalidArgument, match="'nothing'"):
            getattr(ours, method)("nothing")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"framework": "tf"}, "framework is 'tf'"),
        ({"step": float("nan")}, "finite"),
        ({"step": 1, "tier": "track"}, "from step 2 to 9"),
        ({"tier": "exact"}, "'exact'"),
        ({"device": "nonsense"}, "'nonsense'"),
        ({"filename": "missing.relex"}, "does not exist"),
    ],
)
def test_arguments_that_cannot_be(paths: tuple[Path, Path], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        relex_codec.safe_open(**({"filename": paths[0], "framework": "pt", "step": 5} | options))


@pytest.mark.parametrize("framework", ["pt", "torch", "pytorch"])
@pytest.mark.parametrize(("step", "tier"), [(0, "auto"), (0, "line"), (4, "track"), (5, "line"), (77, "auto")])
def test_steps_and_tiers_are_those_of_a_run(paths: tuple[Path, Path], framework: str, step: float, tier: str) -> None:
    with (
        relex_codec.safe_open(paths[0], framework, "cpu", step=step, tier=tier) as ours,
        relex_codec.open(paths[0]) as run,
    ):
        for name in ("matrix", "brain", "ints"):
            wanted = run.tensor(name, step, tier=tier)
            assert torch.equal(ours.get_tensor(name), wanted)
            assert torch.equal(ours.get_slice(name)[2:4], wanted[2:4])


def test_a_slice_decodes_only_what_it_needs(paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with relex_codec.safe_open(paths[0], "pt", step=STEP) as ours:
        asked: list[Window] = []
        decode = ours._reader.decoder.decode_window

        def watched(plan: WindowPlan, steps: Any) -> Any:
            asked.append(plan.window)
            return decode(plan, steps)

        monkeypatch.setattr(ours._reader.decoder, "decode_window", watched)
        view = ours.get_slice("matrix")
        assert view.get_shape() == [14, 9] and asked == []
        for index, window in (
            (3, flat(3 * 9, 4 * 9)),
            (slice(2, 5), flat(2 * 9, 5 * 9)),
            ((slice(-2, None), 1), Window(9, 12, 2, 1, 1, 12 * 9 + 1, 13 * 9 + 2)),
            ((..., slice(4, 6)), Window(9, 0, 14, 4, 2, 4, 13 * 9 + 6)),
            (slice(1, 9, 3), flat(1 * 9, 9 * 9)),
        ):
            view[index]
            assert asked == [window]
            asked.clear()
