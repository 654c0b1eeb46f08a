"""Which tensors of a base a run's are: prefixes, places, experts cut otherwise, rules by hand."""

from __future__ import annotations

import math

import pytest

from relex_codec.checkpoints.checkpoint import TensorInfo
from relex_codec.checkpoints.name_matching import (
    RenameRule,
    Sources,
    match_tensors,
    nothing_in_common,
    unmatched_message,
)
from relex_codec.errors import InvalidArgument
from relex_codec.format.manifest import BaseRange

Shapes = dict[str, tuple[int, ...]]
PLAIN: Shapes = {
    "model.embed_tokens.weight": (16, 8),
    "model.layers.0.mlp.up_proj.weight": (12, 8),
    "model.layers.1.mlp.up_proj.weight": (12, 8),
    "model.norm.weight": (8,),
    "lm_head.weight": (16, 8),
}
VISION: Shapes = {"visual.blocks.0.attn.qkv.weight": (24, 8), "visual.merger.mlp.0.bias": (8,)}


def infos(shapes: Shapes, dtype: str = "BF16") -> dict[str, TensorInfo]:
    return {name: TensorInfo(name, dtype, shape) for name, shape in shapes.items()}


def whole(name: str, shape: tuple[int, ...]) -> tuple[BaseRange]:
    return (BaseRange(0, name, shape, 0, math.prod(shape)),)


def renamed(name: str) -> str:
    """What transformers 4.52 and later call it in a vision-language model."""
    if name.startswith("visual."):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.", 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda name: name,
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: f"base_model.model.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: name.removeprefix("model."),
        lambda name: name.replace("layers.0.", "layers.0._orig_mod.").replace("layers.1.", "layers.1._orig_mod."),
        lambda name: name.replace(".mlp.", "._checkpoint_wrapped_module.mlp."),
        renamed,
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_prefixes_and_places(call: object, turned: bool) -> None:
    base = PLAIN | VISION
    run = {call(name): shape for name, shape in base.items()}  # type: ignore[operator]
    expected = {call(name): whole(name, shape) for name, shape in base.items()}  # type: ignore[operator]
    if turned:
        base, run = run, base
        expected = {source.name: whole(name, run[source.name]) for name, (source,) in expected.items()}
    assert match_tensors(infos(run), infos(base, "F32")) == expected


def test_a_match_is_the_only_one_and_of_one_shape() -> None:
    base = infos({"norm.weight": (8,), "model.visual.norm.weight": (8,), "up.weight": (4, 8), "down.weight": (8,)})
    run = infos({
        "model.norm.weight": (8,), "language_model.norm.weight": (8,),  # which of the two is the base's?
        "model.up.weight": (8, 4),
        "model.down.weight": (8,),
    })  # fmt: skip
    assert match_tensors(run, base) == {"model.down.weight": whole("down.weight", (8,))}
    run = infos({"model.norm.weight": (8,), "norm.weight": (8,)})
    assert match_tensors(run, base) == {"norm.weight": whole("norm.weight", (8,))}


def test_dtypes_of_lines_go_together_others_only_with_themselves() -> None:
    base = infos({"a": (4,)}, "F8_E4M3") | infos({"b": (4,)}, "F16") | infos({"c": (4,)}, "I64")
    assert match_tensors(infos({"a": (4,), "b": (4,), "c": (4,)}), base) == {"b": whole("b", (4,))}
    same = infos({"model.a": (4,)}, "F8_E4M3") | infos({"model.c": (4,)}, "I64")
    assert match_tensors(same, base) == {"model.a": whole("a", (4,)), "model.c": whole("c", (4,))}


def experts(count: int, template: str, names: tuple[str, str, str]) -> Shapes:
    shapes = zip(names, ((6, 8), (6, 8), (8, 6)), strict=True)
    return {template.format(e=e, name=name): shape for name, shape in list(shapes) for e in range(count)}


SEPARATE = "model.layers.0.mlp.experts.{e}.{name}.weight"
MIXTRAL = "model.layers.0.block_sparse_moe.experts.{e}.{name}.weight"
FUSED: Shapes = {
    "model.layers.0.mlp.experts.gate_up_proj": (3, 12, 8),
    "model.layers.0.mlp.experts.down_proj": (3, 8, 6),
}
QWEN, MISTRAL = ("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2")


@pytest.mark.parametrize(("template", "names"), [(SEPARATE, QWEN), (MIXTRAL, MISTRAL)])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_experts_in_one_tensor_and_apart(template: str, names: tuple[str, str, str], prefix: str) -> None:
    apart = experts(3, template, names)
    gate, up, down = ([template.format(e=e, name=name) for e in range(3)] for name in names)
    fused = {prefix + name: shape for name, shape in FUSED.items()}
    pairs = [name for both in zip(gate, up, strict=True) for name in both]
    joined, stacked = fused
    assert match_tensors(infos(fused), infos(apart)) == {
        joined: tuple(BaseRange(0, name, apart[name], 0, 48) for name in pairs),
        stacked: tuple(BaseRange(0, name, apart[name], 0, 48) for name in down),
    }
    taken_apart = match_tensors(infos(apart), infos(fused))
    assert taken_apart == {name: (BaseRange(0, joined, fused[joined], 48 * i, 48),) for i, name in enumerate(pairs)} | {
        name: (BaseRange(0, stacked, fused[stacked], 48 * i, 48),) for i, name in enumerate(down)
    }


