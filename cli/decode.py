"""``relex-codec decode``."""

from __future__ import annotations

import click

from .output import as_json, base_option, print_json, show


@click.command("decode")
@click.argument("file")
@click.option(
    "--step", required=True, type=float, metavar="S", help="Any step: observed, between, or far beyond the run."
)
@click.option(
    "-o", "--output", required=True, metavar="DIR", help="Directory to write, path or URL; must not exist or be empty."
)
@base_option
@click.option(
    "--tier",
    type=click.Choice(["auto", "line", "track", "exact"]),
    default="auto",
    show_default=True,
    help="What to read the step from: auto takes the base at 0, exact where it is stored so, track among the observed "
    "steps, line beyond.",
)
@click.option("--device", default="cpu", show_default=True, help="Where to decode: cpu or cuda; the bits are the same.")
@click.option(
    "--merge", is_flag=True, help="Of a run of adapters: write --base with the step's adapter merged into it."
)
@as_json
def command(
    file: str, step: float, output: str, base: str | None, tier: str, device: str, merge: bool, as_json: bool
) -> None:
    """Write step S of FILE as a Hugging Face checkpoint, laid out as the base is.

    A local DIR appears when it is complete; at a URL file after file does, the index (or config.json) last.
    """
    import relex_codec

    with relex_codec.open(file, base=base, device=device) as run:
        used = run.save(output, step, tier=tier, merge=merge, progress=True)
        reach = f"observed to {run.observed_steps[-1]}, run to {run.steps[-1]}"
    if as_json:
        print_json({"file": file, "step": step, "tier": used, "output": output, "device": device})
        return
    show(f"{output}: step {step:g} from tier {used} ({reach})")
