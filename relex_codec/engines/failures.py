"""Errors of units on their way from where they were raised to whoever asked for the units."""

from __future__ import annotations

import pickle
import traceback
from typing import NamedTuple

from relex_codec.errors import RelexError


class Failure(NamedTuple):
    """An error that can be sent.

    Attributes:
        pickled: the error, without its traceback.
        trace: where it was raised; empty for errors of this package, whose messages say all that a user needs.
    """

    pickled: bytes
    trace: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Return an error that was caught; one that cannot be pickled becomes a plain one with its message."""
        trace = "" if isinstance(error, RelexError) else "".join(traceback.format_exception(error))
        try:
            data = pickle.dumps(error)
            pickle.loads(data)
        except Exception:
            plain = RelexError if isinstance(error, RelexError) else RuntimeError
            data = pickle.dumps(plain(f"{error}"))
        return cls(data, trace)

    def error(self, where: str) -> BaseException:
        """Return the error again; what caused one that is not of this package is where it was raised.

        Args:
            where: that was, in words.
        """
        error: BaseException = pickle.loads(self.pickled)
        if self.trace:
            error.__cause__ = RuntimeError(f"{where}:\n{self.trace}")
        return error
