"""Who works in a work directory at a URL, where there are no locks: a file that says so, written again now and then."""

from __future__ import annotations

import json
import os
import platform
import time
from typing import Any, Final

from relex_codec.errors import InvalidArgument

OWNER: Final = "owner.json"
STALE: Final = 900.0
"""Seconds after which an owner on another machine that has written nothing is taken for dead."""


def owner_document() -> bytes:
    """Return what a process writes about itself."""
    return json.dumps({"machine": platform.node(), "process": os.getpid(), "time": time.time()}).encode()


def refuse_owner(text: bytes, shown: str) -> None:
    """Refuse a directory that another process works in.

    Args:
        text: what it wrote about itself.
        shown: the directory, for messages.

    Raises:
        InvalidArgument: it may be alive. One of this machine is not if its process has gone, one of another is not if
            it has written nothing for a quarter of an hour.
    """
    try:
        found: dict[str, Any] = json.loads(text)
        machine, process, since = str(found["machine"]), int(found["process"]), time.time() - float(found["time"])
    except (ValueError, KeyError, TypeError):
        return  # it was killed as it began to write
    if machine == platform.node():
        if process == os.getpid() or not _is_alive(process):
            return
    elif since > STALE:
        return
    raise InvalidArgument(
        f"process {process} on {machine} works in {shown}, or was killed less than {STALE / 60:.0f} minutes ago: wait "
        "until it is done, or give another --work-dir"
    )


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
