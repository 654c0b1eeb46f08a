"""What Google Cloud Storage does and gcp-storage-emulator does not, in a proxy in front of it.

Google's answers to reads of bytes tell the generation of the object, requests can be made to depend on one, a range of
an empty object is refused, and a missing bucket is named as what is missing.
"""

from __future__ import annotations

import json
from urllib.parse import parse_qs, quote, urlsplit

from .counting import Answer, CountingServer, proxy_of


def emulator_proxy(host: str, port: int) -> CountingServer:
    """Return `proxy_of` the emulator, with all that."""
    proxy = proxy_of(host, port)
    plain = proxy.answer

    def answer(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        parts = urlsplit(path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if method == "POST" and "/upload/" in parts.path and "ifGenerationMatch" in query:
            name = query.get("name") or json.loads(body.split(b"\n\n")[1].partition(b"\n--")[0])["name"]
            there = plain("GET", f"{parts.path.replace('/upload', '')}/{quote(name, safe='')}", {}, b"")
            found = "0" if there.status == 404 else str(json.loads(there.body)["generation"])
            if query["ifGenerationMatch"] != found:
                return Answer(412, {}, b"At least one of the pre-conditions you specified did not hold.")
        if method != "GET" or "/o" not in parts.path:
            return plain(method, path, headers, body)
        if plain("GET", parts.path.partition("/o")[0].removeprefix("/download"), {}, b"").status == 404:
            return Answer(404, {}, b"The specified bucket does not exist.")
        if query.get("alt") != "media":
            return plain(method, path, headers, body)
        told = plain("GET", parts.path.removeprefix("/download"), {}, b"")
        if told.status != 200:
            return Answer(told.status, {}, b"No such object")
        generation = str(json.loads(told.body)["generation"])
        if query.get("ifGenerationMatch", generation) != generation:
            return Answer(412, {}, b"At least one of the pre-conditions you specified did not hold.")
        found = plain(method, path, headers, body)
        if not found.body and "range" in headers:
            return Answer(416, {}, b"Request range not satisfiable")
        return found._replace(headers={**found.headers, "X-Goog-Generation": generation})

    proxy.answer = answer
    return proxy
