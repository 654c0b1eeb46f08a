"""Which files a step is written with, and that each content is stored once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from relex_codec.checkpoints.checkpoint import TensorReader
from relex_codec.core.digests import digest
from relex_codec.encoding.side_files import BaseFiles, FileStore, files_from_base, files_of_step, fitted_config
from relex_codec.errors import CheckpointError
from relex_codec.format.packed_span import PendingSpan

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
TOKENIZER = ["additional_chat_templates/rag.jinja", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]


class Checkpoint(TensorReader):
    """One that has only files."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.path, self.side_files, self._files = "base", list(files), files

    def read_into(self, name: str, lo: int, out: Any) -> None:
        raise AssertionError

    def read_files(self, names: Sequence[str]) -> Iterable[bytes]:
        return [self._files[name] for name in names]


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


class Stored:
    """Files of steps, and what is written of them."""

    def __init__(self, embed: bool = False, dtypes: dict[str, int] | None = None) -> None:
        self.written: list[bytes] = []
        self.files = FileStore(self._write)
        self.base = BaseFiles(Checkpoint(BASE), self.files, embed, dtypes or {"BF16": 1})

    def _write(self, content: bytes) -> PendingSpan:
        self.written.append(content)
        return PendingSpan(len(self.written) - 1, 0)

    def add(self, own: dict[str, bytes]) -> dict[str, Any]:
        """A step that has these files; returns by name what each of its files is in the file: bytes, or a digest."""
        numbers = files_of_step(Checkpoint(own), self.base.own, self.base.names, self.base.number)
        assert numbers == sorted(set(numbers))
        found: dict[str, Any] = {}
        for number in numbers:
            entry = self.files.files[number].entry
            if entry.chunk is None:
                found[entry.name] = entry.digest
                assert entry.length == len(BASE[entry.name])
            else:
                found[entry.name] = self.written[entry.chunk]
                assert entry.digest == digest(found[entry.name]).hex()
        return found


def in_base(*names: str) -> dict[str, Any]:
    return {name: None if name == "LICENSE" else digest(BASE[name]).hex() for name in names}


def test_a_content_is_stored_once_and_what_the_base_has_is_not() -> None:
    stored = Stored()
    own = {"config.json": b"{}", "tokenizer.json": b"other", "tokenizer_config.json": b"2", "trainer_state.json": b"9"}
    first = stored.add(own)
    rest = ("config.json", "generation_config.json", "preprocessor_config.json", "modeling_x.py", "LICENSE")
    assert first == {"tokenizer.json": b"other"} | in_base("tokenizer_config.json", *rest)
    assert stored.add(own) == first
    assert stored.add({**own, "tokenizer.json": b"third"})["tokenizer.json"] == b"third"
    assert stored.add(own) == first
    assert stored.written == [b"other", b"third"]


def test_a_document_of_its_own_is_stored_and_that_of_the_base_may_change() -> None:
    stored = Stored()
    assert stored.add({"LICENSE": b"mine"})["LICENSE"] == b"mine"
    assert stored.add({"LICENSE": b"7"})["LICENSE"] is None


def test_an_embedded_base_is_stored_as_far_as_steps_need_it() -> None:
    stored = Stored(embed=True)
    found = stored.add({"config.json": b"{}", "tokenizer.json": b"other"})
    assert sorted(found.values()) == sorted(stored.written)
    assert b"2" not in stored.written, "nothing of the base's tokenizer"


def test_a_step_without_a_configuration_gets_that_of_the_base_as_it_holds() -> None:
    assert stored_config({"BF16": 1}) == digest(b"{}").hex()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BASE, "config.json", b'{"quantization_config": {}}')
        assert stored_config({"BF16": 1}) == b"{}\n"
        assert stored_config({"F8_E4M3": 1}) == digest(BASE["config.json"]).hex()


def stored_config(dtypes: dict[str, int]) -> Any:
    return Stored(dtypes=dtypes).add({})["config.json"]


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
