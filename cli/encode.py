"""``relex-codec encode``."""

from __future__ import annotations

from typing import Any

import click

from .help import Command
from .output import (
    address_option,
    allow_pickle_option,
    as_json,
    engine_option,
    exclude_steps_option,
    print_json,
    show,
    steps_option,
    workers_option,
)


@click.command(
    "encode",
    cls=Command,
    examples=(
        ("Keep a run bit for bit", "relex-codec encode RUN --base BASE -o run.relex --exact"),
        ("The line alone, of some steps", "relex-codec encode RUN --base BASE -o line.relex --steps 100:400:100"),
    ),
    rare=(
        "observe",
        "rename",
        "quality",
        "factor_rank",
        "rank",
        "base_uri",
        "keep_work_dir",
        "shard",
        "skip_incomplete",
        "allow_any_base",
        "allow_new_tensors",
        "engine",
        "address",
        "exclude_steps",
        "memory",
        "work_dir",
        "workers",
    ),
)
@click.argument("run")
@click.option(
    "--base",
    required=True,
    metavar="BASE",
    help="The model training started from: directory, URL, or hf://org/name@revision, of which the commit is kept.",
)
@click.option(
    "-o", "--output", required=True, metavar="FILE", help="The file to write, path or URL, called NAME.relex."
)
@click.option("-f", "--force", "overwrite", is_flag=True, help="Replace FILE if it exists.")
@click.option(
    "--observe", type=int, metavar="N", help="Fit on steps up to N only; later ones keep coefficients. Default: all."
)
@steps_option
@exclude_steps_option
@click.option(
    "--rename",
    multiple=True,
    metavar="OLD=NEW",
    help="Where names differ beyond known prefixes: those of RUN with OLD at their beginning, or after a dot, have NEW "
    "there in BASE, or the other way round. May be given several times.",
)
@click.option(
    "--quality",
    default="default",
    show_default=True,
    metavar="Q",
    help="raw, fine (1 %), default (5 %), small (20 %), micro (factors only), or how much the weight error may grow, "
    "such as 0.03.",
)
@click.option(
    "--factor-rank", type=int, metavar="R", help="Factor pairs per matrix with --quality micro.  [default: 8]"
)
@click.option("--rank", type=int, default=1, show_default=True, metavar="K", help="Directions per tensor.")
@click.option("--exact", is_flag=True, help="Store every step bit for bit as well, about 1/100 of a checkpoint each.")
@click.option("--embed-base", is_flag=True, help="Store the base in the file, losslessly, so that it stands alone.")
@click.option(
    "--base-uri",
    metavar="URI",
    help="Where FILE shall say that its base is; '' for nowhere.  [default: the URL of BASE, or its path from the "
    "directory of FILE]",
)
@click.option("--memory", default="4GB", show_default=True, metavar="SIZE", help="Memory to work in.")
@workers_option
@engine_option
@address_option
@click.option(
    "--work-dir",
    metavar="DIR",
    help="Keep what is finished here, path or URL: after a kill the same command goes on. Removed at the end.",
)
@click.option("--keep-work-dir", is_flag=True, help="Leave it there.")
@click.option(
    "--shard",
    metavar="I/N",
    help="Do part I of N and write FILE.part-I-of-N, for `relex-codec merge`. auto: as a job array of Slurm says, or "
    "RANK and WORLD_SIZE.",
)
@click.option("--dry-run", is_flag=True, help="Say what this takes, and what FILE would not have; write nothing.")
@click.option("--skip-incomplete", is_flag=True, help="Leave incomplete or missing checkpoints out.")
@click.option("--allow-any-base", is_flag=True, help="Take BASE although the run did not begin there, by its distance.")
@click.option("--allow-new-tensors", is_flag=True, help="Encode a run most of which is in tensors that BASE lacks.")
@allow_pickle_option
@as_json
def command(run: str, output: str, as_json: bool, dry_run: bool, **options: Any) -> None:
    """Encode the checkpoints below RUN into one file.

    RUN holds global_step_N/, checkpoint-N/, step_N/, epoch_N/ or the like, as trainers leave them, with safetensors or
    adapters in them or in a directory below (actor/huggingface, policy, ...), or has {step} in it:
    'hf://org/run@step_{step}' is a run of which each branch is a step, and 's3://bucket/{step}/hf' one of directories
    called by their number. Then --steps A:B means all steps in between, and a missing one is refused; without --steps,
    those that there are are listed. RUN may also be a journal, as a Recorder or `relex-codec watch` writes it.
    """
    import relex_codec
    from relex_codec.checkpoints.base_uri import place_of_base
    from relex_codec.run.info import needs_base
    from relex_codec.storage.urls import without_secrets

    if dry_run:
        _forecast(run, output, as_json, options)
        return
    size = relex_codec.encode(run, output, progress=True, **options)
    if options["shard"] is not None:
        _show_part(output, options["shard"], size, as_json)
        return
    with relex_codec.open(output) as file:
        document = file.info()
    if as_json:
        print_json(document)
        return
    steps, sizes = document["steps"], document["bytes"]
    of_adapters = all(row["origin"] == "file" for row in document["tensor_rows"])
    if needs_base(document) or of_adapters:
        given = options["base_uri"] is not None or document["base"] is None  # what the file says is for other places
        base = without_secrets(options["base"]) if given else place_of_base(document["base"], output)
        why = "the adapters are merged into it" if of_adapters else "no step can be decoded without it"
        show(f"keep the base, {why}: {base}", err=True)
    count = "1 step" if len(steps) == 1 else f"{len(steps)} steps"
    show(
        f"{output}: {count} of {document['parameters']:,} parameters in {sizes['total']:,} bytes, "
        f"{document['ratio']:,} times smaller than the run"
    )


