"""The results of exact.py as Markdown."""

from __future__ import annotations

from typing import Any

TITLES = {
    "sparse": "Real run, sparse",
    "dense": "Real run, dense",
    "sparse-10": "Real run, sparse, every 10th step",
    "dense-10": "Real run, dense, every 10th step",
    "generated-0.0002": "Generated run, 0.02 % of the values change a step",
    "generated-0.01": "Generated run, 1 % of the values change a step",
    "generated-0.5": "Generated run, 50 % of the values change a step",
}


def markdown(document: dict[str, Any]) -> str:
    """Return all cases, a section each, after what holds for all."""
    machine, first_use = document["machine"], document["first_use"]
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    lines = [
        "# The exact tier and its peers",
        "",
        f"One core of {machine['processor']}, {machine['system']}; {versions}.",
        "",
        "Page cache warm, all steps compared bit for bit. *Larger* is how many times the bytes of relex-codec's exact",
        "tier a codec takes; seconds are of the processor, MB/s of checkpoints. The base is given to all codecs and",
        "not counted. relex-codec checks digests of every step that it restores or replays. Compiling",
        f"relex-codec's functions took {first_use['compiling']:.1f} s at their first use on this machine, loading them "
        f"{first_use['from the cache']:.1f} s at the",
        "first use in a process; neither is in the times below.",
    ]
    order = list(TITLES)
    for case in sorted(document["cases"], key=lambda case: (case not in TITLES, order.index(_family(case)))):
        lines += ["", f"## {TITLES[_family(case)]}", "", *section(document["cases"][case])]
    return "\n".join(lines) + "\n"


def _family(case: str) -> str:
    """The case without the number of parameters of a large one."""
    return case if case in TITLES else case.rpartition("-")[0]


def section(case: dict[str, Any]) -> list[str]:
    """Return one case: what it is, the table, and what relex-codec's encoding of the whole file took."""
    ours, *peers = case["rows"]
    checkpoint = 2 * case["parameters"] / 1e6
    best = min(peers, key=lambda row: row["bytes"])
    restored = ", ".join(map(str, case["restored"]))
    lines = [
        f"{case['parameters']:,} parameters, {case['steps']} steps; restored: median of steps {restored}. The best",
        f"of the peers, {best['codec']}, takes **{best['bytes'] / ours['bytes']:.2f}** times the bytes of relex-codec.",
        "",
        "| codec | bytes | bits/parameter/step | larger | encode s | MB/s | restore s | MB/s | replay s | MB/s |",
        "| --- " + "| ---: " * 9 + "|",
    ]
    marked = False
    for row in case["rows"]:
        bits = 8 * row["bytes"] / case["steps"] / case["parameters"]
        run = checkpoint * case["steps"]
        times = ((row["encode"], run), (row["restore"], checkpoint), (row["replay"], run))
        cells = " | ".join(f"{seconds:.3g} | {size / seconds:.0f}" for seconds, size in times)
        mark = " \\*" if row["scaled_from"] else ""
        marked = marked or bool(mark)
        lines.append(
            f"| {row['codec']}{mark} | {row['bytes']:,} | {bits:.4f} | {row['bytes'] / ours['bytes']:.2f} | {cells} |"
        )
    if marked:
        count = next(row["scaled_from"] for row in peers if row["scaled_from"])
        lines += ["", f"\\* Measured by {count} steps, spread over the run; bytes and seconds are scaled to all."]
    command, size = ours["more"]["command"], ours["more"]["file"]
    lines += [
        "",
        f"The whole of `relex-codec encode --exact --quality micro`, which also fits directions, took {command:.3g} s "
        f"({checkpoint * case['steps'] / command:.0f} MB/s) and wrote {size:,} bytes.",
    ]
    return lines
