"""The entry point ``vllm.general_plugins``: vLLM calls it in each of its processes."""

from __future__ import annotations

_DONE = False


def register() -> None:
    """Register load format and weight-transfer engine ``relex``, and what workers answer; again is nothing."""
    global _DONE
    if _DONE:
        return
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.v1.worker.worker_base import WorkerBase

    from . import beside_llvmlite
    from .loader import RelexModelLoader
    from .worker import METHODS

    register_model_loader("relex")(RelexModelLoader)
    WeightTransferEngineFactory.register_engine(
        "relex", "relex_codec.integrations.vllm.transfer", "RelexWeightTransferEngine"
    )
    for method in METHODS:
        setattr(WorkerBase, method.__name__, method)
    beside_llvmlite.mend()
    _DONE = True
