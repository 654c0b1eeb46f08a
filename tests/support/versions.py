"""Releases of libraries, for tests of what older ones lack."""

from __future__ import annotations

from importlib.metadata import version


def release(name: str) -> tuple[int, int]:
    """Return the first two numbers of the release that is installed."""
    first, second = version(name).split(".")[:2]
    return int(first), int(second)


FSSPEC = release("fsspec")
NUMPY = release("numpy")
TRANSFORMERS = release("transformers")
DTYPE = "dtype" if TRANSFORMERS >= (4, 56) else "torch_dtype"
"""What `from_pretrained` of transformers calls the dtype."""
