"""Temporary files and directories: how they are called and held, and how those of dead processes are removed.

Each has a name of one form and is locked (``flock``) for as long as its process lives. The operating system lets go of
the lock however that process ends, so a temporary name that is not locked has no owner, whoever has its process number
now. The next process that writes to the same place removes it.

Where a lock says nothing, all stays as it is: on file systems without locks, and on network file systems for what other
machines have left, as some keep locks to the machine.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from types import TracebackType
from typing import Final

_NAME_LIMIT: Final = 150
"""Bytes of the target's name that the temporary name repeats: file systems allow 255 in all."""
BESIDE: Final = re.compile(r"\..*\.tmp-relex-(?P<inside>in-)?\d+-(?P<machine>[0-9a-f]{8})[0-9a-f]{8}", re.DOTALL)
"""Names of what becomes a file or directory, or (`inside`) of what becomes the content of the directory around it."""
IN_TMPDIR: Final = re.compile(r"relex-\d+-(?P<machine>[0-9a-f]{8})[0-9a-f]{8}")
"""Names of directories for temporary files."""
_LOCAL: Final = frozenset({
    "bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "ramfs", "reiserfs", "tmpfs", "xfs", "zfs",
})  # fmt: skip
"""File systems of one machine, where locks are those of all who write."""


def temporary_beside(target: str, *, inside: bool = False) -> str:
    """Return a name beside `target` that no loader and no search for runs takes for the real thing."""
    folder, name = os.path.split(target)
    start = os.fsdecode(os.fsencode(name)[:_NAME_LIMIT])
    return os.path.join(folder, f".{start}.tmp-relex-{'in-' if inside else ''}{_owner()}")


def make_file(target: str, mode: int) -> tuple[str, int]:
    """Make a temporary file beside `target` and hold it: return its path, and its descriptor, which keeps the lock.

    Raises:
        OSError: it cannot be made.
    """
    while True:
        path = temporary_beside(target)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        if _hold(fd, path):
            return path, fd


def make_directory(target: str, *, inside: bool = False) -> tuple[str, int]:
    """Make a temporary directory for what becomes `target`, or (`inside`) its content; otherwise as `make_file`."""
    while True:
        path = temporary_beside(os.path.join(target, os.path.basename(target)) if inside else target, inside=inside)
        fd = _make_directory(path, 0o777)
        if _hold(fd, path):
            return path, fd


