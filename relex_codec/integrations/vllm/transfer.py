"""The weight-transfer engine ``relex``: the server's own ``/update_weights`` switches the step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from relex_codec.errors import InvalidArgument

from .request import Request
from .served import Served, serve, served


@dataclass
class RelexInitInfo(WeightTransferInitInfo):
    """Which file steps are of; needed only where vLLM did not load from one. Fields are those of `Request`."""

    file: str
    base: str | None = None
    storage_options: Mapping[str, Any] | None = None
    resident: bool = True
    device: str = "cpu"


@dataclass
class RelexUpdateInfo(WeightTransferUpdateInfo):
    """Which step is wanted.

    Attributes:
        step, tier, file, base: as of `Request`; the file is by default that which the engine has.
        whole: load all of it, even if only a part changes.
    """

    step: float
    tier: str | None = None
    file: str | None = None
    base: str | None = None
    whole: bool = False


class RelexWeightTransferEngine(WeightTransferEngine[RelexInitInfo, RelexUpdateInfo]):
    """Writes a step of a run into the model. Each worker reads the run itself, so nothing is sent."""

    init_info_cls = RelexInitInfo
    update_info_cls = RelexUpdateInfo
    supports_draft_weight_update = False

    def init_transfer_engine(self, init_info: RelexInitInfo) -> None:
        """Open the file that steps are of."""
        request = Request(step=0, **asdict(init_info))
        serve(self.model, request, self.model_config, self.vllm_config)

    def start_weight_update(self) -> None:
        """Refuse an update of what is not served from a run, before anything is written."""
        self._served()

    def receive_weights(self, update_info: RelexUpdateInfo) -> None:
        """Write the step."""
        asked = asdict(update_info)
        whole = asked.pop("whole")
        model = self._served()
        model.write(model.asked(asked, "update_info"), whole=whole)

    def finish_weight_update(self) -> None:
        """Do nothing: the step is written already."""

    def shutdown(self) -> None:
        """Do nothing: runs stay open."""

    def _served(self) -> Served:
        found = served(self.model)
        if found is None:
            raise InvalidArgument(
                "the engine was not loaded from a run: start vLLM with --load-format relex, or name the file with "
                "/init_weight_transfer_engine"
            )
        return found
