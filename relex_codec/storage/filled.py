"""Local files of known size whose bytes come in any order."""

from __future__ import annotations

import os

from relex_codec.core.dtypes import Bits


def create(path: str, head: bytes, size: int) -> None:
    """Make a file of `size` bytes that begins with `head`."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        _write(fd, memoryview(head), 0)
        os.ftruncate(fd, size)
    finally:
        os.close(fd)


def fill(path: str, pieces: list[tuple[int, Bits]]) -> None:
    """Write pieces at their places in a file."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for at, bits in pieces:
            _write(fd, bits.data.cast("B"), at)
    finally:
        os.close(fd)


def _write(fd: int, data: memoryview, at: int) -> None:
    while data:  # a full disk writes a part first
        count = os.pwrite(fd, data, at)
        data, at = data[count:], at + count


def flush(folder: str) -> None:
    """Bring a directory and its files to the disk."""
    for path in (*(entry.path for entry in os.scandir(folder)), folder):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
