"""Bases and runs on the Hub, through huggingface_hub's own client: found, pinned_to_commit to a commit, and why not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

import relex_codec
from relex_codec.checkpoints.base_model import open_base
from relex_codec.checkpoints.discovery import find_checkpoints, find_run
from relex_codec.errors import CheckpointError, InvalidArgument
from relex_codec.storage.hub import revisions
from relex_codec.storage.hub.paths import Model, parse_model_url
from relex_codec.storage.hub.revisions import list_branches, pinned_to_commit
from support.checkpoints import checkpoint_files
from support.commands import cli, cli_process, failed
from support.hub_server import Hub, end_sessions
from support.tensors import bf16

STEPS = [1, 2, 3, 5]
BASE = {name: np.random.default_rng(i).standard_normal((24, 32)) * 0.1 for i, name in enumerate("abc")}


def at(step: int) -> dict[str, Any]:
    return {name: bf16(value * (1 + 0.01 * step)) for name, value in BASE.items()}


def files(step: int, **options: Any) -> dict[str, bytes]:
    return checkpoint_files(at(step), **options)


@pytest.fixture
def published(hub: Hub) -> Hub:
    """A base of two shards with a second commit, and a run with a branch for each step."""
    base = hub.add("org/base", files(0, shards=2))
    base.tags["v1"] = base.branches["main"]
    base.commit({**files(0, shards=2), "README.md": b"later"})
    base.commit({f"sub/{name}": data for name, data in files(0).items()}, "sub")
    run = hub.add("org/run", {"README.md": b"a run"})
    for step in STEPS:
        run.commit(files(step), f"step_{step}")
    return hub


def download(repo: str, revision: str | None = None, names: str | None = None) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repo, revision=revision, allow_patterns=names))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Switch the Hub off, for this process and those that it starts."""
    from huggingface_hub import constants

    def switch() -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        end_sessions()

    return switch


def asked(hub: Hub) -> list[str]:
    """Paths of the requests since the last call."""
    found = [unquote(seen.path) for seen in hub.server.seen]
    hub.server.clear()
    return found


# ---- URLs ----


@pytest.mark.parametrize(
    ("url", "model"),
    [
        ("hf://org/name", Model("org/name", None, "")),
        ("hf://models/org/name/", Model("org/name", None, "")),
        ("HF://Org/Name@Main", Model("Org/Name", "Main", "")),
        ("hf://org/name@main/sub/x", Model("org/name", "main", "sub/x")),
        ("hf://org/name@a%2Fb", Model("org/name", "a/b", "")),
        ("hf://org/name@refs/pr/7/x", Model("org/name", "refs/pr/7", "x")),
        ("hf://org/run@step_{step}", Model("org/run", "step_{step}", "")),
        ("hf://datasets/org/name", None),
        ("hf://buckets/org/name/x", None),
        ("hf://name", None),
        ("s3://org/name", None),
        ("/org/name", None),
    ],
)
def test_urls_of_models(url: str, model: Model | None) -> None:
    assert parse_model_url(url) == model
    if model is not None:
        assert parse_model_url(str(model)) == model


# ---- The commit of a base ----


def test_a_reference_is_pinned_to_its_commit(published: Hub) -> None:
    base = published.repositories["org/base"]
    main, first = base.branches["main"], base.tags["v1"]
    assert main != first
    assert pinned_to_commit("hf://org/base") == pinned_to_commit("hf://org/base@main") == f"hf://org/base@{main}"
    assert pinned_to_commit("hf://org/base@v1") == f"hf://org/base@{first}"
    assert pinned_to_commit("hf://org/base@sub/sub") == f"hf://org/base@{base.branches['sub']}/sub"
    asked(published)
    for unchanged in (f"hf://org/base@{first}", "/local/base", "s3://bucket/base", "hf://datasets/org/base"):
        assert pinned_to_commit(unchanged) == unchanged
    assert asked(published) == []


def test_a_file_refers_to_the_commit(published: Hub, tmp_path: Path) -> None:
    base = published.repositories["org/base"]
    commit = base.branches["main"]
    relex_codec.encode("hf://org/run@step_{step}", tmp_path / "x.relex", base="hf://org/base", quality="raw")
    base.commit({**files(7), "README.md": b"another model"})  # main moves on
    with relex_codec.open(tmp_path / "x.relex") as run:
        assert run._reader.container.index.manifest.base_uri == f"hf://org/base@{commit}"
        assert run.steps == STEPS
        state = run.state_dict(0)
    for name, (_, bits) in at(0).items():
        assert np.array_equal(state[name].view(dtype=__import__("torch").uint16).numpy(), bits)
    with relex_codec.open(tmp_path / "x.relex", base="hf://org/base") as run, pytest.raises(relex_codec.BaseMismatch):
        run.state_dict(0)


