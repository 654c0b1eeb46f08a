"""Two recorded runs of a small model, where they are at hand; nothing made up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import relex_codec
from relex_codec.format.constants import FLOAT32
from support.plain import Array, File, deltas, fit, narrow, read_safetensors, widen

RUNS = Path(__file__).resolve().parents[3] / "shared" / "runs"
pytestmark = pytest.mark.skipif(
    not (RUNS / "unpack.py").exists(), reason="there is no ../shared/runs beside the repository"
)
LAST = 200
QUALITIES = {"addition-dense": ("default", 4.0, 0.7), "addition-sparse": ("micro", 1.2, 0.95)}
"""Quality that a run is encoded with, bits per parameter that would be too many, and the relative error that would."""


@pytest.fixture(scope="module", params=list(QUALITIES))
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A run at ten steps, and its file."""
    root = tmp_path_factory.mktemp(request.param)
    subprocess.run(
        [sys.executable, RUNS / "unpack.py", RUNS / f"{request.param}.runpack", root, "--every", "20",
         "--limit", str(LAST)],
        check=True, timeout=120,
    )  # fmt: skip
    quality = QUALITIES[request.param][0]
    relex_codec.encode(root / "run", root / "x.relex", base=root / "base", quality=quality)
    return request.param, root


def weights(folder: Path) -> dict[str, tuple[str, Array]]:
    return read_safetensors(folder / "model.safetensors")[0]


@pytest.mark.slow
def test_size_and_error(real: tuple[str, Path]) -> None:
    name, root = real
    quality, most_bits, _ = QUALITIES[name]
    base, last = weights(root / "base"), weights(root / "run" / f"global_step_{LAST}")
    file = File(root / "x.relex")
    parameters = sum(bits.size for _, bits in base.values())
    assert file.steps == list(range(20, LAST + 1, 20))
    assert 8 * len(file.data) / parameters < most_bits
    total = np.zeros(3)  # squared: what moved, what rank 1 misses, what the file misses
    with relex_codec.open(root / "x.relex") as run:
        run.verify()
        assert run.keys() == list(base)
        for key, (dtype, bits) in base.items():
            wanted, start = (widen(dtype, x).reshape(-1).astype(np.float64) for x in (last[key][1], bits))
            steps = [weights(root / "run" / f"global_step_{step}")[key][1] for step in file.steps]
            delta = deltas(dtype, steps, dtype, bits)
            if not delta.any():
                assert file.kind(key)[0] == 0
                continue
            vectors, coefficients, lines = fit(delta, file.steps, len(file.steps))
            number = file.numbers(key)[0]
            np.testing.assert_allclose(
                file.coefficients[number], coefficients[0], atol=1e-6 * np.abs(coefficients).max()
            )
            assert file.directions[number].slope == pytest.approx(lines[0][0], rel=1e-6)
            x = widen(dtype, bits).reshape(-1) + vectors[0].astype(np.float32) * np.float32(coefficients[0, -1])
            rank1 = widen(dtype, narrow(dtype, x)).astype(np.float64)
            found = widen(dtype, run._reader.bits(key, file.steps[-1])).astype(np.float64)
            misses = [float(np.linalg.norm(y - wanted)) for y in (start, rank1, found)]
            if quality == "default":
                assert misses[2] <= max(misses[1], 0.01 * misses[0]) * 1.05 * (1 + 1e-5), key
            total += np.square(misses)
    assert 0.05 < np.sqrt(total[1] / total[0]) < 0.7  # the run has one main direction, and is not it


@pytest.mark.slow
def test_decoded_steps_are_close_to_the_run(real: tuple[str, Path]) -> None:
    name, root = real
    base = weights(root / "base")
    with relex_codec.open(root / "x.relex") as run:
        for step, tier in ((100, "track"), (100, "line"), (LAST, "track")):
            run.save(root / f"{step}-{tier}", step, tier=tier)
            found, wanted = weights(root / f"{step}-{tier}"), weights(root / "run" / f"global_step_{step}")
            assert list(found) == list(base)
            miss = moved = 0.0
            for key, (dtype, bits) in wanted.items():
                target = widen(dtype, bits).astype(np.float64)
                miss += float(((widen(*found[key]).astype(np.float64) - target) ** 2).sum())
                moved += float(((widen(*base[key]).astype(np.float64) - target) ** 2).sum())
            assert np.sqrt(miss / moved) < QUALITIES[name][2], (step, tier)
    for file in ("config.json", "tokenizer.json", "generation_config.json"):
        if (root / "base" / file).exists():
            assert (root / "100-line" / file).read_bytes() == (root / "base" / file).read_bytes()


@pytest.mark.slow
def test_no_matrix_is_stored_as_float32(tmp_path: Path) -> None:
    """Where weights are clusters, the error jumps with the width of the codes: finer codes hold the rule."""
    command = [sys.executable, RUNS / "unpack.py", RUNS / "addition-sparse.runpack", tmp_path, "--every", "20"]
    subprocess.run(command, check=True, timeout=120)
    relex_codec.encode(tmp_path / "run", tmp_path / "x.relex", base=tmp_path / "base")
    file, base = File(tmp_path / "x.relex"), weights(tmp_path / "base")
    matrices = [key for key, (_, bits) in base.items() if bits.ndim == 2 and file.kind(key)[0] == 1]
    assert len(matrices) > 20
    assert [key for key in matrices if file.directions[file.numbers(key)[0]].packing == FLOAT32.id] == []
