"""Which tensors of a file go into an adapter of PEFT, and how: by their names and shapes. Pure functions.

    linear      X.lora_A.weight, X.lora_B.weight         matrices [out, in] of linear layers, fused ones too
    transposed  the same, for matrices [in, out]         Conv1D of GPT-2: fan_in_fan_out
    embedding   X.lora_embedding_A, X.lora_embedding_B
    parameter   a tensor that no linear layer has        experts [E, out, in]: target_parameters
    whole       the tensor as it is                      norms, tied embeddings: modules_to_save; biases

Where head and embedding are one tensor, factors of it would be right either while the adapter is in use or when it is
merged, not both: without ``ensure_weight_tying`` only the embedding has them until it is merged, and with it they are
merged twice (peft 0.21). Whole they are right in both.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from relex_codec.format import constants as f
from relex_codec.format.tensor_record import TensorRecord

LINEAR: Final = "linear"
TRANSPOSED: Final = "transposed"
EMBEDDING: Final = "embedding"
PARAMETER: Final = "parameter"
WHOLE: Final = "whole"
FACTORED: Final = frozenset({LINEAR, TRANSPOSED, EMBEDDING, PARAMETER})
HEAD: Final = "lm_head.weight"
PREFIX: Final = "base_model.model."
"""Before all names in an adapter."""
_EMBEDDING: Final = re.compile(
    r"(\w*_)?(embed_tokens|embeddings?|embed_in|embed_positions|embd|wte|wpe|shared)(_\w*)?", re.IGNORECASE
)
"""Names of modules that look rows up."""
_ROUTERS: Final = frozenset({"router", "gate"})
"""Names of modules that choose experts; some of them are no linear layers, which shows in nothing that a file has."""
_POSITIONS: Final = re.compile(r"pos|wpe|type")
"""In the names of those that have nothing to do with the vocabulary."""
_KERNEL: Final = 16
"""Tensors of three dimensions of which one is shorter are kernels of convolutions, not experts."""
_CONV1D: Final = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
"""Types of models whose linear layers hold [in, out]."""
_CONV1D_MODULES: Final = frozenset({"c_attn", "c_fc", "c_proj", "q_attn"})
_EXPERTS_IN_OUT: Final = frozenset({"gpt_oss", "llama4", "llama4_text"})
"""Types of models whose experts hold [E, in, out]."""


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor that moves, and how it goes into an adapter.

    Attributes:
        tensor: of the file.
        name: of the tensor in the base, which the adapter is for.
        kind: one of the module's constants.
        flipped: whether the tensor holds [in, out].
        again: whether the tensor is in the adapter under another name too.
    """

    tensor: TensorRecord
    name: str
    kind: str
    flipped: bool = False
    again: bool = False

    @property
    def module(self) -> str:
        """The module that has it."""
        return self.name.rpartition(".")[0]

    @property
    def last(self) -> str:
        """The last part of what PEFT is told to target."""
        return (self.name if self.kind == PARAMETER else self.module).rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes into an adapter.

    Attributes:
        parts: in the file's order.
        left_out: tensors that move and are not in it, with the reason.
        tied: whether the head is the embedding, which is in it whole.
    """

    parts: list[Part]
    left_out: list[tuple[TensorRecord, str]]
    tied: bool

    @property
    def factored(self) -> list[Part]:
        """Those that become products."""
        return [part for part in self.parts if part.kind in FACTORED]


def plan_adapter(
    tensors: Sequence[TensorRecord], config: Mapping[str, Any], *, whole: bool = False, embeddings: bool = True
) -> Plan:
    """Decide how the tensors of a layout go into an adapter.

    Args:
        tensors: of the layout.
        config: content of ``config.json``.
        whole: take norms and biases too.
        embeddings: take embeddings and heads.
    """
    model, tied = str(config.get("model_type", "")), _is_tied(tensors, config)
    parts: list[Part] = []
    left_out: list[tuple[TensorRecord, str]] = []
    for tensor in tensors:
        if tensor.kind == f.FRAMED and tensor.dtype in ("BF16", "F16", "F32") and tensor.size:
            left_out.append((tensor, "stored step by step"))
        if not tensor.directions:
            continue
        name = _name_in_base(tensor)
        if name is None:
            left_out.append((tensor, "not in the base as it is"))
            continue
        part = _part(tensor, name, model)
        of_vocabulary = part.kind == EMBEDDING or part.last == "lm_head"
        if of_vocabulary and tied and not _POSITIONS.search(part.last):
            part = replace(part, kind=WHOLE)
        if of_vocabulary and not embeddings:
            left_out.append((tensor, "embeddings"))
        elif part.kind == WHOLE and not whole:
            others = "norms and biases" if len(tensor.shape) < 2 else "routers, convolutions and the like"
            left_out.append((tensor, "tied embeddings" if _looks_up(part.module) else others))
        else:
            parts.append(part)
    if whole:
        parts = _that_peft_takes(parts, left_out)
    embedded = [part for part in parts if part.kind == WHOLE and _looks_up(part.module)]
    parts += [replace(part, name=HEAD, again=True) for part in embedded]  # PEFT asks for both
    return Plan(parts, left_out, bool(embedded))


def _is_tied(tensors: Sequence[TensorRecord], config: Mapping[str, Any]) -> bool:
    """Tell whether the head is another name of the embedding: there is none of its own."""
    heads = [tensor for tensor in tensors if tensor.name.endswith("lm_head.weight")]
    return all(head.kind == f.TIED for head in heads) and config.get("tie_word_embeddings", True) is not False


def _looks_up(module: str) -> bool:
    last = module.rpartition(".")[2]
    return _EMBEDDING.fullmatch(last) is not None and last != "embed_out"


def _name_in_base(tensor: TensorRecord) -> str | None:
    """Return what a tensor is called in the base; None if that has no tensor of its name and shape."""
    if not tensor.in_base or len(tensor.sources) != 1:
        return None
    (source,) = tensor.sources
    return source.name if source.shape == tensor.shape else None


def _part(tensor: TensorRecord, name: str, model: str) -> Part:
    module, _, parameter = name.rpartition(".")
    last, dimensions = module.rpartition(".")[2], len(tensor.shape)
    if last in _ROUTERS:
        return Part(tensor, name, WHOLE)
    if parameter == "weight" and dimensions == 2:
        if _looks_up(module):
            return Part(tensor, name, EMBEDDING)
        flipped = model in _CONV1D and last in _CONV1D_MODULES
        return Part(tensor, name, TRANSPOSED if flipped else LINEAR, flipped)
    experts = dimensions == 3 and min(tensor.shape[1:]) >= _KERNEL
    if module and (experts or (dimensions == 2 and parameter not in ("weight", "bias"))):
        return Part(tensor, name, PARAMETER, dimensions == 3 and model in _EXPERTS_IN_OUT)
    return Part(tensor, name, WHOLE)


def _that_peft_takes(parts: list[Part], left_out: list[tuple[TensorRecord, str]]) -> list[Part]:
    """Keep, of the whole tensors, biases of linear layers that are in the adapter, and modules that hold nothing else.

    PEFT replaces whole modules, so a parameter that lies beside linear layers can not be brought by it.
    """
    factored = {part.module for part in parts if part.kind in (LINEAR, TRANSPOSED)}
    kept = []
    for part in parts:
        inside = any(other == part.module or other.startswith(f"{part.module}.") for other in factored)
        if part.kind != WHOLE or (part.name.endswith(".bias") and part.module in factored) or not inside:
            kept.append(part)
        else:
            left_out.append((part.tensor, "no module of its own"))
    return kept


def names_in_adapter(part: Part, nested: Collection[str] = ()) -> tuple[str, str]:
    """Return what the factors A and B of a part are called in an adapter.

    Args:
        nested: full names of further parameters of the same module that PEFT wraps after this one, which lies deeper
            then.

    Examples:
        >>> from relex_codec.format.tensor_record import TensorRecord
        >>> names_in_adapter(Part(None, "model.layers.0.mlp.up_proj.weight", LINEAR))[0]
        'base_model.model.model.layers.0.mlp.up_proj.lora_A.weight'
    """
    inside = PREFIX + part.module + ".base_layer" * len(nested)
    if part.kind == EMBEDDING:
        return f"{inside}.lora_embedding_A", f"{inside}.lora_embedding_B"
    return f"{inside}.lora_A.weight", f"{inside}.lora_B.weight"


def name_of_whole(part: Part, parts: Sequence[Part]) -> str:
    """Return what a part that is brought whole is called in an adapter."""
    if part.name.endswith(".bias") and any(one.module == part.module and one.kind in FACTORED for one in parts):
        return f"{PREFIX}{part.module}.base_layer.bias"
    return PREFIX + part.name


def wrapped_after(part: Part, parts: Sequence[Part]) -> list[str]:
    """Return the parameters of the same module that PEFT wraps after `part`.

    PEFT wraps them in the order in which the module defines them, of which a file knows nothing: experts everywhere
    have what leads out of them, ``down_proj``, last.
    """
    if part.kind != PARAMETER:
        return []

    def place(other: Part) -> tuple[bool, str]:
        return "down" in other.last, other.name

    return sorted(
        other.name
        for other in parts
        if other.kind == PARAMETER and other.module == part.module and place(other) > place(part)
    )


def factor_shapes(part: Part, rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the shapes of A and B of a part in an adapter of so high a rank."""
    shape = part.tensor.shape
    count = shape[0] if len(shape) == 3 else 1
    rows, columns = shape[-2:]
    if part.flipped or part.kind == EMBEDDING:
        rows, columns = columns, rows
    return (count * rank, columns), (rows, count * rank)


