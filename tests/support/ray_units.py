"""Units that workers of a Ray cluster do in tests: they fail, die or wait; and counting how often units are begun."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from relex_codec.engines.protocol import Place, Unit
from relex_codec.engines.unit_files import UnitWriter


@dataclass(frozen=True)
class Plain:
    """Writes its name.

    Attributes:
        log: a file that gets a line each time that it is begun.
    """

    key: str
    log: Path
    input_bytes: int = 1 << 20

    def memory(self, threads: int) -> int:
        return 1 << 20

    def run(self, place: Place, out: UnitWriter) -> None:
        with self.log.open("a") as file:
            file.write(f"{self.key} {os.getpid()} {place.directory}\n")
        self.work(place)
        out.document["key"] = self.key
        out.document["body"] = out.data(self.key.encode() * (1 << 16))

    def work(self, place: Place) -> None:
        """What else it does."""

    def begun(self) -> list[list[str]]:
        """Process and scratch directory of each time that it was begun."""
        if not self.log.exists():
            return []
        return [line.split()[1:] for line in self.log.read_text().splitlines() if line.startswith(f"{self.key} ")]


@dataclass(frozen=True)
class Fails(Plain):
    """Raises an error."""

    error: Exception | None = None

    def work(self, place: Place) -> None:
        assert self.error is not None
        raise self.error


@dataclass(frozen=True)
class Dies(Plain):
    """Kills its process, the first `times` times."""

    times: int = 1

    def work(self, place: Place) -> None:
        if len(self.begun()) <= self.times:
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Waits(Plain):
    """Takes its time; hears that it is cancelled each `hears` seconds."""

    hears: float = 0.05

    def work(self, place: Place) -> None:
        for _ in range(round(600 / self.hears)):
            time.sleep(self.hears)


@dataclass(frozen=True)
class Counted:
    """Another unit; a file gets a line each time that it is begun."""

    unit: Unit
    log: Path

    @property
    def key(self) -> str:
        return self.unit.key

    @property
    def input_bytes(self) -> int:
        return self.unit.input_bytes

    def memory(self, threads: int) -> int:
        return self.unit.memory(threads)

    def run(self, place: Place, out: UnitWriter) -> None:
        with self.log.open("a") as file:
            file.write(f"{self.key}\n")
        self.unit.run(place, out)
