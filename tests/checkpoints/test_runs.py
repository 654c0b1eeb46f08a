"""Finding runs, choosing steps, and reading one tensor over all steps."""

from __future__ import annotations

import os
import resource
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from relex_codec.checkpoints import safetensors as module
from relex_codec.checkpoints.discovery import find_checkpoints, find_run
from relex_codec.checkpoints.series import open_series
from relex_codec.errors import CheckpointError, InvalidArgument
from support.checkpoints import write_checkpoint, write_run
from support.filesystems import upload
from support.tensors import bf16, random_bits

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def at_step(step):
    return {"w": bf16(np.arange(6, dtype=np.float32).reshape(2, 3) + step), "n": random_bits("I64", (2,), step)}


@pytest.mark.parametrize("layout", ["global_step_{}", "checkpoint-{}", "step_{}", "step-{}", "global_step{}_hf",
                                    "iter_{:07d}"])  # fmt: skip
@pytest.mark.parametrize("where", ["local", "memory"])
def test_layouts(tmp_path, memory, layout, where):
    root = write_run(tmp_path / "run", [100, 20, 3], at_step, layout=layout)
    (root / "latest").symlink_to(layout.format(100))
    (root / "latest_checkpointed_iteration.txt").write_text("100")
    (root / "logs").mkdir()
    (root / "step_5.txt").write_text("a file")
    upload(memory, root, "/run")
    prefix = str(root) if where == "local" else "memory://run"
    found = find_run(root if where == "local" else "memory://run")
    assert found == [(step, f"{prefix}/{layout.format(step)}") for step in (3, 20, 100)]
    run = open_series(found)
    assert np.array_equal(run.read("w"), [at_step(step)["w"][1].reshape(-1) for step in (3, 20, 100)])


@pytest.mark.parametrize("below", ["actor/huggingface", "huggingface", "actor"])
def test_weights_below_the_directory_of_a_step(tmp_path, memory, below):
    root = write_run(tmp_path, [1, 2], at_step, layout=f"global_step_{{}}/{below}")
    for step in (1, 2):  # verl writes configuration there even if weights are elsewhere
        (root / f"global_step_{step}" / "data.pt").write_bytes(b"")
        if below == "actor":
            write_checkpoint(root / f"global_step_{step}" / "actor" / "huggingface", {}, side={"config.json": {}})
            (root / f"global_step_{step}" / "actor" / "huggingface" / "model.safetensors").unlink()
    upload(memory, root, "/run")
    assert find_run(root) == [(step, f"{root}/global_step_{step}/{below}") for step in (1, 2)]
    assert [path for _, path in find_run("memory://run")] == [f"memory://run/global_step_{s}/{below}" for s in (1, 2)]


