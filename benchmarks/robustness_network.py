"""Reads over HTTP while answers break, stall, are refused or come with wrong bytes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from robustness_run import Made, Tally, sums_of

import relex_codec
from relex_codec import RelexError
from relex_codec.storage.header_cache import HEADER_CACHE
from support.servers.counting import Files

KINDS = ("reset", "cut", "short", "no_range", "slow_down", "500", "404", "403")
NAMES = ("all.relex", "model.safetensors")


def faults_campaign(made: Made, count: int, seed: int) -> Iterator[Tally]:
    """Read everything with up to three faults, and up to three flipped bytes, each time."""
    chances = random.Random(seed)
    places = (made.root / "all.relex", made.root / "single" / "model.safetensors")
    files = Files({f"/{path.name}": path.read_bytes() for path in places})
    faults, flips = Tally("faults of the network"), Tally("flipped bytes on the way")
    for number in range(count):
        with files.server() as server:
            if number % 2:
                for _ in range(chances.randrange(1, 4)):
                    name = chances.choice(NAMES)
                    size = len(files[f"/{name}"])
                    server.flip(name, chances.randrange(size), times=chances.choice((1, 1, 2, 50)))
            else:
                for _ in range(chances.randrange(1, 4)):
                    skipped = [chances.randrange(8)]

                    def matches(method: str, path: str, skipped: list[int] = skipped) -> bool:
                        skipped[0] -= 1
                        return skipped[0] < 0

                    server.fail(chances.choice(KINDS), chances.choice((1, 1, 2, 50)), matches)
            _read(made, server.url, flips if number % 2 else faults)
    yield faults
    yield flips


def _read(made: Made, url: str, tally: Tally) -> None:
    HEADER_CACHE.clear()
    options: dict[str, Any] = {"relex": {"retry_seconds": 0.05, "timeout": 5}}
    try:
        with relex_codec.open(f"{url}/all.relex", base=f"{url}/model.safetensors", storage_options=options) as run:
            found = sums_of(run)
    except RelexError as error:
        tally.add(type(error).__name__)
    except Exception as error:
        tally.add("another error", f"{type(error).__name__}: {error}")
    else:
        tally.add("right", None if found == made.sums else "wrong weights")
