"""Every public name: those on the page of the API, and the methods and properties of their classes."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]


class Public(NamedTuple):
    """A public name.

    Attributes:
        name: as users write it.
        value: a class, a function or a property.
        overrides: whether another library says what it does and calls it, as methods of ``StorageReader``.
    """

    name: str
    value: Any
    overrides: bool = False

    @property
    def function(self) -> Any:
        """The function that has docstring and signature; of a class the class."""
        found = self.value.fget if isinstance(self.value, property) else self.value
        return getattr(found, "__func__", found)

    @property
    def doc(self) -> str:
        """Its own docstring, without the indentation; nothing that is inherited."""
        return inspect.cleandoc(self.function.__doc__ or "")


def site_sources() -> ModuleType:
    """Return ``tools/site.py``, which has the list."""
    spec = importlib.util.spec_from_file_location("site_sources", REPOSITORY / "tools" / "site.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def public_names() -> Iterator[Public]:
    """Yield every public name, methods and properties after their class."""
    for name in (f"relex_codec.{one}" for names in site_sources().API.values() for one in names):
        module, _, last = name.rpartition(".")
        value = getattr(importlib.import_module(module), last)
        yield Public(name, value)
        if inspect.isclass(value):
            yield from _members(name, value)


def _members(name: str, kind: type) -> Iterator[Public]:
    ours = [one for one in kind.__mro__ if one.__module__.startswith("relex_codec.")]
    others = [one for one in kind.__mro__ if one not in ours]
    for member in sorted({member for one in ours for member in vars(one) if not member.startswith("_")}):
        value = next(vars(one)[member] for one in ours if member in vars(one))
        if inspect.isfunction(value) or isinstance(value, property | classmethod | staticmethod):
            yield Public(f"{name}.{member}", value, any(member in vars(one) for one in others))
