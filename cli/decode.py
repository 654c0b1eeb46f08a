"""``relex-codec decode``."""

from __future__ import annotations

import click

from .help import Command
from .output import as_json, base_option, force_option, print_json, show


@click.command(
    "decode",
    cls=Command,
    examples=(
        ("A trained step, as it was", "relex-codec decode run.relex --step 400 -o step-400"),
        ("A step that was never trained", "relex-codec decode run.relex --step 800 -o step-800"),
    ),
    rare=("fit", "along", "device", "max_distance", "merge"),
)
@click.argument("file")
@click.option("--step", required=True, type=float, metavar="S", help="Any step: observed, between, or beyond the run.")
@click.option(
    "-o", "--output", required=True, metavar="DIR", help="Directory to write, path or URL; must not exist or be empty."
)
@force_option
@base_option
@click.option(
    "--tier",
    type=click.Choice(["auto", "line", "track", "exact"]),
    default="auto",
    show_default=True,
    help="What to read the step from: auto takes the base at 0, exact where it is stored so, track among the observed "
    "steps, line beyond.",
)
@click.option(
    "--max-distance",
    type=float,
    metavar="PERCENT",
    help="Beyond the observed steps, decode the last step that is at most so far from the base, such as 0.4.",
)
@click.option("--far", is_flag=True, help="Decode also what is more than 5 % of the weights' own size from the base.")
@click.option(
    "--fit",
    metavar="FIT",
    help="What tier line follows: line, window:W (last W steps), poly:D or log.  [default: line]",
)
@click.option(
    "--along",
    type=click.Choice(["line", "secant"]),
    help="secant: go on as training went from the middle observed step to the last one; needs the exact tier.",
)
@click.option("--device", default="cpu", show_default=True, help="Where to decode: cpu or cuda; the bits are the same.")
@click.option(
    "--merge", is_flag=True, help="Of a run of adapters: write --base with the step's adapter merged into it."
)
@as_json
def command(
    file: str,
    step: float,
    output: str,
    overwrite: bool,
    base: str | None,
    tier: str,
    max_distance: float | None,
    far: bool,
    fit: str | None,
    along: str | None,
    device: str,
    merge: bool,
    as_json: bool,
) -> None:
    """Write step S of FILE as a Hugging Face checkpoint, laid out as the base is.

    A local DIR appears when it is complete; at a URL file after file does, the index (or config.json) last. Beyond the
    observed steps, stderr says how far to believe the step; relex.json beside the weights says it too. FILE may be a
    journal, which has the steps that were recorded.
    """
    if fit is not None and along == "secant":
        raise click.UsageError("--fit is for the line, not for --along secant")
    way = along or "line" if fit is None else fit
    if max_distance is not None and way != "line":
        raise click.UsageError("--max-distance is for the line alone")
    import relex_codec
    from relex_codec.errors import InvalidArgument
    from relex_codec.journal.reader import is_journal
    from relex_codec.trust.horizon import shown_step

    if is_journal(file):
        if merge or max_distance is not None or way != "line":
            option = "--merge" if merge else "--max-distance" if max_distance is not None else "--fit and --along"
            raise InvalidArgument(f"{option} is for .relex files; a journal is decoded exactly: encode it first")
        _decode_journal(file, step, output, base, tier, device, overwrite, as_json)
        return
    with relex_codec.open(file, base=base, device=device) as run:
        asked = step
        if max_distance is not None and not run.observed_steps[0] <= step <= run.observed_steps[-1]:
            step = run.step_within(step, max_distance=max_distance / 100)
        trust, words = run._about(step, run.tier(step, tier=tier), way)
        if trust is not None and trust.level == "refused" and not far:
            raise InvalidArgument(
                f"{trust.words[0]}; take a nearer step, --max-distance 0.4, or --far to have this one all the same"
            )
        used = run.save(
            output, step, tier=tier, along=way, provenance=True, merge=merge, overwrite=overwrite, progress=True
        )
        reach = f"observed to {run.observed_steps[-1]}, run to {run.steps[-1]}"
    if step != asked:
        farther = f"step {shown_step(asked)} is farther than {max_distance:g} % from the base"
        show(f"note: {farther}: took step {shown_step(step)}", err=True)
    kind = "warning" if trust is not None and trust.level in ("far", "refused") else "note"
    for line in words:
        show(f"{kind}: {line}", err=True)
    if as_json:
        document = {"file": file, "step": step, "tier": used, "output": output, "device": device}
        told = {"asked": asked, "along": way if used == "line" else None, "notes": words}
        print_json(document | told | {"trust": None if trust is None else trust.as_dict()})
        return
    show(f"{output}: step {step:g} from tier {used} ({reach})")


def _decode_journal(
    file: str, step: float, output: str, base: str | None, tier: str, device: str, overwrite: bool, as_json: bool
) -> None:
    from relex_codec.errors import InvalidArgument
    from relex_codec.run import recorded

    if tier not in ("auto", "exact") or device != "cpu":
        what = f"tier {tier}" if tier not in ("auto", "exact") else f"device {device}"
        raise InvalidArgument(f"{what} is for .relex files; a journal is decoded exactly, on the CPU: encode it first")
    steps = recorded.save(file, output, step, base=base, overwrite=overwrite, progress=True)
    if as_json:
        print_json({"file": file, "step": step, "tier": "exact", "output": output, "device": device})
        return
    show(f"{output}: step {step:g}, bit for bit (recorded to {steps[-1]})")
