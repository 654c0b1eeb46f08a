"""Appending: further steps become a new segment; the file restores the old ones itself."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import relex_codec
from relex_codec import BaseMismatch, CheckpointError, InvalidArgument
from relex_codec.exact.bisection import frame_bound
from relex_codec.exact.segments import step_costs
from relex_codec.format import constants as f
from support.checkpoints import write_checkpoint, write_run
from support.commands import ELSEWHERE, cli
from support.tensors import Tensor, bf16, f32, random_bits

STEPS = list(range(2, 22, 2))


def tensors(step: int) -> dict[str, Tensor]:
    """A tensor of each kind; `late` begins to move at step 15, `count` is no float, `extra` is not in the base."""
    rng = np.random.default_rng(3)
    found = {}
    for name, shape in (("w", (40, 64)), ("norm", (64,)), ("late", (300,))):
        start, drift = rng.standard_normal(shape) * 0.05, rng.standard_normal(shape) * 2e-3
        moved = max(0, step - 14) if name == "late" else step
        found[name] = bf16(start + moved * drift)
    found["still"] = bf16(rng.standard_normal((7, 9)))
    found["wide"] = f32(rng.standard_normal((5, 6)) + step * 1e-3 * rng.standard_normal((5, 6)))
    found["count"] = ("I64", np.array([step], np.uint64))
    found["flags"] = random_bits("U8", (30,), seed=step // 8)
    if step:
        found["extra"] = bf16(rng.standard_normal((4, 8)) + step * 1e-2)
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base, a run of ten steps, and a file of its first six."""
    root = tmp_path_factory.mktemp("append")
    write_checkpoint(root / "base", tensors(0))
    write_run(root / "run", STEPS, tensors)
    base = root / "base"
    relex_codec.encode(
        root / "run", root / "six.relex", base=base, base_uri=str(base), quality="raw", steps="2:12", exact=True
    )
    return root


def copy(made: Path, target: Path) -> Path:
    """A file that a test may change; it knows where its base is."""
    shutil.copy(made / "six.relex", target / "run.relex")
    return target / "run.relex"


def paths(made: Path, *steps: int) -> list[Path]:
    return [made / "run" / f"global_step_{step}" for step in steps]


def check(file: Path, steps: list[int], **options: Any) -> None:
    """Every tensor of every step is what was trained, in tier exact and auto."""
    with relex_codec.open(file, **options) as run:
        assert run.steps == steps
        for step in steps:
            assert run.tier(step) == "exact"
            for name, (_, bits) in tensors(step).items():
                assert np.array_equal(run._reader.bits(name, step), bits.reshape(-1)), (name, step)
        run.verify()
        assert max(step_costs(run._reader.decoder.exact.segments)) <= frame_bound(len(steps))


def frames(file: Path) -> bytes:
    with relex_codec.open(file) as run:
        entry = run._reader.container.index.entries[f.DATA_FRAMES]
        return run._reader.container.source.read(entry.begin, entry.end)


def test_several_steps_at_once(made: Path, tmp_path: Path) -> None:
    file = copy(made, tmp_path)
    before = frames(file)
    size = relex_codec.append(file, paths(made, 14, 18, 16))
    assert size == file.stat().st_size
    check(file, STEPS[:9])
    assert frames(file).startswith(before)  # copied, not coded again
    assert os.listdir(tmp_path) == ["run.relex"]


def test_a_file_elsewhere_still_finds_the_base(made: Path, tmp_path: Path) -> None:
    """Which is named from where the file is."""
    shutil.copytree(made / "base", tmp_path / "a" / "base")
    (tmp_path / "b" / "c").mkdir(parents=True)
    old, new = tmp_path / "a" / "x.relex", tmp_path / "b" / "c" / "x.relex"
    run = made / "run"
    relex_codec.encode(run, old, base=tmp_path / "a" / "base", quality="raw", steps="2:4", exact=True)
    relex_codec.append(old, paths(made, 6), output=new)
    for file, uri, steps in ((old, "./base", STEPS[:2]), (new, "../../a/base", STEPS[:3])):
        check(file, steps)
        with relex_codec.open(file) as opened:
            assert opened.info()["base"] == uri


def test_one_after_another(made: Path, tmp_path: Path) -> None:
    file = copy(made, tmp_path)
    for number, step in enumerate(STEPS[6:], 7):
        relex_codec.append(file, paths(made, step))
        check(file, STEPS[:number])


