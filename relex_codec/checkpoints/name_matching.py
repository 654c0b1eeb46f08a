"""Which tensors of a base the tensors of a run are, where the two call or cut them differently. No I/O.

Wrappers add prefixes (``_orig_mod.``, ``module.``, ``base_model.model.``), releases of transformers move a language
model within a model (``model.`` and ``model.language_model.``, ``visual.`` and ``model.visual.``), and the experts of a
mixture are one tensor each or all in one. A match is taken only where it is the only one on both sides and shapes
agree; it decides from which elements of the base a tensor starts, so that a wrong one would cost bytes, never bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import Final, NamedTuple

from relex_codec.core.dtypes import FLOATS, ITEMSIZE
from relex_codec.core.text import quote
from relex_codec.errors import InvalidArgument
from relex_codec.format.manifest import BaseRange

from .checkpoint import TensorInfo

WRAPPERS: Final = frozenset({
    "_orig_mod",  # torch.compile
    "module",  # DataParallel, DistributedDataParallel, DeepSpeed
    "_fsdp_wrapped_module", "_checkpoint_wrapped_module",  # FSDP, activation checkpointing
    "base_model",  # PEFT
})  # fmt: skip
PLACES: Final = frozenset({"model", "language_model", "transformer"})
"""Where a model may lie within another one: parts of names that are left out, with `WRAPPERS`, to compare the rest."""
SAME: Final = {"block_sparse_moe": "mlp"}
"""Parts of names that mean the same: Mixtral's on the Hub, and in transformers 5."""
EXPERT: Final = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
"""Mixtral's names of what an expert has."""
FUSED: Final = {
    "gate_up_proj": ("gate_proj", "up_proj"),
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
}
"""Tensors that are others one below the other, row-major: parts of each expert, if it is one of experts."""

Tensors = Mapping[str, TensorInfo]


Sources = dict[str, tuple[BaseRange, ...]]
"""What each tensor of a run starts from, by its name: elements of the base, one stretch after another."""


class RenameRule(NamedTuple):
    """A rule given by hand: names with `old` in them in run or base have `new` there in the other.

    It applies once in a name: at its beginning, or else at the first dot after which `old` follows.

    Examples:
        >>> rule = RenameRule.parse("model.language_model.=model.")
        >>> rule.apply("model.language_model.norm.weight")
        'model.norm.weight'
        >>> rule.apply("lm_head.weight") is None
        True
    """

    old: str
    new: str

    @classmethod
    def parse(cls, text: str) -> RenameRule:
        """Return the rule that ``OLD=NEW`` says; one of the two may be empty.

        Raises:
            InvalidArgument: it says none.
        """
        old, equals, new = text.partition("=")
        if not equals or "=" in new or old == new:
            raise InvalidArgument(
                f"--rename is {quote(text)}, expected OLD=NEW, such as model.language_model.=model. for a run whose "
                "names begin with model.language_model. where those of the base begin with model."
            )
        return cls(old, new)

    @property
    def turned(self) -> RenameRule:
        """The same rule for names of the other side."""
        return RenameRule(self.new, self.old)

    def apply(self, name: str) -> str | None:
        """Return what a name is on the other side, or None if the rule says nothing about it."""
        at = 0 if name.startswith(self.old) else name.find(f".{self.old}") + 1
        if not at and not name.startswith(self.old):
            return None
        return name[:at] + self.new + name[at + len(self.old) :]


def match_tensors(run: Tensors, base: Tensors, rules: Sequence[RenameRule] = ()) -> Sources:
    """Find out what the tensors of a run start from.

    Args:
        run, base: what they have.
        rules: given by hand, tried before all else.

    Returns:
        For each tensor of the run that the base has, in whatever form, its elements there. The rest is missing.

    Raises:
        InvalidArgument: a rule makes no tensor of the run one of the base.

    Examples:
        >>> run = {"model.norm.weight": TensorInfo("model.norm.weight", "BF16", (8,))}
        >>> match_tensors(run, {"norm.weight": TensorInfo("norm.weight", "F32", (8,))})
        {'model.norm.weight': (BaseRange(shard=0, name='norm.weight', shape=(8,), first=0, elements=8),)}
    """
    if not rules:
        return _matched(run, base, {name: name for name in run})
    best: Sources = {}
    unused: Sequence[RenameRule] = rules
    for turned in product((False, True), repeat=len(rules)):  # a rule may be about names of the run or of the base
        called, changed = _renamed(run, base, rules, turned)
        found = _matched(run, base, called)
        idle = [rule for rule, names in zip(rules, changed, strict=True) if not names & found.keys()]
        if (-len(idle), len(found)) > (-len(unused), len(best)):
            best, unused = found, idle
    if unused:
        rule = unused[0]
        raise InvalidArgument(
            f"--rename {rule.old}={rule.new} fits no tensor: no name of the run with {quote(rule.old)} is one of the "
            f"base with {quote(rule.new)}, nor the other way round; the run has {quote(next(iter(run)))}, the base "
            f"{quote(next(iter(base)))}"
        )
    return best


