"""What tensors a file has, from the headers of steps that differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from relex_codec.checkpoints.checkpoint import TensorInfo
from relex_codec.encoding.run_plan import Key, PlannedTensor, check_one_layout, plan_tensors, tie
from relex_codec.errors import CheckpointError

EMBED, UP, NORM = "model.embed_tokens.weight", "model.layers.0.up.weight", "model.norm.weight"
SHAPES = {EMBED: (16, 8), UP: (12, 8), NORM: (8,), "lm_head.weight": (16, 8), "model.step": ()}


def table(names: Sequence[str] = (EMBED, UP, NORM), dtype: str = "BF16", **dtypes: str) -> dict[str, TensorInfo]:
    known = {name.replace("language_model.", ""): name for name in names}
    return {name: TensorInfo(name, dtypes.get(plain, dtype), SHAPES[plain]) for plain, name in known.items()}


def plan(tables: Sequence[Mapping[str, TensorInfo]], main: int = -1) -> dict[Key, PlannedTensor]:
    steps = [10 * (i + 1) for i in range(len(tables))]
    found = plan_tensors(tables, steps, main % len(tables))
    assert len({tensor.key for tensor in found}) == len(found)
    return {tensor.key: tensor for tensor in found}


def refused(tables: Sequence[Mapping[str, TensorInfo]], *words: str) -> None:
    planned = list(plan(tables).values())
    with pytest.raises(CheckpointError) as e:
        check_one_layout(planned, [10 * (i + 1) for i in range(len(tables))])
    assert all(word in str(e.value) for word in words), str(e.value)


def test_steps_that_are_alike() -> None:
    tables = [table(), table(), table()]
    planned = plan(tables)
    assert list(planned) == [Key(name, "BF16") for name in tables[0]]
    for key, tensor in planned.items():
        assert tensor.at == tensor.values == (key.name,) * 3
        assert tensor.main
        assert tensor.target is None
        assert tensor.shape == SHAPES[key.name]
    check_one_layout(list(planned.values()), [10, 20, 30])


def test_a_tensor_that_steps_lack() -> None:
    tables = [table(), table([EMBED, NORM]), table()]
    assert plan(tables)[Key(UP, "BF16")].at == (UP, None, UP)
    refused(tables, f"tensor '{UP}' is part of step 10, but not of step 20", "--exclude-steps 20,", "--exact")
    dropped = plan(tables, main=1)[Key(UP, "BF16")]
    assert not dropped.main
    assert dropped.at == dropped.values == (UP, None, UP)


def test_a_dtype_that_changes() -> None:
    tables = [table(dtype="F32"), table(dtype="F32"), table()]
    planned = plan(tables)
    assert len(planned) == 6
    main, other = planned[Key(UP, "BF16")], planned[Key(UP, "F32")]
    assert (main.at, main.values, main.main) == ((None, None, UP), (UP, UP, UP), True)
    assert (other.at, other.values, other.main) == ((UP, UP, None), (UP, UP, None), False)
    refused(tables, "of step 30 is BF16, at step 10 it is F32", "leave it out with --exclude-steps 30")
    codes = plan([table(dtype="F8_E4M3"), table()])[Key(UP, "BF16")]
    assert codes.values == (None, UP), "a line goes through codes of no kind"


def test_names_that_change() -> None:
    renamed = [name.replace("model.", "model.language_model.") for name in (EMBED, UP, NORM)]
    tables = [table(), table(), table(renamed), table(renamed)]
    planned = plan(tables)
    new, old = planned[Key(renamed[1], "BF16")], planned[Key(UP, "BF16")]
    assert new.at == (UP, UP, renamed[1], renamed[1])
    assert new.main
    assert new.target is None
    assert old.at == (UP, UP, None, None)
    assert old.target == new.key
    refused(tables, "is called", "leave them out with --exclude-steps 10,20")
    both = plan([table(dtype="F32"), table(renamed)])
    assert both[Key(renamed[1], "BF16")].values == (UP, renamed[1])
    assert both[Key(UP, "F32")].target is None, "of another dtype: no other name"


def test_copies_may_come_and_go_even_without_the_exact_tier() -> None:
    head = Key("lm_head.weight", "BF16")
    for with_head in ([False, True, True], [True, True, False]):
        names = [[EMBED, UP, NORM, *["lm_head.weight"] * there] for there in with_head]
        tables = [table(one) for one in names]
        planned = tie(plan(tables).values(), {head: Key(EMBED, "BF16")})
        check_one_layout(planned, [1, 2, 3])
        copy = next(tensor for tensor in planned if tensor.key == head)
        assert copy.target == Key(EMBED, "BF16")
        assert copy.main == with_head[-1]
        refused(tables, "'lm_head.weight' is part of step")


def test_a_copy_lends_its_values() -> None:
    tables = [table([UP, "lm_head.weight"]), table([EMBED, UP, "lm_head.weight"])]
    planned = {
        one.key.name: one for one in tie(plan(tables).values(), {Key("lm_head.weight", "BF16"): Key(EMBED, "BF16")})
    }
    assert planned[EMBED].at == planned[EMBED].values == ("lm_head.weight", EMBED)


def test_an_old_name_of_a_copy_is_a_name_of_what_it_copies() -> None:
    renamed = [name.replace("model.", "model.language_model.") for name in (EMBED, UP, NORM)]
    tables = [table(), table([*renamed, "lm_head.weight"])]
    kept, copy = Key("lm_head.weight", "BF16"), Key(renamed[0], "BF16")
    planned = {one.key: one for one in tie(plan(tables).values(), {copy: kept})}
    assert planned[Key(EMBED, "BF16")].target == kept
    assert planned[kept].at == (EMBED, "lm_head.weight")


def test_one_shape_a_tensor() -> None:
    other = table() | {UP: TensorInfo(UP, "BF16", (13, 8))}
    with pytest.raises(CheckpointError, match=r"step 10 is \[13, 8\], expected \[12, 8\].*--exclude-steps"):
        plan([other, table()])
    empty = table() | {UP: TensorInfo(UP, "BF16", (0,))}
    with pytest.raises(CheckpointError, match="ZeRO-3"):
        plan([empty, table()])
    gone = [table() | {"x": TensorInfo("x", "BF16", (n,))} for n in (3, 4)]
    with pytest.raises(CheckpointError, match=r"'x' of step 20 is \[4\], expected \[3\]"):
        plan([*gone, table()])


def test_many_steps_cost_as_much_as_their_tables_differ() -> None:
    one, other = table(), table(dtype="F32")
    planned = plan([one] * 250 + [other] * 250)
    assert planned[Key(UP, "F32")].values == (UP,) * 500
