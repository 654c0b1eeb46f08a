"""Pickles are read without running anything in them, whatever is in them."""

from __future__ import annotations

import builtins
import os
import pickle
import random
import struct
import subprocess
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relex_codec.checkpoints import pickle_machine, unpickling
from relex_codec.checkpoints.dcp import allowed_of_metadata
from relex_codec.checkpoints.records import Global, Made, Pairs
from relex_codec.checkpoints.torch_values import allowed_of_shards, allowed_of_tensors
from relex_codec.checkpoints.unpickling import unpickle
from relex_codec.errors import CheckpointError
from support.spoiled import mutated

MARKED = "relex_codec_was_here"
"""Of what would be there if something ran."""


def read(data: bytes, **options: Any) -> Any:
    options.setdefault("allowed", lambda name: True)
    return unpickle(data, "a file", **options)[0]


def plain(value: Any) -> Any:
    """What `unpickle` returns for a value."""
    if isinstance(value, dict):
        return Pairs((plain(key), plain(item)) for key, item in value.items())
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    if isinstance(value, list):
        return list(map(plain, value))
    return value


ATOMS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(1 << 80), 1 << 80), st.floats(allow_nan=False), st.text(),
    st.binary(max_size=300),
)  # fmt: skip
VALUES = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5), st.dictionaries(st.text(max_size=5), inner, max_size=5),
        st.tuples(inner), st.tuples(inner, inner, inner, inner),
    ),
    max_leaves=20,
)  # fmt: skip


@given(VALUES, st.sampled_from([3, 4, 5]))
def test_plain_values_are_those_of_pickle(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    found, end = unpickle(data + b"more", "a file", allowed=lambda name: False)
    assert found == plain(value)
    assert end == len(data)


def test_sets_and_bytes_of_old_protocols() -> None:
    assert sorted(read(pickle.dumps({3, 1, 2}, 4))) == [1, 2, 3]
    assert sorted(read(pickle.dumps(frozenset({3, 1}), 4))) == [1, 3]
    assert read(pickle.dumps(bytearray(b"xy"), 5)) == b"xy"
    assert read(b"\x80\x02U\x03abc.") == "abc"
    assert read(b"\x80\x02T\x03\x00\x00\x00abc.") == "abc"


def test_shared_and_circular_values_stay_what_they_are() -> None:
    inner: list[Any] = [1]
    found = read(pickle.dumps([inner, inner]))
    assert found[0] is found[1]
    inner.append(inner)
    found = read(pickle.dumps(inner))
    assert found[1] is found


class Calls:
    """Something that pickle would make by calling what it is told."""

    def __init__(self, what: Any, *args: Any) -> None:
        self.what, self.args = what, args

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.what, self.args


def test_what_would_be_called_is_recorded() -> None:
    value = OrderedDict([("a", 1)])
    value.extra = 2  # type: ignore[attr-defined]  # which lies in its state
    made = read(pickle.dumps(value))
    assert type(made) is Made
    assert (made.what, made.items, made.attributes()) == (("collections", "OrderedDict"), [("a", 1)], {"extra": 2})
    made = read(pickle.dumps(Calls(os.getenv, "HOME")))
    assert (str(made.what), made.name, made.args) == ("os.getenv", "getenv", ("HOME",))


def hostile(folder: Path) -> dict[str, bytes]:
    """Pickles that would write a file if anything in them ran."""
    target = folder / MARKED
    code = f"open({str(target)!r}, 'w').close()"
    nested = Calls(getattr, Calls(builtins.__import__, "os"), "system")
    return {
        "os.system": pickle.dumps(Calls(os.system, f"touch {target}"), 2),
        "eval": pickle.dumps({"w": Calls(eval, code)}),
        "exec": pickle.dumps([Calls(exec, code)], 2),
        "subprocess": pickle.dumps(Calls(subprocess.check_output, ["touch", str(target)])),
        "getattr": pickle.dumps(Calls(Calls, nested, f"touch {target}")),
        "getattr of an import": pickle.dumps(nested),
        "import": pickle.dumps(Calls(builtins.__import__, "this")),
        "dots in a name": b"\x80\x04\x8c\x05torch\x8c\x0fserialization.os\x93.",
        "an allowed name of another module": b"cos\nOrderedDict\n.",
        "torch.load": b"ctorch\nload\n(S'/etc/passwd'\ntR.",
        "setattr on what is allowed": b"ccollections\nOrderedDict\nN}X\x08\x00\x00\x00__init__K\x01s\x86b.",
        "instances of old classes": b"(ios\nsystem\n.",
        "objects of old classes": b"(cos\nsystem\nX\x02\x00\x00\x00lso.",
        "a copyreg extension": b"\x80\x02\x82\x01.",
        "persistent names": b"Pos.system\n.",
        "out of band": b"\x80\x05\x97.",
        "protocol 9": b"\x80\x09N.",
        "constructs with names": b"\x80\x04ccollections\nOrderedDict\n)}X\x01\x00\x00\x00aK\x01s\x92.",
    }


@pytest.mark.parametrize("name", hostile(Path()))
@pytest.mark.parametrize("allowed", [allowed_of_tensors, allowed_of_shards, allowed_of_metadata])
def test_hostile_pickles_are_refused(tmp_path: Path, name: str, allowed: Any) -> None:
    with pytest.raises(CheckpointError, match="evil has a pickle that") as caught:
        unpickle(hostile(tmp_path)[name], "evil", allowed=allowed)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / MARKED).exists()


