"""What vLLM looks at when an engine starts, in a process that has loaded llvmlite."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from relex_codec.integrations.vllm.beside_llvmlite import mend, plain_library

ffi = pytest.importorskip("llvmlite.binding.ffi")


def test_the_librarys_attributes_are_a_dict_while_it_lasts() -> None:
    assert not isinstance(vars(ffi.lib), dict)  # or there is nothing left to mend
    with plain_library():
        assert vars(ffi.lib).get("kernel") is None
    assert not isinstance(vars(ffi.lib), dict)
    assert isinstance(ffi.lib.LLVMPY_GetVersionInfo(), int)  # and it works as before


def test_without_llvmlite_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "llvmlite.binding.ffi")
    with plain_library():
        assert "llvmlite.binding.ffi" not in sys.modules


def test_vllm_is_given_that(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def register_kernels(overrides: Any) -> None:
        """As vLLM 0.32 looks for kernels."""
        vars(ffi.lib).get("kernel")
        asked.append(overrides)

    package, dispatcher = ModuleType("vllm.triton_utils"), ModuleType("vllm.triton_utils.dispatcher")
    for name, module in (
        ("vllm", ModuleType("vllm")),
        ("vllm.triton_utils", package),
        (dispatcher.__name__, dispatcher),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    package.dispatcher = dispatcher  # type: ignore[attr-defined]
    mend()  # a version without it
    assert not hasattr(dispatcher, "register_kernels")
    dispatcher.register_kernels = register_kernels  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="'get'"):
        register_kernels({})
    mend()
    dispatcher.register_kernels({"a": 1})
    assert asked == [{"a": 1}]
