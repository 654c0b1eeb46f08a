"""Reading and checking every byte of a journal: without its base, and with it what the base gives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from relex_codec.checkpoints.base_model import BaseReader
from relex_codec.checkpoints.safetensors import SafetensorsCheckpoint
from relex_codec.core.dtypes import bits_dtype
from relex_codec.core.threads import parallel_map

from .blobs import Differences
from .difference import apply_difference
from .format import CHUNK
from .reader import Journal, Place


def check_journal(journal: Journal, on_step: Callable[[int], Any] = lambda _: None) -> None:
    """Read every difference of every committed step, check its checksum and decode it.

    Args:
        journal: opened, which has checked its tables.
        on_step: called with 1 for each step.

    Raises:
        Corrupt, Truncated: something is wrong; the message names the file.
    """
    for recorded in journal.steps:
        generation = recorded.generation
        with Differences(generation) as differences:
            for rank, files in enumerate(generation.ranks):
                places = [Place(rank, number, part) for number, part in enumerate(files.opening.head.parts)]
                parallel_map(partial(_check_part, differences, recorded.number), places)
        on_step(1)


def _check_part(differences: Differences, number: int, place: Place) -> None:
    part = place.part
    for chunk, blob in differences.blobs(place, number, 0, part.chunks):
        elements = min(CHUNK, part.box.elements - chunk * CHUNK)
        apply_difference(blob, np.zeros(elements, bits_dtype(part.dtype)), 0, elements, part.dtype)


def check_base(journal: Journal, base: SafetensorsCheckpoint) -> None:
    """Read what the journal needs of its base, and check it.

    Raises:
        BaseMismatch: it is another one.
        CheckpointError: it cannot be read.
    """
    reader = BaseReader(base, journal.expected)
    for tensor in journal.expected:
        size = reader.info(tensor.name).size
        for lo in range(0, size, CHUNK * 16):
            reader.read(tensor.name, lo, min(lo + CHUNK * 16, size))