def unmatched_message(run: Tensors, sources: Sources, base: Tensors) -> str | None:
    """Say which tensors of a run are not in its base, and what share of its bytes they are; None if there are none."""
    rest = [info for name, info in run.items() if name not in sources and info.size]
    if not rest:
        return None
    share = 100 * sum(map(_bytes, rest)) / sum(map(_bytes, run.values()))
    tensors = "1 tensor is" if len(rest) == 1 else f"{len(rest)} of {len(run)} tensors are"
    size = f"{share:.0f} %" if share >= 1 else "less than 1 %"
    largest = max(rest, key=_bytes)
    there, hint = base.get(largest.name), ""
    if there is not None:
        one, other = f"{largest.dtype} {list(largest.shape)}", f"{there.dtype} {list(there.shape)}"
        hint = f" ({one}, in the base {other})"
    ask = share >= 1 and any(info.name not in base for info in rest)
    rename = "; if the base calls them otherwise, say so with --rename OLD=NEW" if ask else ""
    what = "it is" if len(rest) == 1 else "they are"
    return (
        f"{tensors} not in the base, {size} of the bytes, the largest {quote(largest.name)}{hint}: {what} stored "
        f"whole{rename}"
    )


def nothing_in_common(run: Tensors, base: Tensors) -> str:
    """Say why not one tensor of a run is in its base: by what the two have in the same place, or under which names."""
    known = _by_key(base)
    for name, info in run.items():
        there = base.get(name) or next(iter(known.get(key_of(name), ())), None)
        if there is None or not info.size:
            continue
        one = f"{quote(name)} of the run is {info.dtype} {list(info.shape)}"
        other = f"{'it' if there.name == name else quote(there.name)} is {there.dtype} {list(there.shape)} in the base"
        if there.shape != info.shape:
            return f"shapes differ: {one}, {other}; is it the model that training started from, and of the same size?"
        return f"dtypes differ: {one}, {other}; take a base in one of {', '.join(sorted(FLOATS))}"
    return (
        f"names differ: the run begins with {quote(next(iter(run)))}, the base with {quote(next(iter(base)))}; if the "
        "two are the same model, say how its names differ with --rename OLD=NEW"
    )


def compatible(one: TensorInfo, other: TensorInfo) -> bool:
    """Tell whether a tensor may start from another: of the same dtype, or both of dtypes that lines go through."""
    return one.dtype == other.dtype or {one.dtype, other.dtype} <= FLOATS


def key_of(name: str) -> str:
    """Return a name without what wrappers and other places in a model add to it.

    Examples:
        >>> key_of("model.language_model.layers.0._orig_mod.mlp.up_proj.weight")
        'layers.0.mlp.up_proj.weight'
        >>> key_of("model.layers.1.block_sparse_moe.experts.3.w1.weight")
        'layers.1.mlp.experts.3.gate_proj.weight'
    """
    parts = [SAME.get(part, part) for part in name.split(".") if part not in WRAPPERS and part not in PLACES]
    if "experts" in parts:
        parts = [EXPERT.get(part, part) for part in parts]
    return ".".join(parts)


def _matched(run: Tensors, base: Tensors, called: Mapping[str, str]) -> Sources:
    """Match tensors of the run, whose names in the base may be `called`."""
    found: Sources = {}
    taken: set[str] = set()

    def take(name: str, there: TensorInfo) -> None:
        found[name] = (_range(there, 0, there.size),)
        taken.add(there.name)

    direct = _grouped(run.values(), lambda info: called[info.name])
    for known, infos in direct.items():
        there = base.get(known)
        if there is not None and len(infos) == 1 and there.shape == infos[0].shape and compatible(infos[0], there):
            take(infos[0].name, there)
    left = [info for name, info in run.items() if name not in found]
    by_key = _grouped((info for name, info in base.items() if name not in taken), lambda info: key_of(info.name))
    for key, infos in _grouped(left, lambda info: key_of(called[info.name])).items():
        others = by_key.get(key, [])
        if len(infos) == len(others) == 1 and infos[0].shape == others[0].shape and compatible(infos[0], others[0]):
            take(infos[0].name, others[0])
    left = [info for info in left if info.name not in found]
    rest = [info for name, info in base.items() if name not in taken]
    found.update(_cut_otherwise(left, rest, lambda info: key_of(called.get(info.name, info.name))))
    return found


