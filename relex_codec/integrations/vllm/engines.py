"""Two ways to an engine: an ``LLM`` in this process, and a server by its URL."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, Protocol

from relex_codec.core.text import on_one_line, quote
from relex_codec.errors import InvalidArgument, RelexError

from .request import as_path

_DEV_MODE = "start the server with VLLM_SERVER_DEV_MODE=1, which opens its endpoints for weights"


class Engine(Protocol):
    """What switching needs of an engine."""

    def rpc(self, method: str, **kwargs: Any) -> list[Any]:
        """Call a method of each worker, and return what they answer."""

    def update(self, asked: Mapping[str, Any], *, whole: bool, transfer: bool) -> None:
        """Have the workers write a step, by the weight-transfer engine or by a reload."""

    def reset_cache(self) -> bool:
        """Throw away what was computed with other weights; tell whether that was possible."""

    def pause(self, mode: str) -> None:
        """Take no more requests to work."""

    def resume(self) -> None:
        """Go on with requests."""


class Local:
    """An engine that ``vllm.LLM`` has made; no request is at work while its methods run."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm

    def rpc(self, method: str, **kwargs: Any) -> list[Any]:
        found: list[Any] = self._llm.collective_rpc(method, kwargs=kwargs)
        return found

    def update(self, asked: Mapping[str, Any], *, whole: bool, transfer: bool) -> None:
        if not transfer:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_path": as_path(asked)})
            return
        self._llm.start_weight_update()
        self._llm.update_weights({"update_info": {**asked, "whole": whole}})
        self._llm.finish_weight_update()

    def reset_cache(self) -> bool:
        self._llm.llm_engine.reset_encoder_cache()
        return bool(self._llm.reset_prefix_cache(reset_running_requests=True, reset_connector=True))

    def pause(self, mode: str) -> None:
        pass

    def resume(self) -> None:
        pass


class Server:
    """A server that ``vllm serve`` has started, in development mode.

    Args:
        url: its address: ``http://127.0.0.1:8000``.
        headers: of all requests, as ``{"Authorization": "Bearer KEY"}``.
        timeout: seconds that one request may take.
    """

    def __init__(self, url: str, headers: Mapping[str, str] | None, timeout: float) -> None:
        self._url = url.rstrip("/").removesuffix("/v1")
        self._headers, self._timeout = dict(headers or {}), timeout

    def rpc(self, method: str, **kwargs: Any) -> list[Any]:
        found: list[Any] = self._post("/collective_rpc", {"method": method, "kwargs": kwargs})["results"]
        return found

    def update(self, asked: Mapping[str, Any], *, whole: bool, transfer: bool) -> None:
        if not transfer:
            self.rpc("reload_weights", weights_path=as_path(asked))
            return
        self._post("/start_weight_update")
        self._post("/update_weights", {"update_info": {**asked, "whole": whole}})
        self._post("/finish_weight_update", {"weight_version": as_path(asked)})

    def reset_cache(self) -> bool:
        self._post("/reset_encoder_cache")
        query = "reset_running_requests=true&reset_external=true"
        return bool(self._post(f"/reset_prefix_cache?{query}")["success"])

    def pause(self, mode: str) -> None:
        self._post(f"/pause?mode={mode}")

    def resume(self) -> None:
        self._post("/resume")

    def _post(self, path: str, body: Any = None) -> Any:
        data = b"" if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **self._headers}
        request = urllib.request.Request(self._url + path, data, headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
            if error.code in (404, 405):
                raise InvalidArgument(f"{self._url} has no {path.split('?')[0]}: {_DEV_MODE}") from None
            raise RelexError(f"{self._url}{path} answered {error.code}: {on_one_line(said)[:500]}") from None
        except OSError as error:  # no such server, or no answer in time
            reason = getattr(error, "reason", error)
            raise RelexError(f"{self._url} does not answer: {on_one_line(str(reason))}") from None


def engine(llm_or_url: Any, headers: Mapping[str, str] | None, timeout: float) -> Engine:
    """Return the way to an engine.

    Raises:
        InvalidArgument: it is neither a URL nor a ``vllm.LLM``.
    """
    if isinstance(llm_or_url, str):
        if not llm_or_url.startswith(("http://", "https://")):
            raise InvalidArgument(f"the server is {quote(llm_or_url)}, expected the like of http://127.0.0.1:8000")
        return Server(llm_or_url, headers, timeout)
    if not all(hasattr(llm_or_url, name) for name in ("collective_rpc", "reset_prefix_cache", "start_weight_update")):
        raise InvalidArgument(f"{quote(llm_or_url)} is no engine, expected a vllm.LLM or the URL of a server")
    return Local(llm_or_url)
