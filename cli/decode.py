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
@as_json
def command(file: str, step: float, output: str, base: str | None, tier: str, device: str, as_json: bool) -> None:
    """Write step S of FILE as a Hugging Face checkpoint, laid out as the base is.

    A local DIR appears when it is complete; at a URL file after file does, the index (or config.json) last. FILE may
    be a journal, which has the steps that were recorded.
    """
    import relex_codec
    from relex_codec.journal.reader import is_journal

    if is_journal(file):
        _decode_journal(file, step, output, base, tier, device, as_json)
        return
    with relex_codec.open(file, base=base, device=device) as run:
        used = run.save(output, step, tier=tier, progress=True)
        reach = f"observed to {run.observed_steps[-1]}, run to {run.steps[-1]}"
    if as_json:
        print_json({"file": file, "step": step, "tier": used, "output": output, "device": device})
        return
    show(f"{output}: step {step:g} from tier {used} ({reach})")


def _decode_journal(
    file: str, step: float, output: str, base: str | None, tier: str, device: str, as_json: bool
) -> None:
    from relex_codec.errors import InvalidArgument
    from relex_codec.run import recorded

    if tier not in ("auto", "exact") or device != "cpu":
        what = f"tier {tier}" if tier not in ("auto", "exact") else f"device {device}"
        raise InvalidArgument(f"{what} is for .relex files; a journal is decoded exactly, on the CPU: encode it first")
    steps = recorded.save(file, output, step, base=base, progress=True)
    if as_json:
        print_json({"file": file, "step": step, "tier": "exact", "output": output, "device": device})
        return
    show(f"{output}: step {step:g}, bit for bit (recorded to {steps[-1]})")
