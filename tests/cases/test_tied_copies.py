"""Copies of tied embeddings stay copies, at whatever step and tier, whether base or run have them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import relex_codec
from support.commands import cli
from support.tiny import (
    CONFIG,
    EMBEDDING,
    HEAD,
    State,
    assert_same,
    decoded,
    encoded,
    moved,
    read,
    restored,
    weights,
    with_head,
    write,
    write_steps,
)

BASE = weights(vocabulary=256)
OPTIONS = {"config": {**CONFIG, "vocab_size": 256}}


def make(root: Path, *, base: bool, run: tuple[bool, ...] = (True, True, True, True)) -> None:
    write(root / "base", with_head(BASE) if base else BASE, **OPTIONS)
    for step, there in enumerate(run, 1):
        write(root / f"run/global_step_{step}", at(step, there), **OPTIONS)


def at(step: int, head: bool) -> State:
    return with_head(moved(BASE, step)) if head else moved(BASE, step)


@pytest.mark.parametrize("base", [False, True])
@pytest.mark.parametrize("quality", ["raw", "default", "micro", "small"])
def test_copies_are_equal_in_all_tiers_and_stored_once(tmp_path: Path, base: bool, quality: str) -> None:
    make(tmp_path, base=base)
    write_steps(tmp_path / "plain", lambda n: moved(BASE, n), (1, 2, 3, 4), "global_step_{}", **OPTIONS)
    encoded(tmp_path, "--quality", quality)
    encoded(tmp_path, "--quality", quality, run="plain", file="plain.relex")
    size, without = ((tmp_path / f).stat().st_size for f in ("r.relex", "plain.relex"))
    assert size < without + 1000
    for step, tier in ((0, "auto"), (3, "track"), (2.5, "track"), (12, "line")):
        found = decoded(tmp_path, step, "--tier", tier)
        assert torch.equal(found[HEAD], found[EMBEDDING])


@pytest.mark.parametrize("base", [False, True])
def test_models_are_tied(tmp_path: Path, base: bool) -> None:
    transformers = pytest.importorskip("transformers")
    make(tmp_path, base=base)
    encoded(tmp_path, "--exact")
    into = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with relex_codec.open(tmp_path / "r.relex") as run:
        for step in (0, 2, 2.5, 12):
            expected = decoded(tmp_path, step)
            loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
            model = relex_codec.load_model(tmp_path / "r.relex", step)
            run.load_into(into, step)
            for one in (loaded, model, into):
                embedding, head = one.get_input_embeddings().weight, one.get_output_embeddings().weight
                assert embedding.data_ptr() == head.data_ptr()
                assert torch.equal(embedding, expected[EMBEDDING])


@pytest.mark.parametrize("there", [(False, False, True, True), (True, True, False, False), (False, True, False, True)])
@pytest.mark.parametrize("base", [False, True])
def test_steps_may_differ_in_copies(tmp_path: Path, base: bool, there: tuple[bool, ...]) -> None:
    make(tmp_path, base=base, run=there)
    encoded(tmp_path, "--exact")
    for step, head in enumerate(there, 1):
        assert_same(decoded(tmp_path, step), at(step, head))
    folder = restored(tmp_path)
    for step, head in enumerate(there, 1):
        assert_same(read(folder / f"global_step_{step}"), at(step, head))
    encoded(tmp_path, file="l.relex")
    for step in (0, 2, 12):
        found = decoded(tmp_path, step, file="l.relex")
        assert (HEAD in found) == there[-1], "as the last observed step has it"
        assert not there[-1] or torch.equal(found[HEAD], found[EMBEDDING])


@pytest.mark.parametrize("first", [False, True])
def test_append_of_a_step_that_has_the_copy_or_has_it_no_more(tmp_path: Path, first: bool) -> None:
    make(tmp_path, base=False, run=(first,) * 3)
    write(tmp_path / "more/global_step_4", at(4, not first), **OPTIONS)
    write(tmp_path / "more/global_step_5", at(5, first), **OPTIONS)
    encoded(tmp_path, "--exact")
    for step in (4, 5):
        done = cli("append", tmp_path / "r.relex", tmp_path / f"more/global_step_{step}")
        assert done.returncode == 0, done.stderr
    for step, head in enumerate((first, first, first, not first, first), 1):
        assert_same(decoded(tmp_path, step), at(step, head))
    found = decoded(tmp_path, 12)
    assert (HEAD in found) == first
    assert not first or torch.equal(found[HEAD], found[EMBEDDING])
    assert cli("verify", tmp_path / "r.relex", "--base", tmp_path / "base").returncode == 0


def test_what_is_no_copy_any_more_is_refused_by_append(tmp_path: Path) -> None:
    make(tmp_path, base=False)
    write(tmp_path / "more/global_step_5", at(5, True) | {HEAD: at(6, True)[HEAD]}, **OPTIONS)
    encoded(tmp_path, "--exact")
    done = cli("append", tmp_path / "r.relex", tmp_path / "more/global_step_5")
    assert done.returncode == 1
    assert "'lm_head.weight' and 'model.embed_tokens.weight' are one" in done.stderr
    assert "encode the whole run again" in done.stderr


def test_a_head_of_its_own_is_no_copy(tmp_path: Path) -> None:
    base = weights(vocabulary=256, tied=False)
    write(tmp_path / "base", base, **OPTIONS)
    write_steps(tmp_path / "run", lambda n: moved(base, n), **OPTIONS)
    encoded(tmp_path, "--exact")
    assert_same(decoded(tmp_path, 2), moved(base, 2))
    assert not torch.equal(decoded(tmp_path, 9)[HEAD], decoded(tmp_path, 9)[EMBEDDING])
