"""The demonstration: its task, its training, the base it ships, and the whole command on a short run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from support.commands import ELSEWHERE

transformers = pytest.importorskip("transformers")

import torch  # noqa: E402 (after the skip)
from safetensors.torch import load_file  # noqa: E402

import relex_codec  # noqa: E402
from relex_codec.demo import grpo, make_base, run_demo, task  # noqa: E402
from relex_codec.errors import InvalidArgument  # noqa: E402

CHARACTERS = {index: character for character, index in task.VOCABULARY.items()}


def text(row: torch.Tensor) -> str:
    return "".join(CHARACTERS[index] for index in row.tolist())


def tokens(characters: str) -> list[int]:
    return [task.VOCABULARY[character] for character in characters]


def pairs(questions: torch.Tensor) -> set[str]:
    return {text(question) for question in questions}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Batches as small as these gain nothing from threads, and lose much where other jobs use the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base() -> task.Model:
    return task.load(run_demo.BASE)


@pytest.mark.parametrize("held_out", [False, True])
def test_a_problem_is_an_addition_with_its_reversed_sum(held_out: bool) -> None:
    for question, answer in zip(*task.problems(300, 5, held_out=held_out), strict=True):
        left, right = text(question).removesuffix("=").split("+")
        assert len(left) == len(right) == 3
        assert text(answer) == f"{int(left) + int(right):04d}"[::-1] + "$"


def test_a_seed_gives_a_stream_whose_start_does_not_depend_on_its_length() -> None:
    few, many = task.problems(10, 3, held_out=True), task.problems(2000, 3, held_out=True)
    assert torch.equal(few[0], many[0][:10]) and torch.equal(few[1], many[1][:10])
    assert not torch.equal(few[0], task.problems(10, 4, held_out=True)[0])


def test_training_never_meets_a_held_out_problem() -> None:
    # The scored stream against the training streams of another seed and, which would show a shared draw, of the same.
    scored = pairs(task.problems(task.SCORE_PROBLEMS, task.SCORE_SEED, held_out=True)[0])
    for seed in (0, task.SCORE_SEED, make_base.TRAINING_SEED):
        assert not scored & pairs(task.problems(20_000, seed)[0])
    assert task.is_held_out(np.arange(10**6)).mean() == pytest.approx(0.1, abs=0.001)


def test_the_held_out_tenth_is_spread_over_the_digits() -> None:
    held_out = task.is_held_out(np.arange(10**6)).reshape((10,) * 6)
    for digit in range(6):
        share = held_out.mean(axis=tuple(axis for axis in range(6) if axis != digit))
        assert share == pytest.approx(np.full(10, 0.1), abs=0.005)


def test_only_the_whole_right_answer_is_rewarded() -> None:
    right = torch.tensor([tokens("2111$")])
    for sampled, expected in (("2111$", 1.0), ("3111$", 0.0), ("21110", 0.0), ("1112$", 0.0)):
        assert task.reward(torch.tensor([tokens(sampled)]), right).tolist() == [expected]


def test_advantages_compare_within_a_group_only() -> None:
    found = grpo.advantages(torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]]))
    assert found[:2].abs().max() == 0
    assert found[2, 0] == pytest.approx(3**0.5, rel=1e-3) and found[2].sum() == pytest.approx(0, abs=1e-5)


def test_the_cache_changes_neither_greedy_answers_nor_probabilities(base: task.Model) -> None:
    questions, _ = task.problems(6, 1)
    answers = task.generate(base, questions, lambda logits: logits.argmax(-1), copies=2)
    whole = torch.cat([questions.repeat_interleave(2, 0), answers], 1)
    logits = base(input_ids=whole[:, :-1], use_cache=False).logits[:, questions.shape[1] - 1 :]
    assert torch.equal(logits.argmax(-1), answers)
    expected = torch.log_softmax(logits, -1).gather(-1, answers[:, :, None])[:, :, 0]
    assert torch.allclose(task.answer_log_probabilities(base, questions, answers, copies=2), expected, atol=1e-4)


def test_the_shipped_base_is_small_and_as_good_as_its_script_says(base: task.Model) -> None:
    assert sum(file.stat().st_size for file in run_demo.BASE.iterdir()) <= 4_000_000
    assert task.score_model(base, 512) == pytest.approx(0.555, abs=0.06)


def test_the_shipped_tokenizer_is_the_script_s_and_agrees_with_the_task(tmp_path: Path) -> None:
    make_base.write_tokenizer(tmp_path)
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (run_demo.BASE / file.name).read_bytes()
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(run_demo.BASE))
    assert tokenizer("123+989=").input_ids == [1, 2, 3, 10, 9, 8, 9, 13] == tokens("123+989=")
    assert tokenizer.decode(tokens("2111$")) == "2111$"
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (task.PAD, task.END)


def test_the_base_script_starts_the_same_and_stops_where_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_base, "BATCH", 4)
    monkeypatch.setattr(make_base, "STOPPING_PROBLEMS", 16)
    state = torch.random.get_rng_state()
    model, again = make_base.new_model(), make_base.new_model()
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert make_base.train(model, stop_at=0.0, max_steps=50)[0] == make_base.CHECK_EVERY
    with pytest.raises(RuntimeError, match=r"expected 0\.9"):
        make_base.train(again, stop_at=0.9, max_steps=make_base.CHECK_EVERY)


def test_training_writes_checkpoints_that_load_and_is_repeatable(tmp_path: Path) -> None:
    seen: list[tuple[int, float]] = []
    state = torch.random.get_rng_state()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        means = grpo.train(
            run_demo.BASE, tmp_path / name, 2, questions=4, group=8, seed=seed, progress=lambda *now: seen.append(now)
        )
        assert seen[-2:] == [(1, means[0]), (2, means[1])]
    assert torch.equal(state, torch.random.get_rng_state())
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == ["global_step_1", "global_step_2"]

    start = load_file(run_demo.BASE / "model.safetensors")
    a, b, c = (load_file(tmp_path / name / "global_step_2" / "model.safetensors") for name in "abc")
    assert {name: (w.dtype, w.shape) for name, w in a.items()} == {n: (w.dtype, w.shape) for n, w in start.items()}
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)
    assert any(not torch.equal(a[name], start[name]) for name in a)
    assert 0 < task.score(tmp_path / "a" / "global_step_2", 64) < 1


def test_loading_leaves_the_settings_of_transformers_alone(capfd: pytest.CaptureFixture[str]) -> None:
    logging = transformers.utils.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    task.load(run_demo.BASE)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_the_whole_demonstration_on_a_short_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = task.score
    monkeypatch.setattr(task, "score", lambda directory: measure(directory, 64))
    # Searching for the smallest directions takes most of the time and is not what is tested here.
    monkeypatch.setattr(relex_codec, "encode", partial(relex_codec.encode, quality="raw"))
    report = run_demo.run_demo(tmp_path / "demo", steps=2, progress=False)
    assert [(row.step, row.kind) for row in report.rows] == [
        (0, "base"), (2, "trained"), (2, "restored"), (2, "decoded"),
        (10, "extrapolated"), (20, "extrapolated"), (40, "extrapolated"),
    ]  # fmt: skip
    assert report.archive_bytes == (tmp_path / "demo" / "run.relex").stat().st_size
    assert report.equal == 2 and report.rows[2].score == report.rows[1].score
    assert report.trust and report.trust[0] in report.table()
    assert (tmp_path / "demo" / "run.png").read_bytes().startswith(b"\x89PNG") and report.picture
    restored = tmp_path / "demo" / "restored"
    assert sorted(path.name for path in restored.iterdir()) == ["global_step_1", "global_step_2"]
    assert report.run_bytes == 2 * report.base_bytes and report.checkpoints == 2
    assert (tmp_path / "demo" / "decoded" / "step_40" / "tokenizer.json").exists()
    printed = report.table()
    assert str(tmp_path / "demo") in printed and f"{report.archive_bytes:,} bytes" in printed
    assert report.as_dict()["rows"][1]["kind"] == "trained"


def test_a_directory_with_something_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    for place in (tmp_path, mine):
        with pytest.raises(InvalidArgument, match="not an empty directory"):
            run_demo.run_demo(place, progress=False)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"] and mine.read_text() == "mine"


def test_one_step_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="at least 2"):
        run_demo.run_demo(steps=1)


def test_without_transformers_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InvalidArgument, match=r"pip install 'relex-codec\[demo\]'"):
        run_demo.run_demo()


def test_importing_the_demonstration_imports_no_framework() -> None:
    program = "import sys, relex_codec.demo.run_demo; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ELSEWHERE)
    assert done.stdout.strip() == "set()"
