"""Chunks that compiled code takes apart: the same bytes as numpy gives, and small ones compile nothing."""

from __future__ import annotations

import numpy as np
import pytest

from relex_codec.format import chunks


@pytest.mark.parametrize("length", [chunks.COMPILED_FROM, chunks.COMPILED_FROM + 13, 100_003])
@pytest.mark.parametrize("share", [0.0, 0.45, 0.9, 1.0])
def test_compiled_code_and_numpy_agree(length: int, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(length)
    raw = rng.integers(0, 256, length).astype(np.uint8)
    raw[rng.random(length) < share] = 7
    for data in (raw, np.repeat(raw, 2)[::2]):  # also where bytes do not lie side by side
        counts, (flags, rest), stored = chunks._counts(data), chunks._apart(data, 7), chunks.compress(data)
        with monkeypatch.context() as plain:
            plain.setattr(chunks, "COMPILED_FROM", length + 1)
            assert (chunks._counts(data) == counts).all() and counts.sum() == length
            wanted = chunks._apart(data, 7)
            assert wanted[0].tobytes() == flags.tobytes() and wanted[1].tobytes() == rest.tobytes()
            assert chunks.compress(data) == stored
        assert (chunks.decompress(stored.data, length, stored.codec, stored.fill) == raw).all()
