"""A small Hub: the endpoints of huggingface.co that reading a model needs, for huggingface_hub's own client.

Model information, refs, trees, files with ranges. Weights are answered with a redirect to a storage host, as the Hub
does, other files directly. Point a client at it with ``HF_ENDPOINT`` (a new process), the fixture `hub` (this one) or
``storage_options={"endpoint": hub.url}``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import pytest

from support.servers.counting import Answer, CountingServer

API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/(?P<what>revision|refs|tree|paths-info)(?:/(?P<rest>.*))?)?")
RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
FIRST_OF_BRANCH = "main"
SIGNATURE = "secret"
"""Of storage URLs."""


@dataclass
class Repository:
    """A model. A revision is a commit, a branch or a tag; commits keep their files for ever."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    """Who does not bring it does not see that the repository exists."""
    gate: str | None = None
    """Who does not bring it sees the repository, but gets no file."""

    def commit(self, files: Mapping[str, bytes], branch: str = FIRST_OF_BRANCH) -> str:
        """Make `files` what the branch holds, and return the commit."""
        name = hashlib.sha1(f"{len(self.commits)} {branch} {sorted(files)}".encode()).hexdigest()
        self.commits[name] = dict(files)
        self.branches[branch] = name
        return name

    def find(self, revision: str) -> str | None:
        """Return the commit that a revision means."""
        if revision in self.commits:
            return revision
        return self.branches.get(revision) or self.tags.get(revision)


class Hub:
    """The Hub and its storage, one server under two names; repositories may be added and changed while it runs.

    Attributes:
        server: counts and keeps the requests, and fails on demand.
        storage_url: another host by name: clients follow redirects between hosts differently, and leave their token
            behind.
        resolve_cache: whether small files are answered by way of a redirect within the Hub, as huggingface.co does.
        moved: new names of repositories by old ones.
        page: entries of a listing in one answer.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.server = CountingServer(self.answer)
        port = self.server.url.rpartition(":")[2]
        self.storage_url = f"http://localhost:{port}/storage"
        self.resolve_cache = False
        self.moved: dict[str, str] = {}
        self.page = 1000

    @property
    def url(self) -> str:
        return self.server.url

    def add(self, name: str, files: Mapping[str, bytes] | None = None, **options: Any) -> Repository:
        """Add a repository ``org/name``, with these files as its first commit."""
        made = self.repositories[name] = Repository(**options)
        if files is not None:
            made.commit(files)
        return made

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        """Answer a request: what `CountingServer` asks for."""
        try:
            return Question(self, urlsplit(path), headers, body).answer()
        except Refusal as no:
            code = {"X-Error-Code": no.code} if no.code else {}
            return whole(no.status, json.dumps({"error": str(no)}).encode(), {"X-Error-Message": str(no), **code})


