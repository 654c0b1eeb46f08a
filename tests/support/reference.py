"""The scripts of spec/, which belong to no package and share no code with it: each is loaded once."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

SPEC = Path(__file__).parents[2] / "spec"


def script(name: str) -> ModuleType:
    """Return a script of spec/ as a module: ``script("reference_decoder")``."""
    module_name = f"relex_{name}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, SPEC / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        spec.loader.exec_module(module)
    return sys.modules[module_name]


ref = script("reference_decoder")
