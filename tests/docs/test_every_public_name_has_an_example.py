"""Docstrings of public names say what goes in, what comes out and what is raised, and show it in use."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import relex_codec
from relex_codec import errors
from support.public_names import Public, public_names

RETURNS = ("Return ", "Yield ", "Tell ")
"""A summary that begins so says what is returned."""


def section(doc: str, title: str) -> str:
    """Return what stands below a heading of Google's style, without the indentation."""
    found = re.search(rf"^{title}:\n((?:(?: .*)?\n)*)", doc + "\n", re.M)
    return textwrap.dedent(found[1]) if found else ""


def parameters(one: Public) -> list[str]:
    """Return the names of what a caller gives; of a tuple or a dataclass its fields."""
    if isinstance(one.value, property):
        return []
    if not inspect.isclass(one.value):
        names = list(inspect.signature(one.function).parameters)
    elif "__init__" in vars(one.value) and not hasattr(one.value, "__dataclass_fields__"):
        names = list(inspect.signature(one.value.__init__).parameters)
    else:
        names = list(getattr(one.value, "_fields", getattr(one.value, "__dataclass_fields__", ())))
    return [name for name in names if name not in ("self", "cls", "args", "kwargs")]


def raised(one: Public) -> set[str]:
    """Return the names of the errors that a function itself raises."""
    if inspect.isclass(one.value):
        return set()
    tree = ast.parse(textwrap.dedent(inspect.getsource(one.function)))
    found = (node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise))
    return {exc.func.id for exc in found if isinstance(exc, ast.Call) and isinstance(exc.func, ast.Name)}


def lacks(one: Public) -> Iterator[str]:
    """Yield what the docstring of a public name lacks."""
    doc = one.doc
    summary = doc.partition("\n\n")[0].partition("\n")[0]
    if not summary:
        yield "a summary"
    if one.overrides:
        return  # what goes in and comes out is told by the library that calls it
    given = section(doc, "Args") + "\n" + section(doc, "Attributes")
    told = {name.strip() for line in re.findall(r"^([\w, ]+):", given, re.M) for name in line.split(",")}
    missing = [name for name in parameters(one) if name not in told]
    if missing:
        yield f"Args of {', '.join(missing)}"
    hint = None if inspect.isclass(one.value) else inspect.signature(one.function).return_annotation
    returns = hint not in (None, "None", inspect.Signature.empty) and not isinstance(one.value, property)
    if returns and not (section(doc, "Returns") or section(doc, "Yields") or summary.startswith(RETURNS)):
        yield "Returns"
    errors_told = set(re.findall(r"\w+", " ".join(re.findall(r"^(\w[\w, ]*):", section(doc, "Raises"), re.M))))
    if raised(one) - errors_told:
        yield f"Raises of {', '.join(sorted(raised(one) - errors_told))}"
    unknown = [name for name in errors_told if not (hasattr(errors, name) or hasattr(builtins, name))]
    if unknown:
        yield f"errors that exist, not {', '.join(unknown)}"
    if ">>> " not in section(doc, "Examples"):
        yield "Examples"


def test_docstrings_of_public_names_are_complete() -> None:
    found = {one.name: list(lacks(one)) for one in public_names()}
    assert len(found) > 100
    assert not [f"{name} lacks {', '.join(wrong)}" for name, wrong in found.items() if wrong]


def test_what_is_lacking_is_found() -> None:
    def tell(step: int, tier: str = "auto") -> str:
        """Say something.

        Args:
            step: a number.

        Raises:
            Corruption: never.
        """
        if step:
            raise ValueError(step)
        return tier

    assert list(lacks(Public("tell", tell))) == [
        "Args of tier", "Returns", "Raises of ValueError", "errors that exist, not Corruption", "Examples",
    ]  # fmt: skip


def test_there_is_one_dialect() -> None:
    """No heading of numpydoc, no field of reStructuredText; and no ``Example:``, which the site takes for prose."""
    numpydoc, fields = r"^ *(?:Parameters|Returns|Raises|Examples?)\n *---", r"^ *:(?:param|returns?|raises?|rtype)\b"
    other = re.compile(rf"{numpydoc}|{fields}|^ *Example:$", re.M)
    root = Path(relex_codec.__file__).parent
    found = [path for path in root.rglob("*.py") if other.search(path.read_text(encoding="utf-8"))]
    assert found == []