def test_experts_that_do_not_make_up_the_whole() -> None:
    apart, whole_ones = experts(3, SEPARATE, QWEN), infos(FUSED)
    del apart[SEPARATE.format(e=2, name="up_proj")]
    assert list(match_tensors(whole_ones, infos(apart))) == ["model.layers.0.mlp.experts.down_proj"]
    turned = {name: shape[::-1] for name, shape in experts(3, SEPARATE, QWEN).items()}  # as Llama 4 has them
    assert not match_tensors(whole_ones, infos(turned))
    mixed = infos(experts(3, SEPARATE, QWEN)) | infos({SEPARATE.format(e=1, name="down_proj"): (8, 6)}, "F32")
    assert list(match_tensors(whole_ones, mixed)) == ["model.layers.0.mlp.experts.gate_up_proj"]


def test_one_matrix_that_is_several() -> None:
    base = infos({"layers.0.self_attn.qkv_proj.weight": (16, 8), "layers.0.mlp.gate_up_proj.weight": (12, 8)})
    qkv = "layers.0.self_attn.qkv_proj.weight"
    parts = {"q_proj": (8, 8), "k_proj": (4, 8), "v_proj": (4, 8)}
    run = infos({f"layers.0.self_attn.{name}.weight": shape for name, shape in parts.items()})
    assert match_tensors(run, base) == {
        "layers.0.self_attn.q_proj.weight": (BaseRange(0, qkv, (16, 8), 0, 64),),
        "layers.0.self_attn.k_proj.weight": (BaseRange(0, qkv, (16, 8), 64, 32),),
        "layers.0.self_attn.v_proj.weight": (BaseRange(0, qkv, (16, 8), 96, 32),),
    }


def matched(run: Shapes, base: Shapes, *rules: str) -> Sources:
    return match_tensors(infos(run), infos(base), [RenameRule.parse(rule) for rule in rules])


@pytest.mark.parametrize("rule", ["thinker.=", "=thinker."])
@pytest.mark.parametrize("turned", [False, True])
def test_a_rule_by_hand_says_how_the_two_differ_either_way(rule: str, turned: bool) -> None:
    base, run = PLAIN, {f"thinker.{name}": shape for name, shape in PLAIN.items()}
    assert not matched(run, base)
    expected = {f"thinker.{name}": whole(name, shape) for name, shape in base.items()}
    if turned:
        base, run = run, base
        expected = {source.name: whole(name, PLAIN[source.name]) for name, (source,) in expected.items()}
    assert matched(run, base, rule) == expected


def test_rules_by_hand_come_first_and_one_after_another() -> None:
    base = {"a.weight": (4,), "b.weight": (4,)}
    assert matched({"a.weight": (4,)}, base, "a.=b.") == {"a.weight": whole("b.weight", (4,))}
    run = {"net.encoder.b.weight": (4,)}
    assert matched(run, base, "net.=", "encoder.=") == {"net.encoder.b.weight": whole("b.weight", (4,))}


@pytest.mark.parametrize("rule", ["nonsense.=model.", "model.=nonsense."])
def test_a_rule_that_fits_nothing_is_refused(rule: str) -> None:
    with pytest.raises(InvalidArgument, match="fits no tensor"):
        matched(PLAIN, PLAIN, rule)


@pytest.mark.parametrize("text", ["model.", "a=b=c", "a=a", "="])
def test_what_is_no_rule(text: str) -> None:
    with pytest.raises(InvalidArgument, match="expected OLD=NEW"):
        RenameRule.parse(text)


def test_what_is_not_in_the_base_is_named_with_its_share() -> None:
    run = infos({"a": (1000,), "b": (2000,), "c": (5,)})
    assert unmatched_message(run, dict.fromkeys(run, ()), {}) is None
    message = unmatched_message(run, {"a": (), "c": ()}, {})
    assert message is not None
    assert message.startswith("1 tensor is not in the base, 67 % of the bytes, the largest 'b'")
    assert "--rename OLD=NEW" in message
    message = unmatched_message(run, {"a": (), "b": ()}, {})
    assert message is not None
    assert "less than 1 % of the bytes" in message
    assert "--rename" not in message
    message = unmatched_message(run, {"a": (), "c": ()}, infos({"b": (1900,)}))
    assert message is not None
    assert "the largest 'b' (BF16 [2000], in the base BF16 [1900]): it is stored whole" in message
    assert "--rename" not in message


def test_nothing_in_common_says_why() -> None:
    run = infos({"model.a": (4, 4)})
    assert "names differ: the run begins with 'model.a', the base with 'x.y'" in nothing_in_common(
        run, infos({"x.y": (4, 4)})
    )
    assert "shapes differ: 'model.a' of the run is BF16 [4, 4], 'a' is BF16 [8, 4] in the base" in nothing_in_common(
        run, infos({"a": (8, 4)})
    )
    message = nothing_in_common(run, infos({"model.a": (4, 4)}, "F8_E4M3"))
    assert "dtypes differ: 'model.a' of the run is BF16 [4, 4], it is F8_E4M3 [4, 4] in the base" in message