def test_the_cache_comes_first(published: Hub, tmp_path: Path, offline: Callable[[], None]) -> None:
    commit = published.repositories["org/base"].branches["main"]
    download("org/base")
    asked(published)
    found = open_base(f"hf://org/base@{commit}")
    assert found.path == f"hf://org/base@{commit}"
    assert np.array_equal(found.read("a"), at(0)["a"][1].reshape(-1))
    assert asked(published) == []
    # a commit that was not downloaded is read in ranges
    first = published.repositories["org/base"].tags["v1"]
    found = open_base(f"hf://org/base@{first}")
    asked(published)
    assert np.array_equal(found.read("a"), at(0)["a"][1].reshape(-1))
    assert all(request.startswith(("/org/base/resolve/", "/storage/")) for request in asked(published))
    offline()
    assert pinned_to_commit("hf://org/base") == f"hf://org/base@{commit}"  # as the cache has it
    relex_codec.encode(write_steps(tmp_path), tmp_path / "x.relex", base="hf://org/base", quality="raw")
    with relex_codec.open(tmp_path / "x.relex") as run:
        assert run._reader.container.index.manifest.base_uri == f"hf://org/base@{commit}"
        run.save(tmp_path / "out", 2)
    assert (tmp_path / "out" / "README.md").read_bytes() == b"later"
    assert asked(published) == []


def write_steps(folder: Path) -> Path:
    for step in STEPS:
        (folder / "run" / f"step_{step}").mkdir(parents=True)
        for name, data in files(step).items():
            (folder / "run" / f"step_{step}" / name).write_bytes(data)
    return folder / "run"


def test_a_folder_of_a_cached_repository_is_pinned_offline(published: Hub, offline: Callable[[], None]) -> None:
    commit = published.repositories["org/base"].branches["sub"]
    download("org/base", "sub")
    offline()
    assert pinned_to_commit("hf://org/base@sub/sub") == f"hf://org/base@{commit}/sub"
    assert np.array_equal(open_base("hf://org/base@sub/sub").read("b"), at(0)["b"][1].reshape(-1))


def test_a_hub_that_is_not_reached_is_one_that_is_off(
    published: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    commit = published.repositories["org/base"].branches["main"]
    download("org/base")
    monkeypatch.setenv("RELEX_RETRY_SECONDS", "0.3")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert pinned_to_commit("hf://org/base") == f"hf://org/base@{commit}"
    with pytest.raises(CheckpointError, match=r"cache, and http://127.0.0.1:9 is not reached \(.*hf download org/run"):
        pinned_to_commit("hf://org/run@step_1")


def test_a_moved_branch_is_asked_for_though_it_is_cached(published: Hub) -> None:
    base = published.repositories["org/base"]
    download("org/base")
    newer = base.commit({**files(0), "README.md": b"newest"})
    assert pinned_to_commit("hf://org/base") == f"hf://org/base@{newer}"


def test_a_token_goes_with_requests(published: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    published.add("org/private", files(0), token="secret")
    published.add("org/gated", files(0), gate="secret")
    for name in ("private", "gated"):
        with pytest.raises(CheckpointError):
            open_base(pinned_to_commit(f"hf://org/{name}"))
    options = {"hf": {"token": "secret"}, "s3": {"key": "other"}}
    for name in ("private", "gated"):
        found = open_base(pinned_to_commit(f"hf://org/{name}", options), options)
        assert np.array_equal(found.read("a"), at(0)["a"][1].reshape(-1))
    monkeypatch.setenv("HF_TOKEN", "secret")
    for name in ("private", "gated"):
        assert open_base(pinned_to_commit(f"hf://org/{name}") + "/").shards == ["model.safetensors"]


# ---- Why not ----


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("hf://org/none", r"hf://org/none cannot be read: no repository org/none, or it is private; .*hf auth login"),
        ("hf://org/base@v9", r"hf://org/base@v9 cannot be read: org/base has no revision 'v9'"),
        (f"hf://org/base@{'0' * 40}", r"has no revision '0{40}'"),
        ("hf://org/base/none", r"hf://org/base(@\w{40})?/none does not exist"),
        ("hf://org/run", r"hf://org/run(@\w{40})? has no weights: .*found README.md"),
        ("hf://org/..name", r"hf://org/\.\.name cannot be read: .*; expected hf://org/name"),
    ],
)
def test_what_is_not_there(published: Hub, url: str, message: str) -> None:
    for read in (open_base, lambda url: open_base(pinned_to_commit(url)), find_checkpoints_of):
        with pytest.raises(CheckpointError, match=message):
            read(url)


def find_checkpoints_of(url: str) -> Any:
    return find_checkpoints([url], step=1)


