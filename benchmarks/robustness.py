"""A campaign against files that are lost, wrong or left over: kills, faults, hostile files, little room.

usage: python benchmarks/robustness.py [--kills N] [--faults N] [--hostile N] [--seed S]

- kills: SIGKILL before and after each call to the operating system that writing is made of (evenly spread, N for each
  command at most), in encode, encode -f, append, decode, restore, and decode and restore into a directory that exists.
  After each the old file is whole, or the new one is; the same command once more ends well, its result has the right
  bits, and nothing is left over.
- writers: two processes that append to one file, and that encode to one name, at the same time.
- faults: reads over HTTP with broken, short, stalled and refused answers and flipped bytes.
- hostile: bytes of the file and of its base changed, cut and exchanged, and files beside the base that no loader should
  see. Each read has the right bits, or raises a RelexError.
- room: a file system of 16 KB to 4 MB (where one can be mounted), few open files, little memory, small files: each
  command ends well, or says one line, and leaves nothing.

Prints a table and writes benchmarks/results/robustness.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # for its servers and small runs
from robustness_files import hostile_campaign
from robustness_kills import kill_campaign, writers_campaign
from robustness_limits import limits_campaign
from robustness_network import faults_campaign
from robustness_run import Made, Tally, make_run
from speed import processor

import relex_codec

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run the campaign, print a table, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, metavar="N", help="for each command")
    parser.add_argument("--faults", type=int, default=300, metavar="N")
    parser.add_argument("--hostile", type=int, default=2000, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    options = parser.parse_args()
    begun = time.monotonic()
    tallies: list[Tally] = []
    with tempfile.TemporaryDirectory(prefix="robustness-") as folder:
        made: Made = make_run(Path(folder))
        for campaign, arguments in (
            (kill_campaign, (options.kills,)),
            (writers_campaign, ()),
            (faults_campaign, (options.faults, options.seed)),
            (hostile_campaign, (options.hostile, options.seed)),
            (limits_campaign, ()),
        ):
            for tally in campaign(made, *arguments):
                tallies.append(tally)
                print(tally.line(), flush=True)
    wrong = sum(len(tally.wrong) for tally in tallies)
    seconds = round(time.monotonic() - begun)
    print(f"{sum(tally.cases for tally in tallies):,} cases, {wrong} wrong, in {seconds} s")
    document = {
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": {
            "python": platform.python_version(), "relex-codec": relex_codec.__version__, "numpy": np.__version__,
            "torch": torch.__version__,
        },
        "options": vars(options),
        "seconds": seconds,
        "campaigns": [tally.as_dict() for tally in tallies],
    }  # fmt: skip
    (RESULTS / "robustness.json").write_text(json.dumps(document, indent=2) + "\n")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
