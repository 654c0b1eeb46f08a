"""``relex-codec verify``."""

from __future__ import annotations

import click

from .help import Command
from .output import (
    address_option,
    allow_pickle_option,
    as_json,
    base_option,
    engine_option,
    exclude_steps_option,
    print_json,
    show,
    steps_option,
    workers_option,
)


@click.command(
    "verify",
    cls=Command,
    examples=(
        ("Is this copy whole?", "relex-codec verify run.relex"),
        ("May the checkpoints be deleted?", "relex-codec verify run.relex --against RUN"),
    ),
    rare=("steps", "exclude_steps", "workers", "engine", "address"),
)
@click.argument("file")
@base_option
@click.option(
    "--against", metavar="RUN", help="Compare the stored steps with the checkpoints of RUN, as encode takes it."
)
@steps_option
@exclude_steps_option
@allow_pickle_option
@workers_option
@engine_option
@address_option
@as_json
def command(
    file: str,
    base: str | None,
    against: str | None,
    steps: str | None,
    exclude_steps: str | None,
    allow_pickle: bool,
    workers: int | None,
    engine: str,
    address: str | None,
    as_json: bool,
) -> int:
    """Read every byte of FILE and check it; with --base check that base as well.

    Where there is an exact tier, and the base is given or in FILE, every step is restored and checked too. FILE may
    be a journal.

    With --against, every step of FILE is compared with the checkpoint in RUN, bit for bit. What RUN holds and FILE
    does not is listed, and so is what decoding FILE needs: read that before you delete RUN. Exits 1 if anything
    differs, or if RUN has a step that FILE lacks.
    """
    import relex_codec
    from relex_codec.errors import InvalidArgument
    from relex_codec.journal.reader import is_journal

    if against is None and (steps is not None or exclude_steps is not None):
        raise click.UsageError("--steps and --exclude-steps choose what is compared, with --against RUN")
    if against is None and allow_pickle:
        raise click.UsageError("--allow-pickle is for what is compared, with --against RUN")
    if against is None and (workers is not None or engine != "auto" or address is not None):
        raise click.UsageError("--workers, --engine and --address are for what is compared, with --against RUN")
    if is_journal(file):
        if against is not None:
            raise InvalidArgument(
                f"--against is for .relex files, {file} is a journal: encode it with --exact, and compare that"
            )
        _verify_journal(file, base, as_json)
        return 0
    with relex_codec.open(file, base=base) as run:
        run.verify()
        if against is not None:
            found = run.verify_against(
                against,
                steps=steps,
                exclude_steps=exclude_steps,
                allow_pickle=allow_pickle,
                workers=workers,
                engine=engine,
                address=address,
                progress=True,
            )
            if as_json:
                print_json(found.as_document())
            else:
                for line in (*found.lines(), found.sentence()):
                    show(line)
            return 0 if found.ok else 1
        if base is not None:
            run.check_base()
        document, restored = run.info(), None
        if document["exact"] and (base is not None or document["base_embedded"]):
            restored = run.check_exact(progress=True)
    size = document["bytes"]["total"]
    if as_json:
        print_json({"file": file, "bytes": size, "base": base, "restored_steps": restored, "ok": True})
        return 0
    done = [f"all {size:,} bytes are as they were written"]
    if base is not None:
        done.append(f"{base} is its base")
    if restored is not None:
        done.append(f"all {restored} steps are restored bit for bit")
    elif document["exact"]:
        done.append("its steps were not restored, which takes --base")
    show(f"{file}: {'; '.join(done)}")
    return 0


def _verify_journal(file: str, base: str | None, as_json: bool) -> None:
    from relex_codec.run import recorded

    found = recorded.verify(file, base, progress=True)
    if as_json:
        print_json({"file": file, "base": base, **found, "ok": True})
        return
    done = [f"all {found['steps']} steps in {found['bytes']:,} bytes are as they were written"]
    if found["unfinished"]:
        done.append(f"{found['unfinished']:,} bytes are of steps that were not committed")
    if base is not None:
        done.append(f"{base} is its base")
    show(f"{file}: {'; '.join(done)}")
