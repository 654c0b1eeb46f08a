"""Comparing the stored steps of a file with the checkpoints of a run."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import relex_codec
from relex_codec.core.left_out import LeftOut
from relex_codec.decoding.tensor_decoder import TensorDecoder
from relex_codec.errors import CheckpointError, InvalidArgument
from relex_codec.run.comparison import Comparison
from relex_codec.storage.coalesce import FIRST_READ
from relex_codec.storage.remote import RemoteSource
from support.checkpoints import write_checkpoint
from support.commands import cli, failed
from support.filesystems import upload
from support.runs import SIDE, Made
from support.tensors import Tensor, bf16, f32

STEPS = [2, 4, 6]


def weights(step: int) -> dict[str, Tensor]:
    rng = np.random.default_rng(0)
    large = rng.standard_normal((600, 1000)) * 0.05  # three pieces
    moves = np.random.default_rng((1, step)).standard_normal(large.shape) * (step > 0)
    return {
        "large": bf16(large + 1e-4 * step + 1e-4 * moves),
        "still": bf16(rng.standard_normal((30, 20))),
        "late": f32(rng.standard_normal(50) + (step > 5)),
        "count": ("I64", np.array(step, np.uint64)),
        "empty": bf16(np.zeros((0, 3))),
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with files beside its weights, its base, and a file of it with the exact tier."""
    root = tmp_path_factory.mktemp("against")
    write_checkpoint(root / "base", weights(0), side=SIDE)
    for step in STEPS:
        write_checkpoint(root / "run" / f"checkpoint-{step}", weights(step), shards=2, side=SIDE)
    relex_codec.encode(root / "run", root / "x.relex", base=root / "base", exact=True)
    return root


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be changed."""
    shutil.copytree(made / "run", tmp_path / "run")
    return tmp_path / "run"


def compare(file: Any, run: Any, **options: Any) -> Comparison:
    base = options.pop("base", None)
    with relex_codec.open(file, base=base) as opened:
        return opened.verify_against(run, **options)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_all_is_there(made: Path) -> None:
    found = compare(made / "x.relex", made / "run")
    assert found.ok and found.steps == STEPS and found.equal_steps == 3
    assert found.differences == found.only_in_run == found.only_in_file == found.unreadable == found.rest.rows == []
    assert found.bytes == 3 * (2 * 600_000 + 2 * 600 + 4 * 50 + 8)
    base = made / "base"
    digest = sha256(base / "model.safetensors")
    assert found.base_files == [("model.safetensors", (base / "model.safetensors").stat().st_size, digest)]
    assert found.sentence() == f"3 of 3 steps equal (3.6 MB); needed to decode: the base {base} (sha256 {digest[:16]})"
    assert list(found.lines()) == []


def test_every_kind_of_tensor(zoo_run: Made, zoo_file: Callable[..., Path]) -> None:
    found = compare(zoo_file("raw", exact=True), zoo_run.run)
    assert found.equal_steps == len(zoo_run.steps)
    assert {row.name for row in found.base_files} == {f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)}
    assert "of model-00001-of-00003.safetensors, and 2 more files)" in found.sentence()
    assert not found.differences


def test_an_appended_file_and_an_embedded_base(made: Path, tmp_path: Path) -> None:
    file = tmp_path / "y.relex"
    relex_codec.encode(made / "run", file, base=made / "base", exact=True, embed_base=True, steps="2:4")
    relex_codec.append(file, [made / "run" / "checkpoint-6"])
    found = compare(file, made / "run")
    assert found.ok and found.equal_steps == 3 and found.base is None
    assert found.sentence() == "3 of 3 steps equal (3.6 MB); needed to decode: nothing else"


def test_steps_are_replayed_not_restored_one_by_one(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def restored(*arguments: Any) -> Any:
        raise AssertionError("a step was restored by itself")

    monkeypatch.setattr(TensorDecoder, "read", restored)
    monkeypatch.setattr(TensorDecoder, "decode_window", restored)
    assert compare(made / "x.relex", made / "run").ok


def flip(path: Path, name: str, element: int, dtype: str = "<u2") -> None:
    """Change the lowest bit of an element."""
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    begin, end = json.loads(data[8 : 8 + length])[name]["data_offsets"]
    values = np.frombuffer(data, np.uint8)[8 + length + begin : 8 + length + end].view(dtype)
    values[element] ^= values.dtype.type(1)
    path.write_bytes(data)


def test_bits_that_differ_are_named_by_step_and_tensor(made: Path, run: Path) -> None:
    first, second = (run / "checkpoint-4" / f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    flip(first, "large", 0)
    flip(first, "large", 599_999)
    flip(second, "count", 0, "<u8")
    flip(run / "checkpoint-6" / first.name, "still", 7)
    found = compare(made / "x.relex", run)
    assert not found.ok and found.equal_steps == 1
    assert [(one.step, one.name, one.what) for one in found.differences] == [
        (4, "count", "has 1 of 1 elements with other bits"),
        (4, "large", "has 2 of 600,000 elements with other bits"),
        (6, "still", "has 1 of 600 elements with other bits"),
    ]
    done = cli("verify", made / "x.relex", "--against", run)
    assert done.returncode == 1
    *lines, last = done.stdout.splitlines()
    assert lines == [
        "step 4: tensor 'count' has 1 of 1 elements with other bits, "
        "tensor 'large' has 2 of 600,000 elements with other bits",
        "step 6: tensor 'still' has 1 of 600 elements with other bits",
    ]
    assert last.startswith("1 of 3 steps equal (3.6 MB); needed to decode: the base ")


def test_tensors_of_other_kinds(made: Path, run: Path) -> None:
    tensors = weights(4)
    tensors["still"] = f32(np.zeros((30, 20)))
    tensors["late"] = "F32", tensors["late"][1].reshape(5, 10)
    del tensors["count"]
    tensors["new"] = bf16(np.zeros(3))
    shutil.rmtree(run / "checkpoint-4")
    write_checkpoint(run / "checkpoint-4", tensors, side=SIDE)
    found = compare(made / "x.relex", run)
    assert [(one.name, one.what) for one in found.differences] == [
        ("count", "is in the file, not in the run"),
        ("late", "is F32 [5, 10] in the run, F32 [50] in the file"),
        ("new", "is in the run, not in the file"),
        ("still", "is F32 [30, 20] in the run, BF16 [30, 20] in the file"),
    ]
    assert found.equal_steps == 2
    assert next(found.lines()).endswith(", and 1 more")


def test_steps_that_one_side_lacks(made: Path, run: Path) -> None:
    write_checkpoint(run / "checkpoint-8", weights(8))
    found = compare(made / "x.relex", run)
    assert (found.ok, found.only_in_run, found.only_in_file) == (False, [8], [])
    assert list(found.lines()) == ["not in the file: step 8"]
    assert found.sentence().startswith(
        "3 of 3 steps equal (3.6 MB); 1 step of the run NOT in the file; not in the file: checkpoints of other steps ("
    )
    shutil.rmtree(run / "checkpoint-8")
    shutil.rmtree(run / "checkpoint-2")
    shutil.rmtree(run / "checkpoint-6")
    found = compare(made / "x.relex", run)
    assert (found.ok, found.steps, found.only_in_file) == (True, [4], [2, 6])
    assert "1 of 1 steps equal (1.2 MB); 2 steps of the file not in the run; needed" in found.sentence()


def test_chosen_steps(made: Path, run: Path) -> None:
    write_checkpoint(run / "checkpoint-8", weights(8))
    file = made / "x.relex"
    found = compare(file, run, steps="2:4")
    assert (found.ok, found.steps, found.only_in_file) == (True, [2, 4], [])
    assert [row.what for row in found.rest.rows] == ["checkpoints of other steps"]
    found = compare(file, run, exclude_steps="8")
    assert (found.ok, found.steps) == (True, STEPS)
    found = compare(file, run, steps="2,8")
    assert (found.ok, found.steps, found.only_in_run) == (False, [2], [8])
    found = compare(file, run, steps="8")
    assert (found.ok, found.steps, found.equal_steps) == (False, [], 0)
    with pytest.raises(InvalidArgument, match="leaves nothing"):
        compare(file, run, steps="10")


def test_checkpoints_that_cannot_be_read(made: Path, run: Path) -> None:
    shard = run / "checkpoint-4" / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    (run / "checkpoint-6" / shard.name).unlink()
    found = compare(made / "x.relex", run)
    assert not found.ok and found.steps == [2] and found.only_in_file == [4, 6]
    assert len(found.unreadable) == 2 and "2 of the run could not be read" in found.sentence()
    assert [str(run / f"checkpoint-{step}") in line for step, line in zip((4, 6), found.lines(), strict=True)]
    shutil.rmtree(run / "checkpoint-2")
    with pytest.raises(CheckpointError):
        compare(made / "x.relex", run)


def test_files_beside_the_weights(made: Path, run: Path) -> None:
    (run / "checkpoint-2" / "tokenizer.json").write_bytes(b"{}")
    (run / "checkpoint-2" / "vocab.json").write_bytes(b"{}")  # decoding does not give that
    (run / "checkpoint-4" / "generation_config.json").unlink()
    (run / "checkpoint-4" / "optimizer.pt").write_bytes(bytes(3000))
    found = compare(made / "x.relex", run)
    assert [(one.step, one.name, one.is_tensor) for one in found.differences] == [(2, "tokenizer.json", False)]
    assert found.rest.rows == [LeftOut("optimizer.pt", 1, 3000), LeftOut("vocab.json", 1, 2)]
    assert "2 of 3 steps equal, 3 in their weights (3.6 MB); not in the file: optimizer" in found.sentence()
    assert not found.ok


def test_documents_may_differ_and_are_then_left_out(made: Path, run: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "base", tmp_path / "base")
    for folder in (tmp_path / "base", run / "checkpoint-2", run / "checkpoint-4"):
        (folder / "README.md").write_text("a model")
    relex_codec.encode(run, tmp_path / "x.relex", base=tmp_path / "base", exact=True)
    (run / "checkpoint-4" / "README.md").write_text("a run")
    found = compare(tmp_path / "x.relex", run)
    assert found.ok and found.rest.rows == [LeftOut("README.md", 1, 5)]


def test_without_the_exact_tier(made: Path, tmp_path: Path) -> None:
    relex_codec.encode(made / "run", tmp_path / "line.relex", base=made / "base")
    done = cli("verify", tmp_path / "line.relex", "--against", made / "run")
    failed(done, "has no exact tier, so there are no bits to compare; its line misses step 6 by", "--exact")


def test_json_says_the_same(made: Path, run: Path) -> None:
    flip(run / "checkpoint-4" / "model-00001-of-00002.safetensors", "large", 5)
    write_checkpoint(run / "checkpoint-8", weights(8))
    done = cli("verify", made / "x.relex", "--against", run, "--json")
    assert done.returncode == 1
    document, found = json.loads(done.stdout), compare(made / "x.relex", run)
    assert document == found.as_document()
    assert document["differences"] == [
        {"step": 4, "tensor": "large", "what": "has 1 of 600,000 elements with other bits"}
    ]
    assert (document["ok"], document["equal_steps"], document["only_in_run"]) == (False, 2, [8])
    assert document["base_files"][0]["sha256"] == sha256(made / "base" / "model.safetensors")
    assert document["sentence"] == found.sentence()


def test_at_urls(made: Path, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints are read ahead by what the replay will ask for; nothing is asked for piece by piece."""
    upload(memory, made / "run", "/bucket/run")
    upload(memory, made / "base", "/bucket/base")
    memory.pipe_file("/bucket/x.relex", (made / "x.relex").read_bytes())
    asked: list[bool] = []
    fetch = RemoteSource.fetch

    def counted(self: RemoteSource, start: int, end: int) -> bytes:
        if "/run/" in self.path and end - start > FIRST_READ:  # more than headers
            asked.append(threading.current_thread().name.startswith("relex-prefetch"))
        return fetch(self, start, end)

    monkeypatch.setattr(RemoteSource, "fetch", counted)
    found = compare("memory://bucket/x.relex", "memory://bucket/run", base="memory://bucket/base")
    assert found.ok and found.equal_steps == 3 and found.base == "memory://bucket/base"
    assert asked == [True] * 3
    found = compare("memory://bucket/x.relex", "memory://bucket/run/checkpoint-{step}", base=made / "base")
    assert found.ok and found.steps == STEPS


def test_steps_are_for_a_comparison(made: Path) -> None:
    assert cli("verify", made / "x.relex", "--steps", "2").returncode == 2


def test_a_damaged_file_or_another_base_is_an_error(made: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "other", weights(1))
    failed(cli("verify", made / "x.relex", "--against", made / "run", "--base", tmp_path / "other"), "does not match")


def test_options_that_would_be_ignored_are_refused(tmp_path: Path) -> None:
    for option in (("--allow-pickle",), ("--steps", "1")):
        done = cli("verify", tmp_path / "x.relex", *option)
        assert done.returncode == 2 and "--against" in done.stderr
