"""What has to be under a name when a new file gets it, so that nobody's work is replaced unasked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from relex_codec.errors import InvalidArgument

from .stores.base import ObjectVersion


class Overtaken(InvalidArgument):
    """Somebody else wrote, replaced or removed the file meanwhile; what is there now was left as it is."""


@dataclass(frozen=True, slots=True)
class Condition:
    """What may be replaced.

    Attributes:
        absent: only nothing.
        version: only this version of the file; None: whatever is there, unless `absent`.
    """

    absent: bool = False
    version: ObjectVersion | None = None

    @property
    def holds_always(self) -> bool:
        """Whether anything may be replaced."""
        return not self.absent and self.version is None

    def check(self, found: ObjectVersion | None, shown: str) -> None:
        """Compare with what is there; `shown` is what messages call it.

        Raises:
            Overtaken: it is something else.
        """
        if self.absent and found is not None:
            raise self.overtaken(shown)
        if self.version is not None and (found is None or not self.version.matches(found)):
            raise self.overtaken(shown, gone=found is None)

    def overtaken(self, shown: str, *, gone: bool = False) -> Overtaken:
        """Return the error for a condition that does not hold any more."""
        if self.absent:
            return Overtaken(
                f"cannot write {shown}: another program wrote it meanwhile, and it was left as it is; -f (overwrite) "
                "would replace it"
            )
        what = "removed it" if gone else "replaced it"
        then = "" if gone else ", and its file was left as it is; append again, to what is there now"
        return Overtaken(f"cannot write {shown}: another program {what} while it was being read{then}")


ABSENT: Final = Condition(absent=True)
ANYTHING: Final = Condition()
