"""Steps that differ in tensors, files and directories, and tensors with several names, through every interface."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

import relex_codec
from relex_codec import BaseMismatch, InvalidArgument
from relex_codec.core.torch_dtypes import bytes_of
from relex_codec.format import reader
from relex_codec.run.error_text import error_line
from relex_codec.run.info import left_out_text, text
from relex_codec.run.sparkline import PLAIN, WIDTH, sparkline
from support.plain import read_safetensors
from support.specification import VALID, VECTORS, base_files, given_base, named, package_base, ref

BY_NAME = {named(entry): entry for entry in VALID}


def open_vector(name: str) -> relex_codec.Run:
    entry = BY_NAME[name]
    return relex_codec.open(VECTORS / entry["path"], base=package_base(entry))


def reference(name: str) -> tuple[ref.RelexFile, Any]:
    entry = BY_NAME[name]
    return ref.RelexFile((VECTORS / entry["path"]).read_bytes()), given_base(entry)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_step(folder: Path, name: str, step: float, tier: str) -> None:
    """A directory has the tensors and files that the reference decoder gives, in the shards of the step's layout."""
    file, base = reference(name)
    made = file.checkpoint(step, tier)
    there = files_of(folder)
    for shard, names in made.shards.items():
        found, metadata = read_safetensors(folder / shard)
        assert list(found) == names and metadata == {"format": "pt"}
        for tensor in names:
            assert found[tensor][1].tobytes() == file.tensor(tensor, step, tier, base), (tensor, step)
    contents = {own: file.file(own, step, tier, base_files(BY_NAME[name])) for own in made.files}
    contents = {own: content for own, content in contents.items() if content is not None}
    assert {own: there[own] for own in contents} == contents
    index = {"model.safetensors.index.json"} if made.indexed else set()
    assert set(there) == {*made.shards, *contents, *index}
    for own in index:
        assert json.loads(there[own])["weight_map"] == {t: shard for shard, names in made.shards.items() for t in names}


RUNS = ["layouts", "exact-tied", "files-by-step"]


@pytest.mark.parametrize("name", [*RUNS, "tied", "tied-embedded", "files-of-the-base", "adapter", "directories"])
def test_save_writes_what_the_step_is_made_of(tmp_path: Path, name: str) -> None:
    with open_vector(name) as run:
        for i, read in enumerate(BY_NAME[name]["reads"]):
            run.save(tmp_path / str(i), read["step"], tier=read["tier"])
            check_step(tmp_path / str(i), name, read["step"], read["tier"])


@pytest.mark.parametrize("where", ["disk", "memory"])
@pytest.mark.parametrize("name", RUNS)
def test_restore_gives_each_step_back_in_its_directory(tmp_path: Path, memory: Any, name: str, where: str) -> None:
    with open_vector(name) as run:
        if where == "disk":
            run.restore(tmp_path / "out")
        else:
            run.restore("memory://out")
            memory.get("/out", str(tmp_path / "out"), recursive=True)
        file, _ = reference(name)
        assert sorted(os.listdir(tmp_path / "out")) == sorted({path.split("/")[0] for path in file.directories})
        for step, directory in zip(run.steps, file.directories, strict=True):
            check_step(tmp_path / "out" / directory, name, step, "exact")
        some = run.steps[-1]
        run.restore(tmp_path / "one", steps=str(some))
        check_step(tmp_path / "one" / file.directories[-1], name, some, "exact")


def test_iter_steps_yields_the_tensors_of_each_step() -> None:
    for name in RUNS:
        file, base = reference(name)
        with open_vector(name) as run:
            for step, state in run.iter_steps():
                assert list(state) == list(ref.names_of(file, file.layout_at(float(step), "exact")))
                memory = [value.data_ptr() for value in state.values()]
                assert len(set(memory)) == len(memory)  # tied ones are equal, and nobody's but the caller's
                for tensor, value in state.items():
                    assert bytes(bytes_of(value)) == file.tensor(tensor, step, "exact", base)


