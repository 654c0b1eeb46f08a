"""Frequency tables: which contexts share one, with which frequencies, and their bytes (EXACT.md).

A group of parts has one or more *table sets*, numbered from 0; each frame says which of them it is coded with. A table
set (`FrequencyTables`) gives every context that occurs one of up to 254 tables of 64 frequencies that add up to 4096.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from relex_codec.core.jit import compiled
from relex_codec.errors import Corrupt

from .contexts import CLASSES, CONTEXTS, FAMILIES, SYMBOLS, Int
from .rans import COARSE_BITS, SCALE, CoderTables

UNUSED: Final = 255
"""Table number of a context that does not occur."""
MOST_TABLES: Final = 254
SYMBOL_COST: Final = 14.0
"""Bits that a symbol of a table costs in the file, about; decides whether a context gets a table of its own."""
Counts = npt.NDArray[np.int64]


class FrequencyTables(NamedTuple):
    """One table set as it is stored.

    Attributes:
        dense: so many classes of a first frame are coded word by word.
        contexts: uint8 [CONTEXTS], the table of each context or UNUSED.
        frequency: uint16 [tables, 64], each row with sum 4096.
    """

    dense: int
    contexts: npt.NDArray[np.uint8]
    frequency: npt.NDArray[np.uint16]


def fit_tables(counts: Counts, dense: int) -> FrequencyTables:
    """Choose which contexts share tables, and the tables' frequencies.

    Args:
        counts: int64 [CONTEXTS, 64], how often each symbol occurs in each context.
        dense: see `FrequencyTables`.

    Returns:
        A table set in which every symbol that occurs has a frequency of at least 1.
    """
    contexts = np.full(CONTEXTS, UNUSED, np.uint8)
    sums = np.zeros((MOST_TABLES, SYMBOLS), np.int64)
    logs = np.zeros((MOST_TABLES, SYMBOLS))
    used = 0
    for number, (low, high) in enumerate(FAMILIES):
        most = MOST_TABLES - (len(FAMILIES) - 1 - number)
        used = _cluster(counts, low, high, contexts, sums, logs, used, most, SYMBOL_COST)
    return FrequencyTables(dense, contexts, _frequencies(sums[:used]))


@compiled
def _cluster(
    counts: Counts,
    low: int,
    high: int,
    contexts: npt.NDArray[np.uint8],
    sums: Counts,
    logs: npt.NDArray[np.float64],
    first: int,
    most: int,
    symbol_cost: float,
) -> int:
    """Give each context of a family, the fullest first, to the table that codes it best, or to a new one."""
    totals = np.zeros(high - low, np.int64)
    for context in range(low, high):
        totals[context - low] = counts[context].sum()
    used = first
    for which in np.argsort(-totals):
        total = totals[which]
        if total == 0:
            break
        row = counts[low + which]
        own = 0.0
        for s in range(row.size):
            if row[s] > 0:
                own += symbol_cost - row[s] * math.log2(row[s] / total)
        best, choice = own, -1
        for table in range(first, used):
            cost = 0.0
            for s in range(row.size):
                if row[s] > 0:
                    cost -= row[s] * logs[table, s]
                    if cost >= best and used < most:
                        break
            if cost < best or (choice < 0 and used >= most):
                best, choice = cost, table
        if choice < 0:
            choice = used
            used += 1
        sums[choice] += row
        size = sums[choice].sum() + 0.02 * row.size
        for s in range(row.size):
            logs[choice, s] = math.log2((sums[choice, s] + 0.02) / size)
        contexts[low + which] = choice
    return used


def _frequencies(sums: Counts) -> npt.NDArray[np.uint16]:
    """Scale rows to a sum of 4096, every symbol that occurs getting at least 1."""
    frequency: npt.NDArray[np.uint16] = np.empty(sums.shape, np.uint16)
    _scale(sums, frequency)
    return frequency


@compiled
def _scale(sums: Counts, frequency: npt.NDArray[np.uint16]) -> None:
    scaled = np.empty(SYMBOLS, np.int64)
    for table in range(len(sums)):
        counted = sums[table]
        total = max(counted.sum(), 1)
        rest: Int = SCALE
        for s in range(SYMBOLS):
            scaled[s] = max(counted[s] * SCALE // total, np.int64(counted[s] > 0))
            rest -= scaled[s]
        while rest != 0:
            # what a slot more or less is worth is about count / frequency
            chosen, worth = 0, -1.0 if rest > 0 else np.inf
            for s in range(SYMBOLS):
                value = counted[s] / max(scaled[s], 1)
                if value > worth if rest > 0 else scaled[s] > 1 and value < worth:
                    chosen, worth = s, value
            change = -1 if rest < 0 else rest if rest < 4 else rest // 2
            scaled[chosen] += change
            rest -= change
        for s in range(SYMBOLS):
            frequency[table, s] = scaled[s]


def tables_to_bytes(sets: Sequence[FrequencyTables]) -> bytes:
    """Return the table sets of a group as bytes, not yet compressed: all contexts, then all sizes, then frequencies."""
    tables = [[row[: np.flatnonzero(row)[-1] + 1] for row in one.frequency] for one in sets]
    frequencies = np.concatenate([np.zeros(0, np.uint16), *(row for rows in tables for row in rows)])
    return b"".join(
        [
            b"".join(bytes([one.dense, len(one.frequency)]) for one in sets),
            b"".join(one.contexts.tobytes() for one in sets),
            bytes(len(row) for rows in tables for row in rows),
            (frequencies & 0xFF).astype(np.uint8).tobytes(),
            (frequencies >> 8).astype(np.uint8).tobytes(),
        ]
    )


def tables_from_bytes(data: bytes, count: int) -> list[FrequencyTables]:
    """Read the table sets that `tables_to_bytes` wrote.

    Args:
        data: their bytes, no more.
        count: how many sets there are.

    Raises:
        Corrupt: too short or too long, or a table does not add up, or a context has a table that is not there.
    """
    if len(data) < count * (2 + CONTEXTS):
        raise Corrupt("the frequency tables of a group end early")
    heads = np.frombuffer(data, np.uint8, 2 * count).reshape(count, 2)
    at = 2 * count
    contexts = np.frombuffer(data, np.uint8, count * CONTEXTS, at).reshape(count, CONTEXTS)
    at += count * CONTEXTS
    tables = int(heads[:, 1].sum())
    sizes = np.frombuffer(data[at : at + tables], np.uint8).astype(np.int64)
    at += tables
    values = int(sizes.sum())
    if len(sizes) != tables or len(data) != at + 2 * values or (sizes < 1).any() or (sizes > SYMBOLS).any():
        raise Corrupt("the frequency tables of a group have the wrong length")
    flat = np.frombuffer(data, np.uint8, values, at).astype(np.uint16)
    flat |= np.frombuffer(data, np.uint8, values, at + values).astype(np.uint16) << np.uint16(8)
    frequency = np.zeros((tables, SYMBOLS), np.uint16)
    frequency[np.arange(SYMBOLS) < sizes[:, None]] = flat
    last = frequency[np.arange(tables), sizes - 1] if tables else np.zeros(0)
    if (frequency.sum(axis=1, dtype=np.int64) != SCALE).any() or (last == 0).any():
        raise Corrupt("a frequency table does not add up to 4096")
    result, first = [], 0
    for (dense, used), row in zip(heads.tolist(), contexts, strict=True):
        if dense > CLASSES or used > MOST_TABLES or (row[row != UNUSED] >= used).any():
            raise Corrupt("a table set is out of bounds")
        result.append(FrequencyTables(dense, row, frequency[first : first + used]))
        first += used
    return result


def most_table_bytes(count: int) -> int:
    """Return the largest size in bytes that `tables_to_bytes` gives for so many table sets."""
    return count * (2 + CONTEXTS + MOST_TABLES * (1 + 2 * SYMBOLS))


def lay_out(tables: FrequencyTables) -> CoderTables:
    """Return a table set as coding and decoding use it. A context that is not used decodes to symbol 0."""
    used = len(tables.frequency)
    buckets = np.empty((used + 1) * (SCALE >> COARSE_BITS), np.uint32)
    entries = np.zeros((used + 1) * SYMBOLS, np.uint32)
    _fill_tables(tables.frequency, buckets, entries)
    contexts = np.where(tables.contexts == UNUSED, used, tables.contexts).astype(np.uint8)
    return CoderTables(contexts, buckets, entries)


@compiled
def _fill_tables(
    frequency: npt.NDArray[np.uint16], buckets: npt.NDArray[np.uint32], entries: npt.NDArray[np.uint32]
) -> None:
    """Fill buckets and entries of tables, and of one more that only knows symbol 0."""
    step = 1 << COARSE_BITS
    at = 0
    for table in range(len(frequency)):
        start: Int = 0
        slot = 0
        for symbol in range(SYMBOLS):
            count = np.int64(frequency[table, symbol])
            entries[table * SYMBOLS + symbol] = count | (start << 16)
            bucket = count | start << 13 | symbol << 25
            start += count
            while slot < start:
                buckets[at] = bucket
                at += 1
                slot += step
    entries[len(frequency) * SYMBOLS] = SCALE
    buckets[at:] = SCALE