def _cut_otherwise(run: Iterable[TensorInfo], base: Iterable[TensorInfo], key: Callable[[TensorInfo], str]) -> Sources:
    """Match what is several tensors on one side and one on the other."""
    run, base = list(run), list(base)
    found: Sources = {}
    ours, theirs = _grouped(run, key), _grouped(base, lambda info: key_of(info.name))
    for info in run:
        parts = _parts(info, key(info), theirs)
        if parts:
            found[info.name] = tuple(_range(part, 0, part.size) for part in parts)
    for there in base:
        first = 0
        for part in _parts(there, key_of(there.name), ours):
            found.setdefault(part.name, (_range(there, first, part.size),))
            first += part.size
    return found


def _parts(fused: TensorInfo, key: str, others: Mapping[str, list[TensorInfo]]) -> list[TensorInfo]:
    """Return the tensors among `others`, by key, that one after another are `fused`; none if they are not all there."""
    place, _, last = key.removesuffix(".weight").rpartition(".")
    names = FUSED.get(last, (last,))
    of_experts = place.rpartition(".")[2] == "experts" and len(fused.shape) > 1
    if not of_experts and (last not in FUSED or not fused.shape):
        return []
    inner = fused.shape[1:] if of_experts else fused.shape
    found: list[TensorInfo] = []
    for expert in range(fused.shape[0]) if of_experts else (None,):
        above = place if expert is None else f"{place}.{expert}"
        parts = [_only(others, f"{above}.{name}") for name in names]
        present = [part for part in parts if part is not None and part.shape and compatible(part, fused)]
        rows = sum(part.shape[0] for part in present)
        if len(present) != len(names) or (rows, *inner[1:]) != inner:
            return []
        if any(part.shape[1:] != inner[1:] or part.dtype != present[0].dtype for part in present):
            return []
        found += present
    return found if len({part.dtype for part in found}) == 1 else []


def _only(tensors: Mapping[str, list[TensorInfo]], key: str) -> TensorInfo | None:
    """Return the only tensor of a key, with or without ``.weight`` at its end."""
    found = tensors.get(f"{key}.weight") or tensors.get(key) or []
    return found[0] if len(found) == 1 else None


def _range(there: TensorInfo, first: int, elements: int) -> BaseRange:
    return BaseRange(there.shard, there.name, there.shape, first, elements)


def _renamed(
    run: Tensors, base: Tensors, rules: Sequence[RenameRule], turned: Sequence[bool]
) -> tuple[dict[str, str], list[set[str]]]:
    """Return what each tensor of the run is called in the base, and which ones each rule changes.

    Args:
        turned: whether each rule is about names of the base.
    """
    called = {name: name for name in run}
    changed: list[set[str]] = []
    for rule, of_base in zip(rules, turned, strict=True):
        if of_base:
            moved = {new: name for name in base if (new := rule.apply(name)) is not None}
            keys = {key_of(new): name for new, name in moved.items()}
            new_names = {name: moved.get(known) or keys.get(key_of(known)) for name, known in called.items()}
        else:
            new_names = {name: rule.apply(known) for name, known in called.items()}
        changed.append({name for name, new in new_names.items() if new is not None})
        called = {name: new_names[name] or known for name, known in called.items()}
    return called, changed


def _grouped(infos: Iterable[TensorInfo], key: Callable[[TensorInfo], str]) -> dict[str, list[TensorInfo]]:
    groups: dict[str, list[TensorInfo]] = {}
    for info in infos:
        groups.setdefault(key(info), []).append(info)
    return groups


def _by_key(tensors: Tensors) -> dict[str, list[TensorInfo]]:
    return _grouped(tensors.values(), lambda info: key_of(info.name))


def _bytes(info: TensorInfo) -> int:
    return info.size * ITEMSIZE[info.dtype]
