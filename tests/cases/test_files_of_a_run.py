"""What comes out is the run's: its configuration, tokenizer, templates, names of files and directories."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import relex_codec
from support.commands import cli
from support.tiny import (
    CONFIG,
    EMBEDDING,
    HEAD,
    UNTIED,
    State,
    assert_same,
    decoded,
    encoded,
    moved,
    put,
    read,
    restored,
    weights,
    write,
    write_steps,
)

BASE = weights()


def files(folder: Path) -> dict[str, bytes]:
    """What a checkpoint has beside its weights, but for the note that says what it was decoded from."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return {
        name: content
        for name, content in found.items()
        if not name.endswith((".safetensors", ".index.json", "relex.json"))
    }


def resized(base: State) -> State:
    generator = torch.Generator().manual_seed(1)
    more = (torch.randn(8, 16, generator=generator) * 0.02).bfloat16()
    return base | {name: torch.cat([base[name], more]) for name in (EMBEDDING, HEAD)}


@pytest.mark.parametrize("exact", [True, False])
def test_a_vocabulary_that_the_run_resized(tmp_path: Path, exact: bool) -> None:
    transformers = pytest.importorskip("transformers")
    base, config = weights(tied=False), {**UNTIED, "vocab_size": 56}
    write(tmp_path / "base", base, UNTIED)
    write_steps(tmp_path / "run", lambda n: moved(resized(base), n), config=config)
    encoded(tmp_path, *["--exact"] * exact)
    decoded(tmp_path, 3)
    assert json.loads((tmp_path / "out/config.json").read_text()) == config
    folders = [tmp_path / "out", *([restored(tmp_path) / "checkpoint-3"] if exact else [])]
    for folder in folders:
        model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not any(info.values())
        assert model.config.vocab_size == 56
    assert relex_codec.load_model(tmp_path / "r.relex", 3).config.vocab_size == 56


def test_the_dtype_of_the_run(tmp_path: Path) -> None:
    config = {**CONFIG, "dtype": "float32"}
    write(tmp_path / "base", BASE)
    write_steps(tmp_path / "run", lambda n: moved(BASE, n, torch.float32), config=config)
    encoded(tmp_path, "--exact")
    assert_same(decoded(tmp_path, 3), moved(BASE, 3, torch.float32))
    assert json.loads((tmp_path / "out/config.json").read_text()) == config
    write_steps(tmp_path / "bare", lambda n: moved(BASE, n, torch.float32), config=None)
    encoded(tmp_path, run="bare")
    decoded(tmp_path, 3)
    assert json.loads((tmp_path / "out/config.json").read_text()) == config, "the base's, with the dtype that holds"


TEMPLATES = {"additional_chat_templates/rag.jinja": b"RAG", "additional_chat_templates/tool.jinja": b"TOOL"}
SIDE: dict[str, Any] = {
    "config.json": CONFIG,
    "generation_config.json": {"top_p": 0.9},
    "tokenizer.json": {"version": "1"},
    "tokenizer_config.json": {"a": 1},
    "tokenizer.model.v3": b"\x00\x01",
    "chat_template.jinja": b"{{ messages }}\r\n",
    "custom_generate/generate.py": b"def generate(): ...\n",
    "LICENSE": b"free",
    **TEMPLATES,
}


@pytest.mark.parametrize("embed", [False, True])
def test_files_of_the_base_come_with_every_step(tmp_path: Path, embed: bool) -> None:
    write(tmp_path / "base", BASE, None, files=SIDE)
    write_steps(tmp_path / "run", lambda n: moved(BASE, n))
    encoded(tmp_path, "--exact", *["--embed-base"] * embed)
    if embed:
        shutil.rmtree(tmp_path / "base")
    decoded(tmp_path, 2)
    again = restored(tmp_path)
    for folder in (tmp_path / "out", again / "checkpoint-2"):
        assert files(folder).keys() == SIDE.keys()
        assert files(folder)["additional_chat_templates/rag.jinja"] == b"RAG"
        assert files(folder)["chat_template.jinja"] == SIDE["chat_template.jinja"]


