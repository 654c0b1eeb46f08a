"""The command line as a user meets it: output, one-line errors, exit codes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from relex_codec.format import writer
from relex_codec.format.manifest import Manifest
from support.checkpoints import write_checkpoint, write_run
from support.commands import cli, cli_process, failed
from support.tensors import bf16

STEPS = [10, 20, 30, 40]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two tensors, its base, and its file ``run.relex``."""
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(1)
    start = {"w": rng.standard_normal((24, 32)), "norm": np.ones(32)}
    drift = {name: rng.standard_normal(value.shape) for name, value in start.items()}

    def tensors(step: int) -> dict[str, tuple[str, np.ndarray]]:
        return {name: bf16(value + 0.00005 * step * drift[name]) for name, value in start.items()}

    write_checkpoint(folder / "base", tensors(0))
    write_run(folder / "run", STEPS, tensors)
    done = cli_process("encode", folder / "run", "--base", folder / "base", "-o", folder / "run.relex", "--observe", 30)
    assert done.returncode == 0, done.stderr
    assert "4 steps" in done.stdout
    # no bar where there is no terminal
    assert done.stderr == f"keep the base, no step can be decoded without it: {folder / 'base'}\n"
    return folder


def test_info_as_text_fits_a_screen(made: Path) -> None:
    done = cli_process("info", made / "run.relex")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) <= 24
    assert "observed 3, to 30" in done.stdout
    assert " ./base (keep it: no step can be decoded without)" in done.stdout
    rows = cli("info", made / "run.relex", "--tensors").stdout.splitlines()
    assert sum(row.startswith(("w ", "norm ")) for row in rows) == 2


def test_info_as_json(made: Path) -> None:
    document = json.loads(cli("info", made / "run.relex", "--json").stdout)
    assert document["steps"] == STEPS
    assert document["observed_steps"] == [10, 20, 30]
    assert document["tensors"] == 2
    assert document["parameters"] == 24 * 32 + 32
    assert document["quality"] == "default"
    assert document["base"] == "./base"
    sizes = dict(document["bytes"])
    assert sorted(sizes) == ["base", "coefficients", "directions", "exact", "index", "total"]
    assert sizes.pop("total") == sum(sizes.values()) == (made / "run.relex").stat().st_size


