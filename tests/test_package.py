"""What is installed: public names, no stray packages, light imports."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import relex_codec
from support.commands import ELSEWHERE

REPOSITORY = Path(__file__).parent.parent


def test_public_names() -> None:
    assert sorted(relex_codec.__all__) == [
        "BaseMismatch",
        "CheckpointError",
        "Corrupt",
        "InvalidArgument",
        "RelexError",
        "RelexStorageReader",
        "Run",
        "Truncated",
        "Unsupported",
        "__version__",
        "append",
        "encode",
        "load_model",
        "load_tokenizer",
        "open",
        "safe_open",
    ]
    assert all(hasattr(relex_codec, name) for name in relex_codec.__all__)
    assert set(relex_codec.__all__) <= set(dir(relex_codec))
    with pytest.raises(AttributeError, match="nothing"):
        relex_codec.nothing  # noqa: B018 (which is the test)


def test_errors_have_one_root() -> None:
    kinds = [getattr(relex_codec, name) for name in relex_codec.__all__]
    errors = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(errors) == 7
    assert all(issubclass(kind, relex_codec.RelexError) for kind in errors)


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