def test_pickled_steps_say_how_to_convert(tmp_path):
    (tmp_path / "global_step_5" / "actor" / "huggingface").mkdir(parents=True)
    (tmp_path / "global_step_5" / "actor" / "model_world_size_1_rank_0.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"global_step_5 has pickled files only .*verl\.model_merger"):
        find_run(tmp_path)


@pytest.mark.parametrize("name", ["tmp_step_30", "tmp-checkpoint-30", "checkpoint-30.tmp", "checkpoint-30.incomplete-1",
                                  "TMP_checkpoint-30", "checkpoint-30_tmp"])  # fmt: skip
def test_incomplete_names(tmp_path, name):
    write_run(tmp_path, [10, 20], at_step, layout="checkpoint-{}")
    (tmp_path / name).mkdir()
    with pytest.raises(CheckpointError, match=name):
        find_run(tmp_path)
    skipped = []
    assert [s for s, _ in find_run(tmp_path, skip_incomplete=True, on_skip=skipped.append)] == [10, 20]
    assert len(skipped) == 1
    assert name in skipped[0]
    assert [s for s, _ in find_run(tmp_path, steps=":20")] == [10, 20]  # what is not chosen does not matter


def test_incomplete_checkpoints(tmp_path):
    write_run(tmp_path, range(1, 7), at_step, shards=2)
    (tmp_path / "global_step_2" / SECOND).unlink()
    with pytest.raises(CheckpointError, match=r"global_step_2 is incomplete.*which is missing \(1 of 2 shards\)"):
        find_run(tmp_path)
    shutil.rmtree(tmp_path / "global_step_3")
    (tmp_path / "global_step_3").mkdir()
    with pytest.raises(CheckpointError, match="global_step_3 has no weights"):
        find_run(tmp_path, steps="3:")
    os.truncate(tmp_path / "global_step_4" / FIRST, 200)
    skipped = []
    assert [s for s, _ in find_run(tmp_path, skip_incomplete=True, on_skip=skipped.append)] == [1, 5, 6]
    assert [name in text for name, text in zip(("step_2", "step_3", "step_4"), skipped, strict=True)] == [True] * 3
    with pytest.raises(CheckpointError, match="no complete checkpoint; the first of 3"):
        find_run(tmp_path, steps="2:4", skip_incomplete=True)


def test_all_broken_steps_are_named_at_once(tmp_path):
    write_run(tmp_path, range(1, 31), at_step, shards=2)
    (tmp_path / "global_step_2" / SECOND).unlink()
    (tmp_path / "global_step_31.tmp").mkdir()
    for step in range(7, 20):
        (tmp_path / f"global_step_{step}" / FIRST).unlink()
    with pytest.raises(CheckpointError) as caught:
        find_run(tmp_path)
    message = str(caught.value)
    assert message.startswith("15 of 31 steps cannot be used: step 2: ")
    assert (
        message.count("; step ") == 9 and "; and 5 more; to go on without them: --exclude-steps 2,7:19,31 " in message
    )
    assert [step for step, _ in find_run(tmp_path, exclude_steps="2,7:19,31")] == [1, 3, 4, 5, 6, *range(20, 31)]
    os.truncate(tmp_path / "global_step_4" / FIRST, 100)  # which would be seen later
    with pytest.raises(CheckpointError, match=r"^2 of 6 steps .*step 2: .* missing.*step 4: .*--exclude-steps 2,4$"):
        find_run(tmp_path, steps="1:6")
    with pytest.raises(CheckpointError, match=r"^step 2: .* missing.*without it: --exclude-steps 2 or --skip-inc"):
        find_run(tmp_path, steps="1:3")
    with pytest.raises(CheckpointError, match=r"missing .*\(none of the 3 steps can be used; this is the first"):
        find_run(tmp_path, steps="2,8,9")


def test_all_steps_that_do_not_fit_are_named_at_once(tmp_path):
    run = write_run(tmp_path, [1, 2, 3, 4, 5], at_step)
    write_checkpoint(run / "global_step_2", {"w": bf16(np.zeros((9, 9)))})
    os.truncate(run / "global_step_4" / "model.safetensors", 100)
    with pytest.raises(CheckpointError, match=r"^2 of 5 .*step 2: .*'n' .*step 4: .*--exclude-steps 2,4$"):
        open_series(find_run(run), chosen=True).check()
    with pytest.raises(CheckpointError) as caught:
        open_series(find_run(run)).check()  # which nobody chose from more
    assert "exclude" not in str(caught.value)
    open_series(find_run(run, exclude_steps="2,4"), chosen=True).check()
    os.truncate(run / "global_step_1" / "model.safetensors", 100)  # others are still looked at
    with pytest.raises(CheckpointError, match=r"^2 of 5 .*step 1: .*step 4: .*--exclude-steps 1,4$"):
        open_series(find_run(run), chosen=True).check()


def test_runs_that_are_ambiguous_or_nothing(tmp_path, memory):
    write_run(tmp_path / "two", [1, 2], at_step, layout="checkpoint-{}")
    write_run(tmp_path / "two", [1, 2], at_step, layout="global_step_{}")
    with pytest.raises(CheckpointError, match=r"several layouts.*checkpoint-1.*global_step_1"):
        find_run(tmp_path / "two")
    write_run(tmp_path / "same", [1, 2], at_step, layout="iter_{}")
    write_run(tmp_path / "same", [2], at_step, layout="iter_{:05d}")
    with pytest.raises(CheckpointError, match="step 2 twice: iter_00002 and iter_2"):
        find_run(tmp_path / "same")
    write_run(tmp_path / "large", [10**17], at_step)
    with pytest.raises(CheckpointError, match="above the limit"):
        find_run(tmp_path / "large")
    (tmp_path / "none" / "logs").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"looked for directories global_step_N, checkpoint-N.*found logs"):
        find_run(tmp_path / "none")
    with pytest.raises(CheckpointError, match="is itself a checkpoint"):
        find_run(tmp_path / "two" / "checkpoint-1")
    for path in (tmp_path / "absent", "memory://absent"):
        with pytest.raises(CheckpointError, match="does not exist"):
            find_run(path)


