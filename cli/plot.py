"""``relex-codec plot``."""

from __future__ import annotations

import click

from .help import Command
from .output import as_json, base_option, print_json, show


@click.command(
    "plot",
    cls=Command,
    examples=(
        ("Everything there is to see", "relex-codec plot run.relex -o run.png"),
        ("One tensor, as vectors", "relex-codec plot run.relex -o embedding.svg --tensor model.embed_tokens.weight"),
    ),
    rare=("width", "dpi"),
)
@click.argument("file")
@click.option("-o", "--output", required=True, metavar="PICTURE", help="NAME.png, NAME.svg or NAME.pdf, path or URL.")
@click.option("-f", "--force", "overwrite", is_flag=True, help="Replace PICTURE if it exists.")
@click.option("--tensor", metavar="NAME", help="Draw the coefficients of this tensor.")
@click.option(
    "--what",
    multiple=True,
    type=click.Choice(["coefficients", "errors", "variance", "movement", "scores"]),
    help="A panel; may be given several times.  [default: all that there are]",
)
@click.option("--width", type=click.FloatRange(2, 60), metavar="INCHES", help="How wide.  [default: by the panels]")
@click.option("--dpi", type=click.IntRange(40, 1200), default=150, show_default=True, help="Of a PNG.")
@base_option
@as_json
def command(
    file: str,
    output: str,
    overwrite: bool,
    tensor: str | None,
    what: tuple[str, ...],
    width: float | None,
    dpi: int,
    base: str | None,
    as_json: bool,
) -> None:
    """Draw FILE: coefficients and lines over the steps, errors, what moved where, and scores where there are some.

    Where the best step of the line is expected is coloured; the base is read for that if FILE has no norms. The numbers
    are written beside the picture, as NAME.npz.
    """
    import relex_codec
    from relex_codec.errors import InvalidArgument
    from relex_codec.report.numbers import collect
    from relex_codec.report.plots import FORMATS, picture
    from relex_codec.report.written import new_files
    from relex_codec.storage.urls import without_secrets

    stem, _, form = output.rpartition(".")
    if not stem or form not in FORMATS:
        raise InvalidArgument(f"{without_secrets(output)} is no name of a picture: it ends in .png, .svg or .pdf")
    table = f"{stem}.npz"
    with relex_codec.open(file, base=base) as run, new_files([output, table], overwrite) as outs:
        numbers = collect(run)
        name = without_secrets(file).rpartition("/")[2]
        drawn = picture(
            numbers, form, what, tensor, width=width or 0.0, title="" if tensor or len(what) == 1 else name, dpi=dpi
        )
        for out, content in zip(outs, (drawn, numbers.as_npz()), strict=True):
            out.write(content)
    for reason in numbers.missing:
        show(f"note: not in the picture: {reason}", err=True)
    if as_json:
        print_json({"file": file, "output": output, "numbers": table, "missing": numbers.missing})
        return
    show(f"{output}: {len(drawn):,} bytes; numbers in {table}")