def test_nothing_runs_even_if_every_name_is_allowed(tmp_path: Path) -> None:
    for data in hostile(tmp_path).values():
        try:
            read(data)
        except CheckpointError:
            continue
    assert not (tmp_path / MARKED).exists()


SIZES = {
    "text": b"X\xff\xff\xff\x7f", "long text": b"\x8d" + b"\xff" * 8, "bytes": b"B\xff\xff\xff\xff",
    "long bytes": b"\x8e" + struct.pack("<Q", 1 << 62), "bytearray": b"\x96" + struct.pack("<Q", 1 << 40),
    "integer": b"\x8b\xff\xff\xff\x7f", "negative": b"\x8b\xff\xff\xff\xff", "old text": b"T\xff\xff\xff\xff",
}  # fmt: skip


@pytest.mark.parametrize("data", SIZES.values(), ids=SIZES)
def test_sizes_are_compared_with_what_is_there(data: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"ends early: .* bytes declared, 3 left"):
        read(data + b"xy.")


def test_containers_and_bytes_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_machine, "CONTAINERS", 10)
    assert read(b"]" * 10 + b"0" * 9 + b".") == []
    with pytest.raises(CheckpointError, match="more than 10 containers"):
        read(b"]" * 11)
    monkeypatch.setattr(unpickling, "LIMIT", 10)
    with pytest.raises(CheckpointError, match="a pickle of 11 bytes, at most 10 are read"):
        read(b"N" * 11)


@pytest.mark.parametrize(
    "data",
    [b"", b".", b"N", b"NN.", b"0.", b"t.", b"e.", b"(e.", b"Ne.", b"Nu.", b"}(Ku.", b"}K\x01s.", b"a.", b"h\x00.",
     b"]K\x01K\x02b.", b"K\x01K\x02R.", b"\x85.", b"(\x85.", b"NN\x93.", b"c", b"ca\n", b"ca\nb\nNR.", b"q\x00.",
     b"X\x01\x00\x00\x00\xff."],
)  # fmt: skip
def test_damaged_pickles(data: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"a file has a pickle that (is damaged|ends early)"):
        read(data)


def test_every_cut_and_every_change_is_an_error_or_a_value() -> None:
    chances = random.Random(2)
    whole = pickle.dumps(OrderedDict(a=[1, 2.5, "x"], b={"c": (None, True, 1 << 70)}, d={1, 2}), 4)
    for at in range(len(whole)):
        with pytest.raises(CheckpointError):
            read(whole[:at])
    messages = []
    for _ in range(3000):
        try:
            read(mutated(whole, chances))
        except CheckpointError as error:
            messages.append(str(error))
    assert len(messages) > 1000
    assert max(map(len, messages)) < 1000


def test_persistent_identifiers() -> None:
    data = b"\x80\x02K\x05Q."
    assert read(data, persistent=lambda number: number * 2) == 10

    def refuse(number: Any) -> Any:
        raise ValueError("refers to nothing")

    with pytest.raises(CheckpointError, match="a pickle that refers to nothing"):
        read(data, persistent=refuse)
    with pytest.raises(CheckpointError, match="refers to what lies outside"):
        read(data)


def test_names_are_shown_on_one_line() -> None:
    name = "a\x1b[31m" + "b" * 3000
    data = b"\x80\x04\x8c\x02os\x8d" + struct.pack("<Q", len(name)) + name.encode() + b"\x93."
    with pytest.raises(CheckpointError, match=r"names 'os\.a\\x1b") as caught:
        read(data, allowed=lambda name: False)
    assert len(str(caught.value)) < 500
    assert Global("os", "x") == ("os", "x")
