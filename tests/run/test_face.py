"""What a run tells of itself, and that a closed one reads nothing more."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Made

import relex_codec
from relex_codec import InvalidArgument, Run
from support.checkpoints import write_checkpoint, write_run
from support.commands import cli
from support.filesystems import empty_memory
from support.plain import File
from support.tensors import bf16

Zoo = Callable[..., Path]
VECTORS = Path(__file__).parents[2] / "spec" / "vectors" / "valid"

PUBLIC = [
    "check_base", "check_exact", "close", "coefficients", "compare", "compare_with_checkpoint", "compare_with_run",
    "device", "fits", "info", "iter_steps", "keys", "load_into", "movement", "observed_steps", "patches", "path",
    "plot", "resident", "restore", "save", "save_adapter", "scores", "state_dict", "state_dicts", "step_within",
    "steps", "sweep", "tensor", "tensor_info", "tier", "trust", "verify", "verify_against",
]  # fmt: skip


def test_what_a_run_has(zoo_file: Zoo) -> None:
    with relex_codec.open(zoo_file("raw")) as run:
        assert [name for name in dir(run) if not name.startswith("_")] == PUBLIC


def test_it_is_as_the_keys_of_a_mapping(zoo_run: Made, zoo_file: Zoo) -> None:
    with relex_codec.open(zoo_file("raw")) as run:
        assert list(run) == run.keys() and len(run) == len(run.keys()) == len(zoo_run.at(1))
        assert "frozen" in run and "nothing" not in run and 3 not in run
        assert bool(run)


def test_a_file_without_tensors_is_there() -> None:
    checked = 0
    for path in sorted(VECTORS.rglob("*.relex")):
        with relex_codec.open(path) as run:
            if not len(run):
                assert list(run) == [] and bool(run)
                assert run.coefficients().values.shape == (0, len(run.steps)) and run.coefficients().names == ()
                assert "tensors" in run._repr_html_() and "steps" in repr(run)
                checked += 1
    assert checked


def test_a_run_that_does_not_move_has_no_coefficients(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base", {"w": bf16([1.0] * 4)})
    write_run(tmp_path / "run", [1, 2], lambda step: {"w": bf16([1.0] * 4)})
    relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=tmp_path / "base")
    with relex_codec.open(tmp_path / "x.relex") as run:
        found = run.coefficients()
    assert found.values.shape == (0, 2) and found.values.dtype == np.float64
    assert found.names == () and found.steps.tolist() == [1, 2]


@pytest.mark.parametrize("options", [{}, {"rank": 2}, {"observe": 9}, {"exact": True}, {"embed_base": True}])
def test_info_is_what_the_command_prints(zoo_file: Zoo, options: dict[str, Any]) -> None:
    path = zoo_file("raw", **options)
    with relex_codec.open(path) as run:
        document = run.info()
        assert document == json.loads(json.dumps(document, allow_nan=False))
        assert document["steps"] == run.steps and document["observed_steps"] == run.observed_steps
        assert document["tensor_rows"] == [run.tensor_info(name) for name in run]
        assert document["base_embedded"] is ("embed_base" in options)
        assert ("exact" in document["tiers"]) is ("exact" in options)
    if not options:
        assert document == json.loads(cli("info", path, "--json").stdout)


def test_dtype_and_shape_of_a_tensor(zoo_run: Made, zoo_file: Zoo) -> None:
    with relex_codec.open(zoo_file("raw")) as run:
        for name, (dtype, bits) in zoo_run.at(1).items():
            told = run.tensor_info(name)
            assert (told["name"], told["dtype"], told["shape"]) == (name, dtype, list(bits.shape))
        assert run.tensor_info("frozen")["kind"] == "same" and run.tensor_info("batches_seen")["kind"] == "framed"
        assert run.tensor_info("layers.0.proj.weight")["r2"] > 0.9
        with pytest.raises(InvalidArgument, match="no tensor 'nothing'"):
            run.tensor_info("nothing")


@pytest.mark.parametrize("options", [{}, {"rank": 2}, {"observe": 9}])
def test_coefficients(zoo_run: Made, zoo_file: Zoo, options: dict[str, Any]) -> None:
    path = zoo_file("raw", **options)
    file = File(path)
    with relex_codec.open(path) as run:
        found = run.coefficients()
    assert isinstance(found, relex_codec.Coefficients)
    assert found.values.dtype == np.float64 and found.values.flags.writeable
    assert found.steps.dtype == np.int64 and found.steps.tolist() == zoo_run.steps
    np.testing.assert_array_equal(found.values, file.coefficients)
    moving = [name for name in file.names if file.kind(name)[0] == 1]
    assert found.names == tuple(name for name in moving for _ in file.numbers(name))
    for name in moving:
        rows = [row for row, owner in zip(found.values, found.names, strict=True) if owner == name]
        np.testing.assert_array_equal(rows, file.coefficients[list(file.numbers(name))])
    assert repr(found) == f"Coefficients({len(found.names)} directions of {len(moving)} tensors at 7 steps)"


def test_damaged_coefficients_are_refused(zoo_file: Zoo, tmp_path: Path) -> None:
    data = bytearray(zoo_file("raw").read_bytes())
    data[File(zoo_file("raw")).places["relex.coefficients"][0] + 11] ^= 1
    (tmp_path / "bad.relex").write_bytes(data)
    with relex_codec.open(tmp_path / "bad.relex") as run, pytest.raises(relex_codec.Corrupt, match="row 0"):
        run.coefficients()


# ---- As text ----


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, ["steps 1 to 23 (7 steps, all observed)", "tiers line, track,", "base '"]),
        ({"observe": 9}, ["steps 1 to 23 (7 steps, observed to 9)"]),
        ({"exact": True}, ["tiers line, track, exact,"]),
        ({"embed_base": True}, ["base embedded,"]),
    ],
)
def test_one_line_says_what_it_is(zoo_file: Zoo, options: dict[str, Any], words: list[str]) -> None:
    path = zoo_file("raw", **options)
    with relex_codec.open(path) as run:
        line, table = repr(run), run._repr_html_()
    assert line.startswith("<relex_codec.Run '") and "\n" not in line
    size = f"{path.stat().st_size:,} bytes"
    assert all(word in line for word in [*words, size, str(path)])
    assert table.startswith("<table>") and table.count("<tr>") == table.count("</tr>") == 5
    for word in ("base", "steps", "tiers", "tensors", "size", size, "1 to 23"):
        assert word in table
    assert repr(run) == line[:-1] + ", closed>"
    assert "(closed)" in run._repr_html_() and "(closed)" not in table


def test_a_base_that_was_given_is_told_without_its_password(zoo_run: Made, zoo_file: Zoo) -> None:
    with relex_codec.open(zoo_file("raw"), base=zoo_run.base_path) as run:
        assert f"base '{zoo_run.base_path}'" in repr(run)
    with relex_codec.open(zoo_file("raw"), base="https://me:secret@host/base?sig=x") as run:
        assert "base 'https://host/base'" in repr(run)
        assert "secret" not in repr(run) + run._repr_html_()


def test_nothing_of_a_file_is_taken_for_html(tmp_path: Path) -> None:
    base = tmp_path / "<script>alert('&')"
    base.mkdir()
    write_checkpoint(base, {"w": bf16([1.0] * 4)})
    write_run(tmp_path / "run", [1, 2], lambda step: {"w": bf16([1.0 + step / 8] * 4)})
    relex_codec.encode(tmp_path / "run", tmp_path / "<b>.relex", base=base)
    with relex_codec.open(tmp_path / "<b>.relex") as run:
        table = run._repr_html_()
    assert "<script" not in table and "<b>" not in table
    assert "&lt;script&gt;" in table and "&lt;b&gt;.relex" in table and "&amp;" in table


def test_a_base_of_several_lines_is_shown_on_one(zoo_file: Zoo) -> None:
    with relex_codec.open(zoo_file("raw"), base="/a\nb") as run:
        assert "\n" not in repr(run) and r"/a\nb" in repr(run)


# ---- Closed ----

READS: dict[str, Callable[[Run, Path], Any]] = {
    "enter": lambda run, out: run.__enter__(),
    "coefficients": lambda run, out: run.coefficients(),
    "tensor": lambda run, out: run.tensor("layers.0.proj.weight", 9),
    "tensor of the base": lambda run, out: run.tensor("frozen", 0),
    "state_dict": lambda run, out: run.state_dict(9),
    "state_dict of the base": lambda run, out: run.state_dict(0),
    "state_dicts": lambda run, out: run.state_dicts([1, 9]),
    "state_dicts of none": lambda run, out: run.state_dicts([]),
    "resident": lambda run, out: run.resident(),
    "iter_steps": lambda run, out: run.iter_steps(),
    "load_into": lambda run, out: run.load_into(torch.nn.Linear(2, 2), 9),
    "save": lambda run, out: run.save(out, 9),
    "save of the base": lambda run, out: run.save(out, 0),
    "save_adapter": lambda run, out: run.save_adapter(out, 9),
    "sweep": lambda run, out: run.sweep(lambda state: 0.0, [9]),
    "restore": lambda run, out: run.restore(out),
    "check_base": lambda run, out: run.check_base(),
    "verify": lambda run, out: run.verify(),
    "check_exact": lambda run, out: run.check_exact(),
    "verify_against": lambda run, out: run.verify_against("RUN"),
    "compare": lambda run, out: run.compare(1, 9),
    "compare_with_checkpoint": lambda run, out: run.compare_with_checkpoint("", 9),
    "compare_with_run": lambda run, out: run.compare_with_run(run),
    "fits": lambda run, out: run.fits(),
    "plot": lambda run, out: run.plot(),
    "patches": lambda run, out: list(run.patches(1, 9)),
    "trust": lambda run, out: run.trust(30),
    "step_within": lambda run, out: run.step_within(30, max_distance=0.1),
}


UNREAD = {
    "close", "device", "info", "keys", "movement", "observed_steps", "path", "scores", "steps", "tensor_info", "tier",
}  # fmt: skip
"""What needs no reading."""


@pytest.mark.parametrize("where", ["local", "memory"])
def test_a_closed_run_refuses_every_read(zoo_run: Made, zoo_file: Zoo, tmp_path: Path, where: str) -> None:
    assert set(PUBLIC) - UNREAD == {name.split(" ")[0] for name in READS} - {"enter"}
    with empty_memory() as filesystem:
        path: str | Path = zoo_file("default", exact=True)
        if where == "memory":
            filesystem.pipe_file("/x/run.relex", path.read_bytes())
            path = "memory://x/run.relex"
        with relex_codec.open(path, base=zoo_run.base_path) as run:
            told = run.info(), run.steps, run.keys(), run.tier(9), run.tensor_info("frozen")
            run.state_dict(9, tier="track")  # all that is kept in memory is there now
            run.state_dict(0)
            run.coefficients()
        run.close()  # twice is fine
        for read in READS.values():
            with pytest.raises(InvalidArgument, match="is closed; open it again"):
                read(run, tmp_path / "out")
            assert not (tmp_path / "out").exists()
        assert told == (run.info(), run.steps, run.keys(), run.tier(9), run.tensor_info("frozen"))
        assert len(run) == len(told[2]) and "frozen" in run and run.observed_steps == run.steps


def test_steps_that_are_under_way_end_with_the_run(zoo_file: Zoo) -> None:
    with relex_codec.open(zoo_file("default", exact=True)) as run:
        steps = run.iter_steps()
        assert next(steps)[0] == 1
    with pytest.raises(InvalidArgument, match="is closed"):
        next(steps)


def test_a_closed_handle_refuses_every_read(zoo_file: Zoo) -> None:
    with relex_codec.safe_open(zoo_file("default"), "np", step=0) as handle:
        part = handle.get_slice("layers.1.single")
        handle.get_tensor("layers.1.single")
    for read in (
        lambda: handle.get_tensor("layers.1.single"),
        lambda: handle.get_tensors(),
        lambda: part[0],
    ):
        with pytest.raises(InvalidArgument, match="is closed"):
            read()
    assert "frozen" in handle.keys()  # noqa: SIM118 (not a dict)
