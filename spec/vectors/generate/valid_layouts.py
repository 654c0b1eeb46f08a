"""The valid vectors of tied tensors, of origins in parts, and of steps that differ in tensors, files, directories."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from .contents import bits, drift, floats, from_floats, integers, noise
from .exact_recipe import Exact, Plan
from .recipe import AUTO, READS, STEPS, Reads, Recipe, Tensor, exact_recipe, moving, quantised

SHARD = "model.safetensors"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
INTEGERS = [[1, 2], [3, 4], [3, 4], [5, 6]]


def tied() -> Recipe:
    """Other names of tensors of every kind, before and after them; one that is there under its other name only."""
    rows = {"count": [integers(row, "I32") for row in INTEGERS]}
    tensors = [
        Tensor("lm_head.weight", "BF16", [4, 6], origin="tied", target=2),
        Tensor("count", "I32", [2], rows["count"][0], framed=True),
        moving("embed.weight", "BF16", [4, 6], "byte"),
        Tensor("count.again", "I32", [2], origin="tied", target=1),
        Tensor("same", "F32", [3], floats("tied", [3], "F32"), "stored"),
        Tensor("same.again", "F32", [3], origin="tied", target=4),
        Tensor("head.again", "BF16", [4, 6], origin="tied", target=2),
        Tensor("empty", "U8", [0], np.zeros(0, "u1")),
        Tensor("empty.again", "U8", [0], origin="tied", target=7),
    ]
    layout = {"shards": SHARDS, "indexed": True, "tensors": [1, 0, 0, 0, None, 1, None, 0, 0], "files": []}
    frames = Exact(rows, [Plan(3)])
    return Recipe(STEPS, tensors, READS, layouts=[layout], frames=frames, base_shards=[SHARD], checkpoints=True)


def exact_tied() -> Recipe:
    """Ties and tier `exact`: a name that goes, one that stays, and one that comes."""
    rows = {"embed": drift("exact tied", bits("exact tied", 8, "BF16"), 3, 2)}
    tensors = [
        Tensor("embed", "BF16", [8], rows["embed"][0]),
        Tensor("head", "BF16", [8], origin="tied", target=0),
        Tensor("later", "BF16", [8], origin="tied", target=0),
    ]
    layouts = [
        {"shards": [SHARD], "indexed": False, "tensors": places, "files": []}
        for places in ([0, 0, None], [0, None, None], [None, 0, 0])
    ]
    steps: list[list[Any]] = [[None, 0], [None, 1], [None, 2]]
    reads: Reads = [(0, AUTO), (5, "line"), (15, AUTO)]
    more: dict[str, Any] = {"layouts": layouts, "rows": steps, "checkpoints": True}
    return exact_recipe([10, 20, 30], tensors, Exact(rows, [Plan(3)]), reads, **more)


def renamed() -> Recipe:
    """Tensors that are called otherwise in the base, or have another shape there, or both."""
    names = {"a": ("model.a", [2, 3]), "b": ("b", [6]), "c": ("module.c", [3, 2]), "d": ("d", [2, 3])}
    tensors, base = [], []
    for name, (own, shape) in names.items():
        tensor = moving(name, "BF16", [2, 3], "ternary")
        tensor.sources = [0] if name == "d" else [[0, own, shape, 0, 6]]
        tensors.append(tensor)
        base.append(Tensor(own, "BF16", shape, tensor.bits))
    return Recipe(STEPS, tensors, READS, base_tensors=base)


def concatenated() -> Recipe:
    """Fused tensors whose parts are apart in the base; pieces of the origin that go on from one source to the next."""
    gates = [floats(f"gate {i}", [2, 4], "F32") for i in range(3)]
    base = [Tensor(f"experts.{i}.gate", "F32", [2, 4], own, shard=i % 2) for i, own in enumerate(gates)]
    sources = [[i % 2, f"experts.{i}.gate", [2, 4], 0, 8] for i in range(3)]
    fused = moving("experts.gate", "BF16", [3, 2, 4], "nibble", bits=np.concatenate(gates), origin_dtype="F32")
    fused.sources = sources
    part = moving("experts.some", "F32", [5], "byte", bits=np.concatenate([gates[2][5:], gates[0][:2]]))
    part.sources = [[0, "experts.2.gate", [2, 4], 5, 3], [0, "experts.0.gate", [2, 4], 0, 2]]
    n = (1 << 17) + 5
    codes = [noise(f"long {i}", n).astype(np.uint8) & 1 for i in range(2)]
    base += [Tensor(f"codes.{i}", "BOOL", [n], own, shard=i) for i, own in enumerate(codes)]
    both = Tensor(
        "codes", "BOOL", [2, n], np.concatenate(codes), sources=[[i, f"codes.{i}", [n], 0, n] for i in (0, 1)]
    )
    tensors = [fused, part, both]
    return Recipe(STEPS, tensors, READS, base_tensors=base, base_shards=SHARDS)


def ranges() -> Recipe:
    """Parts of one tensor of the base, in another order, some of it twice, some of it not at all."""
    whole = floats("ranges", [4, 2, 3], "F16")
    base = [Tensor("experts", "F16", [4, 2, 3], whole)]
    tensors = []
    for name, first, shape in (
        ("experts.3", 18, [2, 3]), ("experts.0", 0, [2, 3]), ("experts.0.row", 3, [3]), ("one", 7, []), ("two", 7, [1]),
    ):  # fmt: skip
        count = math.prod(shape)
        tensor = moving(name, "F16", shape, "byte", bits=whole[first : first + count])
        tensor.sources = [[0, "experts", [4, 2, 3], first, count]]
        tensors.append(tensor)
    empty = Tensor("none", "F16", [0, 2], np.zeros(0, "<u2"), sources=[[0, "experts", [4, 2, 3], 24, 0]])
    return Recipe(STEPS, [*tensors, empty], READS, base_tensors=base)


def layouts() -> Recipe:
    """A tensor that some steps lack, one that changes its dtype, one that changes its name; shards that change too."""
    same = floats("layouts", [6], "BF16")
    wide = (same.astype("<u4") << 16).view("<u4")
    rows = {
        "w BF16": drift("layouts w", same, 4, 2),
        "w F32": drift("layouts wide", wide, 4, 2, 5),
        "head": drift("layouts head", bits("layouts head", 3, "F32"), 4, 2),
        "old": drift("layouts old", bits("layouts old", 2, "BF16"), 4, 1),
        "new": [integers([t], "I64") for t in range(5)],
    }
    tensors = [
        Tensor("w", "F32", [2, 3], same, origin_dtype="BF16"),
        Tensor("w", "BF16", [2, 3], same, directions=[quantised("layouts q", 6, "byte", (0.1, 0.25, -0.5, 1.0))]),
        Tensor("head", "F32", [3], rows["head"][0]),
        Tensor("old", "BF16", [2], rows["old"][0]),
        Tensor("new", "I64", [1], rows["new"][0], "stored", framed=True),
    ]
    first = {"shards": [SHARD], "indexed": False, "tensors": [None, 0, 0, 0, None], "files": []}
    later = {"shards": SHARDS, "indexed": True, "tensors": [1, None, None, None, 0], "files": []}
    unused = {"shards": ["other.safetensors", "x.safetensors"], "indexed": True, "tensors": [None] * 5, "files": []}
    reads: Reads = [(t, "exact") for t in (1, 2, 4, 8)]
    reads += [(0, AUTO), (1.5, AUTO), (8, "track"), (9, AUTO), (3, "track"), (4, "line")]
    steps: list[list[Any]] = [[None, 0], [None, 0], [None, 2], [None, 2]]
    found = Recipe([1, 2, 4, 8], tensors, reads, observed=2, exact=True, checkpoints=True, base_shards=[SHARD])
    return replace(found, frames=Exact(rows, [Plan(4)]), layouts=[first, unused, later], rows=steps)


def files_by_step() -> Recipe:
    """Files that the file holds: some the same at all steps, one with other content, some of them in folders."""
    rows = {"w": drift("files w", bits("files w", 4, "BF16"), 3, 2)}
    files = {
        "config.json": b'{"rope": 1}', "tokenizer.model.v3": bytes(range(200)), "LICENSE": b"as it is",
        "additional_chat_templates/tool_use.jinja": b"{{ tools }}", "custom_generate/generate.py": b"pass",
    }  # fmt: skip

    def change(parts: Any) -> None:
        parts.manifest["files"][2][2] = None  # a document may have no digest

    more_files = [("config.json", b'{"rope": 2}'), ("README.md", b"")]
    every = {"shards": [SHARD], "indexed": False, "tensors": [0]}
    found = [{**every, "files": [0, 1, 2, 3, 4]}, {**every, "files": [6, 3, 5]}, {**every, "files": []}]
    steps: list[list[Any]] = [["checkpoint-10", 0], ["checkpoint-20", 1], ["checkpoint-30", 2]]
    reads: Reads = [(0, AUTO), (15, AUTO)]
    more: dict[str, Any] = {"files": files, "more_files": more_files, "layouts": found, "rows": steps}
    more |= {"checkpoints": True, "change": change, "observed": 1}
    tensors = [Tensor("w", "BF16", [4], rows["w"][0])]
    return exact_recipe([10, 20, 30], tensors, Exact(rows, [Plan(3)]), reads, **more)


def files_of_the_base() -> Recipe:
    """Files that are only in the base: with digests, but for documents, of which one has gone there."""
    base = {
        "config.json": b'{"model_type": "test"}', "tokenizer.json": b"{}", "README.md": b"# A model\n",
        "LICENSE": b"gone", "additional_chat_templates/x.jinja": b"{{ x }}",
    }  # fmt: skip
    more: dict[str, Any] = {"files": {"generation_config.json": b"{}"}, "gone": ["LICENSE"], "checkpoints": True}
    return Recipe(STEPS, [moving("w", "BF16", [5], "ternary")], [(10, AUTO), (0, AUTO)], base_files=base, **more)


def directories() -> Recipe:
    """Directories of all kinds, one without a name, and one that is not that of a step without a name."""
    rows: list[list[Any]] = [
        ["checkpoint-10", 0], [None, 0], ["global_step_30/actor/huggingface", 0], ["a/B/_/0/0+=-.x/f/g/h", 0],
        ["x" * 255, 0], ["y" * 250 + "/" + "z" * 250 + "/" + "v" * 250 + "/" + "w" * 247, 0], ["checkpoint-1/0", 0],
        ["checkpoint", 0], ["nul_/com10.x/console", 0],
    ]  # fmt: skip
    steps = [10 * (i + 1) for i in range(len(rows))]
    tensor = Tensor("w", "BF16", [3], bits("directories", 3, "BF16"))
    reads: Reads = [*((t, "track") for t in steps), (15, AUTO)]
    return Recipe(steps, [tensor], reads, rows=rows, checkpoints=True)


def adapter() -> Recipe:
    """Steps that are adapters: only beside their weights may their configuration be."""
    tensors = [
        Tensor(f"base_model.model.q.lora_{x}.weight", "F32", [2, 4], floats(f"lora {x}", [8], "F32"), "stored")
        for x in "AB"
    ]
    more: dict[str, Any] = {"files": {"adapter_config.json": b'{"r": 2}', "README.md": b""}, "base_shards": []}
    return Recipe(
        STEPS, tensors, [(10, AUTO), (0, AUTO)], shards=["adapter_model.safetensors"], checkpoints=True, **more
    )


def figures() -> Recipe:
    """Errors and norms, which may be any numbers; and what was left out."""
    tensors = [moving("w", "BF16", [5], "ternary"), Tensor("same", "I8", [2], integers([1, -2], "I8"))]
    errors = [0.25, 0.125, math.nan, -1.0, math.inf, 0.0]
    norms = [3.5, math.nan, 1.75]
    left = [["optimizer.pt", 3, 4800000000], ["", 0, 0], ["\u00e9\n", 1 << 53, 1 << 53]]
    return Recipe(STEPS, tensors, READS, errors=errors, norms=norms, left_out=left * 333 + left[:1])


def no_base() -> Recipe:
    """A base without shards, as no tensor starts from it."""
    tensors = [Tensor("w", "BF16", [3], from_floats([1, 2, 3], "BF16"), "stored")]
    tensors.append(Tensor("again", "BF16", [3], origin="tied", target=0))
    return Recipe(STEPS, tensors, [(10, AUTO), (0, AUTO)], base_shards=[])


def step_0(kind: str) -> Recipe:
    """What `auto` is at step 0, which is none of the steps, or the first one."""
    rows = {"base": drift(f"zero {kind}", bits("zero", 4, "BF16"), 2, 2)}
    line = quantised("zero q", 4, "byte", (0.5, 1.0), intercept=100.0)  # which shows at step 0
    tensors = [Tensor("base", "BF16", [4], rows["base"][0], directions=[line])]
    tensors.append(Tensor("stored", "BF16", [4], floats("zero stored", [4], "BF16"), "stored"))
    tensors.append(Tensor("tied", "BF16", [4], origin="tied", target=1))
    # only later steps have the stored one; or these have it under its other name
    first = {"base": [0, None, None], "tied": [0, None, 0], "stored": [0, None, None]}[kind]
    places = [first, [0, 0, 0]]
    found = [{"shards": [SHARD], "indexed": False, "tensors": own, "files": []} for own in places]
    steps: list[list[Any]] = [[None, 0], [None, 1]]
    numbers = [0, 4] if kind == "stored" else [2, 4]
    reads: Reads = [(0, AUTO), (0, "line"), (-0.0, AUTO), (2, AUTO), (3, AUTO), (9, AUTO)]
    more: dict[str, Any] = {"layouts": found, "rows": steps, "observed": 1}
    return exact_recipe(numbers, tensors, Exact(rows, [Plan(2)]), reads, **more)


VALID: dict[str, Recipe] = {
    "tied": tied(),
    "tied-embedded": replace(tied(), embedded=True),
    "exact-tied": exact_tied(),
    "sources-renamed": renamed(),
    "sources-concatenated": concatenated(),
    "sources-ranges": ranges(),
    "sources-embedded": replace(ranges(), embedded=True, base_beside=False),
    "layouts": layouts(),
    "files-by-step": files_by_step(),
    "files-of-the-base": files_of_the_base(),
    "directories": directories(),
    "adapter": adapter(),
    "figures": figures(),
    "no-base": no_base(),
    **{f"step-0-{kind}": step_0(kind) for kind in ("base", "tied", "stored")},
}