def test_files_of_steps_that_change(tmp_path: Path) -> None:
    write(tmp_path / "base", BASE, None, files=SIDE)

    def own(step: int) -> dict[str, Any]:
        return {
            "config.json": {**CONFIG, "vocab": step // 3},
            "tokenizer.json": {"version": "2"},
            "chat_template.jinja": b"step %d" % step if step == 4 else b"first",
            "additional_chat_templates/rag.jinja": b"RAG",
        }

    for step in (1, 2, 3, 4):
        write(tmp_path / f"run/checkpoint-{step}", moved(BASE, step), None, files=own(step))
        put(tmp_path / f"run/checkpoint-{step}/optimizer.pt")
    encoded(tmp_path, "--exact", "--observe", 3)
    again = restored(tmp_path)
    taken = {"generation_config.json", "custom_generate/generate.py", "LICENSE"}
    for step in (1, 2, 3, 4):
        expected = {name: _content(value) for name, value in own(step).items()}
        expected |= {name: _content(SIDE[name]) for name in taken}
        decoded(tmp_path, step)
        assert files(tmp_path / "out") == files(again / f"checkpoint-{step}") == expected
    for step in (0, 2.5, 9):
        decoded(tmp_path, step)
        assert files(tmp_path / "out")["chat_template.jinja"] == b"first", "as the last observed step has it"
    encoded(tmp_path, file="l.relex")
    decoded(tmp_path, 1, file="l.relex")
    assert files(tmp_path / "out")["chat_template.jinja"] == b"step 4", "once, without the exact tier"


def _content(value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value, indent=1).encode()


def test_what_is_in_the_base_is_not_stored_again(tmp_path: Path) -> None:
    large = json.dumps({str(i): hash(str(i)) for i in range(20000)}).encode()
    write(tmp_path / "base", BASE, None, files=SIDE | {"tokenizer.json": large})
    write_steps(tmp_path / "run", lambda n: moved(BASE, n), config=None, files=SIDE | {"tokenizer.json": large})
    write_steps(
        tmp_path / "other", lambda n: moved(BASE, n), config=None, files=SIDE | {"tokenizer.json": large + b" "}
    )
    encoded(tmp_path, "--exact")
    encoded(tmp_path, "--exact", run="other", file="other.relex")
    size, other = ((tmp_path / file).stat().st_size for file in ("r.relex", "other.relex"))
    assert 50_000 < other - size < len(large), "one copy of three, compressed"
    decoded(tmp_path, 2, file="other.relex")
    assert files(tmp_path / "out")["tokenizer.json"] == large + b" "


@pytest.mark.parametrize("base", ["qwen3-base.safetensors", "consolidated"])
def test_a_base_of_one_file_or_of_another_name(tmp_path: Path, base: str) -> None:
    transformers = pytest.importorskip("transformers")
    single = write(tmp_path / "made", BASE) / "model.safetensors"
    if base == "consolidated":
        put(tmp_path / "consolidated/config.json", CONFIG)
        shutil.copy(single, tmp_path / "consolidated/consolidated.safetensors")
    else:
        shutil.copy(single, tmp_path / base)
    write_steps(tmp_path / "run", lambda n: moved(BASE, n), shards=2)
    encoded(tmp_path, "--exact", base=base)
    assert_same(decoded(tmp_path, 2), moved(BASE, 2))
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.name != "relex.json") == sorted(
        p.name for p in (tmp_path / "run/checkpoint-2").iterdir()
    )
    _, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    assert type(relex_codec.load_model(tmp_path / "r.relex", 2)).__name__ == "Qwen3ForCausalLM"


@pytest.mark.parametrize(
    "name",
    [
        "checkpoint-{}",
        "global_step_{}/actor/huggingface",
        "step_{}",
        "{}",
        "epoch_{}",
        "step_{}/policy/weights",
        "weights/step_{}",
    ],
)
def test_restore_gives_directories_their_names(tmp_path: Path, name: str) -> None:
    write(tmp_path / "base", BASE)
    write_steps(tmp_path / "run", lambda n: moved(BASE, n), (5, 10, 20), name, shards=2)
    encoded(tmp_path, "--exact")
    again = restored(tmp_path)
    for step in (5, 10, 20):
        one, other = (root / name.format(step) for root in (again, tmp_path / "run"))
        assert_same(read(one), moved(BASE, step))
        assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in other.iterdir())
    done = cli(
        "append",
        tmp_path / "r.relex",
        write_steps(tmp_path / "more", lambda n: moved(BASE, n), (30,), name)
        / (name.format(30) if name.startswith("weights") else name.format(30).partition("/")[0]),
    )
    assert done.returncode == 0, done.stderr
    assert_same(read(restored(tmp_path) / name.format(30)), moved(BASE, 30))


def test_a_directory_that_cannot_be_called_so_everywhere(tmp_path: Path) -> None:
    write(tmp_path / "base", BASE)
    write_steps(tmp_path / "run", lambda n: moved(BASE, n), (1, 2), "r é {}")
    encoded(tmp_path, "--exact", run="run/r é {step}")
    names = {p.name for p in restored(tmp_path).iterdir()} - {"relex.json"}  # which commands write
    assert names == {"global_step_1", "global_step_2"}
