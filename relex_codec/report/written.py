"""Writing results that must not replace anything unasked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from relex_codec.errors import InvalidArgument
from relex_codec.storage.condition import Condition
from relex_codec.storage.local_writer import AtomicFile
from relex_codec.storage.outputs import UploadedFile, file_exists, output_file
from relex_codec.storage.urls import without_secrets


@contextmanager
def new_files(paths: Sequence[str], overwrite: bool) -> Iterator[list[AtomicFile | UploadedFile]]:
    """Give files to be written, which appear when the context is left; none of them does if it raises.

    What cannot be written is refused on entering, before any work.

    Args:
        paths: paths or URLs.
        overwrite: replace what is there.

    Raises:
        InvalidArgument: one of them is there already, and nothing is written; or it cannot be written.
    """
    for path in paths:
        if not overwrite and file_exists(path):
            raise InvalidArgument(f"cannot write {without_secrets(path)}: it exists; -f (overwrite) replaces it")
    with ExitStack() as stack:
        outs = [output_file(path, condition=Condition(absent=not overwrite)) for path in paths]
        for out in outs:
            stack.enter_context(out)
        yield outs


def write_new(files: Mapping[str, bytes], overwrite: bool) -> None:
    """Write files, each of which appears when it is complete.

    Args:
        files: contents by path or URL.
        overwrite: replace what is there.

    Raises:
        InvalidArgument: as `new_files`.
    """
    with new_files(list(files), overwrite) as outs:
        for out, content in zip(outs, files.values(), strict=True):
            out.write(content)