# Reading over all steps


@pytest.mark.parametrize("where", ["local", "memory"])
@pytest.mark.parametrize("shards", [1, 2])
def test_a_tensor_over_all_steps(tmp_path, memory, where, shards):
    steps = list(range(1, 24))
    root = write_run(tmp_path, steps, at_step, shards=shards)
    upload(memory, root, "/run")
    run = open_series(find_run(root if where == "local" else "memory://run"))
    run.check()
    assert run.steps == steps
    assert run.names == ["w", "n"]
    assert (run.info("w").dtype, run.info("w").shape) == ("BF16", (2, 3))
    expected = np.stack([at_step(step)["w"][1].reshape(-1) for step in steps])
    assert run.read("w").dtype == np.uint16
    assert np.array_equal(run.read("w"), expected)
    assert np.array_equal(run.read("w", 2, 5), expected[:, 2:5])
    assert run.read("w", 2, 2).shape == (23, 0)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda lo: run.read("w", lo), range(6)):
            assert np.array_equal(found, expected[:, 6 - found.shape[1] :])
    with pytest.raises(ValueError, match="which has 6"):
        run.read("w", 0, 7)


def test_equal_headers_are_parsed_once(tmp_path, monkeypatch):
    run = open_series(find_run(write_run(tmp_path, range(10), at_step)))
    calls = []
    parse = module.parse
    monkeypatch.setattr(module, "parse", lambda *a, **k: calls.append(1) or parse(*a, **k))
    run.checkpoint(0)
    run.check()
    assert len(calls) == 1
    assert all(run.checkpoint(i).tensors is run.checkpoint(0).tensors for i in range(10))
    assert [run.checkpoint(i).path for i in range(10)] == [f"{tmp_path}/global_step_{i}" for i in range(10)]


def test_checkpoints_may_be_laid_out_differently(tmp_path):
    write_checkpoint(tmp_path / "step_1", at_step(1))
    write_checkpoint(tmp_path / "step_2", dict(reversed(at_step(2).items())), shards=2)
    write_checkpoint(tmp_path / "step_3", at_step(3), metadata={"step": "3"})
    run = open_series(find_run(tmp_path))
    run.check()
    for name in ("w", "n"):
        assert np.array_equal(run.read(name), [at_step(s)[name][1].reshape(-1) for s in (1, 2, 3)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("n"), "'n' is part of step 1, but not of step 20"),
        (lambda t: t.update(x=bf16([1.0])), "'x' is part of step 20, but not of step 1"),
        (lambda t: t.update(w=bf16(np.zeros((3, 2)))), r"'w' of step 20 is BF16 \[3, 2\], expected BF16 \[2, 3\] as"),
        (lambda t: t.update(w=("F16", t["w"][1])), r"'w' of step 20 is F16 \[2, 3\], expected BF16"),
    ],
)  # fmt: skip
def test_checkpoints_that_do_not_fit_together(tmp_path, change, message):
    def tensors(step):
        found = at_step(step)
        if step == 20:
            change(found)
        return found

    run = open_series(find_run(write_run(tmp_path, [1, 10, 20, 30], tensors)))
    with pytest.raises(CheckpointError, match=message):
        run.check()
    with pytest.raises(CheckpointError, match=message):
        run.read("w")


