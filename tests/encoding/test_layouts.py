"""Steps that are laid out alike share a layout; what directories are called."""

from __future__ import annotations

import pytest

from relex_codec.checkpoints.checkpoint import TensorInfo
from relex_codec.encoding.layouts import Layouts, directory_names
from relex_codec.encoding.run_plan import Key
from relex_codec.format.manifest import Layout


def table(**places: tuple[str, int]) -> dict[str, TensorInfo]:
    return {name: TensorInfo(name, dtype, (4,), shard) for name, (dtype, shard) in places.items()}


def test_layouts_are_shared() -> None:
    layouts = Layouts([Key("a", "BF16"), Key("b", "BF16"), Key("a", "F32")])
    both = table(a=("BF16", 0), b=("BF16", 1))
    layouts.add(["x.safetensors", "y.safetensors"], True, both, [0])
    layouts.add(["x.safetensors", "y.safetensors"], True, both, [0])
    layouts.add(["x.safetensors"], False, table(a=("F32", 0)), [0, 1])
    layouts.add(["y.safetensors", "x.safetensors"], True, both, [0])  # in another order
    layouts.add(["x.safetensors", "y.safetensors"], True, both, [0])
    assert layouts.layouts == [
        Layout(["x.safetensors", "y.safetensors"], True, [0, 1, None], [0]),
        Layout(["x.safetensors"], False, [None, None, 0], [0, 1]),
        Layout(["x.safetensors", "y.safetensors"], True, [1, 0, None], [0]),
    ]
    assert layouts.steps == [0, 0, 1, 2, 0]


def test_layouts_of_a_file_lack_what_came_later() -> None:
    layouts = Layouts([Key("a", "BF16"), Key("b", "BF16")])
    layouts.add_known(Layout(["x.safetensors"], False, [0], [3]), [1])
    layouts.add(["x.safetensors"], False, table(a=("BF16", 0)), [1])
    layouts.add(["x.safetensors"], False, table(a=("BF16", 0), b=("BF16", 0)), [1])
    assert [layout.tensors for layout in layouts.layouts] == [[0, None], [0, 0]]
    assert layouts.steps == [0, 0, 1]


@pytest.mark.parametrize(
    "paths",
    [
        ["checkpoint-1", "checkpoint-2"],
        ["global_step_1/actor/huggingface", "global_step_2/actor/huggingface"],
        ["epoch_0/1", "epoch_0/2"],
        ["1", None],
    ],
)
def test_directories_keep_their_names(paths: list[str | None]) -> None:
    assert directory_names(paths, [1, 2]) == paths


@pytest.mark.parametrize(
    "paths",
    [
        ["a", "A"],
        ["run/1", "run"],
        ["global_step_2", None],
        ["nul", "../x"],
        [".hidden/1", "a b"],
        [None, None],
    ],
)
def test_where_they_cannot_nobody_has_one(paths: list[str | None]) -> None:
    assert directory_names(paths, [1, 2]) == [None, None]