def test_a_gated_repository(published: Hub, tmp_path: Path) -> None:
    gated = rf"is gated: accept its terms at {published.url}/org/\w+, then log in with `hf auth login` or set HF_TOKEN"
    relex_codec.encode("hf://org/run@step_{step}", tmp_path / "x.relex", base="hf://org/base", quality="raw")
    published.repositories["org/base"].gate = "secret"
    with pytest.raises(CheckpointError, match=rf"^hf://org/base\S* {gated}"):
        open_base("hf://org/base")
    with relex_codec.open(tmp_path / "x.relex") as run, pytest.raises(CheckpointError, match=f"{gated}; pass --base"):
        run.state_dict(2)
    published.repositories["org/base"].gate, published.repositories["org/run"].gate = None, "secret"
    with pytest.raises(CheckpointError, match=rf"^hf://org/run@\S* {gated}"):
        relex_codec.encode("hf://org/run@step_{step}", tmp_path / "y.relex", base="hf://org/base")
    published.add("org/file", {"x.relex": (tmp_path / "x.relex").read_bytes()}, gate="secret")
    with pytest.raises(InvalidArgument, match=f"^hf://org/file/x.relex {gated}"):
        relex_codec.open("hf://org/file/x.relex")


def test_messages_name_the_hub_that_is_asked(published: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    own, elsewhere = published.url, "http://127.0.0.1:9"  # where nothing listens
    monkeypatch.setattr(constants, "ENDPOINT", elsewhere)
    published.repositories["org/base"].gate = "secret"
    for options in ({"endpoint": own}, {"hf": {"endpoint": own}}):
        with pytest.raises(CheckpointError, match=f"is gated: accept its terms at {own}/org/base"):
            open_base("HF://org/base", options)
    monkeypatch.setenv("RELEX_RETRY_SECONDS", "0.3")
    monkeypatch.setattr(constants, "ENDPOINT", own)
    with pytest.raises(CheckpointError, match=f"and {elsewhere} is not reached"):
        pinned_to_commit("HF://org/base", {"endpoint": elsewhere})


def test_offline_without_a_cache(published: Hub, offline: Callable[[], None], tmp_path: Path) -> None:
    download("org/base", names="*.json")  # no weights
    offline()
    message = r"is not completely in the local cache, and HF_HUB_OFFLINE is set: .*`hf download org/base`"
    commit = published.repositories["org/base"].branches["main"]
    assert pinned_to_commit("hf://org/base") == f"hf://org/base@{commit}"
    with pytest.raises(CheckpointError, match=message):
        open_base("hf://org/base")
    for read in (open_base, pinned_to_commit):
        with pytest.raises(CheckpointError, match=r"HF_HUB_OFFLINE is set: .*`hf download org/base --revision v1`"):
            read("hf://org/base@v1")
    with pytest.raises(CheckpointError, match=r"`hf download org/run --revision step_1`"):
        find_checkpoints(["hf://org/run@step_1"])
    for steps in (None, "1:3"):
        with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set"):
            find_run("hf://org/run@step_{step}", steps=steps)
    with pytest.raises(InvalidArgument, match="HF_HUB_OFFLINE is set"):
        relex_codec.open("hf://org/run/x.relex")


def test_an_incomplete_cache_is_read_past(published: Hub, offline: Callable[[], None]) -> None:
    folder = download("org/base")
    next(folder.glob("model-00002*")).unlink()
    assert np.array_equal(open_base("hf://org/base").read("c"), at(0)["c"][1].reshape(-1))
    offline()
    with pytest.raises(CheckpointError, match="is not completely in the local cache, and HF_HUB_OFFLINE is set"):
        open_base("hf://org/base")


def test_an_answer_is_not_overruled_by_the_cache(published: Hub) -> None:
    download("org/base")
    published.repositories.pop("org/base")
    with pytest.raises(CheckpointError, match="no repository org/base"):
        pinned_to_commit("hf://org/base")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revisions.importlib.util, "find_spec", lambda name: None)
    for call in (pinned_to_commit, list_branches, open_base):
        with pytest.raises(InvalidArgument, match=r"needs huggingface_hub: pip install 'relex-codec\[hub\]'"):
            call("hf://org/name")


# ---- Branches as steps ----


def test_branches_are_listed(published: Hub) -> None:
    published.repositories["org/run"].commit({"x": b""}, "step_x")
    published.repositories["org/run"].tags["step_9"] = published.repositories["org/run"].branches["step_1"]
    assert list_branches("hf://org/run")[:2] == ["main", "step_1"]
    expected = [(step, f"hf://org/run@step_{step}") for step in STEPS]
    assert find_run("hf://org/run@step_{step}") == expected
    assert find_run("hf://org/run@step_{step}", steps="2:") == expected[1:]
    assert find_run("hf://org/run@step_{step}", steps=":3:2") == expected[0:3:2]
    with pytest.raises(InvalidArgument, match="leaves nothing, there is 1 to 5"):
        find_run("hf://org/run@step_{step}", steps="6:")
    with pytest.raises(CheckpointError, match=r"looked for branches called s\{step\}; found main, step_1"):
        find_run("hf://org/run@s{step}")


