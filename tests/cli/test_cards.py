"""Model cards: what the Hub's own parser reads of them, and that words of a file stay words."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import relex_codec
from relex_codec.run.card import run_card
from support import tiny
from support.commands import cli, failed

hub = pytest.importorskip("huggingface_hub")


def made(root: Path, **options: Any) -> Path:
    base = tiny.weights(tied=False)
    tiny.write(root / "base", base, tiny.UNTIED)
    tiny.write_steps(root / "run", lambda step: tiny.moved(base, step), config=tiny.UNTIED)
    relex_codec.encode(root / "run", root / "my run.relex", base=root / "base", quality="raw", exact=True, **options)
    return root / "my run.relex"


def test_a_card(tmp_path: Path) -> None:
    path = made(tmp_path, base_uri="hf://org/name@0123abc")
    (tmp_path / "my run.scores.json").write_text(
        json.dumps({"metric": "solved", "scores": [{"step": 3, "tier": "trained", "score": 0.7}]})
    )
    (tmp_path / "my run.png").write_bytes(b"")
    done = cli("card", path)
    assert done.returncode == 0 and done.stderr == ""
    card = hub.ModelCard(done.stdout)
    assert card.data.base_model == "org/name"
    assert card.data.library_name == "relex-codec"
    assert "rlvr" in card.data.tags
    assert card.data.to_dict()["base_model_relation"] == "finetune"
    with relex_codec.open(path) as run:
        info = run.info()
    for words in (
        f"{info['bytes']['total']:,} bytes", "| steps | 3, 1 to 3 |", "every bit of the checkpoint", "`line`",
        "![What the run did](my run.png)", "relex-codec decode 'my run.relex' --step 3 -o step-3", "at `0123abc`",
        'relex_codec.open("my run.relex")', "| 3 | trained | 0.7 |", info["digest"], "Score what you extrapolate",
    ):  # fmt: skip
        assert words in card.content, words


def test_the_commands_of_a_card_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shlex

    made(tmp_path)
    monkeypatch.chdir(tmp_path)
    text = cli("card", "my run.relex").stdout
    shell = text.split("```sh\n")[1].split("```")[0].splitlines()[1:]
    assert len(shell) == 4
    for line in shell:
        words = shlex.split(line)
        done = cli(
            *words[1:],
            *(["--rank", "4"] if words[1] == "adapter" else []),
            *(["-o", "r"] if words[1] == "restore" else []),
        )
        assert done.returncode == 0, (line, done.stderr)


def test_without_a_base_on_the_hub(tmp_path: Path) -> None:
    card = hub.ModelCard(cli("card", made(tmp_path)).stdout)
    assert card.data.base_model is None  # the Hub refuses what is none of its names
    assert "`./base`" in card.content
    failed(cli("card", tmp_path / "nothing.relex"), "does not exist")


def test_words_of_a_file_are_words(tmp_path: Path) -> None:
    with relex_codec.open(made(tmp_path)) as run:
        document = run.info()
    evil = "x`](http://e)\n---\nlicense: mit\n<script>|*"
    document |= {"base": evil, "quality": evil, "producer": evil}
    document["scores"] = {"metric": evil, "scores": [{"step": 1.0, "tier": "line", "score": 1.0}]}
    text = run_card(document, "r.relex")
    card = hub.ModelCard(text)
    assert card.data.license is None and card.data.base_model is None
    for line in text.splitlines():
        assert line != "license: mit"
    body = text.split("---\n", 2)[2]
    assert "\n---\n" not in body
    prose = re.sub("`[^`]*`", "", body.split("```")[0])
    assert not re.search(r"(?<!\\)(<script|\]\(http://e)", prose)


def test_the_card_of_an_adapter(tmp_path: Path) -> None:
    path = made(tmp_path, base_uri="hf://org/name")
    with relex_codec.open(path, base=tmp_path / "base") as run:
        run.save_adapter(tmp_path / "a", 8, rank=4)
    card = hub.ModelCard.load(tmp_path / "a" / "README.md")
    assert (card.data.base_model, card.data.library_name) == ("org/name", "peft")
    assert card.data.to_dict()["base_model_relation"] == "adapter"
    assert "was never trained" in card.content and "| rank | 4 |" in card.content
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/name"
    note = json.loads((tmp_path / "a" / "relex.json").read_text())
    assert note["extrapolated"] is True and (note["step"], note["tier"]) == (8, "line")


def test_notes_tell_what_was_trained(tmp_path: Path) -> None:
    path = made(tmp_path)
    assert cli("restore", path, "-o", tmp_path / "again", "--steps", "1:2").returncode == 0
    note = json.loads((tmp_path / "again" / "relex.json").read_text())
    assert (note["steps"], note["tier"], note["extrapolated"]) == ([1, 2], "exact", False)
    for step in (1, 2):
        first, second = (tmp_path / root / f"checkpoint-{step}" for root in ("run", "again"))
        assert sorted(p.name for p in first.iterdir()) == sorted(p.name for p in second.iterdir())
    for step, tier, extrapolated in ((2, "exact", False), (2.5, "track", False), (6, "line", True), (0, "base", False)):
        out = tmp_path / f"out-{step}"
        assert cli("decode", path, "--step", step, "-o", out, "--far").returncode == 0
        found = json.loads((out / "relex.json").read_text())
        assert (found["step"], found["tier"], found["extrapolated"]) == (step, tier, extrapolated)
        assert found["digest"] == note["digest"]
    # notes in a run are neither kept nor missed
    done = cli("encode", tmp_path / "again", "--base", tmp_path / "base", "-o", tmp_path / "b.relex", "--exact")
    assert done.returncode == 0 and "not in the file" not in done.stderr
    verified = cli("verify", tmp_path / "b.relex", "--against", tmp_path / "again")
    assert verified.returncode == 0 and "not in the file" not in verified.stdout + verified.stderr
