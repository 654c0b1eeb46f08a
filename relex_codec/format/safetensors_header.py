"""The header of a safetensors file, read and written by ourselves.

The safetensors library opens local files only and writes tensors sorted by dtype and name; we read headers through
ranged reads and lay data out in the order in which a reader wants them. `parse` accepts what the library accepts, apart
from duplicate keys (the library silently keeps the last one) and dtypes whose elements are not whole bytes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from relex_codec.core.dtypes import ITEMSIZE
from relex_codec.core.text import quote
from relex_codec.errors import RelexError, Truncated

WORD: Final = 8
"""Bytes of the length word before the header."""
LIMIT: Final = 100_000_000
"""The longest header that the safetensors library reads."""
LFS_POINTER: Final = b"version https://git-lfs"
"""Begins what git leaves in place of a large file that was not fetched."""
DIMENSIONS_LIMIT: Final = 64
ELEMENTS_LIMIT: Final = (1 << 48) - 1
"""FORMAT.md section 11; also what numpy can shape."""
METADATA: Final = "__metadata__"
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a safetensors file; `begin` and `end` are absolute positions in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def load_object(raw: bytes, *, error: type[RelexError], where: str, exact: bool = False) -> dict[str, Any]:
    """Parse strict JSON (UTF-8, an object, no duplicate keys, no NaN); raise only `error`, whatever the bytes.

    Args:
        error: raised for any violation.
        where: what it is, for messages.
        exact: the rules at the head of FORMAT.md hold as well: they leave no text that two parsers read differently.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = dict(pairs)
        if len(keys) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise ValueError(f"key {quote(twice)} occurs twice")
        return keys

    def constant(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    def integer(digits: str) -> int | float:
        if exact and not math.isfinite(float(digits)):
            raise ValueError(f"{quote(digits)} exceeds f64")
        return -0.0 if digits == "-0" else int(digits)  # -0 is no size; the library takes it for a float as well

    def real(digits: str) -> float:
        if exact and not math.isfinite(float(digits)):
            raise ValueError(f"{quote(digits)} exceeds f64")
        return float(digits)

    if exact and not (raw.startswith(b"{") and raw.rstrip(b" ").endswith(b"}")):
        raise error(f"{where} is not a JSON object with nothing but spaces after it")
    try:
        value = json.loads(
            str(raw, "utf-8"), object_pairs_hook=unique, parse_constant=constant, parse_int=integer, parse_float=real
        )
        if exact and _SURROGATE.search(raw):
            json.dumps(value, ensure_ascii=False).encode()  # fails on one that stands alone
    except RecursionError:
        raise error(f"{where} is not valid JSON: nested too deeply") from None
    except ValueError as e:  # JSONDecodeError, UnicodeDecodeError, integers of too many digits
        raise error(f"{where} is not valid JSON: {e}") from None
    if type(value) is not dict:
        raise error(f"{where} is a JSON {type(value).__name__}, expected an object")
    return value


def lfs_pointer(path: str) -> str:
    """Say that a file stands for one that was not fetched."""
    return f"{path} is a git-LFS pointer, expected the file itself; fetch it with `git lfs pull`"


def header_length(word: bytes, file_size: int, *, limit: int = LIMIT, error: type[RelexError], where: str) -> int:
    """Return N, the length of the header, from the first 8 bytes of a file.

    Args:
        word: the first bytes of the file, at least those 8 that it has.
        file_size: bytes of the whole file.
        error: raised where N is larger than `limit`, or the file is a git-LFS pointer.
        where: the file, for messages.

    Raises:
        Truncated: the file is shorter than its header.
    """
    if file_size < WORD or len(word) < WORD:
        raise Truncated(f"{where} has {min(file_size, len(word))} bytes, too few for a safetensors file")
    if word.startswith(LFS_POINTER):
        raise error(lfs_pointer(where))
    length = int.from_bytes(word[:WORD], "little")
    if length > limit:
        raise error(f"{where} is not a safetensors file: it declares a header of {length} bytes, limit {limit}")
    if length > file_size - WORD:
        raise Truncated(f"{where} ends at byte {file_size}, inside its header, which ends at byte {WORD + length}")
    return length


def parse(
    raw_header: bytes, file_size: int, *, error: type[RelexError], where: str
) -> tuple[dict[str, str], list[Entry]]:
    """Parse and validate a header: `raw_header` is the N bytes after the length word.

    Args:
        raw_header: the JSON.
        file_size: bytes of the whole file; the entries must end exactly there.
        error: raised for any violation, except for a file that ends early.
        where: the file, for messages.

    Returns:
        `__metadata__` (empty if absent), and the entries in the order of their data.

    Raises:
        Truncated: the file is shorter than its entries say.
    """
    header = load_object(raw_header, error=error, where=f"the header of {where}")
    metadata = header.pop(METADATA, None)
    if metadata is None:
        metadata = {}
    if type(metadata) is not dict or not all(_is_text(key) and _is_text(metadata[key]) for key in metadata):
        raise error(f"{METADATA} of {where} is not an object of strings")

    start = WORD + len(raw_header)
    entries = []
    for name, fields in header.items():
        try:
            entries.append(_entry(name, fields, start))
        except ValueError as e:
            raise error(f"tensor {quote(name)} of {where} {e}") from None
    entries.sort(key=lambda entry: (entry.begin, entry.end))  # stable: empty tensors keep the order of the header
    at = start
    for entry in entries:
        if entry.begin != at:
            what = "overlaps the tensor before it" if entry.begin < at else "leaves a hole before it"
            raise error(f"tensor {quote(entry.name)} of {where} {what}: starts at {entry.begin}, expected {at}")
        at = entry.end
    if file_size < at:
        raise Truncated(f"{where} has {file_size} bytes, its header says {at}")
    if file_size > at:
        raise error(f"{where} has {file_size} bytes, its header says {at}: extra bytes at the end")
    return metadata, entries


def _is_text(value: object) -> bool:
    if type(value) is not str:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate, written as an escape
        return False
    return True


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63  # bool is a subclass of int


def _entry(name: str, fields: object, start: int) -> Entry:
    """Check one tensor of the header by itself; ValueError says what is wrong with it."""
    if not _is_text(name):
        raise ValueError("has a name that is not Unicode text")
    if type(fields) is not dict or not {"dtype", "shape", "data_offsets"} <= fields.keys():
        raise ValueError("lacks dtype, shape or data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if type(dtype) is not str or dtype not in ITEMSIZE:
        partly = type(dtype) is str and dtype.startswith(("F4", "F6"))
        raise ValueError(
            f"has dtype {quote(dtype)}, which is not supported" + (": less than a byte an element" if partly else "")
        )
    if type(shape) is not list or not all(map(_is_size, shape)):
        raise ValueError("has a shape that is not a list of sizes")
    if len(shape) > DIMENSIONS_LIMIT:
        raise ValueError(f"has {len(shape)} dimensions, at most {DIMENSIONS_LIMIT} allowed")
    if max(shape, default=0) > ELEMENTS_LIMIT or math.prod(filter(None, shape)) > ELEMENTS_LIMIT:
        raise ValueError(f"has shape {quote(shape)}, more than {ELEMENTS_LIMIT} elements")
    if type(offsets) is not list or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise ValueError("has data_offsets that are not two positions")
    begin, end = offsets
    size = ITEMSIZE[dtype] * math.prod(shape)
    if end - begin != size:
        raise ValueError(f"has {quote(end - begin)} bytes, but {dtype} {quote(shape)} needs {size}")
    return Entry(name, dtype, tuple(shape), start + begin, start + end)


def build(entries: Sequence[tuple[str, str, Sequence[int], int]], metadata: dict[str, str]) -> bytes:
    """Return the length word and the header of a file that holds `entries` in this order.

    Args:
        entries: name, dtype, shape and bytes of each.
        metadata: becomes `__metadata__`; left out if empty.

    Returns:
        Both, padded with spaces to a multiple of 8, so that data start aligned.

    Raises:
        ValueError: a name occurs twice, or bytes do not follow from dtype and shape: a mistake of the caller.
    """
    header: dict[str, Any] = {METADATA: metadata} if metadata else {}
    at = 0
    for name, dtype, shape, size in entries:
        if name in header or name == METADATA:
            raise ValueError(f"two entries are called {quote(name)}")
        if size != ITEMSIZE[dtype] * math.prod(shape):
            raise ValueError(f"entry {quote(name)} has {size} bytes, which {dtype} {list(shape)} does not")
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % WORD)
    return len(text).to_bytes(WORD, "little") + text
