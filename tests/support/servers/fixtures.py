"""Fixtures around the servers, loaded by conftest.py (as are the runs in runs.py).

A test that reads from object stores takes `bucket`: an empty bucket on moto, and once more each on s3rver, on an
emulator of Google Cloud Storage and on Azurite, with a counting proxy in front::

    def test_x(bucket):
        bucket.put("run.relex", data)
        relex_codec.open(bucket.url("run.relex"), storage_options=bucket.options)
        assert bucket.proxy.requests == ["GET bytes=0-65535"]

`moto_bucket` is on moto only. `web` is plain HTTP from nginx, and once more from the tests' own server; both with the
counting proxy in front. Every test that uses them is skipped with the reason where the server is not installed.
"""

from __future__ import annotations

import itertools
import os
import secrets
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from . import programs
from .counting import CountingServer, Files, proxy_of
from .emulated import emulator_proxy
from .programs import GCS, S3, NotInstalled, Store

ENVIRONMENT = {
    "AWS_EC2_METADATA_DISABLED": "true",  # looking for credentials must not leave this machine
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # would ask for the kind of a bucket with gRPC: no emulator has it
    "NO_GCE_CHECK": "true",
    "CLOUDSDK_CONFIG": os.devnull,
    "NO_PROXY": "127.0.0.1,localhost",
}
PROXIES = ("http_proxy", "https_proxy", "all_proxy")


@dataclass
class Bucket:
    """A bucket, reached through a proxy that counts.

    Attributes:
        options: ``storage_options``, through the proxy.
        filesystem: s3fs, gcsfs or adlfs, past the proxy, to put and to look.
    """

    name: str
    server: Store
    proxy: CountingServer
    filesystem: Any

    @property
    def options(self) -> dict[str, Any]:
        return self.server.options(self.proxy.url)

    def url(self, key: str) -> str:
        return f"{self.server.scheme}://{self.name}/{key}"

    def put(self, key: str, data: bytes) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # aiohttp finds what gcsfs and adlfs send too large
            self.filesystem.pipe_file(f"{self.name}/{key}", data)

    def upload(self, folder: Path, key: str) -> None:
        """Copy a local directory."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{key}/{path.relative_to(folder)}", path.read_bytes())


@dataclass
class Web:
    """Files on a web server, reached through a proxy that counts.

    Attributes:
        put: makes or replaces a file: ``put(path, data)``.
    """

    proxy: CountingServer
    put: Callable[[str, bytes], None]

    def url(self, path: str) -> str:
        return f"{self.proxy.url}/{path}"


@pytest.fixture(scope="session")
def cloud_environment() -> Iterator[None]:
    """No credentials, configuration or proxies from outside of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("AWS_", "AZURE_", "GOOGLE_")) or name.lower() in PROXIES:
                patch.delenv(name)
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


LIBRARIES = {"moto": "s3fs", "s3rver": "s3fs", "emulator": "gcsfs", "azurite": "adlfs"}
"""What each server is reached with."""


@pytest.fixture(scope="session")
def stores(cloud_environment: None) -> Iterator[Callable[[str], Store]]:
    """Start the servers that tests ask for by name, each once a session."""
    with ExitStack() as stack:
        started: dict[str, Store] = {}

        def start(name: str) -> Store:
            library = LIBRARIES[name]
            pytest.importorskip(library, reason=f"{library} is not installed: pip install {library}")
            if name not in started:
                try:
                    started[name] = stack.enter_context(getattr(programs, name)())
                except NotInstalled as reason:
                    pytest.skip(str(reason))
            return started[name]

        yield start


@contextmanager
def bucket_on(server: Store) -> Iterator[Bucket]:
    """Make an empty bucket."""
    import fsspec

    filesystem = fsspec.filesystem(server.scheme, **server.options(), use_listings_cache=False)
    name = f"test-{secrets.token_hex(6)}"
    if isinstance(server, S3):
        filesystem.call_s3("create_bucket", Bucket=name)  # mkdir sends a region, which S3 refuses for the default one
    elif isinstance(server, GCS):
        filesystem.mkdir(name)
    else:
        # anyone may read: the fault "no_range" takes away what is signed
        create = filesystem.service_client.create_container
        fsspec.asyn.sync(filesystem.loop, create, name, public_access="blob")
    proxy = emulator_proxy if isinstance(server, GCS) else proxy_of
    with proxy(server.host, server.port) as counting:
        yield Bucket(name, server, counting, filesystem)


def forget_clients() -> None:
    """Empty fsspec's caches of the clients of object stores, which do not know of the environment."""
    for module, name in (("s3fs", "S3FileSystem"), ("gcsfs", "GCSFileSystem"), ("adlfs", "AzureBlobFileSystem")):
        if module in sys.modules:
            getattr(sys.modules[module], name).clear_instance_cache()


@pytest.fixture
def new_clients() -> Iterator[None]:
    """For a test that sets the environment that clients read when they are made."""
    forget_clients()
    yield
    forget_clients()


@pytest.fixture
def moto_bucket(stores: Callable[[str], Store]) -> Iterator[Bucket]:
    with bucket_on(stores("moto")) as found:
        yield found


@pytest.fixture(params=list(LIBRARIES))
def bucket(request: pytest.FixtureRequest, stores: Callable[[str], Store]) -> Iterator[Bucket]:
    with bucket_on(stores(request.param)) as found:
        yield found


@pytest.fixture(scope="session")
def nginx_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], tuple[Path, str, int]]]:
    """Start nginx when a test asks for it: (folder that it serves, host, port)."""
    with ExitStack() as stack:
        found: list[tuple[Path, str, int]] = []

        def start() -> tuple[Path, str, int]:
            if not found:
                root = tmp_path_factory.mktemp("nginx")
                try:
                    found.append((root, *stack.enter_context(programs.nginx(root))))
                except NotInstalled as reason:
                    pytest.skip(str(reason))
            return found[0]

        yield start


@contextmanager
def web_on(kind: str, nginx_server: Callable[[], tuple[Path, str, int]]) -> Iterator[Web]:
    """Make a web server without files: ``nginx``, or the tests' ``own``."""
    pytest.importorskip("aiohttp", reason="aiohttp is not installed: pip install aiohttp")
    if kind == "own":
        files = Files()
        with files.server() as server:
            yield Web(server, lambda path, data: files.__setitem__(f"/{path}", data))
        return
    root, host, port = nginx_server()
    folder = root / secrets.token_hex(6)
    clock = itertools.count(1_700_000_000)  # the ETag of nginx is size and time, of whole seconds

    def put(path: str, data: bytes) -> None:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}")
        temporary.write_bytes(data)
        now = next(clock)
        os.utime(temporary, (now, now))
        temporary.replace(target)

    with proxy_of(host, port) as proxy:
        inner = proxy.answer
        proxy.answer = lambda method, path, headers, body: inner(method, f"/{folder.name}{path}", headers, body)
        yield Web(proxy, put)


@pytest.fixture(params=["nginx", "own"])
def web(request: pytest.FixtureRequest, cloud_environment: None, nginx_server: Any) -> Iterator[Web]:
    with web_on(request.param, nginx_server) as found:
        yield found


@pytest.fixture
def own_web(cloud_environment: None, nginx_server: Any) -> Iterator[Web]:
    """The tests' own web server alone, where it does not matter which one it is."""
    with web_on("own", nginx_server) as found:
        yield found
