"""Single requests to the Hub, through the session of huggingface_hub: proxies and clients that are set up there hold.

One attempt each: nothing here, or below, waits or tries again. Redirects are followed here and not by the session, for
what the Hub says of a file is in the headers of the redirect to its storage, and the token is for the Hub alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import quote, urljoin, urlsplit

from relex_codec._version import __version__
from relex_codec.core.cancellation import run_abandonable
from relex_codec.core.text import one_line
from relex_codec.errors import Corrupt
from relex_codec.storage.failures import TransientError, is_transient

T = TypeVar("T")
MAIN: Final = "main"
REDIRECTS: Final = 10
"""So many are followed, one after the other."""
_REDIRECT: Final = frozenset({301, 302, 303, 307, 308})
_PORTS: Final = {"http": 80, "https": 443}


class Told(NamedTuple):
    """What an answer says, and what the redirects on the way to it say of the file."""

    status: int
    headers: Mapping[str, str]
    commit: str | None
    """That the revision means."""
    etag: str | None
    """Of the file as the Hub knows it; its storage may call it something else."""
    linked_size: int | None
    """Of a file in large file storage."""

    @property
    def length(self) -> int | None:
        """Of the body."""
        return _number(self.headers.get("Content-Length"))


class StorageAnswered(Exception):
    """A refusal by the storage that the Hub sends its clients to; its URLs are signed, and not for messages."""

    def __init__(self, host: str, status: int) -> None:
        super().__init__(f"{host} answered {status}")
        self.status = status


class StorageFailed(TransientError):
    """A connection to that storage that failed."""


class HubClient:
    """Asks one Hub.

    Args:
        endpoint: its URL; None: the one that huggingface_hub is set up with.
        token: as huggingface_hub takes it: a text, or whether to send the one that is stored (None: if there is one).
        timeout: seconds without a byte after which a connection counts as dead.

    Methods raise what huggingface_hub makes of answers (`huggingface_hub.errors`), what its session raises, and
    Stopped.
    """

    def __init__(self, endpoint: str | None, token: bool | str | None, timeout: float) -> None:
        from huggingface_hub import constants

        self.endpoint = str(endpoint or constants.ENDPOINT).rstrip("/")
        self.token, self._timeout = token, timeout

    def url(self, repo: str, revision: str | None, path: str) -> str:
        """Return where a file of a model is."""
        from huggingface_hub import hf_hub_url

        return str(hf_hub_url(repo, path, revision=revision, endpoint=self.endpoint))

    def commit(self, repo: str, revision: str | None) -> str:
        """Return the commit that a revision of a model means now."""
        document, _ = self._document(repo, f"revision/{quote(revision or MAIN, safe='')}", "expand=sha")
        return str(document["sha"])

    def branches(self, repo: str) -> list[str]:
        """Return the names of a model's branches."""
        document, _ = self._document(repo, "refs", "")
        return [str(branch["name"]) for branch in document["branches"]]

    def tree(self, repo: str, revision: str | None, below: str) -> list[dict[str, Any]]:
        """Return what a directory of a model holds: ``path``, ``type``, and ``size`` of each."""
        found: list[dict[str, Any]] = []
        page: str | None = ""
        while page is not None:
            entries, page = self._document(repo, f"tree/{quote(revision or MAIN, safe='')}/{quote(below)}", page)
            found += entries
        return found

    def _document(self, repo: str, what: str, query: str) -> tuple[Any, str | None]:
        """Return what the API says, and the query of the next page of it, if there is one."""
        _tools().validate_repo_id(repo)
        url = f"{self.endpoint}/api/models/{repo}/{what}".rstrip("/") + (f"?{query}" if query else "")
        told, body = self.request("GET", url, {}, lambda told: told)
        following = re.search(r'<([^>]*)>;\s*rel="?next"?', told.headers.get("Link") or "")
        try:
            return json.loads(body), urlsplit(following[1]).query if following else None
        except ValueError:
            raise Corrupt(f"{self.endpoint} answered with something else than JSON") from None

    def request(self, method: str, url: str, headers: Mapping[str, str], look: Callable[[Told], T]) -> tuple[T, bytes]:
        """Return what `look` makes of the answer, and the body, which is only read if `look` raises nothing.

        HEAD does not go on to a storage whose file the Hub has told size and ETag of.

        Raises:
            StorageAnswered, StorageFailed: the Hub itself answered.
        """
        session = _tools().get_session()  # before release 1.0 each thread has its own: here, on the one that stays
        own = _tools().build_hf_headers(token=self.token, library_name="relex-codec", library_version=__version__)
        # a compressed answer would be a range of something else
        every = {**own, "Accept-Encoding": "identity", **headers}
        return run_abandonable(lambda: self._follow(session, method, url, every, look))

    def _follow(
        self, session: Any, method: str, url: str, headers: dict[str, str], look: Callable[[Told], T]
    ) -> tuple[T, bytes]:
        commit = etag = linked = None
        home = _origin(url)
        for _ in range(REDIRECTS):
            at_hub = _origin(url) == home
            if not at_hub:
                headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
            with _naming_storage(None if at_hub else url), _answer(session, method, url, headers, self._timeout) as got:
                commit = got.headers.get("X-Repo-Commit") or commit
                etag = got.headers.get("X-Linked-ETag") or etag
                linked = got.headers.get("X-Linked-Size") or linked
                status, target = int(got.status_code), got.headers.get("Location")
                moves = status in _REDIRECT and target is not None
                if moves and not (method == "HEAD" and etag and linked):
                    _body(got)  # which is a word or two; without it the connection could not be used again
                    url = urljoin(url, str(target))
                    continue
                if status >= 400:
                    _refused(got, None if at_hub else url)
                known = _bare(etag or got.headers.get("ETag"))
                return look(Told(status, got.headers, commit, known, _number(linked))), _body(got)
        raise Corrupt(f"the Hub redirected {REDIRECTS} times, one after the other")


@contextmanager
def _answer(session: Any, method: str, url: str, headers: Mapping[str, str], timeout: float) -> Iterator[Any]:
    """Send a request; the body is not read yet."""
    if callable(session.stream):  # httpx, or what took its place; requests before release 1.0 of huggingface_hub
        context = session.stream(method, url, headers=headers, timeout=timeout, follow_redirects=False)
    else:
        context = session.request(method, url, headers=headers, timeout=timeout, allow_redirects=False, stream=True)
    with context as found:
        yield found


def _body(answer: Any) -> bytes:
    return bytes(answer.read() if hasattr(answer, "read") else answer.content)


def _refused(answer: Any, storage: str | None) -> None:
    if storage is not None:
        raise StorageAnswered(urlsplit(storage).netloc, int(answer.status_code))
    _tools().hf_raise_for_status(answer)


@contextmanager
def _naming_storage(url: str | None) -> Iterator[None]:
    """Let failures at `url`, if it is given, say which host it was instead of what some clients say: all of the URL."""
    try:
        yield
    except (TransientError, StorageAnswered):
        raise
    except Exception as e:
        if url is None or not is_transient(e):
            raise
        said = re.sub(r"\?[^\s')]*", "", one_line(e))
        raise StorageFailed(f"{urlsplit(url).netloc}: {said}") from None


def _tools() -> Any:
    from huggingface_hub import utils

    return utils  # whose names its own list does not have


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)


def _bare(etag: str | None) -> str | None:
    """An ETag without quotes and the mark of a weak one: caches on the way add the latter."""
    return (etag or "").removeprefix("W/").strip('"') or None


def _number(value: str | None) -> int | None:
    return int(value) if value is not None and value.isdigit() else None
