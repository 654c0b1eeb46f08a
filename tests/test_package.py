"""What is installed: public names, no stray packages, light imports."""

from __future__ import annotations

import importlib.metadata
import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import relex_codec
from support.commands import ELSEWHERE, failed

REPOSITORY = Path(__file__).parent.parent


def test_public_names() -> None:
    assert sorted(relex_codec.__all__) == [
        "BaseMismatch",
        "CheckpointError",
        "Coefficients",
        "Corrupt",
        "InvalidArgument",
        "Recorder",
        "RelexError",
        "RelexStorageReader",
        "Resident",
        "Run",
        "Truncated",
        "Trust",
        "Unsupported",
        "__version__",
        "append",
        "encode",
        "load_model",
        "load_tokenizer",
        "merge",
        "open",
        "safe_open",
    ]
    assert dir(relex_codec) == sorted(relex_codec.__all__)
    assert all(hasattr(relex_codec, name) for name in relex_codec.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        relex_codec.nothing  # noqa: B018 (which is the test)


EMPTY = inspect.Parameter.empty
AS_ELSEWHERE = {"safe_open": ["framework", "device"]}
"""Optional arguments that may come by position, because those of the function of the same name in safetensors do."""


def public_callables() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Public functions, classes and their public methods; what a base class of another library defines is its own."""
    for name in relex_codec.__all__:
        value = getattr(relex_codec, name)
        if (isinstance(value, type) and issubclass(value, Exception)) or not callable(value):
            continue
        yield name, value
        for attribute in dir(value) if isinstance(value, type) else ():
            method = getattr(value, attribute)
            inherited = any(hasattr(base, attribute) for base in value.__mro__[1:] if "relex" not in base.__module__)
            if not (attribute.startswith("_") or inherited) and callable(method):
                yield f"{name}.{attribute}", method


def test_what_is_optional_is_keyword_only() -> None:
    checked = 0
    for name, value in public_callables():
        optional = [p for p in inspect.signature(value).parameters.values() if p.default is not EMPTY]
        by_position = [p.name for p in optional if p.kind is not p.KEYWORD_ONLY]
        assert by_position == AS_ELSEWHERE.get(name, []), name
        checked += len(optional)
    assert checked > 50


def test_a_mode_is_no_base() -> None:
    with pytest.raises(TypeError, match="positional"):
        relex_codec.open("run.relex", "r")  # type: ignore[misc]


def test_python_m() -> None:
    def ran(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "relex_codec", *arguments], capture_output=True, text=True, cwd=ELSEWHERE
        )

    assert ran("--version").stdout.strip() == f"relex-codec, version {relex_codec.__version__}"
    assert "Usage: python -m relex_codec" in ran("--help").stdout
    failed(ran("info", "missing.relex"), "does not exist")
    assert ran("info").returncode == 2


def installed_files() -> list[str]:
    files = importlib.metadata.distribution("relex-codec").files or []
    return [str(file) for file in files]


@pytest.mark.skipif(
    any("editable" in name for name in installed_files()), reason="installed in editable mode, not from the wheel"
)
def test_the_wheel_brings_one_package() -> None:
    tops = {name.split("/")[0] for name in installed_files() if not name.startswith("..")}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"relex_codec"}
    assert "relex_codec/cli/main.py" in installed_files()
    assert "relex_codec/py.typed" in installed_files()
    assert any(name.startswith("relex_codec/demo/base/") for name in installed_files())
    assert REPOSITORY not in Path(relex_codec.__file__).parents or ".venv" in relex_codec.__file__


def test_version_agrees() -> None:
    assert importlib.metadata.version("relex-codec") == relex_codec.__version__
    assert f"## [{relex_codec.__version__}]" in (REPOSITORY / "CHANGELOG.md").read_text()


def test_import_is_light() -> None:
    heavy = "{'torch', 'transformers', 'huggingface_hub', 'numba', 'triton', 'fsspec'}"
    code = f"import relex_codec, relex_codec.cli.main, sys; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ELSEWHERE)
    assert done.stdout.strip() == "[]"
