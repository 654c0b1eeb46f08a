"""``relex-codec adapter``."""

from __future__ import annotations

from typing import Any

import click

from .help import Command
from .output import as_json, base_option, force_option, print_json, show


@click.command(
    "adapter",
    cls=Command,
    examples=[
        ("one step", "relex-codec adapter run.relex --step 800 -o step-800-lora --rank 8"),
        ("several steps, for vLLM", "relex-codec adapter run.relex --steps 200,800 --no-embeddings -o adapters"),
    ],
    rare=["tier", "far", "base", "modules_to_save"],
)
@click.argument("file")
@click.option("--step", type=float, metavar="S", help="Any step: observed, between, or beyond the run.")
@click.option("--steps", metavar="LIST", help="Several, such as 200:800:200 or 200,800: DIR gets step-N of each.")
@click.option("-o", "--output", required=True, metavar="DIR", help="Directory to write, path or URL.")
@force_option
@click.option("--rank", type=click.IntRange(1), metavar="R", help="Of A and B.  [default: as in FILE, else 16]")
@click.option(
    "--tier", type=click.Choice(["auto", "line", "track"]), default="auto", show_default=True, help="As of decode."
)
@click.option("--modules-to-save", is_flag=True, help="Bring norms and biases too, whole.")
@click.option("--no-embeddings", is_flag=True, help="Leave embeddings and heads out, which vLLM does not take.")
@click.option("--far", is_flag=True, help="Write also what is more than 5 % of the weights' own size from the base.")
@base_option
@as_json
def command(
    file: str,
    step: float | None,
    steps: str | None,
    output: str,
    overwrite: bool,
    rank: int | None,
    tier: str,
    modules_to_save: bool,
    no_embeddings: bool,
    far: bool,
    base: str | None,
    as_json: bool,
) -> None:
    """Write what FILE changes by step S as a LoRA adapter of PEFT."""
    if (step is None) == (steps is None):
        raise click.UsageError("give one of --step S and --steps LIST")
    import relex_codec
    from relex_codec.core.steps import listed_steps
    from relex_codec.errors import InvalidArgument
    from relex_codec.journal.reader import is_journal
    from relex_codec.trust.horizon import shown_step

    if is_journal(file):
        raise InvalidArgument("adapters are made of .relex files: encode the journal first")
    listed = listed_steps(steps) if steps is not None else None
    if steps is not None and listed is None:
        raise InvalidArgument(f"steps {steps!r} has an open end; say from where to where, such as 200:800:200")
    wanted: Any = step if listed is None else listed
    with relex_codec.open(file, base=base) as run:
        said = []
        for one in [wanted] if listed is None else listed:
            read = run.tier(one, tier=tier if tier != "auto" else "line")
            used = tier if tier != "auto" else "track" if _observed(run.observed_steps, one) else read
            trust, words = run._about(one, used, "line")
            if trust is not None and trust.level == "refused" and not far:
                raise InvalidArgument(f"{trust.words[0]}; take a nearer step, or --far to have this one all the same")
            said.append((trust, words))
        made = run.save_adapter(
            output, wanted, tier=tier, rank=rank, modules_to_save=modules_to_save, embeddings=not no_embeddings,
            overwrite=overwrite, progress=True,
        )  # fmt: skip
    for line in dict.fromkeys(line for _, words in said for line in words):
        show(f"note: {line}", err=True)
    for why, share in made.left_out.items():
        show(f"note: left out: {why}, {100 * share:.2g} % of the squared change", err=True)
    if as_json:
        rows = [{"step": at, "tier": made.tiers[at], "output": made.directories[at]} for at in made.tiers]
        print_json({"file": file, "rank": made.rank, "kept": made.kept, "left_out": made.left_out, "adapters": rows})
        return
    what = (
        f"step {shown_step(wanted)} from tier {made.tiers[float(wanted)]}" if listed is None else f"{len(said)} steps"
    )
    show(f"{output}: {what}, rank {made.rank}, {100 * made.kept:.3g} % of the squared change")


def _observed(steps: list[int], step: float) -> bool:
    return steps[0] <= step <= steps[-1]