def test_a_tensor_that_a_step_lacks_is_refused_with_the_steps_that_have_it() -> None:
    with open_vector("layouts") as run:
        assert run.tensor("head", 2, tier="exact").shape == (3,)
        with pytest.raises(InvalidArgument, match=r"has tensor 'head' at steps 1,2 only, where tier 'exact'"):
            run.tensor("head", 4, tier="exact")
        with pytest.raises(InvalidArgument, match=r"has tensor 'new' at steps 4,8 only"):
            run.tensor("new", 1)
        with pytest.raises(InvalidArgument, match="has no tensor 'nowhere'"):
            run.tensor("nowhere", 1)
        with pytest.raises(InvalidArgument, match="'head' at steps 1,2 only"):
            run.state_dict(8, tier="exact", slices={"head": slice(1)})
        assert run.keys() == ["w", "head", "old"] and "new" not in run and len(run) == 3
        assert run.tensor_info("w")["dtype"] == "BF16" and run.tensor_info("new")["kind"] == "framed"
        first, last, line = run.state_dicts([1, 4, 100])
        assert list(first) == list(line) == ["w", "head", "old"] and list(last) == ["w", "new"]
        assert (first["w"].dtype, last["w"].dtype) == (torch.bfloat16, torch.float32)


def test_handles_and_filesystem_follow_the_step() -> None:
    path, base = VECTORS / BY_NAME["layouts"]["path"], package_base(BY_NAME["layouts"])
    with relex_codec.safe_open(path, "pt", step=4, base=base) as handle:
        assert sorted(handle.keys()) == ["new", "w"] and set(handle.get_tensors()) == {"new", "w"}
        assert handle.get_slice("w").get_dtype() == "F32"
        with pytest.raises(InvalidArgument, match="'head' at steps"):
            handle.get_slice("head")
    with relex_codec.safe_open(path, "pt", step=100, base=base) as handle:
        assert handle.get_slice("w").get_dtype() == "BF16" and handle.offset_keys() == ["w", "head", "old"]
    files = fsspec.filesystem("relex", fo=str(path), base=str(base), skip_instance_cache=True)
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert [name.rpartition("/")[2] for name in files.ls("step_2", detail=False)] == ["model.safetensors"]
    assert [name.rpartition("/")[2] for name in files.ls("step_8", detail=False)] == [
        *shards,
        "model.safetensors.index.json",
    ]
    assert not files.exists(f"step_2/{shards[0]}") and files.exists(f"step_8/{shards[0]}")
    path = VECTORS / BY_NAME["files-by-step"]["path"]
    files = fsspec.filesystem("relex", fo=str(path), base=str(package_base(BY_NAME["files-by-step"])))
    assert files.cat_file("step_10/config.json") == b'{"rope": 1}'
    assert files.cat_file("step_20/config.json") == b'{"rope": 2}'
    assert files.cat_file("step_10/custom_generate/generate.py") == b"pass"


def test_dcp_loads_the_tensors_of_the_step() -> None:
    if not torch.distributed.is_available():
        pytest.skip("this torch is built without torch.distributed")
    path, base = VECTORS / BY_NAME["exact-tied"]["path"], package_base(BY_NAME["exact-tied"])
    for step, keys in ((10, {"embed", "head"}), (20, {"embed"}), (30, {"head", "later"})):
        assert set(relex_codec.RelexStorageReader(path, step, base=base).read_metadata().state_dict_metadata) == keys


