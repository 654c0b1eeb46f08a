"""An HTTP server that counts what it sends, answers late, and fails on demand; by itself or in front of another one."""

from __future__ import annotations

import hashlib
import http.client
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

HOP: Final = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}
"""Headers of an answer that belong to one connection."""
SLOW_DOWN: Final = b"""<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"""
STALLED_FOR: Final = 60.0
"""Seconds after which a stalled answer is given up, should its client wait for ever."""


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Seen(NamedTuple):
    """A request, and what was sent in answer."""

    method: str
    path: str
    range: str | None
    status: int
    sent: int
    """Bytes of the body."""
    headers: Mapping[str, str] = {}
    """Of the request, by name in small letters."""

    @property
    def name(self) -> str:
        """Of the file: the last part of the path, as which Google has all of it in one."""
        return unquote(urlsplit(self.path).path).rpartition("/")[2]


class Fault(NamedTuple):
    """What goes wrong with an answer; see `CountingServer.fail`."""

    kind: str
    times: int
    matches: Callable[[str, str], bool]


class _QuietServer(ThreadingHTTPServer):
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class CountingServer:
    """An HTTP/1.1 server on a free port of the loopback interface; a context manager.

    Attributes:
        seen: the requests that were answered, in the order of their answers.
        latency: seconds before each answer.
        most: the largest number of requests that were being answered at the same time.
    """

    def __init__(self, answer: Callable[[str, str, dict[str, str], bytes], Answer]) -> None:
        self.answer = answer
        self.seen: list[Seen] = []
        self.latency = 0.0
        self.most = self._open = 0
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        self._faults: list[Fault] = []
        self._http = _QuietServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self._http.block_on_close = False
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> CountingServer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stopped.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def fail(self, kind: str, times: int = 1, matches: Callable[[str, str], bool] = lambda method, path: True) -> None:
        """Let the next `times` answers to requests that match (method, path) fail.

        Args:
            kind: ``reset`` and ``cut`` (the connection breaks in the middle of the body, with RST or FIN), ``short``
                (a complete answer with half of the bytes), ``stall`` (half of the body, then silence), ``no_range``
                (the whole object), ``slow_down`` (503 as of S3), or a status.
        """
        self._faults.append(Fault(kind, times, matches))

    def flip(self, name: str, position: int, times: int = 1) -> None:
        """Let byte `position` of the file `name` be wrong in the next `times` answers that have it."""
        inner, left = self.answer, [times]

        def answer(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
            found = inner(method, path, headers, body)
            places = {key.lower(): value for key, value in found.headers.items()}
            range_ = re.match(r"bytes (\d+)-", places.get("content-range", "bytes 0-"))
            at = position - int(range_[1] if range_ else 0)
            if method != "GET" or not urlsplit(path).path.endswith(name) or not 0 <= at < len(found.body):
                return found
            with self.lock:
                if left[0] <= 0:
                    return found
                left[0] -= 1
            data = bytearray(found.body)
            data[at] ^= 1
            return found._replace(body=bytes(data))

        self.answer = answer

    def clear(self) -> None:
        """Forget requests and faults."""
        with self.lock:
            self.seen.clear()
            self._faults.clear()
            self.most = 0

    @property
    def requests(self) -> list[str]:
        """Method and range of each request, or its path without one."""
        return [f"{seen.method} {seen.range or seen.path}" for seen in self.seen]

    @property
    def sent(self) -> int:
        """Bytes of all bodies."""
        return sum(seen.sent for seen in self.seen)

    def next_fault(self, method: str, path: str) -> str | None:
        with self.lock:
            for i, fault in enumerate(self._faults):
                if fault.matches(method, path):
                    self._faults[i : i + 1] = [fault._replace(times=fault.times - 1)] if fault.times > 1 else []
                    return fault.kind
        return None

    def enter(self) -> None:
        with self.lock:
            self._open += 1
            self.most = max(self.most, self._open)

    def leave(self) -> None:
        with self.lock:
            self._open -= 1

    def note(self, seen: Seen) -> None:
        """Called before the body goes out: who has an answer finds it counted."""
        with self.lock:
            self.seen.append(seen)


def _handler(server: CountingServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *args: Any) -> None:
            pass

        def _serve(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers.get("content-length", 0)))
            server.enter()
            try:
                self._answer(headers, body)
            except OSError:  # the client is gone
                self.close_connection = True
            finally:
                server.leave()

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815 (names of http.server)

        def _answer(self, headers: dict[str, str], body: bytes) -> None:
            wanted = headers.get("range") or headers.get("x-ms-range")  # Azure's name for it
            time.sleep(server.latency)
            fault = server.next_fault(self.command, self.path)
            if fault == "no_range":
                # Azure's is signed: without, but with a signature, it would not be answered
                gone = ("x-ms-range", "authorization") if "x-ms-range" in headers else ("range",)
                headers = {name: value for name, value in headers.items() if name not in gone}
            if fault == "slow_down":
                answer = Answer(503, {"Content-Type": "application/xml"}, SLOW_DOWN)
            elif fault is not None and fault.isdigit():
                answer = Answer(int(fault), {"Content-Type": "text/plain"}, b"told to")
            else:
                answer = server.answer(self.command, self.path, headers, body)
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP}
            content = answer.body
            if self.command == "HEAD":
                length = next((v for name, v in answer.headers.items() if name.lower() == "content-length"), "0")
                content = b""
            else:
                if fault == "short":
                    content = content[: len(content) // 2]
                length = str(len(content))
            breaks = fault in ("reset", "cut", "stall")
            sent = content[: len(content) // 2] if breaks else content
            server.note(Seen(self.command, self.path, wanted, answer.status, len(sent), headers))
            self.send_response(answer.status)
            for name, value in {**kept, "Content-Length": length}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(sent)
            if not breaks:
                return
            self.wfile.flush()
            if fault == "stall":
                server.stopped.wait(STALLED_FOR)
            elif fault == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            self.close_connection = True

    return Handler


def proxy_of(host: str, port: int) -> CountingServer:
    """Return a server that passes requests on to another one, whose answers it counts, delays and spoils."""

    def answer(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        connection = http.client.HTTPConnection(host, port, timeout=60)
        try:
            # the Host header goes along: signatures cover it
            connection.request(method, path, body, {k: v for k, v in headers.items() if k not in ("connection",)})
            found = connection.getresponse()
            return Answer(found.status, dict(found.getheaders()), found.read())
        except http.client.HTTPException as error:
            return Answer(502, {}, repr(error).encode())
        finally:
            connection.close()

    return CountingServer(answer)


class Files(dict[str, bytes]):
    """Files by path, as a web server has them: ranges, ETags, conditions."""

    def __init__(self, *args: Any, etags: bool = True) -> None:
        super().__init__(*args)
        self.etags = etags
        self.modified: dict[str, float] = {}
        """Time of last modification by path; the epoch for others."""

    def server(self) -> CountingServer:
        return CountingServer(self.answer)

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        data = self.get(path)
        if data is None:
            return Answer(404, {}, b"not here")
        tag = f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'
        modified = formatdate(self.modified.get(path, 0), usegmt=True)
        common = {"Accept-Ranges": "bytes", "Last-Modified": modified} | ({"ETag": tag} if self.etags else {})
        if self.etags and headers.get("if-match", tag) != tag:
            return Answer(412, {}, b"")
        if headers.get("if-unmodified-since", modified) != modified:
            return Answer(412, {}, b"")
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", headers.get("range", ""))
        if method == "HEAD" or found is None:
            return Answer(200, {**common, "Content-Length": str(len(data))}, data)
        start, last = int(found[1]), min(int(found[2]), len(data) - 1)
        if start > last:
            return Answer(416, {"Content-Range": f"bytes */{len(data)}"}, b"")
        return Answer(206, {**common, "Content-Range": f"bytes {start}-{last}/{len(data)}"}, data[start : last + 1])


def fetched(server: CountingServer) -> list[tuple[str, int, int]]:
    """Path and range of every request for bytes since the last call, in order of position; and forget them."""
    found = []
    for seen in server.seen:
        if seen.method == "GET" and seen.range:
            first, last = re.fullmatch(r"bytes=(\d+)-(\d+)", seen.range).groups()  # type: ignore[union-attr]
            found.append((seen.name, int(first), int(last) + 1))
    server.clear()
    return sorted(found)
