"""Which files may be stored beside weights, and written out again."""

from __future__ import annotations

import pytest

from relex_codec.checkpoints.weight_files import side_files
from relex_codec.core.filenames import INDEX, PICKLES, file_allowed, shard_allowed

ALLOWED = [
    "config.json", "generation_config.json", "configuration.json", "params.json", "hf_quant_config.json",
    "preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "tekken.json", "chat_template.json",
    "normalizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "m.spm.model", "merges.txt",
    "vocab.txt", "qwen.tiktoken", "source.spm", "chat_template.jinja", "modeling_qwen2.py", "README.md", "LICENSE",
    "LICENSE.txt", "NOTICE", "USE_POLICY.md",
]  # fmt: skip
REFUSED = [
    "x.pickle", "x.joblib", "x.npy", "x.npz", "x.so", "x.h5", "x.dll", "x.msgpack", "x.onnx", "x.gguf", "x.zip", "x.sh",
    "x.yaml", "x.pyc", "x.pth.tar", "adapter_config.json", "adapter_model.json", "my-adapter.py",
    "pytorch_model.bin.index.json", "tf_model.h5.index.json", "model.safetensors.index.fp16.json", "config.index.json",
    "evil.model", "model.model", "pytorch_model.model", "credentials.json", "secrets.json", "token.json",
    "service-account.json", "trainer_state.json", "x.json", "model.safetensors", "CON", "con.txt", "nul.json",
    "NUL.tokenizer.json", "aux.md", "com1.py", "LPT9.txt", "a.", "a..", "config.json.", "LICENSE.", ".config.json",
    ".env", "..", "", "-config.json", "a", "a b.txt", "config.json::$DATA", "config.json\n", "a/config.json",
    "a\\config.json", "x", "LICENSE2",
]  # fmt: skip


@pytest.mark.parametrize("name", ALLOWED)
def test_names_on_the_list(name: str) -> None:
    assert file_allowed(name) and file_allowed(name.upper())
    assert side_files([name]) == [name]


@pytest.mark.parametrize("name", [*REFUSED, *(f"config{end}" for end in PICKLES), INDEX, "x" * 250 + ".txt.md"])
def test_names_that_are_not(name: str) -> None:
    assert not file_allowed(name) and not file_allowed(name.upper())
    assert side_files([name]) == []


def test_names_of_weights() -> None:
    assert shard_allowed("model-00001-of-00002.safetensors") and shard_allowed("console.safetensors")
    for name in (
        "con.safetensors",
        "NUL.safetensors",
        "x.bin",
        ".x.safetensors",
        "model.safetensors.",
        "a/b.safetensors",
    ):
        assert not shard_allowed(name)
