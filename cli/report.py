"""``relex-codec report``."""

from __future__ import annotations

import click

from .help import Command
from .output import as_json, base_option, print_json, show


@click.command(
    "report",
    cls=Command,
    examples=(("A page to send to somebody", "relex-codec report run.relex -o report.html"),),
)
@click.argument("file")
@click.option("-o", "--output", required=True, metavar="PAGE", help="NAME.html, path or URL.")
@click.option("-f", "--force", "overwrite", is_flag=True, help="Replace PAGE if it exists.")
@click.option("--title", metavar="TEXT", help="What stands above the page.  [default: the name of FILE]")
@base_option
@as_json
def command(file: str, output: str, overwrite: bool, title: str | None, base: str | None, as_json: bool) -> None:
    """Write one page about FILE: summary, charts to hover over, how far to believe the line, tensors, sizes, commands.

    The page is a single file that needs no network. Where the best step of the line is expected is coloured; the base
    is read for that if FILE has no norms.
    """
    import relex_codec
    from relex_codec.errors import InvalidArgument
    from relex_codec.report.numbers import collect
    from relex_codec.report.page import page, require_bokeh
    from relex_codec.report.written import new_files
    from relex_codec.storage.urls import without_secrets

    if not output.lower().endswith((".html", ".htm")):
        raise InvalidArgument(f"{without_secrets(output)} is no name of a page: it ends in .html")
    require_bokeh()
    with relex_codec.open(file, base=base) as run, new_files([output], overwrite) as (out,):
        numbers = collect(run)
        written = page(numbers, title or without_secrets(file).rpartition("/")[2]).encode()
        out.write(written)
    for reason in numbers.missing:
        show(f"note: not in the page: {reason}", err=True)
    if as_json:
        print_json({"file": file, "output": output, "bytes": len(written), "missing": numbers.missing})
        return
    show(f"{output}: {len(written):,} bytes")