def test_the_old_checkpoints_are_not_needed(made: Path, tmp_path: Path) -> None:
    file = copy(made, tmp_path)
    shutil.copytree(made / "run" / "global_step_14", tmp_path / "run" / "global_step_14")
    shutil.copytree(made / "base", tmp_path / "base")
    relex_codec.append(file, [tmp_path / "run" / "global_step_14"], base=tmp_path / "base")
    check(file, STEPS[:7], base=tmp_path / "base")


@pytest.mark.slow
def test_lossy_tiers_equal_those_of_encoding_all_at_once(made: Path, tmp_path: Path) -> None:
    file, whole = tmp_path / "run.relex", tmp_path / "whole.relex"
    relex_codec.encode(made / "run", file, base=made / "base", steps="2:12", exact=True)
    relex_codec.append(file, paths(made, *STEPS[6:]), refit=True)
    relex_codec.encode(made / "run", whole, base=made / "base", exact=True)
    with relex_codec.open(file) as one, relex_codec.open(whole) as other:
        assert one.observed_steps == other.observed_steps == STEPS
        assert one._reader.container.index.directions.tobytes() == other._reader.container.index.directions.tobytes()
        for step in (3.5, 20, 40):
            for name in other:
                for tier in ("line", "track")[: 1 + (step <= 20)]:
                    assert np.array_equal(one._reader.bits(name, step, tier), other._reader.bits(name, step, tier)), (
                        name,
                        step,
                        tier,
                    )


@pytest.mark.parametrize("refit", [False, True])
def test_observed_steps_stay_what_they_were(made: Path, tmp_path: Path, refit: bool) -> None:
    file = tmp_path / "run.relex"
    relex_codec.encode(made / "run", file, base=made / "base", quality="raw", steps="2:12", observe=8, exact=True)
    relex_codec.append(file, paths(made, 14), refit=refit)
    with relex_codec.open(file) as run:
        assert run.observed_steps == [2, 4, 6, 8]
    check(file, STEPS[:7])


@pytest.mark.slow
@pytest.mark.parametrize("quality", ["raw", "micro", 0.07])
def test_quality_stays(made: Path, tmp_path: Path, quality: Any) -> None:
    file = tmp_path / "run.relex"
    options = {"factor_rank": 3} if quality == "micro" else {}
    relex_codec.encode(
        made / "run", file, base=made / "base", steps="2:12", quality=quality, rank=2, exact=True, **options
    )
    with relex_codec.open(file) as run:
        before = run._reader.container.index
    relex_codec.append(file, paths(made, 14), refit=True)
    with relex_codec.open(file) as run:
        after = run._reader.container.index
    assert (after.manifest.quality, after.manifest.growth) == (before.manifest.quality, before.manifest.growth)
    for index in (before, after):
        assert max(len(tensor.directions) for tensor in index.tensors) == 2
    if quality == "micro":
        assert after.directions["rank"].max() == 3


@pytest.mark.parametrize("refit", [False, True])
def test_embedded_base_stays(made: Path, tmp_path: Path, refit: bool) -> None:
    file = tmp_path / "run.relex"
    base = shutil.copytree(made / "base", tmp_path / "base")
    relex_codec.encode(made / "run", file, base=base, quality="raw", steps="2:12", embed_base=True, exact=True)
    shutil.rmtree(base)
    relex_codec.append(file, paths(made, 14, 16), refit=refit)
    check(file, STEPS[:8])
    with relex_codec.open(file) as run:
        run.save(tmp_path / "out", 0)
    assert (tmp_path / "out" / "config.json").read_bytes() == (made / "base" / "config.json").read_bytes()


@pytest.mark.parametrize("refit", [False, True])
def test_small_memory(made: Path, tmp_path: Path, refit: bool) -> None:
    """Tensors whose steps are not held are restored piece by piece; the bits are the same."""
    file = copy(made, tmp_path)
    relex_codec.append(file, paths(made, 14), memory="64MB", refit=refit)
    check(file, STEPS[:7])


def test_output_leaves_the_file_as_it_was(made: Path, tmp_path: Path) -> None:
    file = copy(made, tmp_path)
    before = file.read_bytes()
    relex_codec.append(file, paths(made, 14), output=tmp_path / "more.relex")
    assert file.read_bytes() == before
    check(tmp_path / "more.relex", STEPS[:7])


