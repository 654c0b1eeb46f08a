"""The safetensors header: what is accepted equals what the library accepts, and nothing else is ever raised."""

from __future__ import annotations

import json
import random
import struct
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize, safe_open

from relex_codec.core.text import quote
from relex_codec.errors import CheckpointError, Corrupt, RelexError, Truncated
from relex_codec.format.safetensors_header import LIMIT, Entry, build, header_length, load_object, parse
from support.checkpoints import safetensors_bytes
from support.tensors import WIDTH, random_bits

QUICK = settings(max_examples=150, suppress_health_check=list(HealthCheck))


def split(data: bytes) -> tuple[bytes, int]:
    """Return the header and the file's length, as a reader gets them."""
    length = header_length(data[:8], len(data), error=Corrupt, where="x")
    return data[8 : 8 + length], len(data)


def read(data: bytes) -> tuple[dict[str, str], list[Entry]]:
    return parse(*split(data), error=Corrupt, where="x")


def with_header(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def reads(dtype: str, bits: int) -> bool:
    """Whether the library reads a tensor of 8 elements of so many bits."""
    try:
        deserialize(with_header({"a": tensor(dtype, [8], [0, bits])}, bytes(bits)))
    except SafetensorError:
        return False
    return True


KNOWN = [dtype for dtype in WIDTH if reads(dtype, 8 * WIDTH[dtype])]
"""The dtypes that this release of the library has: 0.4 lacks some."""


def test_the_library_has_every_dtype():
    if reads("F4", 4):  # the youngest
        assert list(WIDTH) == KNOWN
    assert set(WIDTH) - set(KNOWN) <= {"C64", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"}


def test_every_dtype_and_shape_that_the_library_reads():
    shapes = [(), (0,), (3,), (2, 0, 4), (2, 3), (1, 2, 1, 2)]
    tensors = {f"{dtype}{list(s)}": random_bits(dtype, s, 1) for dtype in KNOWN for s in shapes}
    data = safetensors_bytes(tensors, {"format": "pt"})
    metadata, entries = read(data)
    assert metadata == {"format": "pt"}
    assert [entry.name for entry in entries] == list(tensors)  # empty ones keep the header's order
    library = dict(deserialize(data))
    assert len(library) == len(entries)
    for entry in entries:
        assert entry.dtype == library[entry.name]["dtype"]
        assert list(entry.shape) == library[entry.name]["shape"]
        assert data[entry.begin : entry.end] == bytes(library[entry.name]["data"])


@pytest.mark.parametrize("tail", [b"", b" ", b" " * 13, b"\n\t\r "])
def test_padding_and_absent_metadata(tail):
    data = with_header(json.dumps({"a": tensor()}).encode() + tail, bytes(8))
    deserialize(data)
    metadata, [entry] = read(data)
    assert metadata == {}
    assert entry == Entry("a", "F32", (2,), len(data) - 8, len(data))


def test_null_metadata_no_tensors_and_further_fields():
    for data in (with_header({"__metadata__": None}), with_header({}), with_header(b"{}" + b" " * 6)):
        deserialize(data)
        assert read(data) == ({}, [])
    data = with_header({"a": {**tensor(), "note": [1, {"b": None}]}}, bytes(8))
    deserialize(data)
    assert len(read(data)[1]) == 1


BROKEN = {
    "not JSON": b"{",
    "empty": b"",
    "an array": b"[]",
    "not UTF-8": b'{"\xff": 1}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf{}",
    "nested": b"[" * 100_000,
    "nested objects": b'{"a":' * 100_000,
    "many digits": b'{"a": ' + b"9" * 5000 + b"}",
    "twice": b'{"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}, "a": 1}',
    "field twice": b'{"a": {"dtype": "U8", "dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}',
    "NaN": b'{"a": NaN}',
    "surrogate": b'{"\\ud800": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}',
    "surrogate in metadata": b'{"__metadata__": {"a": "\\udfff"}}',
    "metadata of numbers": {"__metadata__": {"a": 1}},
    "metadata a list": {"__metadata__": []},
    "tensor a list": {"a": []},
    "tensor null": {"a": None},
    "no dtype": {"a": {"shape": [0], "data_offsets": [0, 0]}},
    "no offsets": {"a": {"shape": [0], "dtype": "U8"}},
    "dtype unknown": {"a": tensor("F128")},
    "dtype a list": {"a": tensor(["F32"])},
    "shape null": {"a": tensor(shape=None)},
    "shape negative": {"a": tensor(shape=[-2], offsets=[0, 8])},
    "shape of floats": {"a": tensor(shape=[2.0])},
    "shape of minus zero": b'{"a": {"dtype": "U8", "shape": [-0], "data_offsets": [0, 0]}}',
    "shape of booleans": {"a": tensor(shape=[True, 2])},
    "shape huge": {"a": tensor(shape=[1 << 62, 1 << 62])},
    "shape huge but empty": {"a": tensor(shape=[1 << 62, 1 << 62, 0], offsets=[0, 0])},
    "many dimensions": {"a": tensor(shape=[1] * 65, offsets=[0, 4])},
    "offsets one": {"a": tensor(offsets=[0])},
    "offsets three": {"a": tensor(offsets=[0, 8, 8])},
    "offsets of booleans": {"a": tensor("U8", [1], [False, True])},
    "offsets backwards": {"a": tensor(offsets=[8, 0])},
    "offsets huge": {"a": tensor("U8", [0], [10**4299, 10**4299])},
    "offsets do not fit": {"a": tensor(offsets=[0, 4])},
    "hole at the start": {"a": tensor(offsets=[4, 12])},
    "hole": {"a": tensor(), "b": tensor(offsets=[12, 20])},
    "overlap": {"a": tensor(), "b": tensor(offsets=[4, 12])},
    "the same twice": {"a": tensor(), "b": tensor()},
}


@pytest.mark.parametrize("header", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("error", [Corrupt, CheckpointError])
def test_violations_are_one_error_of_one_line(header, error):
    raw, size = split(with_header(header, bytes(64)))
    with pytest.raises(error) as caught:
        parse(raw, size, error=error, where="file.relex")
    assert "file.relex" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(("dtype", "size"), [("F4", 4), ("F6_E2M3", 6), ("F6_E3M2", 6)])
def test_dtypes_that_are_not_supported_are_named(dtype, size):
    data = with_header({"w.4bit": tensor(dtype, [8], [0, size])}, bytes(size))
    if reads("F4", 4):
        deserialize(data)
    with pytest.raises(CheckpointError, match=rf"'w\.4bit'.*'{dtype}'"):
        parse(*split(data), error=CheckpointError, where="x")


def test_lengths():
    data = safetensors_bytes({"a": random_bits("F32", (5,)), "b": random_bits("U8", (3,))})
    for size in range(len(data)):
        with pytest.raises(Truncated):
            read(data[:size])
    with pytest.raises(Corrupt, match="extra bytes"):
        read(data + b"\0")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    with pytest.raises(Corrupt, match=r"x is a git-LFS pointer.*git lfs pull"):
        header_length(pointer, len(pointer), error=Corrupt, where="x")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        header_length(b"\xff" * 8, 1 << 62, error=CheckpointError, where="x")
    with pytest.raises(Corrupt):
        header_length(struct.pack("<Q", 101), 1000, limit=100, error=Corrupt, where="x")
    assert header_length(struct.pack("<Q", LIMIT), LIMIT + 8, error=Corrupt, where="x") == LIMIT


SIZES = st.one_of(st.integers(0, 4), st.sampled_from([-1, 2**31, 2**63, 2**64, 1.0, True, None, "1"]))
FIELDS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["U8", "BF16", "F32", "F4", "F64", "f32", "X", 1]),
        "shape": st.one_of(st.lists(SIZES, max_size=3), st.none()),
        "data_offsets": st.lists(st.one_of(st.integers(0, 16), SIZES), max_size=3),
    }
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 99), st.floats(), st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=6,
)
HEADERS = st.one_of(
    st.dictionaries(st.sampled_from(["a", "b", "c", "", "é", "__metadata__"]), st.one_of(FIELDS, JSON), max_size=3),
    JSON,
)


