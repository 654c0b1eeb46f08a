"""What `sweep --search` loses against the true peak of drawn curves, by the noise of their scores.

usage: python benchmarks/peak_search.py

Curves over the logarithm of the step are parabolas with a peak from 150 to 1500 and flanks of different steepness; each
is searched between steps 100 and 2000 with at most 9 scores. Writes benchmarks/results/peak_search.md.
"""

from __future__ import annotations

import math
import random
import statistics

from sizes import RESULTS

from relex_codec.trust.peak_search import next_step

CURVES = 400


def lost(seed: int, noise: float) -> tuple[float, int]:
    """Return what the best step of a search loses on a drawn curve, and how many were scored."""
    drawn = random.Random(seed)
    peak = math.exp(drawn.uniform(math.log(150), math.log(1500)))
    width, skew = drawn.uniform(0.05, 0.12), drawn.uniform(0.6, 1.6)

    def below(step: float) -> float:
        away = math.log(step / peak)
        return width * away**2 * (skew if away > 0 else 1)

    known: dict[float, float] = {}
    while (step := next_step(known, 100, 2000, most=9)) is not None:
        known[step] = 0.7 - below(step) + drawn.gauss(0, noise)
    return below(max(known, key=lambda step: known[step])), len(known)


def main() -> None:
    """Run the benchmark."""
    lines = ["| noise of a score | lost on average | at worst | scores |", "| ---: | ---: | ---: | ---: |"]
    for noise in (0.0, 0.005, 0.01, 0.02):
        found = [lost(seed, noise) for seed in range(CURVES)]
        losses, counts = [one for one, _ in found], [count for _, count in found]
        row = f"| {noise:g} | {statistics.mean(losses):.4f} | {max(losses):.4f} | {statistics.mean(counts):.2f} |"
        lines.append(row)
        print(row)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "peak_search.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
