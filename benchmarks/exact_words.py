"""Where restoring a random step goes: words that are decoded for each parameter, and cycles for each of them.

usage: python benchmarks/exact_words.py RUNS_DIR [--work DIR] [--case NAME ...]

RUNS_DIR and the cases are those of exact.py. A case is encoded once; a few random steps are restored from a cold handle
on one core, each five times, of which the fastest counts. A cycle is taken from a chain of multiplications, 3 cycles
each and one for the addition between them, as x86 and ARM processors have it. Writes benchmarks/results/exact_words.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import exact_relex
from exact import CASES, RESTORED, source_of
from sizes import RESULTS
from speed import processor

from relex_codec.core.jit import compiled
from relex_codec.exact import part_decoder

REPEATED = 5
CHAIN = 20_000_000


@compiled
def chain(count: int, x: int) -> int:
    """Multiply and add, each waiting for the one before."""
    for i in range(count):
        x = x * x + i
    return x


def cycle() -> float:
    """Return the seconds of a cycle."""
    chain(1, 3)
    found = []
    for _ in range(REPEATED):
        start = time.thread_time()
        chain(CHAIN, 3)
        found.append(time.thread_time() - start)
    return min(found) / CHAIN / 4


def watched(
    name: str, words: Callable[[tuple[Any, ...]], int], seconds: dict[str, float], counts: Counter[str]
) -> None:
    """Add up seconds and words of a compiled function of part_decoder.py."""
    plain = getattr(part_decoder, name)

    def call(*arguments: Any) -> Any:
        start = time.thread_time()
        found = plain(*arguments)
        seconds[name] += time.thread_time() - start
        counts[name] += words(arguments)
        return found

    setattr(part_decoder, name, call)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--work", type=Path, default=Path("/tmp/relex-exact"))
    parser.add_argument("--case", nargs="*", choices=CASES, default=list(CASES))
    args = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    args.work.mkdir(parents=True, exist_ok=True)
    seconds: defaultdict[str, float] = defaultdict(float)
    counts: Counter[str] = Counter()
    watched("decode_frame", lambda arguments: len(arguments[0].rank), seconds, counts)
    watched("decode_all", lambda arguments: int(arguments[2]), seconds, counts)
    lines = [
        "# Words that restoring a random step decodes\n",
        f"One core of {processor()}, {platform.platform()}; processor time, fastest of {REPEATED}.\n",
        "| run | restore s | MB/s | list words/parameter | cycles each | dense words/parameter | cycles each | rest |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for case in args.case:
        source = source_of(case, args.runs, args.work)
        file = args.work / f"{case}.relex"
        exact_relex.write_file(source, file)
        steps = random.Random(0).sample(source.numbers, min(RESTORED, len(source.numbers)))
        total, best = 0.0, defaultdict[str, float](float)
        words: Counter[str] = Counter()
        for step in steps:
            found = []
            for _ in range(REPEATED):
                seconds.clear()
                counts.clear()
                start = time.thread_time()
                exact_relex.restore(file, step)
                found.append((time.thread_time() - start, dict(seconds)))
            fastest = min(found, key=lambda one: one[0])
            total += fastest[0]
            for name, taken in fastest[1].items():
                best[name] += taken
            words.update(counts)
        file.unlink()
        length, size = cycle(), source.parameters * len(steps)
        each = [
            f"{words[name] / size:.2f} | {best[name] / max(words[name], 1) / length:.0f}"
            for name in ("decode_frame", "decode_all")
        ]
        rest = 1 - sum(best.values()) / total
        lines.append(
            f"| {case} | {total / len(steps):.3f} | {2e-6 * size / total:.0f} | {each[0]} | {each[1]} | {rest:.0%} |"
        )
        print(lines[-1], flush=True)
    (RESULTS / "exact_words.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
