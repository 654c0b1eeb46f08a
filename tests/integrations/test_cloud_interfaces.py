"""Functions and commands that read, on S3: what they take, and that they give what local files give."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import relex_codec
from relex_codec.errors import InvalidArgument
from support.commands import cli
from support.runs import Made
from support.servers.fixtures import Bucket
from support.servers.runs import SHAPES, uploaded

pytestmark = pytest.mark.usefixtures("nothing_kept")


def test_functions_that_read_take_storage_options(moto_bucket: Bucket, cloud_exact_run: Made, tmp_path: Path) -> None:
    options = moto_bucket.options
    moto_bucket.upload(cloud_exact_run.run, "run")
    uploaded(moto_bucket, cloud_exact_run)
    out = tmp_path / "run.relex"
    moto_bucket.proxy.fail("503", 3, lambda method, path: path.endswith(".safetensors"))
    base, steps = moto_bucket.url("base"), "1:8"
    relex_codec.encode(
        moto_bucket.url("run"), out, base=base, quality="raw", steps=steps, exact=True, storage_options=options
    )
    checkpoints = [moto_bucket.url(f"run/global_step_{step}") for step in (9, 10)]
    relex_codec.append(out, checkpoints, base=base, storage_options=options)
    moto_bucket.put("new.relex", out.read_bytes())
    with (
        relex_codec.safe_open(moto_bucket.url("new.relex"), "np", step=9, base=base, storage_options=options) as f,
        relex_codec.open(out, base=cloud_exact_run.base_path) as run,
    ):
        assert run.steps == list(range(1, 11))
        assert (run._reader.bits("b", 9) == cloud_exact_run.at(9)["b"][1].reshape(-1)).all()
        with pytest.raises(InvalidArgument, match="numpy has no dtype for BF16"):
            f.get_tensor("b")
        assert f.keys() == sorted(run.keys())


def test_the_command_line_reads_with_what_the_environment_says(
    moto_bucket: Bucket, cloud_run: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_clients: None
) -> None:
    uploaded(moto_bucket, cloud_run)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_bucket.proxy.url)
    url, base = moto_bucket.url("run.relex"), moto_bucket.url("base")

    found = cli("info", url, "--json")
    assert found.returncode == 0 and json.loads(found.stdout)["tensors"] == len(SHAPES), found
    assert len(moto_bucket.proxy.seen) <= 3
    found = cli("decode", url, "--step", 5, "--base", base, "-o", tmp_path / "out")
    assert found.returncode == 0, found
    with relex_codec.open(cloud_run.root / "run.relex", base=cloud_run.base_path) as local:
        local.save(tmp_path / "local", 5)
    for path in (tmp_path / "local").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    moto_bucket.proxy.fail("403", 1000)
    found = cli("info", moto_bucket.url("other.relex"))
    assert found.returncode == 1 and "check permissions or credentials" in found.stderr
    assert found.stderr.count("\n") == 1


def test_threads_share_an_open_run(moto_bucket: Bucket, cloud_run: Made) -> None:
    with relex_codec.open(cloud_run.root / "run.relex", base=cloud_run.base_path) as local:
        expected = {name: local._reader.bits(name, 5) for name in local}
    with uploaded(moto_bucket, cloud_run)() as run, ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(run._reader.bits, name, 5) for name in [*expected, *expected]]
        whole = [pool.submit(run.state_dict, 5) for _ in range(2)]
        for name, job in zip([*expected, *expected], jobs, strict=True):
            assert (job.result() == expected[name]).all()
        for job in whole:
            assert sorted(job.result()) == sorted(expected)
