"""``relex-codec restore``."""

from __future__ import annotations

import click

from .help import Command
from .output import (
    address_option,
    as_json,
    base_option,
    engine_option,
    exclude_steps_option,
    force_option,
    print_json,
    show,
    steps_option,
    workers_option,
)


@click.command(
    "restore",
    cls=Command,
    examples=(
        ("All steps, as the run had them", "relex-codec restore run.relex -o RUN-again"),
        ("Some of them", "relex-codec restore run.relex -o some --steps 100:300:100"),
    ),
    rare=("workers", "engine", "address"),
)
@click.argument("file")
@click.option(
    "-o", "--output", required=True, metavar="DIR", help="Directory to write, path or URL; must not exist or be empty."
)
@force_option
@steps_option
@exclude_steps_option
@base_option
@workers_option
@engine_option
@address_option
@as_json
def command(
    file: str,
    output: str,
    overwrite: bool,
    steps: str | None,
    exclude_steps: str | None,
    base: str | None,
    workers: int | None,
    engine: str,
    address: str | None,
    as_json: bool,
) -> None:
    """Write the stored steps of FILE as a run, bit for bit: a Hugging Face checkpoint each, in the directory that it
    had (DIR/checkpoint-10), or DIR/global_step_N if FILE does not say.

    FILE must have the exact tier. Every weight is checked against its digest. A local DIR appears when it is
    complete; at a URL no step is a checkpoint before all weights are there. DIR/relex.json says where they are from;
    the directories of the steps hold what they held.
    """
    import relex_codec
    from relex_codec.run.info import left_out_text

    with relex_codec.open(file, base=base) as run:
        written = run.restore(
            output,
            steps=steps,
            exclude_steps=exclude_steps,
            provenance=True,
            overwrite=overwrite,
            workers=workers,
            engine=engine,
            address=address,
            progress=True,
        )
        document = run.info()
    if as_json:
        print_json({"file": file, "steps": written, "output": output, "left_out": document["left_out"]})
        return
    if document["left_out"]:
        show(f"not in {file}, so not there either: {left_out_text(document)}", err=True)
    count = f"{len(written)} steps, {written[0]} to {written[-1]}" if len(written) > 1 else f"step {written[0]}"
    show(f"{output}: {count}, bit for bit")
