"""The examples in docstrings run and give what they say; those of public names have a small run to read."""

from __future__ import annotations

import doctest
import importlib
import shutil
from pathlib import Path

import pytest

import relex_codec
from support.example_run import write_example_run
from support.public_names import public_names
from support.shared import made_once

NEED_AN_ENGINE = {"relex_codec.integrations.vllm.client.switch", "relex_codec.integrations.vllm.client.verify"}
"""Their examples are shown, and run by tools/vllm.sh."""


def examples() -> list[doctest.DocTest]:
    """Every docstring of the package that has an example.

    Those of public names begin as a user does, with the package alone; others with the names of their module.
    """
    root = Path(relex_codec.__file__).parent
    public = {one.function.__doc__ for one in public_names()}
    found = []
    for path in sorted(root.rglob("*.py")):
        if ">>> " in path.read_text(encoding="utf-8"):
            name = ".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__")
            module = importlib.import_module(name)
            for test in doctest.DocTestFinder(exclude_empty=True).find(module, name):
                if test.docstring in public:
                    test.globs = {}
                test.globs["relex_codec"] = relex_codec
                found.append(test)
    return [test for test in found if test.examples]


def skipped(test: doctest.DocTest) -> bool:
    return any(doctest.SKIP in one.options for one in test.examples)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as the examples expect it."""
    return made_once(tmp_path_factory, "examples", write_example_run)


@pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable):UserWarning")
@pytest.mark.parametrize("example", [test for test in examples() if not skipped(test)], ids=lambda test: test.name)
def test_an_example_gives_what_it_says(
    example: doctest.DocTest, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made, tmp_path / "work")  # examples may replace files
    monkeypatch.chdir(tmp_path / "work")
    said: list[str] = []
    with relex_codec.open("run.relex") as run:
        example.globs["run"] = run
        result = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS).run(example, out=said.append)
    assert result.failed == 0, "".join(said)
    assert result.attempted == len(example.examples)


def test_only_what_needs_an_engine_is_not_run() -> None:
    assert {test.name for test in examples() if skipped(test)} == NEED_AN_ENGINE
