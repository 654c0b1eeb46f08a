"""``relex-codec verify``."""

from __future__ import annotations

import click

from .output import as_json, base_option, print_json, show


@click.command("verify")
@click.argument("file")
@base_option
@as_json
def command(file: str, base: str | None, as_json: bool) -> None:
    """Read every byte of FILE and check it; with --base check that base as well.

    Where there is an exact tier, and the base is given or in FILE, every step is restored and checked too. FILE may
    be a journal.
    """
    import relex_codec
    from relex_codec.journal.reader import is_journal

    if is_journal(file):
        _verify_journal(file, base, as_json)
        return
    with relex_codec.open(file, base=base) as run:
        run.verify()
        if base is not None:
            run.check_base()
        document, restored = run.info(), None
        if document["exact"] and (base is not None or document["base_embedded"]):
            restored = run.check_exact(progress=True)
    size = document["bytes"]["total"]
    if as_json:
        print_json({"file": file, "bytes": size, "base": base, "restored_steps": restored, "ok": True})
        return
    done = [f"all {size:,} bytes are as they were written"]
    if base is not None:
        done.append(f"{base} is its base")
    if restored is not None:
        done.append(f"all {restored} steps are restored bit for bit")
    elif document["exact"]:
        done.append("its steps were not restored, which takes --base")
    show(f"{file}: {'; '.join(done)}")


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
