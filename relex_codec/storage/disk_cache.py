"""Fetched ranges on disk, for programs that read the same ones again: off unless a directory is given, bounded in size.

An entry is a file, named by a hash of what it holds (object, version, range), with a digest of its bytes at its end. It
is written under another name and renamed, so that processes may share a directory without locks, and a kill leaves at
most a temporary file, which the next clean-up takes. Entries are trusted only if their digest matches; the checksums of
the format are checked after that as for anything else that was read.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from relex_codec.core.forks import new_lock

from .config import StorageConfig

DIGEST: Final = 16
"""Bytes of an entry's digest."""
LOOK_EVERY: Final = 1 / 32
"""Part of the limit that a process writes before it looks at what others wrote."""
FILL: Final = 0.9
"""Part of the limit that cleaning up leaves."""
STALE: Final = 3600.0
"""Seconds after which a temporary file was left by a process that is gone."""
_SUFFIX: Final = ".range"
_TEMPORARY: Final = ".part"
_SIGNATURE: Final = re.compile(r"(?i)(x-(amz|goog|oss|cos)-)?signature|sig")
_SIGNING: Final = re.compile(
    r"(?i)x-(amz|goog|oss|cos)-.*|awsaccesskeyid|googleaccessid|ossaccesskeyid|expires|signature|policy|key-pair-id"
    r"|s[vrpest]|ss|srt|spr|sip|sig|sk(oid|tid|t|e|s|v)"
)
"""Names in the query of a URL that say who may read it, and until when: of S3, GCS, CloudFront and Azure."""
_NAME: Final = re.compile(r"[0-9a-f]{40}\.range(?P<temporary>\.[0-9a-f]{12}\.part)?")


class DiskCache:
    """A directory of fetched ranges.

    Failures of the disk are not reported: what cannot be cached is fetched again.

    Args:
        folder: made if it does not exist, for the user alone.
        limit: bytes of all entries together. Several processes that write at the same moment may pass it by a
            thirty-second each, which is what they write before they look again.
    """

    def __init__(self, folder: str, limit: int) -> None:
        self.folder, self.limit = Path(folder), limit
        self._total, self._since = 0, limit
        self._lock = new_lock()

    def load(self, key: str, start: int, end: int) -> bytes | None:
        """Return bytes `start` to `end` of the object and version `key` stands for, or None."""
        path = self._path(key, start, end)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        content = data[:-DIGEST]
        if len(content) != end - start or _digest(content) != data[-DIGEST:]:
            with suppress(OSError):  # damaged: not trusted, and made anew
                path.unlink()
            return None
        with suppress(OSError):
            os.utime(path)  # what was used last goes last
        return content

    def store(self, key: str, start: int, end: int, data: bytes) -> None:
        """Cache `data` as bytes `start` to `end`, unless it is larger than the whole cache may be."""
        size = len(data) + DIGEST
        if size > self.limit:
            return
        path = self._path(key, start, end)
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(6)}{_TEMPORARY}")
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._make_room(size)
            with open(temporary, "xb") as out:
                out.write(data)
                out.write(_digest(data))
            os.replace(temporary, path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()

    def forget(self, key: str, start: int, end: int) -> None:
        """Remove the entry of bytes `start` to `end`, if there is one."""
        with suppress(OSError):
            self._path(key, start, end).unlink()

    def _make_room(self, size: int) -> None:
        """Remove the entries that were not used for longest, if `size` more bytes would pass the limit."""
        with self._lock:
            self._since += size
            if self._since <= LOOK_EVERY * self.limit and self._total + size <= self.limit:
                self._total += size
                return
            found = []
            now = time.time()
            for entry in os.scandir(self.folder):
                with suppress(OSError):  # removed by another process
                    ours = _NAME.fullmatch(entry.name)  # whatever else is in the directory stays
                    if ours is None:
                        continue
                    status = entry.stat()
                    if ours["temporary"] is None:
                        found.append((status.st_mtime, status.st_size, entry.path))
                    elif now - status.st_mtime > STALE:
                        os.unlink(entry.path)
            total = sum(length for _, length, _ in found)
            if total + size > self.limit:
                for _, length, path in sorted(found):
                    if total + size <= FILL * self.limit or total == 0:
                        break
                    with suppress(OSError):
                        os.unlink(path)
                    total -= length
            self._total, self._since = total + size, 0

    def _path(self, key: str, start: int, end: int) -> Path:
        name = hashlib.sha256(f"{key}\n{start} {end}".encode()).hexdigest()[:40]
        return self.folder / f"{name}{_SUFFIX}"


def disk_cache_key(path: str, version: str | None) -> str:
    """Return what stands for a version of an object: a URL that is signed anew is still that of the same object."""
    url, question_mark, query = path.partition("?")
    parts = {part: part.partition("=")[0] for part in query.split("&")}
    signed = any(_SIGNATURE.fullmatch(name) for name in parts.values())
    lasting = [part for part, name in parts.items() if not (signed and _SIGNING.fullmatch(name))]
    return f"{url}{question_mark if any(lasting) else ''}{'&'.join(lasting)} {version}"


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:DIGEST]


_CACHES: Final[dict[tuple[str, int], DiskCache]] = {}
_CACHES_LOCK: Final = new_lock()


def disk_cache_for(config: StorageConfig) -> DiskCache | None:
    """Return the cache that `config` asks for, or None; one a directory and process."""
    if config.cache is None:
        return None
    with _CACHES_LOCK:
        return _CACHES.setdefault((config.cache, config.cache_bytes), DiskCache(config.cache, config.cache_bytes))
