"""Switching an engine to another step, from outside of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from relex_codec import errors
from relex_codec.core.text import quote
from relex_codec.decoding.tiers import as_step
from relex_codec.errors import Corrupt, InvalidArgument, RelexError

from .engines import Engine, engine

PAUSES: Final = ("wait", "abort", "keep")


class Switched(NamedTuple):
    """What an engine has after a switch.

    Attributes:
        step: the step.
        tier: what it was read from.
        digests: SHA-256 of the weights that each worker has, of their names and bits as they are in the engine; None if
            they were not compared.
        unchecked: parameters that nothing of the step goes to, so that they are what they were.

    Examples:
        >>> from relex_codec.integrations.vllm import Switched
        >>> Switched(step=200.0, tier="exact", digests=("1bcb1710",))
        Switched(step=200.0, tier='exact', digests=('1bcb1710',), unchecked=())
    """

    step: float
    tier: str
    digests: tuple[str, ...] | None
    unchecked: tuple[str, ...] = ()


def switch(
    llm_or_url: Any,
    step: float,
    *,
    tier: str = "auto",
    file: str | None = None,
    base: str | None = None,
    check: bool = True,
    pause: str = "wait",
    headers: Mapping[str, str] | None = None,
    timeout: float = 600,
) -> Switched:
    """Have an engine serve another step.

    Requests wait meanwhile. The step is written by the engine's own ``/update_weights`` where it was started with the
    weight-transfer engine ``relex``, else by ``reload_weights``; each worker compares its weights with those of
    the step, bit for bit; and the caches of prefixes and of encoders are emptied. What is not equal after an update is
    loaded once more as a whole.

    Args:
        llm_or_url: a ``vllm.LLM``, or the URL of a server that was started with ``VLLM_SERVER_DEV_MODE=1``.
        step: as of `relex_codec.Run.tensor`.
        tier: as of `relex_codec.Run.tensor`.
        file: another file of the same model. Default: that which the engine was started with.
        base: of `file`. Default: that which the engine was started with.
        check: compare the weights, which takes about as long as the switch.
        pause: what happens to requests that a server is working on: ``wait`` until they are done, ``abort`` them, or
            ``keep`` them, and go on with the new weights from what was said so far.
        headers: of requests to a server, as ``{"Authorization": "Bearer KEY"}``.
        timeout: seconds that a request to a server may take.

    Returns:
        What the engine has now.

    Raises:
        InvalidArgument: the file has no such step or tier, or the engine cannot be switched; nothing has changed.
        Corrupt: the engine's weights are not those of the step; a server stays paused.
        RelexError: the server does not answer, or something failed while writing; a server stays paused.

    Examples:
        >>> from relex_codec.integrations.vllm import switch
        >>> switch("http://127.0.0.1:8000", 200)  # doctest: +SKIP
        Switched(step=200.0, tier='exact', digests=('1bcb1710...',), unchecked=())
    """
    if pause not in PAUSES:
        raise InvalidArgument(f"pause is {quote(pause)}, expected one of {', '.join(PAUSES)}")
    to = engine(llm_or_url, headers, timeout)
    given = {"step": as_step(step), "tier": tier, "file": file, "base": base}
    asked = {key: value for key, value in given.items() if value is not None}
    prepared = _answers(to, "relex_prepare", asked=asked)
    found = Switched(as_step(step), prepared[0]["tier"], None)
    transfer = all(one["transfer"] for one in prepared)
    to.pause(pause)
    to.update(asked, whole=False, transfer=transfer)
    if check:
        compared = _answers(to, "relex_check")
        if transfer and _differing(compared):
            to.update(asked, whole=True, transfer=True)
            compared = _answers(to, "relex_check")
        found = _checked(found, compared)
    if not to.reset_cache():
        raise RelexError("the engine could not empty its prefix cache, which is of other weights: restart it")
    to.resume()
    return found


def verify(
    llm_or_url: Any, *, headers: Mapping[str, str] | None = None, timeout: float = 600
) -> Switched:  # fmt: skip
    """Compare an engine's weights with those of the step that it should have, bit for bit.

    Args:
        llm_or_url: as of `switch`.
        headers: as of `switch`.
        timeout: as of `switch`.

    Returns:
        What the engine has.

    Raises:
        Corrupt: they are not equal.
        InvalidArgument: the engine was not loaded from a run.
        RelexError: the server does not answer.

    Examples:
        >>> from relex_codec.integrations.vllm import verify
        >>> verify("http://127.0.0.1:8000").step  # doctest: +SKIP
        200.0
    """
    to = engine(llm_or_url, headers, timeout)
    state = _answers(to, "relex_state")[0]
    return _checked(Switched(state["step"], state["tier"], None), _answers(to, "relex_check"))


def _answers(to: Engine, method: str, **kwargs: Any) -> list[dict[str, Any]]:
    """Return what the workers answer; raise the first error that one of them returns."""
    try:
        found = to.rpc(method, **kwargs)
    except NotImplementedError:
        found = []
    for one in found:
        if "error" in one:
            raise getattr(errors, one["error"], RelexError)(one["message"])
    return found


def _differing(compared: list[dict[str, Any]]) -> dict[str, int]:
    return {name: count for one in compared for name, count in one["different"].items()}


def _checked(found: Switched, compared: list[dict[str, Any]]) -> Switched:
    different = _differing(compared)
    if different:
        name, count = next(iter(different.items()))
        raise Corrupt(
            f"the engine's weights are not those of step {found.step:g}: {count:,} elements of {quote(name)} differ "
            f"({len(different)} tensors in all); switch again, or restart the engine"
        )
    unchecked = tuple(sorted({name for one in compared for name in one["unchecked"]}))
    return found._replace(digests=tuple(one["digest"] for one in compared), unchecked=unchecked)
