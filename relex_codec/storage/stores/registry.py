"""Which store reads a file."""

from __future__ import annotations

from typing import Any

from relex_codec.storage.config import StorageConfig

from .azure import AzureStore, is_supported_adlfs
from .base import ObjectStore, protocols
from .fsspec_store import FsspecStore
from .gcs import GCSStore, is_supported_gcsfs
from .http import HTTPStore
from .hub import HubStore, model_of
from .s3 import S3Store


def store_for(filesystem: Any, name: str, config: StorageConfig) -> ObjectStore:
    """Return what reads `name` on `filesystem`."""
    names = protocols(filesystem)
    if "s3" in names and hasattr(filesystem, "_call_s3"):
        return S3Store(filesystem, name, config)
    if "https" in names and hasattr(filesystem, "encode_url"):
        return HTTPStore(filesystem, name, config)
    if "gs" in names and is_supported_gcsfs(filesystem):
        return GCSStore(filesystem, name, config)
    if "abfs" in names and is_supported_adlfs(filesystem):
        return AzureStore(filesystem, name, config)
    model = model_of(filesystem, name)
    if model is not None:
        return HubStore(filesystem, name, config, model)
    return FsspecStore(filesystem, name, config)
