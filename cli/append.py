"""``relex-codec append``."""

from __future__ import annotations

import click

from .help import Command
from .output import (
    address_option,
    allow_pickle_option,
    as_json,
    base_option,
    engine_option,
    print_json,
    show,
    workers_option,
)


@click.command(
    "append",
    cls=Command,
    examples=(
        ("One more step", "relex-codec append run.relex LATER/checkpoint-500"),
        ("All steps that the run has by now, and fit again", "relex-codec append run.relex RUN --refit"),
    ),
    rare=("workers", "engine", "address", "memory"),
)
@click.argument("file")
@click.argument("checkpoints", nargs=-1, required=True, metavar="CHECKPOINT...")
@base_option
@click.option("--step", type=int, metavar="N", help="The step of the only CHECKPOINT, if its name does not say it.")
@click.option("-o", "--output", metavar="FILE", help="Write NAME.relex here, path or URL.  [default: replace FILE]")
@click.option("-f", "--force", "overwrite", is_flag=True, help="Replace the file that -o names if it exists.")
@click.option("--refit", is_flag=True, help="Fit directions and lines again, over the new steps too.")
@click.option("--memory", default="4GB", show_default=True, metavar="SIZE", help="Memory to work in.")
@workers_option
@engine_option
@address_option
@allow_pickle_option
@as_json
def command(
    file: str,
    checkpoints: tuple[str, ...],
    base: str | None,
    step: int | None,
    output: str | None,
    overwrite: bool,
    refit: bool,
    memory: str,
    workers: int | None,
    engine: str,
    address: str | None,
    allow_pickle: bool,
    as_json: bool,
) -> None:
    """Add later checkpoints to FILE.

    CHECKPOINT is the directory of one step, such as run/global_step_410 or hf://org/run@step_410, or that of a run, of
    which the steps that FILE lacks are taken. What is in FILE is copied: directions and lines stay, the new steps get
    coefficients, and frames if FILE has the exact tier. --refit fits again, over all steps, and needs the exact tier.
    The old checkpoints are not needed. FILE stays whole until the new one replaces it.
    """
    if overwrite and output is None:
        raise click.UsageError("-f is for the file that -o names; without -o, append replaces FILE")
    import relex_codec

    with relex_codec.open(file) as before:
        steps, size = before.steps, before.info()["bytes"]["total"]
    relex_codec.append(
        file, checkpoints, base=base, step=step, output=output, overwrite=overwrite, refit=refit,
        allow_pickle=allow_pickle, memory=memory, workers=workers, engine=engine, address=address, progress=True,
    )  # fmt: skip
    with relex_codec.open(output or file) as after:
        document = after.info()
    if as_json:
        print_json(document)
        return
    new = document["steps"][len(steps) :]
    more = f"1 step more: {new[0]}" if len(new) == 1 else f"{len(new)} steps more, {new[0]} to {new[-1]}"
    show(
        f"{output or file}: {more}; now {len(document['steps'])} steps in "
        f"{document['bytes']['total']:,} bytes (before {size:,})"
    )