def oid(data: bytes) -> str:
    """The git name of a blob, which is the ETag of a file that is not in large file storage."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_large(path: str) -> bool:
    """Whether the Hub keeps a file in large file storage."""
    return path.endswith((".safetensors", ".relex"))


class Refusal(Exception):
    """An answer that says why not."""

    def __init__(self, status: int, code: str | None = None, message: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


def whole(status: int, body: bytes, headers: Mapping[str, str]) -> Answer:
    return Answer(status, {**headers, "Content-Length": str(len(body))}, body)


class Question:
    """One request, and what there is to say to it."""

    def __init__(self, hub: Hub, url: SplitResult, headers: dict[str, str], body: bytes) -> None:
        self.hub, self.url, self.headers, self.body = hub, url, headers, body

    def answer(self) -> Answer:
        path = self.url.path
        if path.startswith("/storage/"):
            return self._stored(path.rpartition("/")[2])
        if match := API.fullmatch(path):
            repository = self._repository(match["repo"])
            return self._api(match["repo"], repository, match["what"], match["rest"] or "")
        if match := RESOLVE.fullmatch(path):
            if match["repo"] in self.hub.moved:
                return whole(307, b"moved", {"Location": path.replace(match["repo"], self.hub.moved[match["repo"]], 1)})
            return self._resolve(self._repository(match["repo"]), match["revision"], unquote(match["path"]), path)
        raise Refusal(404, None, "no such page")

    def _repository(self, name: str) -> Repository:
        found = self.hub.repositories.get(unquote(name))
        if found is None or (found.token is not None and not self._brings(found.token)):
            raise Refusal(401, "RepoNotFound", "Repository not found")
        return found

    def _brings(self, token: str) -> bool:
        return self.headers.get("authorization") == f"Bearer {token}"

    def _commit(self, repository: Repository, revision: str) -> str:
        found = repository.find(unquote(revision))
        if found is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {unquote(revision)}")
        return found

    def _api(self, name: str, repository: Repository, what: str | None, rest: str) -> Answer:
        if what == "refs":
            kinds = {"branches": ("heads", repository.branches), "tags": ("tags", repository.tags)}
            refs = {
                kind: [
                    {"name": ref, "ref": f"refs/{folder}/{ref}", "targetCommit": commit} for ref, commit in refs.items()
                ]
                for kind, (folder, refs) in kinds.items()
            }
            return self._json({**refs, "converts": []})
        revision, _, below = rest.partition("/")
        commit = self._commit(repository, revision or FIRST_OF_BRANCH)
        files = repository.commits[commit]
        if what is None or what == "revision":
            siblings = [{"rfilename": path} for path in files]
            gated = "manual" if repository.gate else False
            return self._json(
                {"id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": [], "gated": gated,
                 "private": repository.token is not None, "downloads": 0, "likes": 0}
            )  # fmt: skip
        if what == "tree":
            found = self._tree(files, unquote(below), "recursive=true" in self.url.query.lower())
            if not found and below:
                raise Refusal(404, "EntryNotFound", f"{below} does not exist")
            first = int(parse_qs(self.url.query).get("cursor", ["0"])[0])
            page, after = found[first : first + self.hub.page], first + self.hub.page
            link = f'<https://elsewhere.test{self.url.path}?limit={self.hub.page}&cursor={after}>; rel="next"'
            return self._json(page, {"Link": link} if after < len(found) else {})
        wanted = parse_qs(self.body.decode())["paths"]
        everything = {entry["path"]: entry for entry in self._tree(files, "", True)}
        return self._json([everything[path] for path in wanted if path in everything])

    def _tree(self, files: dict[str, bytes], below: str, recursive: bool) -> list[dict[str, Any]]:
        prefix = f"{below}/" if below else ""
        found: dict[str, dict[str, Any]] = {}
        for path, data in files.items():
            if not path.startswith(prefix):
                continue
            folders = path[len(prefix) :].split("/")[:-1]
            for depth in range(len(folders) if recursive else min(1, len(folders))):
                folder = prefix + "/".join(folders[: depth + 1])
                found[folder] = {"type": "directory", "oid": oid(folder.encode()), "size": 0, "path": folder}
            if folders and not recursive:
                continue
            entry = {"type": "file", "oid": oid(data), "size": len(data), "path": path}
            if is_large(path):
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            found[path] = entry
        return list(found.values())

    def _resolve(self, repository: Repository, revision: str, path: str, place: str) -> Answer:
        if repository.gate is not None and not self._brings(repository.gate):
            raise Refusal(403, "GatedRepo", "Access to this model is restricted")
        commit = self._commit(repository, revision)
        data = repository.commits[commit].get(path)
        if data is None:
            raise Refusal(404, "EntryNotFound", f"{path} does not exist")
        headers = {"X-Repo-Commit": commit}
        if self.hub.resolve_cache and not is_large(path) and "cached" not in self.url.query:
            return whole(307, b"Temporary Redirect", {**headers, "Location": f"{place}?cached=%2F"})
        if not is_large(path):
            return self._ranged(data, {**headers, "ETag": f'"{oid(data)}"'})
        digest = hashlib.sha256(data).hexdigest()
        headers |= {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(data)), "ETag": f'"{oid(data)}"'}
        location = f"{self.hub.storage_url}/{digest}?signature={SIGNATURE}"
        return whole(302, f"Found. Redirecting to {location}".encode(), {**headers, "Location": location})

    def _stored(self, digest: str) -> Answer:
        for repository in self.hub.repositories.values():
            for files in repository.commits.values():
                for data in files.values():
                    if hashlib.sha256(data).hexdigest() == digest:
                        return self._ranged(
                            data, {"ETag": f'"{hashlib.md5(data).hexdigest()}"'}
                        )  # not what the Hub says
        raise Refusal(404, None, "no such object")

    def _ranged(self, data: bytes, headers: dict[str, str]) -> Answer:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range") or "")
        headers["Accept-Ranges"] = "bytes"
        if asked is None:
            return whole(200, data, headers)
        start, end = int(asked[1]), min(len(data), int(asked[2]) + 1 if asked[2] else len(data))
        if start >= end:
            return whole(416, b"", {**headers, "Content-Range": f"bytes */{len(data)}"})
        return whole(206, data[start:end], {**headers, "Content-Range": f"bytes {start}-{end - 1}/{len(data)}"})

    def _json(self, document: Any, headers: Mapping[str, str] | None = None) -> Answer:
        return whole(200, json.dumps(document).encode(), {"Content-Type": "application/json", **(headers or {})})


def end_sessions() -> None:
    """Let huggingface_hub make a new session, which looks at its settings anew, for the next request."""
    from huggingface_hub import utils

    (getattr(utils, "close_session", None) or utils.reset_sessions)()  # before release 1.0


@contextmanager
def serve() -> Iterator[Hub]:
    """Run a Hub without repositories."""
    hub = Hub()
    with hub.server:
        yield hub


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub of this test's own, to which huggingface_hub is pointed, with an empty cache and no token.

    New processes see the same: the environment says it to them.
    """
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    from huggingface_hub import HfFileSystem, constants, file_download

    home = tmp_path_factory.mktemp("hf_home")
    with serve() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        if hasattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE"):  # before release 1.0
            monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_HOME", str(home))
        HfFileSystem.clear_instance_cache()  # what another test listed
        yield running
        HfFileSystem.clear_instance_cache()
        end_sessions()
