"""Making a failed request again, for as long as that may help."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from relex_codec.core.cancellation import pause
from relex_codec.errors import RelexError

from .failures import TRANSIENT, TransientFailures, is_transient

T = TypeVar("T")
_JITTER: Final = random.Random()
"""Of our own: a read, on whichever thread, leaves the generator alone that a training run has seeded."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long a failed request is made again.

    Waits grow from `first_wait` to `longest_wait`, each drawn anew between 0 and that ("full jitter"), so that many
    readers do not come back at the same moment.

    Attributes:
        max_seconds: no attempt begins later than this after the first; 0: there is only one.
        first_wait: the longest wait before the second attempt, in seconds.
        longest_wait: what waits grow to, in seconds.
        growth: from one wait to the next.
        transient: the failures after which there is another attempt.
    """

    max_seconds: float = 60.0
    first_wait: float = 0.1
    longest_wait: float = 8.0
    growth: float = 2.0
    transient: TransientFailures = TRANSIENT


class RetriesExhausted(Exception):
    """The last attempt of several failed like those before; the cause is its failure."""

    def __init__(self, attempts: int, seconds: float) -> None:
        super().__init__(f"{attempts} attempts in {seconds:.0f} s")


def call_with_retries(attempt: Callable[[], T], policy: RetryPolicy) -> T:
    """Return what `attempt` returns, calling it again after transient failures.

    Raises:
        RetriesExhausted: the last of several attempts failed too.
        Cancelled: the scope that this runs in was cancelled between two attempts.
        Exception: what the first attempt raised, if it is not transient or there is no time for another.

    Examples:
        >>> answers = [ConnectionResetError(), "bytes"]
        >>> def attempt():
        ...     answer = answers.pop(0)
        ...     if isinstance(answer, Exception):
        ...         raise answer
        ...     return answer
        >>> call_with_retries(attempt, RetryPolicy(max_seconds=10))
        'bytes'
    """
    began = time.monotonic()
    attempts, wait = 0, policy.first_wait
    while True:
        attempts += 1
        try:
            return attempt()
        except Exception as e:
            before_next = _JITTER.uniform(0, wait)
            spent = time.monotonic() - began
            if not is_transient(e, policy.transient) or spent + before_next > policy.max_seconds:
                if attempts > 1 and not isinstance(e, RelexError):
                    raise RetriesExhausted(attempts, spent) from e
                raise
        pause(before_next)
        wait = min(policy.growth * wait, policy.longest_wait)