def agrees(data: bytes) -> bool:
    """Check that we and the library take the same view of `data`, and return whether it is accepted."""
    try:
        library = {name: (t["dtype"], tuple(t["shape"]), bytes(t["data"])) for name, t in deserialize(data)}
    except SafetensorError:
        library = None
    try:
        ours = {e.name: (e.dtype, e.shape, data[e.begin : e.end]) for e in read(data)[1]}
    except RelexError:
        ours = None
    if ours is not None:
        assert ours == library
    elif library is not None:
        assert any(t[0] not in WIDTH for t in library.values())  # the only other difference is duplicate keys
    return ours is not None


@QUICK
@given(HEADERS, st.integers(0, 24))
def test_agrees_with_the_library_on_odd_headers(header, size):
    agrees(with_header(header, bytes(size)))


@QUICK
@given(st.integers(0, 2**32), st.integers(1, 3))
def test_agrees_with_the_library_on_damaged_files(seed, count):
    data = bytearray(safetensors_bytes({"a": random_bits("BF16", (2, 3)), "b": random_bits("U8", ())}, {"k": "v"}))
    rng = random.Random(seed)
    for _ in range(count):
        data[rng.randrange(len(data))] = (
            rng.choice(b'\0"{}[],:019 .-eaU8') if rng.random() < 0.8 else rng.randrange(256)
        )
    agrees(bytes(data))