class Heads(torch.nn.Module):
    """Two parameters of the vector `exact-tied`, which may be one."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embed = torch.nn.Parameter(torch.zeros(8, dtype=torch.bfloat16))
        self.head = self.embed if tied else torch.nn.Parameter(torch.zeros(8, dtype=torch.bfloat16))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("resident", [True, False])
def test_a_module_takes_one_tensor_of_two_names(tied: bool, resident: bool) -> None:
    with open_vector("exact-tied") as run:
        module = Heads(tied)
        own = (run.resident() if resident else run).load_into
        own(module, 15, names={"later": "embed"})
        value = run.tensor("later", 15)
        assert value.any() and torch.equal(module.embed, value) and torch.equal(module.head, value)
        assert (module.embed is module.head) == tied
        if not resident:
            run.load_into(module, 10, tier="exact")
            assert torch.equal(module.embed, run.tensor("embed", 10, tier="exact"))
            assert torch.equal(module.head, module.embed)
        if not resident and tied:  # a step that has one of the names alone
            run.load_into(module, 20, tier="exact")
            assert torch.equal(module.head, run.tensor("embed", 20, tier="exact"))


def test_two_tensors_for_one_parameter_are_refused_unless_they_are_one() -> None:
    with open_vector("layouts") as run, pytest.raises(InvalidArgument, match="module and file differ"):
        run.load_into(Heads(tied=True), 4, tier="exact")
    module = torch.nn.Module()
    module.a = module.b = torch.nn.Parameter(torch.zeros(2, 3))
    with (
        open_vector("sources-renamed") as run,
        pytest.raises(InvalidArgument, match="are one tensor, the file has two"),
    ):
        run.load_into(module, 10, names={"c": None, "d": None})


def test_what_has_several_names_is_held_once() -> None:
    with open_vector("tied") as run:
        held = run.resident()
        assert held.nbytes < sum(value.nbytes for value in run.state_dict(10).values()) * 3
        for step in (0, 10, 27.5, 100):
            for one, other in zip(held.state_dict(step).items(), run.state_dict(step).items(), strict=True):
                assert one[0] == other[0] and torch.equal(one[1], other[1])
        state = held.state_dict(10)
        assert torch.equal(state["lm_head.weight"], state["embed.weight"])
        part = run.resident(slices={"lm_head.weight": slice(1, 2)}).state_dict(10)
        assert torch.equal(part["lm_head.weight"], state["embed.weight"][1:2])
        assert torch.equal(part["embed.weight"], state["embed.weight"])


def test_floats_that_are_stored_step_by_step_are_there_at_stored_steps() -> None:
    with open_vector("framed-floats") as run:
        assert run.tensor("BF16", 20, tier="line").shape == (2, 2)
        for step, tier in ((15, "auto"), (15, "line"), (15, "track"), (100, "auto")):
            with pytest.raises(InvalidArgument, match=f"'BF16' is stored step by step and has no line.*step {step}"):
                run.tensor("BF16", step, tier=tier)
        assert run.tier(0) == "base" and run.tensor("BF16", 0).shape == (2, 2)
        with pytest.raises(InvalidArgument, match="has no line"):
            run.state_dict(15)
        assert run.tensor("none", 15).shape == (0,)
    with open_vector("exact-framed-floats") as run:
        held = run.resident()
        assert torch.equal(held.state_dict(12)["float"], run.state_dict(12, tier="line")["float"])
        assert held.tier(0) == "base" and torch.equal(held.state_dict(0)["float"], run.state_dict(0)["float"])
        module = torch.nn.Module()
        module.w = torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
        for read in (lambda: held.state_dict(6), lambda: held.load_into(module, 6, names={"float": "w"})):
            with pytest.raises(InvalidArgument, match="'float' is stored step by step and has no line"):
                read()
        assert not module.w.any()


@pytest.mark.parametrize(("name", "tiers"), [
    ("step-0-base", {0: "base", 2: "exact", 3: "line"}),
    ("step-0-tied", {0: "line", 2: "exact", 3: "line"}),
    ("step-0-stored", {0: "exact", 4: "exact", 3: "line"}),
    ("minimal", {0: "base", 4: "track", 9: "line"}),
    ("stored-origins", {0: "line", 10: "track"}),
])  # fmt: skip
def test_step_0_is_the_base_where_all_of_it_is(name: str, tiers: dict[float, str]) -> None:
    with open_vector(name) as run:
        assert {step: run.tier(step) for step in tiers} == tiers


def test_a_file_of_the_base_must_be_the_one_of_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    entry = BY_NAME["files-of-the-base"]
    base = package_base(entry)
    assert base is not None
    shutil.copytree(base, folder)
    (folder / "additional_chat_templates" / "x.jinja").write_text("{{ y }}")
    with relex_codec.open(VECTORS / entry["path"], base=folder) as run:
        with pytest.raises(BaseMismatch, match=r"'additional_chat_templates/x\.jinja' of base .* is not the one"):
            run.save(tmp_path / "out", 10)
        assert not (tmp_path / "out").exists()
        shutil.rmtree(folder / "additional_chat_templates")
    with relex_codec.open(VECTORS / entry["path"], base=folder) as run:
        with pytest.raises(BaseMismatch, match=r"has no 'additional_chat_templates/x\.jinja'"):
            run.save(tmp_path / "out", 10)
        run.verify()


# ---- What a file tells ----


@pytest.mark.parametrize("at_open", [1 << 24, 0])
def test_errors_and_norms(monkeypatch: pytest.MonkeyPatch, at_open: int) -> None:
    """Also where they do not come with the tables."""
    monkeypatch.setattr(reader, "COEFFICIENTS_AT_OPEN", at_open)
    with open_vector("figures") as run:
        container = run._reader.container
        np.testing.assert_array_equal(
            container.errors(), np.array([[0.25, 0.125, np.nan], [-1, np.inf, 0]], np.float32)
        )
        tensors, directions = container.norms()
        np.testing.assert_array_equal(tensors, [3.5, np.nan])
        np.testing.assert_array_equal(directions, [1.75])
        run.verify()
        assert run.info()["errors"] == {"track": [0.25, 0.125, None], "line": [-1.0, None, 0.0]}


def test_info_tells_errors_and_what_was_left_out() -> None:
    with open_vector("figures") as run:
        document = run.info()
        shown = text(document)
    assert "track off  25 % of the way at step 10, 12 % at 20  █▅\n" in shown
    assert len(document["left_out"]) == 1000
    assert document["left_out"][0] == {"what": "optimizer.pt", "files": 3, "bytes": 4800000000}
    assert "\nleft out   other files (999,799 TB a step), optimizer states (534 GB a step)" in shown
    json.dumps(document, allow_nan=False)
    with open_vector("minimal") as run:
        shown = text(run.info())
    assert "off" not in shown and "left out" not in shown and "differ" not in shown
    assert left_out_text({"left_out": [{"what": "a", "files": 1, "bytes": 5}], "steps": [1]}) == "other files (5 B)"


def test_info_tells_how_steps_differ() -> None:
    with open_vector("layouts") as run:
        document = run.info()
        assert "differ    steps 1,2; 4,8 in tensors, shards or files" in text(document)
    assert [layout["steps"] for layout in document["layouts"]] == [[1, 2], [4, 8]]
    assert document["run_bytes"] == 2 * (12 + 12 + 4) + 2 * (24 + 8) and document["checkpoint_bytes"] == 28
    with open_vector("exact-tied") as run:
        document = run.info()
    assert document["parameters"] == 8 and document["checkpoint_bytes"] == 32 and document["tied"] == 2
    assert document["tensor_rows"][1]["target"] == "embed"
    with open_vector("files-by-step") as run:
        document = run.info()
    assert document["directories"] == ["checkpoint-10", "checkpoint-20", "checkpoint-30"]
    assert document["layouts"][1]["files"][0] == {"name": "README.md", "bytes": 0, "stored": True}


def test_sparklines() -> None:
    assert sparkline([]) == "" and sparkline([None]) == " "
    assert sparkline([0.0, 0.0]) == "▁▁" and sparkline([1.0, 0.5, 0.0], PLAIN) == "#=_"
    long = sparkline([1.0 if i == 777 else 0.1 for i in range(1000)])
    assert len(long) == WIDTH and long.count("█") == 1 and long[777 * WIDTH // 1000] == "█"
    assert error_line([1, 2], [None, None]) is None
    assert error_line([1, 2], [None, 0.5]) == "50 % of the way at step 2   █"
    assert error_line(range(9), [0.9, *[0.5] * 7, 0.1]) == "90 % of the way at step 0, 50 % at 4, 10 % at 8  █▅▅▅▅▅▅▅▂"
