"""A model in an engine: which step it has, and writing another one into it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch

from relex_codec.core.text import quote
from relex_codec.errors import InvalidArgument

from . import patching
from .comparing import Compared, compare
from .held import HeldRun, Needed, held
from .request import Request

HEAD, EMBEDDING = "lm_head.weight", "embed_tokens.weight"
"""How names of output heads and of the embeddings that they may be tied to end."""


@dataclass
class Written:
    """What a switch wrote.

    Attributes:
        tier: that the step was read from.
        values: elements that were written; None for all of them.
    """

    tier: str
    values: int | None


@dataclass(eq=False)
class Served:
    """A model, and the step that it has.

    Attributes:
        model: of vLLM, in this process.
        config: vLLM's configuration of the model.
        started: with which request the engine was started.
        model_path: that vLLM was started with: configuration and tokenizer, and the base if it is a directory.
        request: of the weights that it has; None where that is not known, as when writing broke off.
        needed: which parts of the tensors this rank takes.
    """

    model: torch.nn.Module
    config: Any
    started: Request
    model_path: str
    request: Request | None = None
    needed: Needed = field(default_factory=dict)

    def asked(self, asked: Mapping[str, Any], where: str) -> Request:
        """Return the request for another step, after looking whether the file has it.

        Raises:
            InvalidArgument: it does not; or as `relex_codec.open`.
        """
        request = self.started.changed(asked, where)
        self.open(request)
        return request

    def open(self, request: Request) -> HeldRun:
        """Return the run of a request that can be served.

        Raises:
            InvalidArgument: there is no such file or step, or the model has no place for its output head.
        """
        run = held(request, self.model_path)
        run.tier(request)
        hf_config = getattr(self.config, "hf_text_config", None)
        if getattr(hf_config, "tie_word_embeddings", False):
            heads = [e for e in run.entries(request) if e.name.endswith(HEAD)]
            embeddings = [e for e in run.entries(request) if e.name.endswith(EMBEDDING)]
            target = run.reader.container.index.target
            if heads and embeddings and target(heads[0]).number != target(embeddings[0]).number:
                raise InvalidArgument(
                    f"{run.reader.path} has {quote(heads[0].name)} of its own at step {request.step:g}, but the "
                    "model's configuration ties it to the embeddings: start vLLM with "
                    "--hf-overrides '{\"tie_word_embeddings\": false}'"
                )
        return run

    def weights(self, request: Request) -> Iterator[tuple[str, torch.Tensor]]:
        """Return what the model's loader takes; when it has taken all, the model has the step."""
        run = self.open(request)
        tensors = self._tensors(run, request)

        def given() -> Iterator[tuple[str, torch.Tensor]]:
            self.request = None
            yield from tensors
            self.request = request

        return given()

    def _tensors(self, run: HeldRun, request: Request) -> Iterator[tuple[str, torch.Tensor]]:
        """Return names and tensors of a step, and last a head that is tied and packed.

        On CPUs vLLM packs the embeddings once more for the head, and packs them anew only if the head is loaded.
        """
        head = _packed_head(self.model)  # to be found before a reload takes the model apart

        def given() -> Iterator[tuple[str, torch.Tensor]]:
            missing, embedding = head, None
            for name, tensor in run.tensors(request, self.needed):
                embedding = tensor if name.endswith(EMBEDDING) else embedding
                missing = None if name == missing else missing
                yield name, tensor
            if missing is not None and embedding is not None:
                yield missing, embedding

        return given()

    def write(self, request: Request, *, whole: bool = False) -> Written:
        """Write a step into the model, which does not run meanwhile.

        Where parameters are used as they were loaded, only those elements are written that change. Otherwise the model
        is loaded anew, as by ``reload_weights``, a layer at a time.

        Args:
            whole: load all of it.

        Raises:
            RelexError: as `relex_codec.Run.tensor`; from then on the weights are of no step.
        """
        run, before = self.open(request), self.request
        if not whole and before is not None and self._can_patch(run, before, request):
            self.request = None
            found = patching.changes(run.tensors(before, self.needed), run.tensors(request, self.needed))
            values = patching.apply(self.model, found)
            self.request = request
            return Written(run.tier(request), values)
        _reload(self.model, self.config, self.weights(request))
        return Written(run.tier(request), None)

    def _can_patch(self, run: HeldRun, before: Request, request: Request) -> bool:
        names = [[entry.name for entry in run.entries(one)] for one in (before, request)]
        return (
            held(before, self.model_path) is run
            and names[0] == names[1]
            and patching.takes_patches(self.model, getattr(self.config, "quantization", None))
        )

    def compare(self) -> Compared:
        """Compare the model's weights with those of the step that it should have.

        Raises:
            InvalidArgument: that is not known.
        """
        request = self.request
        if request is None:
            raise InvalidArgument("the engine has the weights of no step: the last switch broke off; switch again")
        run = self.open(request)
        return compare(self.model, self.config, self._tensors(run, request))

    def state(self) -> dict[str, Any]:
        """Return what is known of the model, for messages: JSON values."""
        request = self.request
        run = held(request or self.started, self.model_path)
        return {
            "step": None if request is None else request.step,
            "tier": None if request is None else run.tier(request),
            "file": run.reader.path,
            "resident_bytes": run.resident_bytes,
        }


_SERVED: Final[WeakKeyDictionary[torch.nn.Module, Served]] = WeakKeyDictionary()


def serve(model: torch.nn.Module, request: Request, config: Any, vllm_config: Any) -> Served:
    """Note that a model is served from a run, and find which parts of the tensors its rank takes."""
    made = Served(model, config, request, config.model)
    parallel = vllm_config.parallel_config
    if parallel.world_size > 1:
        from . import slices

        made.needed = slices.find(model, made.open(request).entries(request))
    _SERVED[model] = made
    return made


def served(model: torch.nn.Module) -> Served | None:
    """Return what is known of a model; None if it is not served from a run."""
    return _SERVED.get(model)


def _reload(model: torch.nn.Module, config: Any, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Load weights into a model that has some, a layer at a time, as ``reload_weights`` does."""
    from vllm.model_executor.model_loader.reload.layerwise import finalize_layerwise_reload, initialize_layerwise_reload

    with torch.no_grad():
        initialize_layerwise_reload(model)
        try:
            model.load_weights(weights)  # type: ignore[operator]
        finally:  # or the model would be left without parameters
            finalize_layerwise_reload(model, config)


def _packed_head(model: torch.nn.Module) -> str | None:
    """Return what the weights of a head are called that is tied to the embeddings, and packed apart from them."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    embeddings = [one for one in model.modules() if isinstance(one, VocabParallelEmbedding)]
    for name, layer in model.named_modules():
        if isinstance(layer, ParallelLMHead) and "cpu_linear" in layer.__dict__:
            tied = any(one is not layer and one.weight is layer.weight for one in embeddings)
            return f"{name}.weight" if tied else None
    return None