@pytest.mark.parametrize(("step", "tier"), [(0, "base"), (25, "track"), (35, "line"), (800, "line"), (12.5, "track")])
def test_decode_says_what_it_took(made: Path, tmp_path: Path, step: float, tier: str) -> None:
    done = cli("decode", made / "run.relex", "--step", step, "-o", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tier"] == tier
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_verify(made: Path) -> None:
    assert "as they were written" in cli_process("verify", made / "run.relex").stdout
    document = json.loads(cli("verify", made / "run.relex", "--base", made / "base", "--json").stdout)
    assert document["ok"] is True


def test_a_damaged_file_is_one_line(made: Path, tmp_path: Path) -> None:
    data = bytearray((made / "run.relex").read_bytes())
    data[-3] ^= 1
    (tmp_path / "bad.relex").write_bytes(data)
    failed(cli_process("verify", tmp_path / "bad.relex"), "checksum")
    (tmp_path / "short.relex").write_bytes(data[:-9])
    failed(cli("info", tmp_path / "short.relex"), "expected")


def test_a_wrong_base_is_named(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    failed(cli("decode", made / "run.relex", "--step", 5, "-o", out, "--base", made / "run" / "global_step_10"), "'w'")
    failed(cli("verify", made / "run.relex", "--base", made / "run" / "global_step_10"), "'w'", "--base")
    assert not out.exists()


def test_mistakes_of_a_tired_user(made: Path, tmp_path: Path) -> None:
    base, file, out = made / "base", made / "run.relex", tmp_path / "x.relex"
    failed(cli("info", tmp_path / "none.relex"), "does not exist")
    failed(cli("info", base / "model.safetensors"), "not a .relex file")
    failed(cli("encode", tmp_path, "--base", base, "-o", out), "no checkpoints")
    failed(cli("encode", made / "run", "--base", tmp_path / "none", "-o", out), "does not exist")
    failed(cli("encode", made / "run", "--base", base, "-o", tmp_path / "no" / "x.relex"), "No such file or directory")
    failed(cli("encode", made / "run", "--base", base, "-o", out, "--quality", "best"), "default")
    failed(cli("encode", made / "run", "--base", base, "-o", out, "--observe", 5), "first is 10")
    failed(cli("encode", made / "run", "--base", base, "-o", out, "--memory", "lots"), "4GB")
    failed(cli("encode", made / "run", "--base", base, "-o", out, "--factor-rank", 4), "micro")
    failed(cli("decode", file, "--step", "nan", "-o", tmp_path / "d"), "finite")
    failed(cli("decode", file, "--step", 99, "--tier", "track", "-o", tmp_path / "d"), "line")
    failed(cli("decode", file, "--step", 99, "-o", made), "not empty")
    assert not list(tmp_path.iterdir())


def test_usage_errors_exit_2(made: Path) -> None:
    for arguments in (
        ("encode", made / "run"),
        ("decode", made / "run.relex"),
        ("decode", "x", "--step", "many"),
        ("no",),
    ):
        assert cli(*arguments).returncode == 2
    assert cli_process("decode", made / "run.relex").returncode == 2


@pytest.mark.parametrize(
    "command", ["encode", "decode", "append", "restore", "info", "verify", "compare", "plot", "report", "demo"]
)
def test_help(command: str) -> None:
    done = cli(command, "--help")
    assert done.returncode == 0
    assert "Usage:" in done.stdout
    assert command in cli("--help").stdout


def test_help_in_a_process() -> None:
    done = cli_process("--help")
    assert (done.returncode, done.stderr) == (0, "") and "Commands:" in done.stdout


@pytest.mark.slow
def test_raw_and_micro_from_the_command_line(made: Path, tmp_path: Path) -> None:
    for quality, extra in (("raw", ()), ("micro", ("--factor-rank", 3)), ("0.1", ()), ("fine", ("--embed-base",))):
        out = tmp_path / f"{quality}.relex"
        done = cli("encode", made / "run", "--base", made / "base", "-o", out, "--quality", quality, *extra, "--json")
        document = json.loads(done.stdout)
        assert document["quality"] == quality
        assert document["base_embedded"] == bool("--embed-base" in extra)
        if quality == "micro":
            assert {row["factor_rank"] for row in document["tensor_rows"] if row["name"] == "w"} == {3}


HOSTILE = "\x1b]0;title\x07\x1b[2J\u202e\x9b31m\r\nok"
"""What a terminal would obey, or show in another order, and a line of its own."""


def test_a_file_does_not_command_the_terminal(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"w{HOSTILE}"

    def tensors(step: int) -> dict[str, tuple[str, np.ndarray]]:
        return {name: bf16(np.ones(40) + step), "v": bf16(np.arange(50) * step)}

    write_checkpoint(tmp_path / "base", tensors(0))
    write_run(tmp_path / "run", [1, 2], tensors)
    to_bytes = Manifest.to_bytes
    monkeypatch.setattr(Manifest, "to_bytes", lambda self: to_bytes(replace(self, quality=HOSTILE)))
    monkeypatch.setattr(writer, "__version__", HOSTILE)
    file = tmp_path / "x.relex"
    for uri in (f"s3://{HOSTILE}", f"https://{HOSTILE}", f"./{HOSTILE}"):
        done = cli("encode", tmp_path / "run", "--base", tmp_path / "base", "-o", file, "-f", "--base-uri", uri)
        assert done.returncode == 0, done.stderr
        shown = [done, cli("info", file, "--tensors"), cli("info", file, "--json"), cli("verify", file)]
        shown += [cli("decode", file, "--step", 2, "-o", tmp_path / "out")] if "s3" not in uri else []
        shown += [cli("decode", file, "--step", 1, "-o", tmp_path / "d", "--base", made / "base")]
        for done in shown:
            text = done.stdout + done.stderr
            assert text.strip() and all(character.isprintable() or character == "\n" for character in text), text
            assert "\nok" not in text
        assert [done.returncode for done in shown[4:]] == [1] * len(shown[4:])
    assert not (tmp_path / "out").exists()
