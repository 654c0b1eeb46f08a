"""How remote files are read: what the user can set, through the environment or beside fsspec's ``storage_options``.

===============  =======================  ========  ==================================================================
key              environment              default   meaning
===============  =======================  ========  ==================================================================
retry_seconds    RELEX_RETRY_SECONDS      60        how long a read that fails for the moment is retried; 0: never
timeout          RELEX_TIMEOUT            30        seconds without a byte after which a connection counts as dead
cache            RELEX_CACHE              (none)    directory that fetched ranges are cached in; none: not cached
cache_bytes      RELEX_CACHE_BYTES        10 GiB    how large that directory may grow
===============  =======================  ========  ==================================================================

The first two hold for S3, HTTP, Google Cloud Storage, Azure and models on the Hub. Data sets on the Hub and caches of
fsspec are read through libraries that retry by themselves, for as long as they are set up to.

In Python they go under the key ``relex`` of ``storage_options``, which every function that reads takes::

    relex_codec.open("s3://bucket/run.relex", storage_options={"key": ..., "relex": {"retry_seconds": 300}})
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from relex_codec.errors import InvalidArgument

from .retry import RetryPolicy
from .urls import OWN_OPTIONS, Options


@dataclass(frozen=True, slots=True)
class StorageConfig:
    """How remote files are read; see the table above."""

    retry_seconds: float = 60.0
    timeout: float = 30.0
    cache: str | None = None
    cache_bytes: int = 10 << 30

    @property
    def retry(self) -> RetryPolicy:
        """When a failed request is made again."""
        return RetryPolicy(max_seconds=self.retry_seconds)


def split_options(options: Options) -> tuple[StorageConfig, dict[str, Any]]:
    """Return the config that holds, and the options for fsspec alone.

    What is in `options` comes before the environment.

    Raises:
        InvalidArgument: an unknown setting, or a value that is not allowed.
    """
    plain = dict(options or {})
    own = plain.pop(OWN_OPTIONS, None)
    own = {} if own is None else own
    known = [field.name for field in fields(StorageConfig)]
    if not isinstance(own, Mapping) or (unknown := [name for name in own if name not in known]):
        what = repr(own) if not isinstance(own, Mapping) else f"{unknown[0]!r}"
        raise InvalidArgument(f"storage_options[{OWN_OPTIONS!r}] has {what}, expected settings {', '.join(known)}")
    values: dict[str, Any] = {}
    for name in known:
        variable = f"RELEX_{name.upper()}"
        if name in own:
            values[name] = _value(f"storage_options[{OWN_OPTIONS!r}][{name!r}]", name, own[name])
        elif os.environ.get(variable):
            values[name] = _value(variable, name, os.environ[variable])
    return StorageConfig(**values), plain


def without_credentials(options: Options) -> Options:
    """Return only the settings of this package: what may go to a place that a file names by itself."""
    return {OWN_OPTIONS: options[OWN_OPTIONS]} if options and OWN_OPTIONS in options else None


def _value(where: str, name: str, value: Any) -> Any:
    if name == "cache":
        if value is not None and not isinstance(value, str | os.PathLike):
            raise InvalidArgument(f"{where} is {value!r}, expected a directory")
        return None if value is None else os.path.abspath(os.path.expanduser(value))
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    least = 0 if name != "timeout" else 1e-3
    if not least <= number < math.inf or isinstance(value, bool):
        raise InvalidArgument(f"{where} is {value!r}, expected a number of {'bytes' if 'bytes' in name else 'seconds'}")
    return int(number) if name == "cache_bytes" else number