def test_a_step_by_its_number(made: Path, tmp_path: Path) -> None:
    file = copy(made, tmp_path)
    shutil.copytree(made / "run" / "global_step_14", tmp_path / "final")
    with pytest.raises(InvalidArgument, match="which step"):
        relex_codec.append(file, [tmp_path / "final"])
    relex_codec.append(file, [tmp_path / "final"], step=14)
    check(file, STEPS[:7])


def test_what_cannot_be_appended(made: Path, tmp_path: Path) -> None:
    file = copy(made, tmp_path)
    before = file.read_bytes()
    write_checkpoint(tmp_path / "early" / "step_11", tensors(11))
    with pytest.raises(InvalidArgument, match=r"step 11 cannot be appended to .*, whose last step is 12"):
        relex_codec.append(file, [tmp_path / "early" / "step_11", *paths(made, 14)])
    with pytest.raises(InvalidArgument, match="both step 14"):
        relex_codec.append(file, paths(made, 14, 14))
    with pytest.raises(InvalidArgument, match="no checkpoints"):
        relex_codec.append(file, [])
    with pytest.raises(CheckpointError, match="global_step_99"):
        relex_codec.append(file, paths(made, 99))
    other = {**tensors(14), "w": bf16(np.zeros((64, 40)))}
    with pytest.raises(CheckpointError, match=r"'w' of step 2 is \[40, 64\], expected \[64, 40\]"):
        relex_codec.append(file, [write_checkpoint(tmp_path / "step_14", other)])
    assert file.read_bytes() == before


def test_only_the_exact_tier_can_be_fitted_again(made: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.relex"
    relex_codec.encode(made / "run", file, base=made / "base", quality="raw", steps="2:12")
    with pytest.raises(InvalidArgument, match=r"no exact tier.*without --refit"):
        relex_codec.append(file, paths(made, 14), refit=True)


def test_a_wrong_base(made: Path, tmp_path: Path) -> None:
    file = copy(made, tmp_path)
    before = file.read_bytes()
    wrong = tensors(0)
    wrong["w"] = bf16(np.ones((40, 64)))
    write_checkpoint(tmp_path / "wrong", wrong)
    with pytest.raises(BaseMismatch, match="'w'"):
        relex_codec.append(file, paths(made, 14), base=tmp_path / "wrong")
    assert file.read_bytes() == before


def test_a_base_that_has_more(made: Path, tmp_path: Path) -> None:
    """A tensor that the first base lacked was stored; another base must not replace it."""
    file = copy(made, tmp_path)
    write_checkpoint(tmp_path / "more", {**tensors(0), "extra": tensors(2)["extra"]})
    with pytest.raises(BaseMismatch, match="'extra'"):
        relex_codec.append(file, paths(made, 14), base=tmp_path / "more", refit=True)
    relex_codec.append(file, paths(made, 14), base=tmp_path / "more")  # of which nothing but what there was is read
    check(file, STEPS[:7])


def test_a_full_disk(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = copy(made, tmp_path)
    before = file.read_bytes()
    write = relex_codec.storage.local_writer.AtomicFile.write  # type: ignore[attr-defined]

    def full(self: Any, data: Any) -> int:
        if self.tell() > len(before) // 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return int(write(self, data))

    monkeypatch.setattr(relex_codec.storage.local_writer.AtomicFile, "write", full)  # type: ignore[attr-defined]
    with pytest.raises(InvalidArgument, match="No space left"):
        relex_codec.append(file, paths(made, 14))
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == ["run.relex"]


@pytest.mark.slow
def test_interrupted(made: Path, tmp_path: Path) -> None:
    """Ctrl-C while the new file is written leaves the old one, and nothing beside it."""
    file = copy(made, tmp_path)
    before = file.read_bytes()
    code = f"""
        import os, signal
        from relex_codec.exact import tier_writer as assemble
        def interrupt(*arguments):
            os.kill(os.getpid(), signal.{signal.SIGINT.name})
        assemble.assemble = interrupt
        from relex_codec.cli.main import main
        main()
    """
    command = [sys.executable, "-c", textwrap.dedent(code), "append", str(file), str(paths(made, 14)[0])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ELSEWHERE)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.strip().splitlines()[-1] == "Error: interrupted; nothing incomplete was left"
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == ["run.relex"]


def test_command(made: Path, tmp_path: Path) -> None:
    file = copy(made, tmp_path)
    done = cli("append", file, *paths(made, 14, 16))
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 steps more, 14 to 16; now 8 steps" in done.stdout
    done = cli("append", file, *paths(made, 14))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "whose last step is 16" in done.stderr
    assert cli("append", file).returncode == 2
    check(file, STEPS[:8])
