"""The manifest as values: written, read back, and in a file that is made with the writer alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import relex_codec
from relex_codec.core.digests import digest
from relex_codec.core.filenames import directory_allowed, file_allowed, is_document
from relex_codec.core.threads import parallel_map
from relex_codec.encoding.tables import EncodedTensor, tables_of
from relex_codec.errors import Corrupt
from relex_codec.format import constants as f
from relex_codec.format.manifest import (
    BaseRange,
    FileEntry,
    Layout,
    LeftOut,
    Manifest,
    StepEntry,
    TensorEntry,
    whole_tensor,
)
from relex_codec.format.manifest_parser import parse
from relex_codec.format.manifest_text import packed, unpacked
from relex_codec.format.packed_span import pack
from relex_codec.format.packing import split_planes
from relex_codec.format.writer import FileWriter, unknown_figures
from support.checkpoints import write_checkpoint
from support.specification import ref

DIGEST = "0123456789abcdef" * 2


def made(**changes: Any) -> Manifest:
    """A manifest with something of everything."""
    parts = (BaseRange(0, "gate", (2, 3), 0, 6), BaseRange(1, "up", (9,), 3, 6))
    values: dict[str, Any] = {
        "observed": 2, "exact": True, "base_uri": "hf://org/name", "embedded": False,
        "base_shards": ["a.safetensors", "b.safetensors"], "quality": "default", "growth": 0.05,
        "tensors": [
            TensorEntry("w", "BF16", (2, 3), "F32", whole_tensor(1, "w", (2, 3))),
            TensorEntry("w", "F32", (2, 3), "F32", whole_tensor(1, "w", (2, 3))),
            TensorEntry("moved", "BF16", (3, 2), "F32", whole_tensor(1, "w", (2, 3))),
            TensorEntry("gate_up", "BF16", (2, 6), "BF16", parts),
            TensorEntry("tied", "BF16", (2, 3), "BF16"),
        ],
        "files": [
            FileEntry("config.json", 2, DIGEST), FileEntry("README.md", 7, None),
            FileEntry("config.json", 3, DIGEST, 4, 5), FileEntry("custom_generate/x.py", 0, DIGEST, 0, 0),
        ],
        "layouts": [
            Layout(["model.safetensors"], False, [0, None, 0, 0, 0], [0, 1]),
            Layout(["a.safetensors", "b.safetensors"], True, [None, 1, None, None, None], [3, 2]),
        ],
        "layout": 0,
        "steps": [StepEntry("checkpoint-1", 1), StepEntry(None, 0), StepEntry("10/model", 1)],
        "left_out": [LeftOut("optimizer.pt", 3, 10**12)],
    }  # fmt: skip
    return Manifest(**(values | changes))


def test_what_is_written_is_read() -> None:
    manifest = made()
    assert parse(manifest.to_bytes(), [1, 2, 3]) == manifest
    for text in (manifest.to_bytes(), made(steps=[StepEntry(None, 0)] * 3).to_bytes() + b" " * 70000):
        assert len(packed(text)) % 8 == 0
        assert unpacked(packed(text)).rstrip(b" ") == text.rstrip(b" ")
    assert packed(b"{}") == b"{}      "
    assert packed(b" " * (1 << 16) + bytes(range(256)))[:1] == b"\0"
    assert packed(b" " * (1 << 20)) == b" " * (1 << 20)  # a frame may not hold that many times its bytes
    rows = json.loads(manifest.to_bytes())["tensors"]
    assert rows[0] == ["w", "BF16", [2, 3], ["F32", [1]]]  # a whole tensor of the same name and shape is its shard
    assert rows[2] == ["moved", "BF16", [3, 2], ["F32", [[1, "w", [2, 3], 0, 6]]]]
    assert rows[4] == ["tied", "BF16", [2, 3], None]


@pytest.mark.parametrize(("changes", "message"), [
    ({"layout": 1}, "layout 1 is not that of the last observed step"),
    ({"exact": False}, "2 layouts without tier exact"),
    ({"embedded": True}, "file 'config.json' is only in the base, which is embedded"),
    ({"base_shards": ["b.safetensors", "a.safetensors"]}, "the shards of the base are not sorted"),
    ({"steps": [StepEntry("a", 1), StepEntry("A", 0), StepEntry("b", 1)]}, "two steps have one directory"),
    ({"steps": [StepEntry("a", 1), StepEntry("b", 0), StepEntry("a/b", 1)]}, "'a/b' is within that of another step"),
    ({"steps": [StepEntry("a", 1), StepEntry("b", 0)]}, "the steps do not fit 3 steps and 2 layouts"),
    ({"steps": [StepEntry("..", 1), StepEntry("b", 0), StepEntry("c", 1)]}, r"\['\.\.', 1\] is no step"),
    ({"left_out": [LeftOut("x", 1, 1)] * 1001}, "1001 rows of left_out"),
    ({"layouts": []}, "do not fit 3 steps and 0 layouts"),
    ({"tensors": [TensorEntry("w", "F32", (2, 3), "F32", (BaseRange(0, "v", (9,), 4, 6),))]}, "is no source of tensor"),
    ({"tensors": [TensorEntry("w", "F32", (7,), "F32", (BaseRange(0, "v", (9,), 3, 6),))]}, "do not have its 7"),
    ({"files": [FileEntry("config.json", 2, None)]}, "is no file"),
    ({"files": [FileEntry("x/config.json", 2, DIGEST)]}, "'x/config.json' is no name of a file"),
])  # fmt: skip
def test_what_breaks_a_rule_is_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Corrupt, match=message):
        parse(made(**changes).to_bytes(), [1, 2, 3])


def test_sources_of_one_tensor_agree() -> None:
    first = TensorEntry("a", "F32", (3,), "F32", (BaseRange(0, "v", (9,), 0, 3),))
    for other in (
        TensorEntry("b", "F32", (3,), "F32", (BaseRange(1, "v", (9,), 3, 3),)),
        TensorEntry("b", "F32", (3,), "F32", (BaseRange(0, "v", (3, 3), 3, 3),)),
        TensorEntry("b", "BF16", (3,), "BF16", (BaseRange(0, "v", (9,), 3, 3),)),
    ):
        layouts = [Layout(["m.safetensors"], False, [0, 0])] * 2
        with pytest.raises(Corrupt, match="two sources differ in what tensor 'v' of the base is"):
            parse(made(tensors=[first, other], layouts=layouts).to_bytes(), [1, 2, 3])


def test_names() -> None:
    allowed = ["tokenizer.model.v3", "tokenizer.model.v11", "additional_chat_templates/tool_use.jinja", "LICENSE"]
    refused = [
        "tokenizer.model.v", "x.model.v3", "tokenizer.model.v3.bin", "additional_chat_templates/x/y.jinja", "/x.py",
        "Custom_generate/x.py", "custom_generate/adapter_config.json", "adapter_config.json",
    ]  # fmt: skip
    assert [name for name in allowed + refused if file_allowed(name)] == allowed
    assert file_allowed("adapter_config.json", ["adapter_model.safetensors"])
    assert not file_allowed("adapter_config.json", ["adapter_model.safetensors", "model.safetensors"])
    assert [is_document(name) for name in ("Readme.MD", "NOTICE", "notice.txt", "chat_template.jinja")] == [
        True, True, False, False,
    ]  # fmt: skip
    assert not any(map(directory_allowed, ("", "/a", "a/", "a//b", ".a", "a/..", "a.", "con", "a/b/c/d/e/f/g/h/i")))
    assert all(map(directory_allowed, ("checkpoint-10", "epoch=1-step=20", "a/b/c/d/e/f/g/h", "x" * 255)))


def test_nothing_is_known_of_figures() -> None:
    errors, norms = unknown_figures(2, 3, 5)
    assert (errors.shape, errors.dtype, norms.shape, norms.dtype) == ((2, 5), np.float32, (5,), np.float64)
    assert np.isnan(errors).all() and np.isnan(norms).all()


def test_a_file_that_the_writer_makes(tmp_path: Path) -> None:
    """Ties, a renamed and a fused tensor, files and figures, handed over as an encoder does."""
    rng = np.random.default_rng(1)
    base = {name: ("BF16", rng.integers(0, 1 << 14, (2, 4)).astype(np.uint16)) for name in ("model.a", "up", "gate")}
    write_checkpoint(tmp_path / "base", base)
    bits = {name: value for name, (_, value) in base.items()}
    fused = np.concatenate([bits["gate"], bits["up"]])
    own = rng.integers(0, 1 << 14, 3).astype(np.uint16)

    def digests(value: Any) -> list[bytes]:
        return [hashlib.sha256(value.tobytes()).digest()[:16]]

    gate_up = (*whole_tensor(0, "gate", (2, 4)), *whole_tensor(0, "up", (2, 4)))
    tensors = [
        EncodedTensor(TensorEntry("head", "BF16", (2, 4), "BF16"), f.TIED, f.IN_BASE, target=1),
        EncodedTensor(
            TensorEntry("a", "BF16", (2, 4), "BF16", whole_tensor(0, "model.a", (2, 4))), f.SAME, f.IN_BASE,
            digests=digests(bits["model.a"]), norm=2.5,
        ),
        EncodedTensor(
            TensorEntry("gate_up", "BF16", (4, 4), "BF16", gate_up), f.SAME, f.IN_BASE, digests=digests(fused)
        ),
        EncodedTensor(TensorEntry("own", "BF16", (3,), "BF16"), f.SAME, f.STORED),
    ]  # fmt: skip
    with FileWriter(tmp_path / "x.relex") as writer:
        tensors[3].span = pack(split_planes(own), own.nbytes)
        writer.base.put(tensors[3].span)
        content = np.frombuffer(b"{}", np.uint8)
        span = writer.base.add([content], 2, match=True)
        writer.close_chunks()
        files = [
            FileEntry("config.json", 2, digest(b"{}").hex(), *span.resolved()), FileEntry("README.md", 4, None)
        ]  # fmt: skip
        layout = Layout(["model.safetensors"], False, [0] * len(tensors), [0, 1])
        steps = [StepEntry("checkpoint-3", 0), StepEntry("checkpoint-7", 0)]
        entries = [tensor.entry for tensor in tensors]
        shards = ["model.safetensors"]
        manifest = Manifest(2, False, None, False, shards, "raw", None, entries, files, [layout], 0, steps)
        errors = np.array([[0.5, 0.25], [0.75, np.nan]], np.float32)
        writer.finish(tables_of(tensors, np.array([3, 7], np.int64), manifest, errors))
    expected = {"head": bits["model.a"], "a": bits["model.a"], "gate_up": fused, "own": own}
    file, given = ref.RelexFile((tmp_path / "x.relex").read_bytes()), ref.read_safetensors(
        tmp_path / "base" / "model.safetensors"
    )  # fmt: skip
    file.check_all()
    with relex_codec.open(tmp_path / "x.relex", base=tmp_path / "base") as run:
        run.verify()
        for name, value in expected.items():
            assert run._reader.bits(name, 5).tobytes() == value.tobytes() == file.tensor(name, 5, "auto", given)
        assert run._reader.container.norms()[0][1] == 2.5
        np.testing.assert_array_equal(run._reader.container.errors(), errors)
        assert run.info()["errors"] == {"track": [0.5, 0.25], "line": [0.75, None]}
        read = parallel_map(lambda at: run._reader.bits("gate_up", 5, "auto", at, at + 3), range(0, 13))
        assert all(np.array_equal(part, fused.reshape(-1)[at : at + 3]) for at, part in enumerate(read))
        run.check_base()
