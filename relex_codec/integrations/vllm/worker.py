"""What workers of an engine answer, called by name through ``collective_rpc``; results are JSON values.

Methods of vLLM's ``WorkerBase`` by `relex_codec.integrations.vllm.plugin`. Errors of this package are returned, not
raised: vLLM would show users a traceback for a wrong step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import wraps
from typing import Any

from vllm.config import set_current_vllm_config

from relex_codec import errors

from .served import Served, served


def _answers(function: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Return a method that returns errors of this package as ``{"error": kind, "message": text}``."""

    @wraps(function)
    def answering(worker: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            with set_current_vllm_config(worker.vllm_config):
                return function(worker, *args, **kwargs)
        except errors.RelexError as error:
            return {"error": type(error).__name__, "message": str(error)}

    return answering


@_answers
def relex_prepare(worker: Any, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Look whether a step can be switched to, and say how; nothing is changed."""
    from .transfer import RelexWeightTransferEngine

    model = _served(worker)
    request = model.asked(asked, "switch")
    engine = getattr(worker, "weight_transfer_engine", None)
    return {"tier": model.open(request).tier(request), "transfer": isinstance(engine, RelexWeightTransferEngine)}


@_answers
def relex_state(worker: Any) -> dict[str, Any]:
    """Return which step the model has."""
    return _served(worker).state()


@_answers
def relex_check(worker: Any) -> dict[str, Any]:
    """Compare the model's weights with those of the step that it should have: the fields of `Compared`."""
    return asdict(_served(worker).compare())


METHODS = (relex_prepare, relex_state, relex_check)


def _served(worker: Any) -> Served:
    found = served(worker.get_model())
    if found is None:
        raise errors.InvalidArgument(
            "the engine was not loaded from a run: start vLLM with --load-format relex, or name the file with "
            "/init_weight_transfer_engine"
        )
    return found
