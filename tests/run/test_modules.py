"""Where tensors of a file go in a module: names, prefixes, fused parameters, ties; what does not fit is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from relex_codec.errors import InvalidArgument
from relex_codec.run.module_targets import check_dtypes, match

SHAPES = {"q": (4, 6), "k": (2, 6), "v": (2, 6), "norm": (6,)}


class Fused(torch.nn.Module):
    """q, k and v in one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = torch.nn.Parameter(torch.zeros(8, 6))
        self.norm = torch.nn.Parameter(torch.zeros(6))


PLACES: dict[str, Any] = {"q": ("qkv", slice(0, 4)), "k": ("qkv", slice(4, 6)), "v": ("qkv", slice(6, None))}


def test_parts_of_a_fused_parameter() -> None:
    module = Fused()
    targets = {target.name: target for target in match(SHAPES, module, PLACES)}
    assert list(targets) == ["q", "k", "v", "norm"]
    with torch.no_grad():
        for number, target in enumerate(targets.values(), 1):
            target.tensor.fill_(number)
    assert module.qkv[:, 0].tolist() == [1, 1, 1, 1, 2, 2, 3, 3]
    assert targets["k"].owner is module.qkv and targets["norm"].tensor is module.norm


def test_columns_and_functions() -> None:
    module = torch.nn.Module()
    module.register_buffer("both", torch.zeros(3, 8))

    def where(name: str) -> Any:
        return {"left": ("both", (..., slice(0, 5))), "right": ("both", (slice(None), slice(5, 8))), "other": None}[
            name
        ]

    targets = match({"left": (3, 5), "right": (3, 3), "other": (9,)}, module, where)
    assert [target.name for target in targets] == ["left", "right"]
    assert targets[1].tensor.shape == (3, 3) and targets[1].tensor.data_ptr() == module.both[0, 5:].data_ptr()


def test_prefixes_of_wrappers() -> None:
    inner = torch.nn.Sequential(torch.nn.Linear(3, 2))
    wrapped = torch.nn.Module()
    wrapped.module = inner
    shapes = {"0.weight": (2, 3), "0.bias": (2,)}
    assert len(match(shapes, wrapped, prefix="module.")) == 2
    # an inner module of what the file describes
    outer = {f"model.{name}": shape for name, shape in shapes.items()} | {"lm_head.weight": (5, 3)}

    def inside(name: str) -> str | None:
        return name.removeprefix("model.") if name.startswith("model.") else None

    assert [target.name for target in match(outer, inner, inside)] == ["model.0.weight", "model.0.bias"]


def test_tied_parameters() -> None:
    module = torch.nn.Module()
    module.a = torch.nn.Linear(3, 2, bias=False)
    module.b = torch.nn.Linear(3, 2, bias=False)
    module.b.weight = module.a.weight
    assert [target.name for target in match({"b.weight": (2, 3)}, module)] == ["b.weight"]


@pytest.mark.parametrize(
    ("shapes", "names", "message"),
    [
        ({"norm": (6,)}, None, "the file lacks 'qkv'"),
        ({"qkv": (8, 6), "norm": (6,), "more": (1,)}, None, "the module lacks 'more'"),
        ({"qkv": (8, 6), "norm": (6,), "x": (6,)}, {"x": "nowhere"}, "lacks 'nowhere', where 'x' goes"),
        ({"qkv": (8, 5), "norm": (6,)}, None, r"'qkv' is \[8, 6\] in the module, \[8, 5\] in the file"),
        (
            SHAPES,
            {**PLACES, "k": ("qkv", slice(4, 7))},
            r"'k' is \[3, 6\] in slice\(4, 7, None\) of the module's 'qkv'",
        ),
        (SHAPES, {**PLACES, "k": ("qkv", slice(3, 5))}, "'q' and 'k' both go to 'qkv'"),
        (SHAPES, {**PLACES, "v": None}, "12 of 48 elements of 'qkv' have no"),
        (SHAPES, {**PLACES, "k": ("qkv", slice(4, 6, 2))}, "step 2"),
        ({"qkv": (8, 6), "norm": (6,)}, {"norm": ("norm", 9)}, "out of range"),
    ],
)
def test_what_does_not_fit(shapes: Any, names: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        match(shapes, Fused(), names)


def test_memory_that_cannot_be_written() -> None:
    with torch.device("meta"):
        module = Fused()
    with pytest.raises(InvalidArgument, match="meta device"):
        match({"qkv": (8, 6), "norm": (6,)}, module)
    with pytest.raises(InvalidArgument, match="meta device"):
        match({}, module)


def test_memory_that_is_shared_or_cannot_be_written() -> None:
    module = torch.nn.Module()
    module.register_buffer("b", torch.zeros(1, 6).expand(4, 6))
    with pytest.raises(InvalidArgument, match="expanded"):
        match({"b": (4, 6)}, module)
    module.register_buffer("b", torch.zeros(4, 6).to_sparse())
    with pytest.raises(InvalidArgument, match="sparse"):
        match({"b": (4, 6)}, module)
    with torch.inference_mode():
        module.register_buffer("b", torch.zeros(4, 6))
        assert match({"b": (4, 6)}, module)
    with pytest.raises(InvalidArgument, match="inference"):
        match({"b": (4, 6)}, module)
    whole = torch.zeros(100)
    module.register_buffer("b", whole[:10])
    module.register_buffer("whole", whole)
    with pytest.raises(InvalidArgument, match="the file lacks 'whole'"):
        match({"b": (10,)}, module)
    module.register_buffer("whole", module.b)
    with pytest.raises(InvalidArgument, match="are one tensor, the file has two"):
        match({"b": (10,), "whole": (10,)}, module)


def test_state_that_is_no_tensor() -> None:
    class Extra(torch.nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"scale": 1}

        def set_extra_state(self, state: Any) -> None:
            raise AssertionError

    assert len(match({"weight": (2, 3), "bias": (2,)}, Extra(3, 2))) == 2


def test_weights_are_not_rounded_to_integers() -> None:
    module = torch.nn.Module()
    module.register_buffer("b", torch.zeros(6, dtype=torch.int8))
    targets = match({"b": (6,)}, module)
    check_dtypes(targets, {"b": torch.int64})
    with pytest.raises(InvalidArgument, match=r"bfloat16 in the file, torch\.int8 in the module"):
        check_dtypes(targets, {"b": torch.bfloat16})
