"""Commands with little room on the disk, few open files, little memory and small files: done, or one line."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from robustness_run import Made, Tally, leftovers

MAIN = "from relex_codec.cli.main import main; main()"
SIZES = (16, 24, 32, 48, 64, 96, 128, 256, 1024, 4096)
"""Of a file system, in KB."""
LIMITS = (
    *(("NOFILE", value) for value in (5, 6, 7, 8, 10, 16)),
    *(("FSIZE", value) for value in (0, 1000, 4000, 8000, 16000)),
    *(("AS", value << 20) for value in (600, 800, 1200)),
)


def limits_campaign(made: Made) -> Iterator[Tally]:
    """Run commands where there is not enough of something."""
    yield _small_disks(made)
    tally = Tally("few open files, small files, little memory")
    place = made.root / "limited"
    place.mkdir()
    for kind, value in LIMITS:
        which = getattr(resource, f"RLIMIT_{kind}")
        for name, command in _commands(made, place).items():
            _clear(place)
            limit = lambda which=which, value=value: resource.setrlimit(which, (value, value))  # noqa: E731
            _run(tally, f"{name} with {kind} {value}", command, place, limit, Path(place))
    yield tally


def _commands(made: Made, place: Path) -> dict[str, list[str]]:
    file = str(made.root / "all.relex")
    return {
        "encode": ["encode", str(made.run), "--base", str(made.base), "--exact", "-o", str(place / "x.relex")],
        "restore": ["restore", file, "-o", str(place / "out")],
    }


def _small_disks(made: Made) -> Tally:
    tally = Tally("a small disk")
    place = made.root / "disk"
    place.mkdir()
    for size in SIZES:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(place)]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
            tally.outcomes["skipped: nothing can be mounted here"] += 1
            return tally
        try:
            for name, command in _commands(made, place).items():
                _clear(place)
                _run(tally, f"{name} on {size} KB", command, place, None, place)
        finally:
            subprocess.run(["umount", str(place)], check=True)
    return tally


def _run(
    tally: Tally, what: str, command: list[str], place: Path, limit: Callable[[], object] | None, temporary: Path
) -> None:
    environment = {**os.environ, "TMPDIR": str(temporary), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MAIN, *command], capture_output=True, text=True, env=environment, cwd="/",
        preexec_fn=limit, timeout=300,
    )  # fmt: skip
    lines = [line for line in done.stderr.strip().splitlines() if not line.startswith("keep the base")]
    if done.returncode == 0:
        tally.add("done", None if os.listdir(place) else f"{what}: nothing was written")
    elif done.returncode == 1 and len(lines) == 1 and lines[0].startswith("Error: "):
        left = leftovers(place) or os.listdir(place)
        tally.add("one line", f"{what}: {left} is left over" if left else None)
    else:
        tally.add("something else", f"{what}: exit code {done.returncode}, {lines[-1:]}")


def _clear(place: Path) -> None:
    subprocess.run(["find", str(place), "-mindepth", "1", "-delete"], check=True)
