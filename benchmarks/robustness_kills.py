"""Kills at each call that changes files, and two writers at once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from robustness_run import Made, Tally, files_of, leftovers

import relex_codec
from relex_codec import RelexError
from support.killing import in_fork


@dataclass(frozen=True)
class Command:
    """What is killed.

    Attributes:
        prepare: makes what is there before in an empty directory.
        work: the command.
        output: the only name that it may change there.
    """

    name: str
    prepare: Callable[[Path], object]
    work: Callable[[Path], object]
    output: str


def commands(made: Made) -> list[Command]:
    """Return what is killed."""

    def encode(place: Path, overwrite: bool = False) -> None:
        relex_codec.encode(
            made.run, place / "x.relex", base=made.base, base_uri=str(made.base), exact=True, overwrite=overwrite
        )

    def old(place: Path) -> None:
        shutil.copy(made.root / "old.relex", place / "x.relex")

    def decode(place: Path) -> None:
        with relex_codec.open(made.root / "all.relex") as run:
            run.save(place / "out", 20)

    def restore(place: Path) -> None:
        with relex_codec.open(made.root / "all.relex") as run:
            run.restore(place / "out", steps="10:20")

    def directory(place: Path) -> None:
        (place / "out").mkdir()

    def append(place: Path) -> None:
        relex_codec.append(place / "x.relex", [made.run / "global_step_40"])

    return [
        Command("encode", lambda place: None, encode, "x.relex"),
        Command("encode -f", old, lambda place: encode(place, True), "x.relex"),
        Command("append", old, append, "x.relex"),
        Command("decode", lambda place: None, decode, "out"),
        Command("decode into an empty directory", directory, decode, "out"),
        Command("restore", lambda place: None, restore, "out"),
        Command("restore into an empty directory", directory, restore, "out"),
    ]


def kill_campaign(made: Made, most: int) -> Iterator[Tally]:
    """Kill each command before and after each call, `most` times at most."""
    for command in commands(made):
        tally = Tally(f"killed: {command.name}")
        place = _place(made, command)
        code, calls = in_fork(lambda place=place, command=command: command.work(place))  # type: ignore[misc]
        if code:
            tally.add("not begun", f"{command.name} ended with {code} by itself")
            yield tally
            continue
        right = files_of(place)
        cases = [(at, after) for at in range(calls) for after in (False, True)]
        for number in range(min(most, len(cases))):
            at, after = cases[number * len(cases) // min(most, len(cases))]
            _one_kill(made, command, right, at, after, tally)
        yield tally


def _one_kill(made: Made, command: Command, right: dict[str, bytes], at: int, after: bool, tally: Tally) -> None:
    place = _place(made, command)
    before = files_of(place)
    where = f"{command.name}, {'after' if after else 'before'} call {at}"
    code, _ = in_fork(lambda: command.work(place), at, after=after)
    if code != -9:
        tally.add("not killed", f"{where}: ended with {code}")
        return
    left = files_of(place)
    complete = left == right
    outcome = "complete" if complete else "as before" if left == before else "in part"
    wrong = None
    if command.output == "x.relex" and outcome == "in part":
        wrong = f"{where}: neither the old file nor the new one"
    elif outcome == "in part" and any(right.get(name) != data for name, data in left.items()):
        wrong = f"{where}: a file of the output is not what it should be"
    else:
        again, _ = in_fork(lambda: command.work(place))
        if again and not (complete and again == 1 and command.name != "encode -f"):  # refused: it is there already
            wrong = f"{where}: the same command again ended with {again}"
        elif files_of(place) != right:
            wrong = f"{where}: the same command again wrote something else"
        elif leftovers(place):
            wrong = f"{where}: {leftovers(place)} is left over"
    tally.add(outcome, wrong)


def _place(made: Made, command: Command) -> Path:
    place = made.root / "place"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    command.prepare(place)
    return place


def writers_campaign(made: Made, rounds: int = 12) -> Iterator[Tally]:
    """Let two processes write to one name at once: whatever exits with 0 is in the file."""
    for what in ("append", "encode"):
        tally = Tally(f"two writers: {what}")
        for _ in range(rounds):
            place = made.root / "place"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            file = place / "x.relex"
            if what == "append":
                relex_codec.encode(made.run, file, base=made.base, base_uri=str(made.base), exact=True, steps="10:20")
            children = {}
            for step in (30, 40):
                child = os.fork()
                if not child:
                    os._exit(_write(made, file, what, step))
                children[step] = child
            codes = {s: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for s, child in children.items()}
            done = {step for step, code in codes.items() if not code}
            with relex_codec.open(file) as run:
                run.verify()
                steps, found = set(run.steps), [step for step, _ in run.iter_steps()]  # with their digests
            wrong = None
            if not set(codes.values()) <= {0, 1} or not done or set(found) != steps:
                wrong = f"{what}: the writers ended with {codes}"
            elif what == "append" and {10, 20} | done != steps:
                wrong = f"{what}: {done} were appended, the file has {steps}"
            elif what == "encode" and (len(done) != 1 or steps != {10, *done}):
                wrong = f"{what}: {done} ended well, the file has {steps}"
            elif leftovers(place):
                wrong = f"{what}: {leftovers(place)} is left over"
            tally.add("both" if len(done) == 2 else "one refused", wrong)
        yield tally


def _write(made: Made, file: Path, what: str, step: int) -> int:
    try:
        if what == "append":
            relex_codec.append(file, [made.run / f"global_step_{step}"])
        else:
            relex_codec.encode(made.run, file, base=made.base, base_uri=str(made.base), exact=True, steps=f"10,{step}")
    except RelexError:
        return 1
    except BaseException:
        return 3
    return 0
