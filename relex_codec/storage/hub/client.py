"""Single requests to the Hub: ranges of files, and the few documents that naming a commit takes.

What is huggingface_hub's: the session (proxies and clients that are set up there hold), addresses, headers with the
token, and the exceptions for what the Hub refuses. What is ours, and why:

- One attempt, with a timeout, that can be cancelled. ``HfApi.model_info`` takes a timeout, ``list_repo_refs`` and
  ``list_repo_tree`` take none, and the latter tries again by itself. So all three documents are asked for in one way.
- The ranged GET. huggingface_hub downloads whole files; its filesystem reads through a cache and gives no version.
- Redirects. What the Hub says of a file (commit, ETag, size) is in the headers of the redirect to its storage, which a
  session that follows it by itself does not show; and the token is for the Hub alone.
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


class HubAnswer(NamedTuple):
    """An answer, with what the redirects on the way to it say of the file."""

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


class StorageRefused(Exception):
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

    Methods raise what huggingface_hub makes of refusals (`huggingface_hub.errors`), what its session raises, and
    `Cancelled`.
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
        answer, body = self.request("GET", url, {}, lambda answer: answer)
        following = re.search(r'<([^>]*)>;\s*rel="?next"?', answer.headers.get("Link") or "")
        try:
            return json.loads(body), urlsplit(following[1]).query if following else None
        except ValueError:
            raise Corrupt(f"{self.endpoint} answered with something else than JSON") from None

    def request(
        self, method: str, url: str, headers: Mapping[str, str], inspect: Callable[[HubAnswer], T]
    ) -> tuple[T, bytes]:
        """Return what `inspect` makes of the answer, and the body, which is only read if `inspect` raises nothing.

        HEAD does not go on to a storage of whose file the Hub has given size and ETag.

        Raises:
            StorageRefused: the storage that the Hub redirects to refused.
            StorageFailed: the connection to it failed.
        """
        session = _tools().get_session()  # before release 1.0 each thread has its own: here, on the one that stays
        own = _tools().build_hf_headers(token=self.token, library_name="relex-codec", library_version=__version__)
        # a compressed answer would be a range of something else
        every = {**own, "Accept-Encoding": "identity", **headers}
        return run_abandonable(lambda: self._follow(session, method, url, every, inspect))

    def _follow(
        self, session: Any, method: str, url: str, headers: dict[str, str], inspect: Callable[[HubAnswer], T]
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
                return inspect(HubAnswer(status, got.headers, commit, known, _number(linked))), _body(got)
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
        raise StorageRefused(urlsplit(storage).netloc, int(answer.status_code))
    _tools().hf_raise_for_status(answer)


@contextmanager
def _naming_storage(url: str | None) -> Iterator[None]:
    """Let failures at `url`, if it is given, say which host it was instead of what some clients say: all of the URL."""
    try:
        yield
    except (TransientError, StorageRefused):
        raise
    except Exception as e:
        if url is None or not is_transient(e):
            raise
        message = re.sub(r"\?[^\s')]*", "", one_line(e))
        raise StorageFailed(f"{urlsplit(url).netloc}: {message}") from None


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
