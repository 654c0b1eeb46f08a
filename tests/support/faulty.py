"""A local filesystem of fsspec, ``faulty://``, that moves files and fails when told to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem


class Faulty(LocalFileSystem):  # type: ignore[misc]
    """After `spared` files, half arrives, and uploads fail as `fault` says: ``error``, ``interrupt``, silently."""

    protocol = "faulty"
    cachable = False
    fault: str | None = None
    """``short`` is a silent one."""
    spared = 0
    moves_over = True
    calls: list[tuple[str, str]] = []  # noqa: RUF012 (all instances are one filesystem)

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return LocalFileSystem._strip_protocol(str(path).removeprefix("faulty://"))

    @classmethod
    def reset(cls) -> None:
        cls.fault, cls.spared, cls.moves_over, cls.calls = None, 0, True, []

    def put_file(self, path1: str, path2: str, callback: Any = None, **kwargs: Any) -> None:
        self.calls.append(("put", path2))
        with open(path1, "rb") as file:
            data = file.read()
        failing = Faulty.fault is not None and Faulty.spared <= 0
        Faulty.spared -= 1
        with open(path2, "wb") as file:
            file.write(data[: len(data) // 2] if failing else data)
        if failing and Faulty.fault == "error":
            raise OSError(28, "No space left on device")
        if failing and Faulty.fault == "interrupt":
            raise KeyboardInterrupt

    def mv(self, path1: str, path2: str, **kwargs: Any) -> None:
        self.calls.append(("mv", path2))
        if self.exists(path2) and not self.moves_over:
            raise FileExistsError(path2)
        super().mv(path1, path2)


fsspec.register_implementation("faulty", Faulty, clobber=True)


def waiting(scratch: Path) -> list[str]:
    """What is there for or from an upload; servers of the tests have their own files there."""
    return [name for name in os.listdir(scratch) if name.startswith("relex-")]
