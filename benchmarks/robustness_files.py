"""Files with changed bytes, and side files that no loader should see."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from robustness_run import Made, Tally, sums_of

import relex_codec
from relex_codec import RelexError
from support.spoiled import mutated

SIDE_FILES = (
    "pytorch_model.bin.index.json", "pytorch_model.bin", "evil.model", "x.pickle", "x.joblib", "x.npy", "x.so", "x.h5",
    "adapter_config.json", "adapter_model.safetensors", "CON", "nul.json", "a.", "credentials.json", ".env", "x.ckpt",
    "tf_model.h5.index.json", "model.safetensors.index.json.bak", "..", "a b.json", "aux.txt", "id_rsa", "x.gguf",
)  # fmt: skip
KEPT = {"config.json", "tokenizer.json", "model.safetensors.index.json"}


def hostile_campaign(made: Made, count: int, seed: int) -> Iterator[Tally]:
    """Read files and bases in which bytes were changed, and decode beside hostile side files."""
    chances = random.Random(seed)
    flips, spoiled, bases = Tally("one byte of a file changed"), Tally("a file spoiled"), Tally("a base spoiled")
    data, place = (made.root / "all.relex").read_bytes(), made.root / "hostile"
    place.mkdir()
    for number in range(count):
        if number % 4 == 3:
            shutil.rmtree(place / "base", ignore_errors=True)
            shutil.copytree(made.base, place / "base")
            path = chances.choice(sorted(p for p in (place / "base").iterdir() if "model" in p.name))
            path.write_bytes(mutated(path.read_bytes(), chances))
            _read(made, made.root / "all.relex", place / "base", bases)
            continue
        changed = bytearray(data)
        if number % 2:
            changed = bytearray(mutated(data, chances))
        else:
            changed[chances.randrange(len(data))] ^= 1 << chances.randrange(8)
        (place / "x.relex").write_bytes(changed)
        _read(made, place / "x.relex", made.base, spoiled if number % 2 else flips)
    yield from (flips, spoiled, bases)
    yield _side_files(made, place)


def _read(made: Made, file: Path, base: Path, tally: Tally) -> None:
    try:
        with relex_codec.open(file, base=base) as run:
            found = sums_of(run)
    except RelexError as error:
        tally.add(type(error).__name__)
    except Exception as error:
        tally.add("another error", f"{type(error).__name__}: {error}")
    else:
        tally.add("right", None if found == made.sums else "wrong weights")


def _side_files(made: Made, place: Path) -> Tally:
    """Put a file beside the base, decode, and look whether it was taken along."""
    tally = Tally("hostile files beside the base")
    for name in SIDE_FILES:
        shutil.rmtree(place / "base", ignore_errors=True)
        shutil.rmtree(place / "out", ignore_errors=True)
        shutil.copytree(made.base, place / "base")
        if name != "..":
            (place / "base" / name).write_bytes(b"{}")
        try:
            with relex_codec.open(made.root / "all.relex", base=place / "base") as run:
                run.save(place / "out", 20)
        except RelexError as error:
            tally.add(type(error).__name__)
            continue
        found = {path.name for path in (place / "out").iterdir()}
        others = {name for name in found if not name.startswith("model-0000")} - KEPT
        tally.add("left out" if not others else "taken", f"{others} is in the output" if others else None)
    return tally
