"""Sizes in bytes as a user writes and reads them."""

from __future__ import annotations

from typing import Final

from relex_codec.errors import InvalidArgument

DEFAULT_MEMORY: Final = "4GB"
"""Budget where the user names none."""
SMALLEST_MEMORY: Final = 64 * 10**6
"""Bytes; a smaller budget is refused."""
_UNITS: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
                 "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30, "TI": 1 << 40}  # fmt: skip


def parse_memory(size: str | int) -> int:
    """Read a memory budget such as ``4GB``, ``512MiB`` or a number of bytes.

    Units are powers of 1000 (KB, MB, GB, TB) or of 1024 (KiB, MiB, GiB, TiB); upper and lower case are the same.

    Returns:
        Bytes.

    Raises:
        InvalidArgument: not a size, or less than 64 MB.

    Examples:
        >>> parse_memory("4GB"), parse_memory("1.5 GiB"), parse_memory(64_000_000)
        (4000000000, 1610612736, 64000000)
    """
    text = str(size).strip().upper().removesuffix("B")
    number = text.rstrip("KMGTI ")
    try:
        value = int(float(number) * _UNITS[text[len(number) :].strip()])
    except (KeyError, ValueError, OverflowError):
        raise InvalidArgument(f"memory is {size!r}, expected a size such as 4GB or 512MiB") from None
    if value < SMALLEST_MEMORY:
        raise InvalidArgument(f"memory is {size!r}, expected at least {SMALLEST_MEMORY // 10**6}MB")
    return value


def spell_bytes(count: int) -> str:
    """Return a number of bytes with three digits and a unit.

    Examples:
        >>> spell_bytes(12_345_678), spell_bytes(7), spell_bytes(1_200_000_000_000)
        ('12.3 MB', '7 B', '1.2 TB')
    """
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB" if size < 999.5 else f"{size:,.0f} TB"
