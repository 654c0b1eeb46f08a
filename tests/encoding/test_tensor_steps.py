"""One tensor over steps that call it differently, have it in another dtype, or lack it."""

from __future__ import annotations

import numpy as np
import pytest

from relex_codec.checkpoints.series import ReaderSeries
from relex_codec.encoding.run_plan import Key, plan_tensors
from relex_codec.encoding.tensor_steps import TensorSteps
from support.memory import InMemory
from support.tensors import Tensor, bf16, f32

VALUES = [1.0, 2.0, 3.0, 4.0, 5.0]


def steps_of(weights: list[dict[str, Tensor]], key: Key, main: int = -1) -> TensorSteps:
    readers = [InMemory(one) for one in weights]
    run = ReaderSeries(list(range(len(readers))), lambda i: readers[i], threads=1, alike=False)
    planned = plan_tensors([reader.tensors for reader in readers], run.steps, main % len(readers))
    tensor = next(one for one in planned if one.key == key)

    return TensorSteps(run, tensor)


def at(value: float) -> Tensor:
    return bf16(np.array([value, -value, value / 3]))


def check(series: TensorSteps, expected: list[Tensor]) -> None:
    name = series.planned.key.name
    for count in range(len(expected) + 1):  # also of the first steps only
        out = np.zeros((count, 2), np.uint16)
        series.read_into(name, 1, out)
        assert out.tolist() == [bits[1:].tolist() for _, bits in expected[:count]]
    for i, (_, bits) in enumerate(expected):
        assert series.checkpoint(i).read(name).tolist() == bits.tolist()


def test_alike() -> None:
    series = steps_of([{"w": at(v)} for v in VALUES], Key("w", "BF16"))
    check(series, [at(v) for v in VALUES])
    assert series.usable.all()


@pytest.mark.parametrize("lacking", [[0], [4], [1, 2], [0, 1, 3]])
def test_steps_that_lack_it_have_what_was_before(lacking: list[int]) -> None:
    other = {"x": at(9)}
    weights = [other if i in lacking else other | {"w": at(v)} for i, v in enumerate(VALUES)]
    main = next(i for i in range(5) if i not in lacking)
    series = steps_of(weights, Key("w", "BF16"), main)
    expected, last = [], VALUES[main]
    for i, value in enumerate(VALUES):
        last = last if i in lacking else value
        expected.append(at(last))
    check(series, expected)
    assert np.flatnonzero(~series.usable).tolist() == lacking


def test_values_of_another_dtype_are_rounded_and_kept_as_they_are_too() -> None:
    weights = [{"w": f32(np.array([v, -v, v / 3]))} if v == 2 else {"w": at(v)} for v in VALUES]
    series = steps_of(weights, Key("w", "BF16"))
    check(series, [at(v) for v in VALUES])
    assert series.usable.all()
    exact = steps_of(weights, Key("w", "F32"))
    assert [exact.checkpoint(i).read("w").tolist() for i in (0, 1, 4)] == [weights[1]["w"][1].tolist()] * 3
    assert exact.usable.tolist() == [False, True, False, False, False]


def test_other_names() -> None:
    weights = [{"model.w" if v > 2 else "w": at(v)} for v in VALUES]
    check(steps_of(weights, Key("model.w", "BF16")), [at(v) for v in VALUES])
