"""``relex-codec verify``."""

from __future__ import annotations

import click

from .output import as_json, base_option, print_json


@click.command("verify")
@click.argument("file")
@base_option
@as_json
def command(file: str, base: str | None, as_json: bool) -> None:
    """Read every byte of FILE and check it; with --base check that base as well."""
    import relex_codec

    with relex_codec.open(file, base=base) as run:
        run.verify()
        if base is not None:
            run.check_base()
        size = run.container.source.size
    if as_json:
        print_json({"file": file, "bytes": size, "base": base, "ok": True})
        return
    click.echo(f"{file}: all {size:,} bytes are as they were written" + (f"; {base} is its base" if base else ""))
