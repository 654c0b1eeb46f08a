"""Three-digit addition: the vocabulary, the problems, the reward and the score.

A question is ``abc+def=``, an answer the sum with four digits, least significant first, then ``$``: ``123+989=`` is
answered by ``2111$``. Reversed, because carries then run in the order of writing. Every question has 8 tokens and every
answer 5, so that batches need neither padding nor an attention mask.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import transformers

DIGITS = 3
VOCABULARY = {character: index for index, character in enumerate("0123456789+-*=.$")}
PAD, END = VOCABULARY["."], VOCABULARY["$"]
ANSWER_LENGTH = DIGITS + 2
SCORE_PROBLEMS, SCORE_SEED = 4096, 777

Model = Any  # a causal language model of transformers, whose own type hints are too partial for strict checking

_PAIRS = 10 ** (2 * DIGITS)
_CHUNK = 4096


def is_held_out(pairs: np.ndarray) -> np.ndarray:
    """Which of the million pairs ``a * 1000 + b`` are never trained on: a fixed tenth, picked by an integer hash.

    The pair itself decides, and not the seed of a stream, so that no training stream can meet a scored problem.
    """
    mixed = pairs.astype(np.uint64)
    for multiplier, shift in ((0x9E3779B1, 15), (0x85EBCA77, 13)):
        mixed = mixed * np.uint64(multiplier) & np.uint64(0xFFFFFFFF)
        mixed ^= mixed >> np.uint64(shift)
    return np.asarray(mixed % np.uint64(10) == 0)


def problems(count: int, seed: int, *, held_out: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """``count`` questions (count x 8) and their answers (count x 5), drawn with replacement, the same for a seed.

    They come from the training pairs, or with ``held_out`` from the tenth that training never sees. Fewer problems of
    a seed are the first of more. ``RandomState`` because numpy has frozen its stream: scores stay comparable.
    """
    stream = np.random.RandomState(seed)
    kept = np.empty(0, np.int64)
    while len(kept) < count:
        drawn = stream.randint(_PAIRS, size=_CHUNK)
        kept = np.concatenate([kept, drawn[is_held_out(drawn) == held_out]])
    left, right = np.divmod(kept[:count], 10**DIGITS)
    questions = np.empty((count, 2 * DIGITS + 2), np.int64)
    questions[:, DIGITS], questions[:, -1] = VOCABULARY["+"], VOCABULARY["="]
    answers = np.full((count, ANSWER_LENGTH), END, np.int64)
    for place in range(DIGITS):  # the tokens of the digits are the digits
        questions[:, DIGITS - 1 - place] = left // 10**place % 10
        questions[:, 2 * DIGITS - place] = right // 10**place % 10
    for place in range(DIGITS + 1):
        answers[:, place] = (left + right) // 10**place % 10
    return torch.from_numpy(questions), torch.from_numpy(answers)


def reward(sampled: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """1.0 for every row that is the right answer to its last token, else 0.0: nothing is learned, all is checked."""
    return (sampled == answers).all(-1).float()


def _cache_name(model: Model) -> str:
    """What the KV cache is called, as parameter and in the output: transformers 5.24 renamed it."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


@torch.no_grad()
def generate(
    model: Model,
    questions: torch.Tensor,
    choose: Callable[[torch.Tensor], torch.Tensor],
    copies: int = 1,
) -> torch.Tensor:
    """Answers written token by token with a KV cache; ``choose`` picks from logits (rows x vocabulary).

    With ``copies`` every question is read once and answered so many times, one after the other in the rows returned.
    """
    name = _cache_name(model)
    read = model(input_ids=questions, use_cache=True)
    cache, logits = getattr(read, name), read.logits[:, -1]
    if copies > 1:
        cache.batch_repeat_interleave(copies)
        logits = logits.repeat_interleave(copies, 0)
    written = [choose(logits)]
    while len(written) < ANSWER_LENGTH:
        step = model(input_ids=written[-1][:, None], use_cache=True, **{name: cache})
        written.append(choose(step.logits[:, -1]))
    return torch.stack(written, 1)


def answer_log_probabilities(
    model: Model, questions: torch.Tensor, answers: torch.Tensor, copies: int = 1
) -> torch.Tensor:
    """Log-probability of every token of ``answers`` (rows x 5) given its question and the tokens before it.

    As in ``generate`` every question stands for ``copies`` answers and is read once, gradients included: with 8 copies
    that is half of the work of reading each answer behind its own question.
    """
    name = _cache_name(model)
    cache = getattr(model(input_ids=questions[:, :-1], use_cache=True, logits_to_keep=1), name)
    if copies > 1:
        cache.batch_repeat_interleave(copies)
    text = torch.cat([questions[:, -1:].repeat_interleave(copies, 0), answers[:, :-1]], 1)
    logits = model(input_ids=text, use_cache=True, **{name: cache}).logits
    return torch.log_softmax(logits, -1).gather(-1, answers[:, :, None])[:, :, 0]


def score_model(model: Model, count: int = SCORE_PROBLEMS, seed: int = SCORE_SEED) -> float:
    """Share of ``count`` held-out problems that ``model`` solves exactly, greedy decoding."""
    questions, answers = problems(count, seed, held_out=True)
    solved = 0.0
    for question, answer in zip(torch.split(questions, 1024), torch.split(answers, 1024), strict=True):
        solved += reward(generate(model, question, lambda logits: logits.argmax(-1)), answer).sum().item()
    return solved / count


def score(directory: str | os.PathLike[str], count: int = SCORE_PROBLEMS) -> float:
    """``score_model`` of the Hugging Face checkpoint in ``directory``."""
    return score_model(load(directory), count)


def load(directory: str | os.PathLike[str]) -> Model:
    """The checkpoint as a float32 model that is ready to answer, without transformers' progress bar."""
    with quiet_transformers():
        model: Model = transformers.AutoModelForCausalLM.from_pretrained(os.fspath(directory))
    return model.float().eval()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps transformers' progress bars and warnings off the terminal, and puts its settings back afterwards."""
    logging: Any = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
