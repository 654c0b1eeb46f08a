"""Which files a step is written with, and that each content is stored once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from relex_codec.checkpoints.checkpoint import TensorReader
from relex_codec.encoding.side_files import FileStore, files_from_base, fitted_config
from relex_codec.errors import CheckpointError

BASE = {
    "config.json": b"{}",
    "generation_config.json": b'{"top_p": 1}',
    "tokenizer.json": b"1",
    "tokenizer_config.json": b"2",
    "chat_template.jinja": b"3",
    "additional_chat_templates/rag.jinja": b"4",
    "preprocessor_config.json": b"5",
    "modeling_x.py": b"6",
    "LICENSE": b"7",
}
CONTENTS: dict[bytes, bytes] = {}
TOKENIZER = ["additional_chat_templates/rag.jinja", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]


def sha(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:16]


class Base(TensorReader):
    path = "base"

    def read_into(self, name: str, lo: int, out: Any) -> None:
        raise AssertionError

    def read_files(self, names: Sequence[str]) -> Iterable[bytes]:
        return [BASE[name] for name in names]


@pytest.mark.parametrize(
    ("own", "left_out"),
    [
        ([], []),
        (["config.json"], ["config.json"]),
        (["tokenizer.json"], TOKENIZER),
        (["vocab.json", "merges.txt"], TOKENIZER),
        (["tokenizer.model.v3"], TOKENIZER),
        (["chat_template.jinja"], TOKENIZER),
        (["processor_config.json"], ["preprocessor_config.json"]),
        (["license", "modeling_x.py"], ["LICENSE", "modeling_x.py"]),
    ],
)
def test_what_the_base_adds(own: list[str], left_out: list[str]) -> None:
    assert files_from_base(own, BASE) == sorted(BASE.keys() - set(left_out))


def store(embed: bool = False) -> tuple[FileStore, list[bytes]]:
    written: list[bytes] = []

    def write(content: bytes) -> int:
        written.append(content)
        return len(written) - 1

    return FileStore(Base(), BASE, write, embed), written


def names(files: FileStore, numbers: list[int]) -> dict[str, tuple[bytes, Any]]:
    found = {}
    for number in numbers:
        name, length, digest, span = files.files[number]
        content = CONTENTS[digest]
        assert length == len(content)
        found[name] = content, span
    return found


def add(files: FileStore, own: dict[str, bytes]) -> dict[str, tuple[bytes, Any]]:
    CONTENTS.update({sha(content): content for content in (*own.values(), *BASE.values(), b"{} edited")})
    numbers = files.of_step(list(own), lambda names: [own[name] for name in names], lambda raw: raw + b" edited")
    assert numbers == sorted(set(numbers))
    return names(files, numbers)


def test_a_content_is_stored_once_and_what_the_base_has_is_not() -> None:
    files, written = store()
    own = {"config.json": b"{}", "tokenizer.json": b"other", "tokenizer_config.json": b"2"}
    first = add(files, own)
    assert first == {
        "config.json": (b"{}", None),
        "generation_config.json": (b'{"top_p": 1}', None),
        "tokenizer.json": (b"other", 0),
        "tokenizer_config.json": (b"2", None),
        "preprocessor_config.json": (b"5", None),
        "modeling_x.py": (b"6", None),
        "LICENSE": (b"7", None),
    }
    assert add(files, own) == first
    assert add(files, {**own, "tokenizer.json": b"third"})["tokenizer.json"] == (b"third", 1)
    assert add(files, own) == first
    assert written == [b"other", b"third"]


def test_an_embedded_base_is_stored_as_far_as_steps_need_it() -> None:
    files, written = store(embed=True)
    found = add(files, {"config.json": b"{}", "tokenizer.json": b"other"})
    assert sorted(content for content, _ in found.values()) == sorted(written)
    assert b"2" not in written, "nothing of the base's tokenizer"


def test_a_step_without_a_configuration_gets_the_base_s_as_it_holds() -> None:
    files, written = store()
    assert add(files, {})["config.json"] == (b"{} edited", 0)
    assert written == [b"{} edited"]


def test_what_of_a_configuration_holds() -> None:
    config: dict[str, Any] = {"dtype": "bfloat16", "text_config": {"torch_dtype": "bfloat16"}, "vocab_size": 5}
    plain = json.dumps(config).encode()
    assert fitted_config(plain, {"BF16": 10, "F32": 1, "I64": 3}, "base") is plain
    assert json.loads(fitted_config(plain, {"BF16": 1, "F32": 10}, "base")) == {
        "dtype": "float32",
        "text_config": {"torch_dtype": "float32"},
        "vocab_size": 5,
    }
    quantised = json.dumps({**config, "quantization_config": {"quant_method": "fp8"}}).encode()
    assert json.loads(fitted_config(quantised, {"BF16": 10}, "base")) == config
    for codes in ({"BF16": 10, "F8_E4M3": 90}, {"F16": 10, "I32": 90}):
        assert fitted_config(quantised, codes, "base") is quantised
    with pytest.raises(CheckpointError, match=r"config\.json of base"):
        fitted_config(b"{", {"BF16": 1}, "base")
