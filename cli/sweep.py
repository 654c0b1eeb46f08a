"""``relex-codec sweep``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .help import Command
from .info import _can_show
from .output import as_json, base_option, print_json, show

if TYPE_CHECKING:
    from relex_codec.run.run import Run
    from relex_codec.run.sweep import Steps, Sweep


@click.command(
    "sweep",
    cls=Command,
    examples=[
        (
            "score every hundredth step, trained or not",
            "relex-codec sweep run.relex --steps 100:2000:100 -o sweep.csv \\\n"
            "      --command 'python score.py {checkpoint}'",
        ),
        ("find the best step", "relex-codec sweep run.relex --search -o s.csv --command './eval {checkpoint}'"),
    ],
    rare=["evaluations", "tier", "metric", "base"],
)
@click.argument("file")
@click.option("--steps", metavar="LIST", help="A:B:K, N, several of them, or A: for stored ones; with --search A:B.")
@click.option(
    "--command",
    "line",
    required=True,
    metavar="SHELL",
    help="Run on each; the last number that it prints is the score, higher is better.",
)
@click.option("-o", "--output", required=True, metavar="CSV", help="Table to write, and to go on from.")
@click.option("-f", "--force", "overwrite", is_flag=True, help="Begin anew, and replace what is there.")
@click.option("--search", is_flag=True, help="Find the best step; default: around where it is expected.")
@click.option("--evaluations", type=click.IntRange(3), default=9, show_default=True, help="Scores that a search takes.")
@click.option("--tier", type=click.Choice(["auto", "line", "track", "exact"]), default="auto", help="As of decode.")
@click.option("--plot", metavar="PICTURE", help="Draw the scores too: NAME.png, .svg or .pdf.")
@click.option("--keep", is_flag=True, help="Keep them in FILE's .scores.json; info, plots and trust use it.")
@click.option("--metric", default="", metavar="TEXT", help="What the score is, in words.")
@base_option
@as_json
def command(
    file: str,
    steps: str | None,
    line: str,
    output: str,
    overwrite: bool,
    search: bool,
    evaluations: int,
    tier: str,
    plot: str | None,
    keep: bool,
    metric: str,
    base: str | None,
    as_json: bool,
) -> None:
    """Score steps of FILE with a command of yours."""
    if steps is None and not search:
        raise click.UsageError("give --steps LIST, or --search")
    import relex_codec
    from relex_codec.errors import InvalidArgument
    from relex_codec.journal.reader import is_journal
    from relex_codec.run.kept_scores import checked_place, keep_scores
    from relex_codec.run.scoring_command import check_command
    from relex_codec.run.sparkline import BLOCKS, PLAIN
    from relex_codec.run.sweep import kept_scores, kind_of
    from relex_codec.run.sweep_table import table
    from relex_codec.storage.urls import is_url

    check_command(line)
    if is_journal(file):
        raise InvalidArgument("sweeps are of .relex files: encode the journal first")
    if is_url(output):
        raise InvalidArgument(f"{output} is a URL; the table of a sweep is a file on this machine")
    if keep:
        checked_place(file)
    with relex_codec.open(file, base=base) as run:
        wanted = _steps(run, steps, search, evaluations)
        digest = str(run.info()["digest"])
        resumed, found = _known(run, output, digest, line, tier, overwrite)
        _check_plot(plot, overwrite or resumed)
        try:
            _score(run, wanted, found, output, digest, line, tier)
        finally:
            if keep and any(row.score is not None for row in found.rows):
                keep_scores(file, kept_scores(found.rows), metric)
        stored = run.scores()
        observed = run.observed_steps
        drawn = _draw(run, found, plot, metric) if plot and found.best else ""
        blocks = BLOCKS if _can_show(BLOCKS) else PLAIN
        text = table(found, observed, None if keep else stored, lambda step: run.trust(step).distance, blocks)
    failed = [row for row in found.rows if row.score is None]
    if as_json:
        rows = [
            {"step": row.step, "tier": row.tier, "of": kind_of(row, observed) if row.tier else None, "score": row.score,
             "seconds": round(row.seconds, 3), "problem": row.problem or None} for row in found.rows
        ]  # fmt: skip
        best = found.best
        print_json({"file": file, "output": output, "plot": drawn or None, "best": best and best.step, "rows": rows})
    else:
        show(text)
    if failed:
        left = wanted.next(found.rows, [row.step for row in failed])
        stopped = "" if left is None else "; it stopped there"
        raise InvalidArgument(
            f"no score of {len(failed)} of {len(found.rows)} steps, the first {failed[0].step:g}: {failed[0].problem}"
            f"{stopped}; {output} has all others, and the same command tries these again"
        )


def _steps(run: Run, spec: str | None, search: bool, most: int) -> Steps:
    """Which steps to score; a search that is told no ends looks around where the line is expected to peak."""
    from relex_codec.errors import InvalidArgument
    from relex_codec.run.sweep import Steps, search_between, wanted_steps

    if not search:
        assert spec is not None
        return Steps(wanted_steps(run._reader, spec))
    if spec is not None:
        return search_between(_ends(run, spec), most, beyond=False)
    peaks = run.trust(run.observed_steps[-1]).peak_steps
    if peaks is None:
        raise InvalidArgument(
            f"where the line of {run.path} may be best is not known; say between which steps: --steps A:B"
        )
    middle = (peaks[0] * peaks[1]) ** 0.5
    low, high = max(1.0, round(middle / 3)), round(3 * middle)
    show(f"searching from step {low:,.0f} to {high:,.0f}", err=True)
    return search_between((low, float(high)), most, beyond=True)


def _ends(run: Run, spec: str) -> tuple[float, float]:
    from relex_codec.errors import InvalidArgument

    first, _, last = spec.partition(":")
    try:
        return float(first), float(last)
    except ValueError:
        raise InvalidArgument(f"steps {spec!r} are no two ends to search between, such as 100:2000") from None


def _known(run: Run, output: str, digest: str, line: str, tier: str, overwrite: bool) -> tuple[bool, Sweep]:
    """What the table has already, and whether there is one."""
    from relex_codec.errors import InvalidArgument
    from relex_codec.run.sweep import Sweep
    from relex_codec.run.sweep_table import read_csv
    from relex_codec.storage.outputs import file_exists

    if overwrite or not file_exists(output):
        return False, Sweep()
    try:
        with open(output, encoding="utf-8", newline="") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"cannot read {output}: {error}") from None
    found = read_csv(text, output, digest, line, lambda step: run.tier(step, tier=tier))
    if found.rows:
        show(f"{output} has {len(found.rows)} scores of this sweep; going on from there", err=True)
    return True, found


def _score(run: Run, wanted: Steps, found: Sweep, output: str, digest: str, line: str, tier: str) -> None:
    """Score the steps; the table is written after each, so that a killed sweep goes on from there."""
    from relex_codec.report.written import write_new
    from relex_codec.run.scored_checkpoints import scored_by
    from relex_codec.run.sweep import SweepRow, run_sweep
    from relex_codec.run.sweep_table import as_csv, line_of

    write_new({output: as_csv(found, digest, line).encode()}, overwrite=True)  # or it fails before the first score

    def done(row: SweepRow) -> None:
        write_new({output: as_csv(found, digest, line).encode()}, overwrite=True)
        show(line_of(row, run.observed_steps), err=True)

    try:
        with scored_by(run, line, tier) as score:
            run_sweep(wanted, found, score, done)
    except (KeyboardInterrupt, SystemExit):
        show(f"{output} has {len(found.rows)} scores; the same command goes on from there", err=True)
        raise


def _check_plot(plot: str | None, overwrite: bool) -> None:
    from relex_codec.errors import InvalidArgument
    from relex_codec.report.plots import FORMATS, require_matplotlib
    from relex_codec.storage.outputs import file_exists

    if plot is None:
        return
    if plot.rpartition(".")[2] not in FORMATS or not plot.rpartition(".")[0]:
        raise InvalidArgument(f"{plot} is no name of a picture: it ends in .png, .svg or .pdf")
    require_matplotlib()
    if not overwrite and file_exists(plot):
        raise InvalidArgument(f"cannot write {plot}: it exists; -f (overwrite) replaces it")


def _draw(run: Run, found: Sweep, plot: str, metric: str) -> str:
    """Draw the scores of a sweep, with those that lie beside the file."""
    from dataclasses import replace

    from relex_codec.report.numbers import collect
    from relex_codec.report.plots import picture
    from relex_codec.report.written import write_new
    from relex_codec.run.sweep import with_stored

    numbers = collect(run)
    numbers = replace(numbers, scores=with_stored(found, numbers.scores, metric))
    write_new({plot: picture(numbers, plot.rpartition(".")[2], ["scores"], width=7.0)}, overwrite=True)
    return plot