@QUICK
@given(st.binary(max_size=60))
def test_any_bytes_raise_only_what_is_asked_for(raw):
    for attempt in (
        lambda: read(raw),
        lambda: parse(raw, 8 + len(raw), error=Corrupt, where="x"),
        lambda: load_object(raw, error=Corrupt, where="x"),
    ):
        with suppress(Corrupt, Truncated):
            attempt()


@QUICK
@given(
    st.lists(
        st.tuples(st.text(max_size=6).filter(lambda t: t != "__metadata__"), st.sampled_from(sorted(KNOWN)),
                  st.lists(st.integers(0, 3), max_size=3)), max_size=5, unique_by=lambda t: t[0],
    ),
    st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=2),
)  # fmt: skip
def test_what_is_built_is_read_back_by_both(tensors, metadata):
    entries = []
    for name, dtype, shape in tensors:
        size = WIDTH[dtype]
        for n in shape:
            size *= n
        entries.append((name, dtype, shape, size))
    head = build(entries, metadata)
    assert len(head) % 8 == 0
    data = head + bytes(sum(e[3] for e in entries))
    assert agrees(data)
    found_metadata, found = read(data)
    assert found_metadata == metadata
    assert sorted((e.name, e.dtype, list(e.shape), e.end - e.begin) for e in found) == sorted(entries)
    order = [e.name for e in found if e.end > e.begin]
    assert order == [e[0] for e in entries if e[3]]


def test_built_order_is_the_order_of_data_and_the_file_opens(tmp_path):
    head = build([("z", "U8", [3], 3), ("a", "F64", [], 8)], {"format": "relex"})
    path = tmp_path / "run.relex"
    path.write_bytes(head + b"xyz" + struct.pack("<d", 1.5))
    with safe_open(str(path), "np") as file:
        assert file.metadata() == {"format": "relex"}
        assert file.get_tensor("a") == 1.5
        assert bytes(file.get_tensor("z")) == b"xyz"


def test_build_refuses_mistakes():
    with pytest.raises(ValueError, match="two entries"):
        build([("a", "U8", [1], 1), ("a", "U8", [1], 1)], {})
    with pytest.raises(ValueError, match="two entries"):
        build([("__metadata__", "U8", [1], 1)], {})
    with pytest.raises(ValueError, match="has 2 bytes"):
        build([("a", "U8", [1], 2)], {})


def test_quote_is_one_short_line():
    assert quote("model.norm.weight") == "'model.norm.weight'"
    assert "\n" not in quote("a\nb")
    assert len(quote("x" * 10_000)) < 130