def test_a_checkpoint_that_changes_or_vanishes(tmp_path):
    run = open_series(find_run(write_run(tmp_path, [1, 2, 3], at_step)))
    run.check()
    write_checkpoint(tmp_path / "global_step_2", {"w": bf16(np.zeros((9, 9)))})
    with pytest.raises(CheckpointError, match=r"global_step_2.*changed while"):
        run.read("w")
    run = open_series(run_paths := find_run(tmp_path, steps="1:1"))
    run.check()
    shutil.rmtree(run_paths[0][1])
    with pytest.raises(CheckpointError, match=r"global_step_1.*does not exist"):
        run.read("n")
    with pytest.raises(CheckpointError, match="at least one"):
        open_series([])


def test_many_shards_need_few_descriptors(tmp_path):
    run = open_series(find_run(write_run(tmp_path, range(40), at_step, shards=2)), threads=4)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(name) for name in os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 100
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 12, hard))
    try:
        run.check()
        assert run.read("w").shape == (40, 6)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Paths with {step}


@pytest.mark.parametrize("where", ["local", "memory"])
def test_paths_with_the_step_in_them(tmp_path, memory, where):
    write_run(tmp_path / "run", [1, 20, 300], at_step, layout="m-{}/hf")
    (tmp_path / "run" / "m-x").mkdir()
    (tmp_path / "run" / "m-4").write_text("a file")
    upload(memory, tmp_path / "run", "/run")
    root = str(tmp_path / "run") if where == "local" else "memory://run"
    path = f"{root}/m-{{step}}/hf"
    expected = [(step, f"{root}/m-{step}/hf") for step in (1, 20, 300)]
    assert find_run(path) == expected
    assert find_run(path, steps="2:") == expected[1:]
    assert find_run(path, steps="20") == expected[1:2]
    assert find_run(path, steps="1:20:19") == expected[:2]
    run = open_series(find_run(path, steps=":20"))
    assert np.array_equal(run.read("w"), [at_step(step)["w"][1].reshape(-1) for step in (1, 20)])
    with pytest.raises(
        CheckpointError, match=rf"^3 of 4 steps .*step 2: {root}/m-2/hf .*step 4: .*--exclude-steps 2:4 "
    ):
        find_run(path, steps="1:4")
    skipped = []
    assert find_run(path, steps="1:21", skip_incomplete=True, on_skip=skipped.append) == expected[:2]
    assert len(skipped) == 19
    with pytest.raises(CheckpointError, match=r"looked for directories in .*run called q-\{step\}; found m-1, m-20"):
        find_run(f"{root}/q-{{step}}/hf")


def test_the_step_may_come_twice_and_with_zeros(tmp_path, monkeypatch):
    for step in (1, 20):
        write_checkpoint(tmp_path / f"{step:03d}" / f"model-{step:03d}", at_step(step))
    path = f"{tmp_path}/{{step}}/model-{{step}}"
    assert find_run(path) == [(step, f"{tmp_path}/{step:03d}/model-{step:03d}") for step in (1, 20)]
    monkeypatch.chdir(tmp_path)
    assert [step for step, _ in find_run("{step}/model-{step}")] == [1, 20]
    (tmp_path / "20").mkdir()
    with pytest.raises(CheckpointError, match=r"has step 20 twice: (020 and 20|20 and 020)"):
        find_run(path)


def test_steps_that_cannot_be_listed(tmp_path, memory):
    for path in ("s3://bucket-{step}/x", "simplecache::memory://run/{step}"):
        with pytest.raises(InvalidArgument, match="cannot be listed; say which steps, for example --steps 1:500"):
            find_run(path)
    write_checkpoint(tmp_path / "9007199254740993", at_step(1))
    with pytest.raises(CheckpointError, match="9007199254740993 is above the limit"):
        find_run(f"{tmp_path}/{{step}}")


def test_checkpoints_by_their_paths_and_branches(tmp_path, memory):
    for step in (7, 9):
        write_checkpoint(tmp_path / f"step_{step}", at_step(step))
    upload(memory, tmp_path, "/run")
    found = find_checkpoints(["memory://run/step_9", tmp_path / "step_7"])
    assert found == [(7, f"{tmp_path}/step_7"), (9, "memory://run/step_9")]
