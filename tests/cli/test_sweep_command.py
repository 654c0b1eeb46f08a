"""``relex-codec sweep``: scores by a command, goes on where it was killed, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import relex_codec
from support import tiny
from support.commands import ELSEWHERE, cli, failed, process

SCORER = """
import json, math, sys, time, pathlib
folder = pathlib.Path(sys.argv[1])
step = json.loads((folder / "relex.json").read_text())["step"]
names = sorted(p.name for p in folder.iterdir())
assert {"config.json", "model.safetensors", "relex.json"} <= set(names), names
here = pathlib.Path(__file__).parent
with open(here / "asked", "a") as file:
    file.write(f"{step:g}\\n")
rule = json.loads((here / "rule.json").read_text()) if (here / "rule.json").exists() else {}
what = rule.get(f"{step:g}", "score")
if what == "sleep":
    time.sleep(120)
if what == "fail":
    print("out of memory"); sys.exit(3)
score = f"score: {-abs(math.log(step / 6)):.6f}"
print("nothing to say" if what == "silent" else "score: nan" if what == "nan" else score)
print("of", folder)
"""


@pytest.fixture
def place(tmp_path: Path, scratch: Path) -> Path:
    """A folder with ``r.relex`` (steps 1 to 3) and ``score.py``, which notes what it was asked."""
    base = tiny.weights(tied=False)
    tiny.write(tmp_path / "base", base, tiny.UNTIED)
    tiny.write_steps(tmp_path / "run", lambda step: tiny.moved(base, step), config=tiny.UNTIED)
    relex_codec.encode(tmp_path / "run", tmp_path / "r.relex", base=tmp_path / "base", quality="raw", exact=True)
    (tmp_path / "score.py").write_text(SCORER)
    return tmp_path


def arguments(place: Path, *more: object) -> list[object]:
    command = f"{sys.executable} {place / 'score.py'} {{checkpoint}}"
    return ["sweep", place / "r.relex", "-o", place / "s.csv", "--command", command, *more]


def rule(place: Path, **what: str) -> None:
    (place / "rule.json").write_text(json.dumps({name.removeprefix("s"): value for name, value in what.items()}))


def asked(place: Path) -> list[str]:
    """The steps that were scored since the last call."""
    found = (place / "asked").read_text().split() if (place / "asked").exists() else []
    (place / "asked").write_text("")
    return found


def test_a_sweep(place: Path, scratch: Path) -> None:
    done = cli(*arguments(place, "--steps", "1:9:4", "--json"))
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [(row["step"], row["tier"], row["of"]) for row in document["rows"]] == [
        (1, "exact", "trained"), (5, "line", "extrapolated"), (9, "line", "extrapolated"),
    ]  # fmt: skip
    assert document["best"] == 5
    assert asked(place) == ["1", "5", "9"]
    assert list(scratch.iterdir()) == []
    again = cli(*arguments(place, "--steps", "1:9:2"))
    assert again.returncode == 0 and "3 scores of this sweep" in again.stderr
    assert asked(place) == ["3", "7"]
    assert "best: -0.154151 at step 7, extrapolated, tier line" in again.stdout


def test_what_fails_is_said_and_tried_again(place: Path) -> None:
    rule(place, s2="fail", s3="nan", s5="silent")
    done = cli(*arguments(place, "--steps", "1:6"))
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert "step 2: no score: the command ended with status 3, after 'out of memory'" in lines
    assert "step 3: no score: its score is nan" in lines
    assert any("step 5: no score: the command printed no number" in line for line in lines)
    assert lines[-1].startswith("Error: no score of 3 of 6 steps, the first 2: the command ended with status 3")
    assert "best: 0 at step 6" in done.stdout
    asked(place)
    rule(place)
    assert cli(*arguments(place, "--steps", "1:6")).returncode == 0
    assert asked(place) == ["2", "3", "5"]


def test_it_stops_where_nothing_works(place: Path) -> None:
    rule(place, s1="fail")
    failed_at_once = cli(*arguments(place, "--steps", "1:6"))
    assert failed_at_once.returncode == 1 and "it stopped there" in failed_at_once.stderr
    assert asked(place) == ["1"]
    rule(place, s2="fail", s3="fail", s4="fail")
    assert cli(*arguments(place, "--steps", "1:6")).returncode == 1
    assert asked(place) == ["1", "2", "3", "4"]


def test_search(place: Path) -> None:
    done = cli(*arguments(place, "--steps", "1:40", "--search", "--tier", "line", "--evaluations", 7, "--json"))
    assert done.returncode == 0, done.stderr
    assert len(asked(place)) <= 7
    assert json.loads(done.stdout)["best"] == 6


def test_scores_are_kept(place: Path) -> None:
    done = cli(*arguments(place, "--steps", "2,5,6,9", "--tier", "line", "--keep", "--metric", "nearness"))
    assert done.returncode == 0, done.stderr
    with relex_codec.open(place / "r.relex") as run:
        scores = run.scores()
        assert scores is not None and scores.metric == "nearness"
        assert [(one.step, one.tier) for one in scores.scores] == [(2, "line"), (5, "line"), (6, "line"), (9, "line")]
        assert run.trust(7).band_source == "scores"
    assert "nearness" in cli("info", place / "r.relex").stdout
    shown = cli(*arguments(place, "--steps", "6", "--tier", "line")).stdout.splitlines()
    assert shown[0].endswith("stored") and shown[1].endswith("-1.09861 line")


def test_refusals(place: Path, tmp_path: Path) -> None:
    without = cli("sweep", place / "r.relex", "--steps", "1", "-o", place / "x.csv", "--command", "echo 1")
    failed(without, "{checkpoint}")
    failed(cli(*arguments(place, "--steps", "1"), "-o", "s3://b/x.csv"), "on this machine")
    failed(cli(*arguments(place, "--steps", "x")), "not understood")
    failed(cli(*arguments(place, "--steps", "1:", "--search")), "no two ends")
    failed(cli(*arguments(place, "--steps", "5:5", "--search")), "between two steps")
    assert cli(*arguments(place)).returncode == 2
    (place / "s.csv").write_text("step,score\n1,2\n")
    failed(cli(*arguments(place, "--steps", "1")), "no table of a sweep")
    assert (place / "s.csv").read_text() == "step,score\n1,2\n"
    assert cli(*arguments(place, "--steps", "1", "-f")).returncode == 0
    failed(cli(*arguments(place, "--steps", "1", "--tier", "line")), "from tier exact, not line")
    (place / "p.png").write_bytes(b"mine")
    failed(cli(*arguments(place, "--steps", "1", "-o", place / "new.csv", "--plot", place / "p.png")), "it exists")
    assert not (place / "new.csv").exists() and (place / "p.png").read_bytes() == b"mine"


def test_a_picture(place: Path) -> None:
    pytest.importorskip("matplotlib")
    done = cli(*arguments(place, "--steps", "1,5,9", "--plot", place / "p.png"))
    assert done.returncode == 0, done.stderr
    assert (place / "p.png").read_bytes().startswith(b"\x89PNG")
    assert cli(*arguments(place, "--steps", "1,5,9,12", "--plot", place / "p.png")).returncode == 0  # goes on


def test_paths_with_spaces(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    odd = place / "a b'c"
    odd.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(odd))
    assert cli(*arguments(place, "--steps", "1")).returncode == 0
    assert list(odd.iterdir()) == []


def commands(place: Path) -> list[int]:
    """The processes that score something in a folder."""
    found = []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(place / "score.py").encode() in line:
            found.append(pid)
    return found


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted(place: Path, scratch: Path, how: signal.Signals) -> None:
    rule(place, s2="sleep")
    running = subprocess.Popen(
        process(arguments(place, "--steps", "1:4")), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=ELSEWHERE,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while "2" not in ((place / "asked").read_text().split() if (place / "asked").exists() else []):
        assert time.monotonic() < deadline and running.poll() is None
        time.sleep(0.1)
    assert commands(place)
    running.send_signal(how)
    _, said = running.communicate(timeout=60)
    if how == signal.SIGKILL:
        while commands(place):  # of which nothing lives on
            assert time.monotonic() < deadline
            time.sleep(0.1)
        (left,) = scratch.iterdir()
        assert (left / "checkpoint").is_dir()
    else:
        assert running.returncode == 128 + how
        assert "has 1 scores; the same command goes on from there" in said
        assert list(scratch.iterdir()) == []
    asked(place)
    rule(place)
    assert cli(*arguments(place, "--steps", "1:4")).returncode == 0
    assert asked(place) == ["2", "3", "4"]
    assert list(scratch.iterdir()) == []
