"""Programs that serve files, each a context manager around a subprocess.

moto and s3rver for S3, gcp-storage-emulator for Google Cloud Storage, Azurite for Azure, nginx for HTTP.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

REGION: Final = "us-east-1"
INSTALLED: Final = Path(__file__).parents[3] / ".servers" / "node_modules" / ".bin"
"""Where tools/servers.sh puts programs from npm."""

AZURE_ACCOUNT: Final = "devstoreaccount1"
AZURE_KEY: Final = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Of every Azurite, as its documentation tells."""


class NotInstalled(Exception):
    """The reason why a server cannot be started here."""


@dataclass(frozen=True)
class S3:
    """A running S3 server."""

    host: str
    port: int
    key: str
    secret: str
    scheme = "s3"
    looks = "HEAD"
    """Method of a request for size and version alone."""

    def options(self, endpoint: str | None = None, **more: Any) -> dict[str, Any]:
        """``storage_options`` of s3fs: for the server itself, or for `endpoint`, such as a proxy in front of it."""
        return {
            "key": self.key,
            "secret": self.secret,
            "endpoint_url": endpoint or f"http://{self.host}:{self.port}",
            "client_kwargs": {"region_name": REGION},
            **more,
        }


@dataclass(frozen=True)
class GCS:
    """A running server of Google Cloud Storage."""

    host: str
    port: int
    scheme = "gs"
    looks = "GET"

    def options(self, endpoint: str | None = None, **more: Any) -> dict[str, Any]:
        """As `S3.options`, of gcsfs."""
        place = endpoint or f"http://{self.host}:{self.port}"
        return {"token": "anon", "project": "test", "endpoint_url": place, **more}


@dataclass(frozen=True)
class Azure:
    """A running server of Azure's blobs."""

    host: str
    port: int
    scheme = "az"
    looks = "HEAD"

    def options(self, endpoint: str | None = None, **more: Any) -> dict[str, Any]:
        """As `S3.options`, of adlfs."""
        place = f"{endpoint or f'http://{self.host}:{self.port}'}/{AZURE_ACCOUNT}"
        text = f"DefaultEndpointsProtocol=http;AccountName={AZURE_ACCOUNT};AccountKey={AZURE_KEY};BlobEndpoint={place};"
        return {"connection_string": text, **more}


Store: TypeAlias = S3 | GCS | Azure


@contextmanager
def moto() -> Iterator[S3]:
    """Run moto's server; credentials are not checked."""
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None:
        raise NotInstalled("moto is not installed: pip install 'moto[s3,server]'")
    port = free_port()
    with _running([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port):
        yield S3("127.0.0.1", port, "testing", "testing")


@contextmanager
def s3rver() -> Iterator[S3]:
    """Run s3rver, a second implementation, which checks signatures."""
    program = shutil.which("s3rver") or shutil.which("s3rver", path=str(INSTALLED))
    if program is None:
        raise NotInstalled("s3rver is not installed: tools/servers.sh")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [program, "-d", folder, "-a", "127.0.0.1", "-p", str(port), "--silent", "--no-vhost-buckets"]
        with _running(command, port):
            yield S3("127.0.0.1", port, "S3RVER", "S3RVER")


@contextmanager
def emulator() -> Iterator[GCS]:
    """Run gcp-storage-emulator, which tells no generations (see emulated.py); credentials are not checked."""
    if importlib.util.find_spec("gcp_storage_emulator") is None:
        raise NotInstalled("gcp-storage-emulator is not installed: pip install gcp-storage-emulator")
    port = free_port()
    place = ["--in-memory", "--quiet", "--host", "127.0.0.1", "--port", str(port)]
    with _running([sys.executable, "-m", "gcp_storage_emulator", "start", *place], port):
        yield GCS("127.0.0.1", port)


@contextmanager
def azurite() -> Iterator[Azure]:
    """Run Azurite, which checks signatures; what it holds is in memory."""
    program = shutil.which("azurite-blob") or shutil.which("azurite-blob", path=str(INSTALLED))
    if program is None:
        raise NotInstalled("azurite is not installed: tools/servers.sh")
    port = free_port()
    # without the check a client may be newer than it
    how = ["--inMemoryPersistence", "--extentMemoryLimit", "1024", "--disableTelemetry", "--skipApiVersionCheck"]
    command = [program, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--silent", *how]
    with tempfile.TemporaryDirectory() as folder, _running(command, port, folder):
        yield Azure("127.0.0.1", port)


@contextmanager
def nginx(root: Path) -> Iterator[tuple[str, int]]:
    """Run nginx on the files in `root`; yields host and port."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise NotInstalled("nginx is not installed: tools/servers.sh, as root")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        places = "".join(
            f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        user = "user root;" if os.geteuid() == 0 else ""
        Path(folder, "nginx.conf").write_text(
            f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log; {user}\n"
            "events { worker_connections 256; }\n"
            f"http {{ access_log off; {places} server {{ listen 127.0.0.1:{port}; root {root}; }} }}\n"
        )
        with _running([program, "-e", f"{folder}/error.log", "-p", folder, "-c", f"{folder}/nginx.conf"], port):
            yield "127.0.0.1", port


def free_port() -> int:
    """Return a port of the loopback interface that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def _running(command: Sequence[str], port: int, folder: str | None = None) -> Iterator[None]:
    """Run a server, in `folder`, until the block ends; its output shows only if it does not start."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder)
        try:
            for _ in range(600):
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    if process.poll() is not None:
                        break
                    time.sleep(0.05)
            else:
                process.kill()
            if process.poll() is not None:
                output.seek(0)
                raise RuntimeError(f"{command[0]} did not start: {output.read().decode(errors='replace')[-2000:]}")
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
