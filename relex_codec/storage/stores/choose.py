"""Single requests to storage: one attempt each, with what the answer tells of the object (see remote.py for the rest).

S3, HTTP, Google Cloud Storage and Azure are asked through the connections of s3fs, of fsspec's HTTP filesystem, of
gcsfs and of adlfs, models on the Hub through the session of huggingface_hub (see hub/client.py), but without their
``cat_ranges``: that gives bytes only, while an answer also tells size and version of the object and can be made to
depend on them. So opening needs no request for metadata, and an object that was replaced is noticed. All other
filesystems are read through their ``cat_ranges`` and looked at before and after.
"""

from __future__ import annotations

from typing import Any

from relex_codec.storage.config import Settings

from .azure import AzureStore, speaks_azure
from .base import ObjectStore, protocols
from .fsspec_store import FsspecStore
from .gcs import GCSStore, speaks_gcs
from .http import HTTPStore
from .hub import HubStore, model_of
from .s3 import S3Store


def store_of(filesystem: Any, name: str, settings: Settings) -> ObjectStore:
    """Return what reads `name` on `filesystem`."""
    names = protocols(filesystem)
    if "s3" in names and hasattr(filesystem, "_call_s3"):
        return S3Store(filesystem, name, settings)
    if "https" in names and hasattr(filesystem, "encode_url"):
        return HTTPStore(filesystem, name, settings)
    if "gs" in names and speaks_gcs(filesystem):
        return GCSStore(filesystem, name, settings)
    if "abfs" in names and speaks_azure(filesystem):
        return AzureStore(filesystem, name, settings)
    model = model_of(filesystem, name)
    if model is not None:
        return HubStore(filesystem, name, settings, model)
    return FsspecStore(filesystem, name, settings)