def test_steps_that_are_named_must_be_there(published: Hub) -> None:
    url = "hf://org/run@step_{step}"
    expected = [(step, f"hf://org/run@step_{step}") for step in STEPS]
    asked(published)
    assert find_run(url, steps="1:3") == expected[:3]
    assert not any(path.endswith("/refs") for path in asked(published))
    assert find_run(url, steps="5") == expected[3:]
    with pytest.raises(
        CheckpointError, match=r"^2 of 6 steps .*step 4: .*has no revision 'step_4'.*--exclude-steps 4,6 "
    ):
        find_run(url, steps="1:6")
    skipped: list[str] = []
    assert find_run(url, steps="1:6", skip_incomplete=True, on_skip=skipped.append) == expected
    assert len(skipped) == 2 and "step_4" in skipped[0] and "step_6" in skipped[1]
    with pytest.raises(CheckpointError, match=r"no revision 'step_7'.*\(none of the 3 steps can be used"):
        find_run(url, steps="7:9", skip_incomplete=True)
    published.repositories["org/run"].commit({"config.json": b"{}"}, "step_10")
    with pytest.raises(CheckpointError, match=r"step 10: .*has no weights"):
        find_run(url, steps="10")
    with pytest.raises(InvalidArgument, match="lists 1,000,001 steps, expected 1 to 100,000"):
        find_run(url, steps="0:1000000")
    with pytest.raises(InvalidArgument, match="lists 0 steps"):
        find_run(url, steps="5:2")


def test_branches_with_slashes_and_zeros(hub: Hub) -> None:
    run = hub.add("org/run")
    for step in (1, 20):
        run.commit({f"hf/{name}": data for name, data in files(step).items()}, f"rl/{step:04d}")
    url = "hf://org/run@rl%2F{step}/hf"
    assert find_run(url) == [(1, "hf://org/run@rl%2F0001/hf"), (20, "hf://org/run@rl%2F0020/hf")]
    run.commit({"x": b""}, "rl/20")
    with pytest.raises(CheckpointError, match=r"has step 20 twice: (0020 and 20|20 and 0020)"):
        find_run(url)


def test_a_branch_is_appended(published: Hub, tmp_path: Path) -> None:
    file = tmp_path / "x.relex"
    relex_codec.encode("hf://org/run@step_{step}", file, base="hf://org/base", quality="raw", steps=":3", exact=True)
    relex_codec.append(file, ["hf://org/run@step_5"])
    with relex_codec.open(file) as run:
        assert run.steps == STEPS
        for name, (_, bits) in at(5).items():
            assert np.array_equal(run._reader.bits(name, 5, "exact"), bits.reshape(-1))
    published.repositories["org/run"].commit(files(9))
    with pytest.raises(InvalidArgument, match="hf://org/run does not say which step it is"):
        relex_codec.append(file, ["hf://org/run"])


# ---- The commands ----


def test_from_the_command_line(published: Hub, tmp_path: Path, offline: Callable[[], None]) -> None:
    file = tmp_path / "x.relex"
    commit = published.repositories["org/base"].branches["main"]
    done = cli("encode", "hf://org/run@step_{step}", "--steps", "1:5", "--skip-incomplete", "--base", "hf://org/base",
               "-o", file)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        "left out: hf://org/run@step_4 cannot be read: org/run has no revision 'step_4'; check its name",
        f"keep the base, no step can be decoded without it: hf://org/base@{commit}",
    ]
    published.add("org/files", {"deep/x.relex": file.read_bytes()})
    done = cli("info", "hf://org/files/deep/x.relex")
    assert f"hf://org/base@{commit}" in done.stdout
    done = cli_process("decode", "hf://org/files/deep/x.relex", "--step", 4, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").exists()  # as the run has it
    done = cli("verify", file, "--base", "hf://org/base@v1")
    assert "hf://org/base@v1 is its base" in done.stdout
    arguments = ("encode", "hf://org/run@step_{step}", "-o", tmp_path / "y.relex", "--base")
    failed(cli(*arguments, "hf://org/none"), "no repository org/none")
    failed(
        cli(*arguments, "hf://org/base", "--steps", "1:5"),
        "step 4: ",
        "step_4",
        "--exclude-steps 4 or --skip-incomplete",
    )
    failed(cli("info", "hf://org/none/x.relex"), "no repository org/none", "HF_TOKEN")
    shutil.rmtree(tmp_path / "out")
    offline()
    failed(cli("decode", file, "--step", 4, "-o", tmp_path / "out"), "HF_HUB_OFFLINE", f"--revision {commit}", "--base")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.relex"]
