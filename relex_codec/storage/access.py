"""Who may do what with a file that replaces another one: owner, group, mode and access list stay what they were."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import Final

ACL: Final = "system.posix_acl_access"
"""The extended attribute that an access list is in; other attributes tell of the old content."""


def keep_access(fd: int, path: str) -> None:
    """Give the open file `fd` owner, group, mode and access list of the file at `path`, if there is one.

    As far as the system allows: only root can give files away. Where the group cannot be kept, the rights of the group
    become those of everybody else, so that nobody gains any.
    """
    try:
        old = os.stat(path)
    except OSError:
        return
    mode = stat.S_IMODE(old.st_mode) & 0o777
    new = os.fstat(fd)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        try:
            os.fchown(fd, old.st_uid, old.st_gid)
        except OSError:
            try:
                os.fchown(fd, -1, old.st_gid)
            except OSError:
                mode &= ~0o070 | (mode & 0o007) << 3
    with suppress(OSError):  # not every file system has modes
        os.fchmod(fd, mode)
    if hasattr(os, "getxattr"):
        with suppress(OSError):  # most files have none
            os.setxattr(fd, ACL, os.getxattr(path, ACL))
