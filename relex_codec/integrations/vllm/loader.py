"""The load format ``relex``: vLLM's own loader, with weights that come from a run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import torch
from vllm.config import ModelConfig, get_current_vllm_config
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from relex_codec.core.text import quote
from relex_codec.errors import InvalidArgument

from .request import SCHEME, from_config, from_path
from .served import serve, served

_LOG = logging.getLogger("vllm.relex")


class RelexModelLoader(DefaultModelLoader):
    """Loads a step of a run as vLLM's default loader loads a checkpoint: sharded, fused, tied and quantised by it.

    ``--model-loader-extra-config`` says which file and step: the fields of `Request`. ``reload_weights`` takes another
    step as ``weights_path="relex:step=200"``; without one it loads again what is there.

    Raises:
        InvalidArgument: the configuration lacks something.
    """

    def __init__(self, load_config: LoadConfig) -> None:
        self.request = from_config(load_config.model_loader_extra_config)
        super().__init__(replace(load_config, model_loader_extra_config={}))

    def download_model(self, model_config: ModelConfig) -> None:
        """Do nothing: what a step needs is read when it is loaded."""

    def load_weights(self, model: torch.nn.Module, model_config: ModelConfig) -> None:
        """Load the step into a model that has just been made."""
        if getattr(model_config, "runner_type", None) == "draft":
            raise InvalidArgument(
                "load format relex is of the model that is served; give the draft model its own with "
                "'load_config' in --speculative-config"
            )
        serve(model, self.request, model_config, get_current_vllm_config())
        super().load_weights(model, model_config)
        _LOG.info("loaded step %g of %s", self.request.step, self.request.file)

    def get_all_weights(self, model_config: ModelConfig, model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        """Return names and tensors of the step that the path of `model_config` asks for.

        The path becomes again what it was: configuration and tokenizer are there.

        Raises:
            InvalidArgument: the path is of something else, or there is no such step.
        """
        found = served(model)
        if found is None:
            raise InvalidArgument("load format relex reloads only what it has loaded")
        asked, model_config.model = model_config.model, found.model_path
        if asked == found.model_path:
            request = found.request or self.request
        elif asked.startswith(SCHEME):
            request = found.asked(from_path(asked), "weights_path")
        else:
            raise InvalidArgument(
                f"weights_path is {quote(asked)}; with load format relex it is the like of {SCHEME}step=200"
            )
        return found.weights(request)
