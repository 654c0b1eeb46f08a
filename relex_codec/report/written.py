"""Writing results that must not replace anything unasked."""

from __future__ import annotations

from collections.abc import Mapping

from relex_codec.errors import InvalidArgument
from relex_codec.storage.condition import Condition
from relex_codec.storage.outputs import file_exists, output_file
from relex_codec.storage.urls import without_secrets


def write_new(files: Mapping[str, bytes], overwrite: bool) -> None:
    """Write files, each of which appears when it is complete.

    Args:
        files: contents by path or URL.
        overwrite: replace what is there.

    Raises:
        InvalidArgument: one of them is there already, and nothing is written; or it cannot be written.
    """
    for path in files:
        if not overwrite and file_exists(path):
            raise InvalidArgument(f"cannot write {without_secrets(path)}: it exists; -f (overwrite) replaces it")
    for path, content in files.items():
        with output_file(path, condition=Condition(absent=not overwrite)) as out:
            out.write(content)
