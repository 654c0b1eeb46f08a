"""Replaying from S3: restoring, iterating and checking read ahead, what they need and little else."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import relex_codec
from relex_codec.exact import replay
from relex_codec.storage.prefetch import PrefetchingSource
from support.checkpoints import write_checkpoint
from support.plain import File
from support.runs import Made
from support.servers.counting import fetched
from support.servers.fixtures import Bucket
from support.servers.runs import uploaded

pytestmark = pytest.mark.usefixtures("nothing_kept")


@pytest.fixture
def run(moto_bucket: Bucket, cloud_exact_run: Made) -> Any:
    """The run, opened, with nothing counted yet; the next requests are those of what is done with it."""
    with uploaded(moto_bucket, cloud_exact_run)() as opened:
        opened._reader.base_reader()
        moto_bucket.proxy.clear()
        yield opened


def needed(made: Made) -> int:
    """Bytes of the whole exact tier and of the base's tensors."""
    places = File(made.root / "run.relex").places
    tables = places["relex.exact.segments"][0], places["relex.exact.frames"][1]
    low, high = places["relex.data.frames"]
    return tables[1] - tables[0] + high - low + sum(bits.nbytes for _, bits in made.base.values())


def test_a_run_is_restored_from_few_requests(
    run: relex_codec.Run, moto_bucket: Bucket, cloud_exact_run: Made, tmp_path: Path
) -> None:
    run.restore(tmp_path / "out")
    reads = [read for read in fetched(moto_bucket.proxy) if not read[0].endswith(".json")]
    assert sum(end - start for _, start, end in reads) <= 1.01 * needed(cloud_exact_run)
    assert len(reads) <= 4 + len(cloud_exact_run.steps) + 1  # what lies where in a frame is read before
    for step in cloud_exact_run.steps:
        with relex_codec.open(cloud_exact_run.root / "run.relex", base=cloud_exact_run.base_path) as local:
            local.save(tmp_path / f"step_{step}", step, tier="exact")
        for path in (tmp_path / f"step_{step}").glob("*.safetensors"):
            assert path.read_bytes() == (tmp_path / "out" / f"global_step_{step}" / path.name).read_bytes()


def test_few_steps_read_their_frames_only(run: relex_codec.Run, moto_bucket: Bucket, cloud_exact_run: Made) -> None:
    for step, state in run.iter_steps(start=3, stop=4):
        for name, (_, bits) in cloud_exact_run.at(step).items():
            assert (state[name].view(dtype=torch.uint16).numpy() == bits).all()
    few = sum(end - start for _, start, end in fetched(moto_bucket.proxy))
    assert few < 0.8 * needed(cloud_exact_run)


def test_digests_are_checked_from_few_requests(
    run: relex_codec.Run, moto_bucket: Bucket, cloud_exact_run: Made
) -> None:
    assert run.check_exact() == len(cloud_exact_run.steps)
    reads = fetched(moto_bucket.proxy)
    assert sum(end - start for _, start, end in reads) <= 1.01 * needed(cloud_exact_run)
    assert len(reads) <= 4 + len(cloud_exact_run.steps) + 1


def test_lots_bound_what_is_held_and_change_nothing(
    run: relex_codec.Run, moto_bucket: Bucket, cloud_exact_run: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "LOT", 600_000)
    monkeypatch.setattr(replay, "BATCH_WORDS", 1)  # a batch for each part
    held: list[int] = []
    prefetching = replay.prefetching

    def counting(uses: Any) -> Any:
        held.append(sum(use.end - use.start for use in uses))
        return prefetching(uses)

    monkeypatch.setattr(replay, "prefetching", counting)
    assert run.check_exact() == len(cloud_exact_run.steps)
    reads = fetched(moto_bucket.proxy)
    assert len(held) > 2
    assert sum(end - start for _, start, end in reads) <= 1.01 * needed(cloud_exact_run)


def test_a_file_that_is_replaced_meanwhile_is_noticed(
    run: relex_codec.Run, moto_bucket: Bucket, cloud_exact_run: Made
) -> None:
    steps = run.iter_steps()
    moto_bucket.put("run.relex", np.random.default_rng(0).bytes(run._reader.container.source.size))
    with pytest.raises(relex_codec.InvalidArgument, match="changed while it was being read"):
        list(steps)


def further(made: Made, folder: Path) -> Path:
    """A checkpoint of a later step."""
    return write_checkpoint(folder / "global_step_20", made.at(20))


def test_appending_reads_the_file_once(moto_bucket: Bucket, cloud_exact_run: Made, tmp_path: Path) -> None:
    made = cloud_exact_run
    uploaded(moto_bucket, made)
    later = further(made, tmp_path)
    url, options = moto_bucket.url("run.relex"), moto_bucket.options
    moto_bucket.proxy.clear()
    relex_codec.append(url, [later], base=made.base_path, output=tmp_path / "appended.relex", storage_options=options)
    reads = fetched(moto_bucket.proxy)
    size = (made.root / "run.relex").stat().st_size
    assert sum(end - start for _, start, end in reads) <= 1.01 * size + (64 << 10)
    assert len(reads) <= 4
    relex_codec.append(made.root / "run.relex", [later], base=made.base_path, output=tmp_path / "local.relex")
    with relex_codec.open(tmp_path / "appended.relex", base=made.base_path) as run:
        assert run.check_exact() == len(made.steps) + 1
    sizes = [(tmp_path / name).stat().st_size for name in ("appended.relex", "local.relex")]
    assert abs(sizes[0] - sizes[1]) <= 64  # they say in other words where the base is


def test_a_full_disk_while_the_file_is_copied_changes_nothing(
    moto_bucket: Bucket, cloud_exact_run: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = cloud_exact_run
    uploaded(moto_bucket, made)
    later = further(made, tmp_path / "later")
    before = moto_bucket.filesystem.cat_file(f"{moto_bucket.name}/run.relex")

    def full(self: PrefetchingSource, file: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PrefetchingSource, "copy_to", full)
    with pytest.raises(relex_codec.InvalidArgument, match="No space left on device; nothing was changed"):
        relex_codec.append(
            moto_bucket.url("run.relex"), [later], base=made.base_path, storage_options=moto_bucket.options
        )
    assert moto_bucket.filesystem.cat_file(f"{moto_bucket.name}/run.relex") == before
