"""Sources of bytes for tests."""

from __future__ import annotations

from collections.abc import Sequence

from relex_codec.storage.source import Source


class Held(Source):
    """A source in memory."""

    def __init__(self, data: bytes | bytearray) -> None:
        self.data, self.size, self.path = data, len(data), "held.relex"

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        self._check(ranges)
        return [bytes(self.data[a:b]) for a, b in ranges]