def _show_part(output: str, shard: str, size: int, as_json: bool) -> None:
    """Say what was written of a part."""
    from relex_codec.encoding.parts import Shard

    which = Shard.parse(shard)
    name = which.name(output)
    if as_json:
        print_json({"part": name, "number": which.number, "count": which.count, "bytes": size})
        return
    show(f"{name}: part {which.number} of {which.count} in {size:,} bytes; `relex-codec merge` joins the parts")


def _forecast(run: str, output: str, as_json: bool, options: dict[str, Any]) -> None:
    """Say what encoding would take."""
    from relex_codec.core.left_out import describe
    from relex_codec.core.sizes import spell_bytes
    from relex_codec.encoding.forecast import forecast
    from relex_codec.encoding.prepare import Request

    others = {"overwrite", "work_dir", "keep_work_dir", "shard"}
    given = {name: value for name, value in options.items() if name not in others}
    found = forecast(Request(run=run, **given), output)
    left_out = [{"what": row.what, "files": row.files, "bytes": row.bytes} for row in found.left_out]
    if as_json:
        print_json({
            "steps": found.steps, "tensors": {"line": found.lines, "stored": found.held, "copies": found.copies},
            "parameters": found.parameters, "units": found.units, "bytes_to_read": found.bytes_to_read,
            "bytes_of_run": found.bytes_of_run, "bytes": found.size, "processor_seconds": found.processor_seconds,
            "seconds": found.seconds, "workers": found.workers, "memory": found.memory, "sampled": found.sampled,
            "left_out": left_out,
        })  # fmt: skip
        return
    count = "1 step" if len(found.steps) == 1 else f"{len(found.steps)} steps"
    kinds = [f"{found.lines} with a line", f"{found.held} stored as they are", f"{found.copies} copies of others"]
    show(f"{count} of {found.parameters:,} parameters; tensors: {', '.join(kinds)}")
    show(f"to read: {spell_bytes(found.bytes_to_read)}, in {found.units} units")
    share = f"from {spell_bytes(found.sampled)} of {spell_bytes(found.bytes_of_run)}"
    show(f"estimated size: {spell_bytes(found.size)} ({share})")
    hours = f"{_spelled(found.processor_seconds)} of processor time"
    show(f"estimated time: {_spelled(found.seconds)} with {found.workers} workers ({hours})")
    show(f"memory: up to {spell_bytes(found.memory)}")
    show(f"not in the file: {describe(found.left_out, len(found.steps)) or 'nothing'}")


def _spelled(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
