"""Names that differ between base and run: what wrappers add, what releases of transformers changed, experts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import relex_codec
from support.commands import cli, failed
from support.tiny import State, assert_same, decoded, encode, encoded, moved, weights, write, write_steps

BASE = weights(tied=False)
VISION = {
    f"visual.blocks.{i}.attn.qkv.weight": (torch.arange(48.0 * 16).reshape(48, 16) / (700 + i)).bfloat16()
    for i in range(3)
}


def in_vision_model(name: str) -> str:
    """What transformers 4.52 and later call it."""
    return f"model.{name}" if name.startswith("visual.") else name.replace("model.", "model.language_model.", 1)


def inner(name: str) -> str:
    return name.replace("model.layers.0.", "model.layers.0._orig_mod.")


CALLS: dict[str, Callable[[str], str]] = {
    "vision": in_vision_model,
    "orig_mod": lambda name: f"_orig_mod.{name}",
    "module": lambda name: f"module.{name}",
    "peft": lambda name: f"base_model.model.{name}",
    "stripped": lambda name: name.removeprefix("model."),
    "inner": inner,
}


def renamed(state: State, call: Callable[[str], str]) -> State:
    return {call(name): value for name, value in state.items()}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("kind", CALLS)
def test_names_are_matched_and_the_run_keeps_its_own(tmp_path: Path, kind: str, turned: bool) -> None:
    call, base = CALLS[kind], BASE | VISION
    mine, theirs = (lambda name: name, call) if turned else (call, lambda name: name)
    write(tmp_path / "base", renamed(base, theirs))
    write_steps(tmp_path / "run", lambda n: renamed(moved(BASE, n) | VISION, mine))
    write_steps(tmp_path / "plain", lambda n: renamed(moved(BASE, n) | VISION, theirs))
    done = encoded(tmp_path, "--exact")
    assert "not in the base" not in done.stderr
    encoded(tmp_path, "--exact", run="plain", file="plain.relex")
    # names alone tell the two apart
    assert (tmp_path / "r.relex").stat().st_size < (tmp_path / "plain.relex").stat().st_size + 4000
    assert_same(decoded(tmp_path, 2), renamed(moved(BASE, 2) | VISION, mine))
    assert_same(decoded(tmp_path, 0), renamed(base, mine))
    line, plain = decoded(tmp_path, 7), decoded(tmp_path, 7, file="plain.relex")
    assert_same(line, renamed(renamed(plain, lambda name: {theirs(n): n for n in base}[name]), mine))


def test_a_rule_by_hand(tmp_path: Path) -> None:
    write(tmp_path / "base", BASE)
    write_steps(tmp_path / "run", lambda n: renamed(moved(BASE, n), lambda name: f"thinker.{name}"))
    done = encode(tmp_path)
    failed(done, "share no tensor", "names differ", "'thinker.lm_head.weight'", "--rename OLD=NEW")
    encoded(tmp_path, "--rename", "thinker.=", "--exact")
    assert_same(decoded(tmp_path, 3), renamed(moved(BASE, 3), lambda name: f"thinker.{name}"))
    failed(encode(tmp_path, "--rename", "talker.="), "--rename talker.= fits no tensor")
    failed(encode(tmp_path, "--rename", "thinker."), "expected OLD=NEW")
    relex_codec.encode(tmp_path / "run", tmp_path / "p.relex", base=tmp_path / "base", rename=["thinker.="])
    with relex_codec.open(tmp_path / "p.relex") as run:
        assert torch.equal(run.tensor("thinker.model.norm.weight", step=0), BASE["model.norm.weight"])


def test_what_stays_unmatched_is_named_with_its_share(tmp_path: Path) -> None:
    write(tmp_path / "base", {name: BASE[name] for name in list(BASE)[1:]})
    write_steps(tmp_path / "run", lambda n: moved(BASE, n))
    done = encoded(tmp_path)
    line = next(line for line in done.stderr.splitlines() if "not in the base" in line)
    assert "1 tensor is not in the base" in line
    assert "% of the bytes, the largest 'model.embed_tokens.weight'" in line
    assert "--rename OLD=NEW" in line


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (renamed(BASE, lambda name: f"x.{name}"), ["names differ", "'lm_head.weight'", "'x.lm_head.weight'"]),
        ({name: value[..., :4].contiguous() for name, value in BASE.items()}, ["shapes differ", "[48, 16]", "[48, 4]"]),
        ({name: value.to(torch.float8_e4m3fn) for name, value in BASE.items()}, ["dtypes differ", "F8_E4M3", "BF16"]),
    ],
)
def test_nothing_in_common_says_why(tmp_path: Path, other: State, words: list[str]) -> None:
    write(tmp_path / "base", other)
    write_steps(tmp_path / "run", lambda n: moved(BASE, n))
    failed(encode(tmp_path), "share no tensor", *words)


def experts() -> tuple[State, State]:
    """A layer of experts, one by one and in one tensor, as the Hub and transformers 5 have them."""
    generator = torch.Generator().manual_seed(3)
    gate, up = ((torch.randn(4, 6, 16, generator=generator) * 0.02).bfloat16() for _ in range(2))
    down = (torch.randn(4, 16, 6, generator=generator) * 0.02).bfloat16()
    rest, stem = weights(tied=False), "model.layers.0.mlp.experts"
    apart = {}
    for e in range(4):
        for name, value in (("gate_proj", gate), ("up_proj", up), ("down_proj", down)):
            apart[f"{stem}.{e}.{name}.weight"] = value[e].clone()
    fused = {f"{stem}.gate_up_proj": torch.cat([gate, up], 1), f"{stem}.down_proj": down}
    return rest | apart, rest | fused


@pytest.mark.parametrize("embed", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_experts_in_one_tensor_and_apart(tmp_path: Path, turned: bool, embed: bool) -> None:
    apart, fused = experts()
    base, run = (fused, apart) if turned else (apart, fused)
    write(tmp_path / "base", base, shards=3)
    write_steps(tmp_path / "run", lambda n: moved(run, n))
    done = encoded(tmp_path, "--exact", *["--embed-base"] * embed)
    assert "not in the base" not in done.stderr
    for step in (1, 2, 3):
        assert_same(decoded(tmp_path, step), moved(run, step))
    assert_same(decoded(tmp_path, 0), run)
    small = encoded(tmp_path, *["--embed-base"] * embed, file="l.relex")
    assert "not in the base" not in small.stderr
    assert_same(decoded(tmp_path, 0, file="l.relex"), run)
    assert decoded(tmp_path, 9, file="l.relex").keys() == run.keys()


def test_append_to_a_run_whose_names_differ(tmp_path: Path) -> None:
    apart, fused = experts()
    write(tmp_path / "base", apart)
    called = renamed(fused, in_vision_model)
    write_steps(tmp_path / "run", lambda n: moved(called, n), (1, 2))
    write_steps(tmp_path / "more", lambda n: moved(called, n), (3, 4))
    encoded(tmp_path, "--exact")
    done = cli("append", tmp_path / "r.relex", *(tmp_path / f"more/checkpoint-{n}" for n in (3, 4)))
    assert done.returncode == 0, done.stderr
    for step in (1, 2, 3, 4):
        assert_same(decoded(tmp_path, step), moved(called, step))
    assert_same(decoded(tmp_path, 0), called)
