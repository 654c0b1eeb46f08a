"""Where a tensor stands in a model: its layer, and its kind, by its name."""

from __future__ import annotations

from typing import NamedTuple


class Place(NamedTuple):
    """Where a tensor stands.

    Attributes:
        layer: the first number in its name; None for what is in no layer.
        kind: the name without what comes before the layer, further numbers as ``*``, and the last ``.weight``.
    """

    layer: int | None
    kind: str


def place_of(name: str) -> Place:
    """Return where a tensor stands.

    Examples:
        >>> place_of("model.layers.3.self_attn.q_proj.weight")
        Place(layer=3, kind='self_attn.q_proj')
        >>> place_of("model.layers.10.mlp.experts.17.up_proj.weight")
        Place(layer=10, kind='mlp.experts.*.up_proj')
        >>> place_of("model.embed_tokens.weight")
        Place(layer=None, kind='model.embed_tokens')
    """
    parts = name.removesuffix(".weight").split(".")
    numbers = [i for i, part in enumerate(parts) if part.isascii() and part.isdigit() and len(part) < 10]
    if not numbers or numbers[0] == len(parts) - 1:
        return Place(None, ".".join("*" if i in numbers else part for i, part in enumerate(parts)))
    first = numbers[0]
    rest = ["*" if i in numbers else part for i, part in enumerate(parts) if i > first]
    return Place(int(parts[first]), ".".join(rest))
