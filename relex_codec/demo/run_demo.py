"""The demonstration: train, archive, restore and compare, extrapolate, and score every model on the same problems."""

from __future__ import annotations

import filecmp
import importlib
import importlib.util
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relex_codec.core.filenames import SINGLE
from relex_codec.core.progress import progress_bar
from relex_codec.errors import InvalidArgument
from relex_codec.storage.leftovers import ScratchDirectory

if TYPE_CHECKING:
    from relex_codec.report.numbers import Numbers

BASE = Path(__file__).parent / "base"
STEPS = 60
BEYOND = (5, 10, 20)  # times the window; the last one usually shows where extrapolation ends


@dataclass(frozen=True)
class Row:
    """One scored model: its step, where its weights came from, its score, and the bytes of that source on disk."""

    step: int
    kind: str  # base, trained, restored (exact), decoded (the line) or extrapolated
    score: float
    source: str
    bytes: int


@dataclass(frozen=True)
class DemoReport:
    """What the demonstration measured; sizes are bytes of weight files, and of the whole archive.

    Attributes:
        equal: restored checkpoints whose weight files are byte for byte those that were trained.
        trust: what the archive says of the first extrapolated step.
        picture: the archive's picture, if everything is kept and matplotlib is installed.
    """

    rows: tuple[Row, ...]
    problems: int
    checkpoints: int
    run_bytes: int
    archive_bytes: int
    base_bytes: int
    seconds: float
    equal: int
    trust: tuple[str, ...]
    picture: str | None
    directory: str | None

    def table(self) -> str:
        """The report as printed: a table of the models, a line on the sizes, and the paths if they were kept."""
        lines = [f"{'step':>6}  {'weights':<12}  {'score':>6}  {'bytes':>11}  read from"]
        lines += [f"{r.step:>6}  {r.kind:<12}  {r.score:>6.3f}  {r.bytes:>11,}  {r.source}" for r in self.rows]
        error = math.sqrt(max(r.score * (1 - r.score) for r in self.rows) / self.problems)
        lines += [
            f"score: share of {self.problems:,} held-out additions solved exactly, greedy (standard error {error:.3f})",
            f"archive: {self.archive_bytes:,} bytes (and the base); the run: {self.checkpoints} checkpoints, "
            f"{self.run_bytes:,} bytes, {self.run_bytes / self.archive_bytes:,.0f} times as much",
            f"restored: {self.equal} of {self.checkpoints} checkpoints are byte for byte those that were trained",
            *(f"trust: {words}" for words in self.trust),
        ]
        if self.directory is not None:
            picture = ", run.png" if self.picture else ""
            lines.append(f"in {self.directory}: base/, run/, run.relex, restored/, decoded/step_N/{picture}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self)


def run_demo(directory: Path | None = None, steps: int = STEPS, progress: bool = True) -> DemoReport:
    """Run the whole demonstration and return what it measured.

    Args:
        directory: where base, run, archive and decoded models stay: absent or empty. Without one they are removed
            afterwards.
        steps: of GRPO to train, all of them observed; models are read at that step and at 5, 10 and 20 times as many.
        progress: show one bar on stderr, if that is a terminal.

    Raises:
        InvalidArgument: the directory is not empty, there are fewer than 2 steps, or transformers is not installed.
    """
    if steps < 2:
        raise InvalidArgument(f"cannot fit a line to {steps} training step, expected at least 2")
    _require_transformers()
    if directory is None:
        with ScratchDirectory() as temporary:
            return _run(Path(temporary.path), steps, progress, keep=False)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InvalidArgument(f"{directory} is not an empty directory; choose another place for the demonstration")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidArgument(f"cannot make {directory}: {error.strerror}; choose another place") from None
    return _run(directory, steps, progress, keep=True)


def _require_transformers() -> None:
    try:
        importlib.import_module("transformers")
    except ImportError as error:
        message = f"the demonstration needs transformers ({error}); install it with: pip install 'relex-codec[demo]'"
        raise InvalidArgument(message) from None


def _run(directory: Path, steps: int, progress: bool, keep: bool) -> DemoReport:
    import relex_codec
    from relex_codec.report.numbers import collect

    from . import grpo, task

    started = time.monotonic()
    base, run, archive = directory / "base", directory / "run", directory / "run.relex"
    last = run / f"global_step_{steps}"
    read = [steps, *(steps * times for times in BEYOND)]
    restored = directory / "restored"
    stages = steps + 2 + len(read) + 3 + len(read)  # training, encoding, restoring, decoding, scoring
    shutil.copytree(BASE, base)
    with progress_bar("train", stages, unit="stage", leave=False, enabled=progress) as bar:
        with _few_threads():

            def trained(step: int, mean_reward: float) -> None:
                bar.set_postfix(reward=f"{mean_reward:.2f}")
                bar.update()

            grpo.train(base, run, steps, progress=trained)
        bar.set_postfix()
        bar.set_description("encode")
        relex_codec.encode(str(run), str(archive), base=str(base), exact=True)
        bar.update()
        bar.set_description("restore")
        reader = relex_codec.open(str(archive), base=str(base))
        reader.restore(str(restored))
        equal = sum(_same(checkpoint, restored / checkpoint.name) for checkpoint in run.iterdir())
        bar.update()
        bar.set_description("decode")
        decoded = {step: directory / "decoded" / f"step_{step}" for step in read}
        for step, output in decoded.items():
            reader.save(str(output), step=step, tier="track" if step <= steps else "line")
            bar.update()
        trust = reader.trust(read[1]).words
        picture = directory / "run.png"
        drawn = keep and _draw(collect(reader), picture)
        reader.close()
        bar.set_description("score")
        archive_bytes = archive.stat().st_size
        models = [
            (0, "base", base, base.name, _weight_bytes(base)),
            (steps, "trained", last, f"{run.name}/{last.name}", _weight_bytes(last)),
            (steps, "restored", restored / last.name, archive.name, archive_bytes),
            *(
                (step, "decoded" if step <= steps else "extrapolated", output, archive.name, archive_bytes)
                for step, output in decoded.items()
            ),
        ]
        rows = []
        with _few_threads():
            for step, kind, model, source, size in models:
                rows.append(Row(step, kind, task.score(model), source, size))
                bar.update()
    return DemoReport(
        rows=tuple(rows),
        problems=task.SCORE_PROBLEMS,
        checkpoints=steps,
        run_bytes=sum(_weight_bytes(checkpoint) for checkpoint in run.iterdir()),
        archive_bytes=archive_bytes,
        base_bytes=_weight_bytes(base),
        seconds=round(time.monotonic() - started, 1),
        equal=equal,
        trust=trust,
        picture=str(picture) if drawn else None,
        directory=str(directory) if keep else None,
    )


def _weight_bytes(checkpoint: Path) -> int:
    return (checkpoint / SINGLE).stat().st_size


def _same(trained: Path, restored: Path) -> bool:
    """Compare two files of weights byte by byte, as `cmp` does."""
    return filecmp.cmp(trained / SINGLE, restored / SINGLE, shallow=False)


def _draw(numbers: Numbers, path: Path) -> bool:
    """Draw the picture of `relex-codec plot`, if matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    from relex_codec.report.plots import picture

    path.write_bytes(picture(numbers, "png", title="run.relex"))
    return True


@contextmanager
def _few_threads() -> Iterator[None]:
    """At most four threads for torch: with matrices as small as these, more of them wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(min(before, 4))
    try:
        yield
    finally:
        torch.set_num_threads(before)