def peft_config(
    plan: Plan, others: Collection[str], rank: int, base: str | None, revision: str | None, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content of ``adapter_config.json``.

    Args:
        others: names of tensors of matrices that are not in the adapter: modules are called by the end of their names
            only where that does not mean these.
        base, revision: of the model that the adapter is for.
        config: of that model.
    """
    modules = [part for part in plan.parts if part.kind in (LINEAR, TRANSPOSED, EMBEDDING)]
    whole = [part for part in plan.parts if part.kind == WHOLE and not part.again]
    biases = [part for part in whole if part.module in {one.module for one in modules}]
    saved = sorted({part.module for part in whole} - {part.module for part in biases})
    parameters = sorted({part.name for part in plan.parts if part.kind == PARAMETER})
    architectures = [str(one) for one in config.get("architectures") or ["CausalLM"]]
    causal = any(one.endswith(("CausalLM", "ForConditionalGeneration", "LMHeadModel")) for one in architectures)
    found: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if causal else None,
        "base_model_name_or_path": base,
        "revision": revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "lora_only" if biases else "none",
        "use_rslora": False,
        "init_lora_weights": True,
        "fan_in_fan_out": any(part.kind == TRANSPOSED for part in plan.parts),
        "target_modules": _spelled([part.module for part in modules], [name.rpartition(".")[0] for name in others]),
        "modules_to_save": saved or None,
    }
    if parameters:
        found["target_parameters"] = parameters
    if plan.tied:
        found["ensure_weight_tying"] = True
    return found


def _spelled(modules: Sequence[str], others: Collection[str]) -> list[str]:
    """Return the last parts of the names of modules, where no other module ends so, and full names elsewhere."""
    taken = {other.rpartition(".")[2] for other in others}
    ends = {module.rpartition(".")[2] for module in modules}
    return sorted({end for end in ends if end not in taken} | {m for m in modules if m.rpartition(".")[2] in taken})