class ScratchDirectory:
    """A directory for temporary files where TMPDIR says, with all that is in it removed on leaving; made when entered.

    Attributes:
        path: of the directory; empty before.
    """

    def __init__(self) -> None:
        self.path = ""
        self._fd = -1

    def __enter__(self) -> ScratchDirectory:
        place = tempfile.gettempdir()
        remove_leftovers(place, IN_TMPDIR)
        while True:
            path = os.path.join(place, f"relex-{_owner()}")
            fd = _make_directory(path, 0o700)
            if _hold(fd, path):
                self.path, self._fd = path, fd
                return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._let_go()
        if self.path:
            remove_tree(self.path)

    def keep(self) -> str:
        """Leave the directory for good, under a name that no clean-up takes, and return its path."""
        kept = os.path.join(os.path.dirname(self.path), f"relex-kept-{secrets.token_hex(4)}")
        os.rename(self.path, kept)
        self.path = ""
        self._let_go()
        return kept

    def _let_go(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class WorkingDirectory:
    """A directory beside what is being written, with all that is in it removed on leaving.

    Args:
        target: what is written.

    Attributes:
        path: of the directory; empty before it is entered.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self.path = ""
        self._fd = -1

    def __enter__(self) -> WorkingDirectory:
        self.path, self._fd = make_directory(self._target)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        remove_tree(self.path)
        os.close(self._fd)


def remove_leftovers(folder: str, names: re.Pattern[str] = BESIDE) -> None:
    """Remove what dead processes left in `folder` under temporary names; what cannot be told, or removed, stays."""
    found = []
    with suppress(OSError), os.scandir(folder) as entries:
        found = [match for match in map(names.fullmatch, (entry.name for entry in entries)) if match]
    for match in found:
        if match["machine"] == _machine() or _is_local(folder):
            with suppress(OSError):
                _remove_if_dead(folder, match[0], inside=bool(match.groupdict().get("inside")))


def is_scratch(folder: str) -> bool:
    """Tell whether a directory is a `ScratchDirectory`, which is locked for as long as it is there."""
    place, name = os.path.split(os.path.abspath(folder))
    return IN_TMPDIR.fullmatch(name) is not None and place == os.path.abspath(tempfile.gettempdir())


def remove_tree(folder: str) -> None:
    """Remove a directory with all that is in it, as far as that goes, also where hardly any file can be opened."""
    shutil.rmtree(folder, ignore_errors=True)  # it has two open at each level
    for place, folders, names in os.walk(folder, topdown=False):
        for name in (*names, *folders):
            path = os.path.join(place, name)
            with suppress(OSError):
                os.rmdir(path) if name in folders and not os.path.islink(path) else os.unlink(path)
    with suppress(OSError):
        os.rmdir(folder)


def temporary_names(folder: str) -> list[str]:
    """Return the names in `folder` that are temporary ones.

    Raises:
        OSError: it cannot be listed.
    """
    return [name for name in os.listdir(folder) if BESIDE.fullmatch(name)]


def files_below(folder: str) -> Iterator[str]:
    """Yield the path of each file below `folder`, as it is called from there."""
    for place, _, names in os.walk(folder):
        below = os.path.relpath(place, folder)
        yield from (name if below == "." else os.path.join(below, name) for name in sorted(names))


def _remove_if_dead(folder: str, name: str, *, inside: bool) -> None:
    path = os.path.join(folder, name)
    is_directory = stat.S_ISDIR(os.lstat(path).st_mode)
    # over NFS only a file that is open for writing can be locked
    flags = os.O_RDONLY | os.O_DIRECTORY if is_directory else os.O_RDWR
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not is_directory:
            os.unlink(path)
            return
        if inside:
            _take_back(folder, path)
        shutil.rmtree(path)
    finally:
        os.close(fd)


def _take_back(folder: str, temporary: str) -> None:
    """Remove from `folder` the links to what is in a temporary directory, whose process was killed between two."""
    for name in files_below(temporary):
        with suppress(OSError):
            if os.path.samestat(os.lstat(os.path.join(folder, name)), os.lstat(os.path.join(temporary, name))):
                os.unlink(os.path.join(folder, name))
    for place, _, _ in os.walk(temporary, topdown=False):
        if place != temporary:
            with suppress(OSError):  # it has other files
                os.rmdir(os.path.join(folder, os.path.relpath(place, temporary)))


def _make_directory(path: str, mode: int) -> int:
    """Make a directory and open it; neither, if it cannot be opened: there are too many open files."""
    os.mkdir(path, mode)
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        os.rmdir(path)
        raise


def _hold(fd: int, path: str) -> bool:
    """Lock what was just made; False, and `fd` closed: another process took it for a leftover meanwhile."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), os.lstat(path)):
            return True
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:  # no locks: then nobody else takes it for dead
        return True
    os.close(fd)
    return False


def _owner() -> str:
    """Return the part of a temporary name that differs between processes."""
    return f"{os.getpid()}-{_machine()}{secrets.token_hex(4)}"


@lru_cache
def _machine() -> str:
    """Return eight digits that stand for this machine since it was started."""
    text = platform.node().encode(errors="replace")
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id", "rb") as file:
        text = file.read()
    return hashlib.sha256(text).hexdigest()[:8]


def _is_local(folder: str) -> bool:
    """Tell whether a directory is on a file system of this machine alone; False where that is not known."""
    path, kind, longest = os.path.realpath(folder), "", -1
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            for line in file:
                mount, _, rest = os.fsdecode(line).partition(" - ")
                point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), mount.split(" ")[4])
                if len(point) >= longest and (path + "/").startswith(point.rstrip("/") + "/"):
                    kind, longest = rest.split(" ")[0], len(point)
    except (OSError, IndexError):
        return False
    return kind in _LOCAL
