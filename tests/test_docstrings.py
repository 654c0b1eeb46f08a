"""The examples in docstrings run and give what they say; those of public names have a small run to read."""

from __future__ import annotations

import doctest
import importlib
import shutil
from pathlib import Path

import numpy as np
import pytest

import relex_codec
from support.checkpoints import write_checkpoint, write_run
from support.tensors import bf16

HAVE_EXAMPLES = {"Coefficients", "Run", "Trust", "append", "encode", "open", "safe_open"}


def examples() -> list[doctest.DocTest]:
    """Every docstring of the package that has an example."""
    root = Path(relex_codec.__file__).parent
    found = []
    for path in sorted(root.rglob("*.py")):
        if ">>> " in path.read_text(encoding="utf-8"):
            name = ".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__")
            module = importlib.import_module(name)
            found += doctest.DocTestFinder(exclude_empty=True).find(
                module, name, extraglobs={"relex_codec": relex_codec}
            )
    return [test for test in found if test.examples]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as the examples expect it: ``base/``, ``ckpts/`` of steps 10 to 50, ``run.relex`` of those to 40."""
    root = tmp_path_factory.mktemp("examples")
    rng = np.random.default_rng(0)
    start = {"model.embed_tokens.weight": rng.standard_normal((24, 32)), "model.norm.weight": np.ones(32)}
    drift = {name: rng.standard_normal(value.shape) for name, value in start.items()}

    def at(step: int) -> dict[str, tuple[str, np.ndarray]]:
        return {name: bf16(value + 0.002 * step * drift[name]) for name, value in start.items()}

    write_checkpoint(root / "base", at(0))
    write_run(root / "ckpts", [10, 20, 30, 40, 50], at)
    relex_codec.encode(root / "ckpts", root / "run.relex", base=root / "base", steps="10:40", exact=True)
    return root


@pytest.mark.parametrize("example", examples(), ids=lambda test: test.name)
def test_an_example_gives_what_it_says(
    example: doctest.DocTest, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made, tmp_path / "work")  # examples may replace files
    monkeypatch.chdir(tmp_path / "work")
    said: list[str] = []
    with relex_codec.open("run.relex") as run:
        example.globs["run"] = run
        result = doctest.DocTestRunner(verbose=False).run(example, out=said.append)
    assert result.failed == 0, "".join(said)
    assert result.attempted == len(example.examples)


def test_what_needs_an_example_has_one() -> None:
    assert {part for test in examples() for part in test.name.split(".")} >= HAVE_EXAMPLES
