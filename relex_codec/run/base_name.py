"""What other tools call the base of a file."""

from __future__ import annotations

from relex_codec.storage.hub.paths import parse_model_url
from relex_codec.storage.urls import without_secrets

from .run_reader import RunReader


def name_of_base(reader: RunReader) -> tuple[str | None, str | None]:
    """Return name and revision of the base as the libraries of Hugging Face take them.

    Returns:
        ``org/name`` and a revision for a base on the Hub; else the reference that the file has, or None, and None.
    """
    return hub_name(reader.container.index.manifest.base_uri)


def hub_name(uri: str | None) -> tuple[str | None, str | None]:
    """Return name and revision that a reference to a base means.

    Examples:
        >>> hub_name("hf://Qwen/Qwen3-8B@abc"), hub_name("../base"), hub_name(None)
        (('Qwen/Qwen3-8B', 'abc'), ('../base', None), (None, None))
    """
    if uri is None:
        return None, None
    model = parse_model_url(uri)
    if model is None or model.below:
        return without_secrets(uri), None
    return model.repo, model.revision
