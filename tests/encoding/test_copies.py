"""Copies are found where they are copies at every step, and hardly anything else is read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from relex_codec.checkpoints.name_matching import match_tensors
from relex_codec.checkpoints.series import ReaderSeries
from relex_codec.encoding.copies import SAMPLE, find_copies
from relex_codec.encoding.run_plan import plan_tensors, tie
from support.memory import InMemory
from support.tensors import Tensor, bf16

SIZE = 3 << 19
"""Elements of a matrix, so that there are several batches."""


def matrix(seed: int, size: int = 4096) -> Tensor:
    dtype, bits = bf16(np.random.default_rng(seed).standard_normal((size // 64, 64)))
    return dtype, bits.reshape(size // 64, 64)


def copies(steps: list[dict[str, Tensor]], base: dict[str, Tensor]) -> tuple[dict[str, str], list[InMemory]]:
    readers = [InMemory(weights) for weights in steps]
    run = ReaderSeries(list(range(1, len(steps) + 1)), lambda i: readers[i], threads=1, alike=False)
    planned = plan_tensors([reader.tensors for reader in readers], run.steps, len(steps) - 1)
    under = InMemory(base)
    sources = match_tensors({one.key.name: one.info for one in planned}, under.tensors)
    found = find_copies(run, planned, under, sources)
    assert all(one.target == found[one.key] for one in tie(planned, found) if one.key in found)
    return {copy.name: original.name for copy, original in found.items()}, readers


def test_a_copy_at_every_step_and_what_is_read_of_the_rest() -> None:
    def at(step: int) -> dict[str, Tensor]:
        rest = {f"layers.{i}.up": matrix(100 * step + i, SIZE) for i in range(6)}
        return {"embed": matrix(step, SIZE), **rest, "lm_head": matrix(step, SIZE), "norm.a": bf16(np.ones(9))}

    found, readers = copies([at(1), at(2)], {"embed": matrix(0, SIZE)})
    assert found == {"lm_head": "embed"}
    assert [reader.elements for reader in readers] == [2 * SIZE + 8 * SAMPLE, 2 * SIZE]


@pytest.mark.parametrize("where", [0, 1, "base"])
def test_one_bit_at_one_step_or_in_the_base_makes_another_tensor(where: Any) -> None:
    def weights(seed: int, other: bool) -> dict[str, Tensor]:
        dtype, bits = matrix(seed)
        spoiled = bits.copy()
        spoiled[-1, -1] ^= other
        return {"embed": (dtype, bits), "lm_head": (dtype, spoiled)}

    steps = [weights(1, where == 0), weights(2, where == 1)]
    assert copies(steps, weights(0, where == "base"))[0] == {}
    assert copies([weights(1, False), weights(2, False)], weights(0, False))[0] == {"lm_head": "embed"}


def test_steps_that_lack_one_of_the_two() -> None:
    both, one, other = ({name: matrix(step) for name in names} for step, names in enumerate(["ab", "a", "b"]))
    assert copies([one, both], {"a": matrix(9)})[0] == {"b": "a"}
    assert copies([both, one], {"a": matrix(9)})[0] == {"b": "a"}
    assert copies([both, other, one], {"b": matrix(9)})[0] == {"a": "b"}, "the base's is kept"
    assert copies([one, other], {"a": matrix(9)})[0] == {}, "never side by side"


def test_several_copies_of_one() -> None:
    step = {name: matrix(5) for name in ("lm_head", "shared", "encoder.embed", "decoder.embed")} | {"x": matrix(6)}
    assert copies([step], {"x": matrix(0)})[0] == dict.fromkeys(("shared", "decoder.embed", "lm_head"), "encoder.embed")


def test_what_is_of_one_value_or_no_matrix_is_no_copy() -> None:
    zeros: Tensor = ("BF16", np.zeros((8, 64), np.uint16))
    numbers: Tensor = ("I64", np.arange(64, dtype=np.uint64).reshape(8, 8))
    vector = bf16(np.arange(64.0))
    step = {
        "a": zeros,
        "b": zeros,
        "c": vector,
        "d": vector,
        "e": numbers,
        "f": numbers,
        "g": matrix(1),
        "h": matrix(1),
    }
    assert copies([step], {"a": zeros})[0] == {"h": "g"}
