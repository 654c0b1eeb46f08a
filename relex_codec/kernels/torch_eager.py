"""The torch kernel: FORMAT.md section 8 through torch operations, on any device, a piece at a time.

``x = w0 + p_1 * g_1 + ... + p_k * g_k``, p being ``a_1 * b_1 + ... + (q * scale - sign(q) * shift)``: see `interface`.
Each line is one operation that rounds its result, so nothing can be contracted into a fused multiply-add.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from relex_codec.core.dtypes import NAN
from relex_codec.format.constants import BLOCK, FLOAT32, NONE, PIECE, Packing
from relex_codec.format.factors import Factors
from relex_codec.format.packing import packed_size

from .interface import Coefficients, Decode, DecodeJob, PackedDirection, Targets, Window


def prepare(jobs: Sequence[DecodeJob]) -> Decode:
    """Prepare to decode jobs whose arrays are torch tensors on one device, of any kind.

    Beside the targets, the result takes memory for a piece, some 30 bytes an element of it and step.
    """

    def decode(coefficients: Coefficients, targets: Targets) -> None:
        for job, g, of_job in zip(jobs, coefficients, targets, strict=True):
            multipliers = torch.from_numpy(np.array(g, np.float32)).to(job.origin.device)
            _decode(job, multipliers, of_job)

    return decode


class _Stretch(NamedTuple):
    """Elements start .. stop of a tensor, all of one piece, of which a window has some.

    Attributes:
        chosen: which of them, as offsets from `start`.
        rows, columns: where these are in the window.
    """

    start: int
    stop: int
    chosen: torch.Tensor | slice
    rows: torch.Tensor | int
    columns: torch.Tensor | slice


def _decode(job: DecodeJob, g: torch.Tensor, targets: Sequence[torch.Tensor]) -> None:
    """Decode one job; `g` is float32 [S, k]."""
    w = job.window
    if w.columns == w.width == job.pitch and all(target.is_contiguous() for target in targets):
        w = Window(w.width * (w.row + w.rows), 0, 1, w.row * w.width, w.rows * w.columns, w.lo, w.hi)
        targets = [target.view(1, -1) for target in targets]
    for stretch in _stretches(w, job.origin.device):
        x = [_origin(job, stretch)] * len(targets)
        for d, direction in enumerate(job.directions):
            p = _direction(job, direction, stretch.start, stretch.stop)
            p = p[stretch.chosen]
            x = [so_far + p * g[s, d] for s, so_far in enumerate(x)]
        for target, found in zip(targets, x, strict=True):
            target[stretch.rows, stretch.columns] = from_float32(found, job.dtype)


def _stretches(w: Window, device: torch.device) -> Iterator[_Stretch]:
    """Yield the elements of a window piece by piece."""
    first = w.row * w.width + w.column
    lo, hi = max(first, w.lo), min(first + (w.rows - 1) * w.width + w.columns, w.hi)
    if w.columns == 0 or w.rows == 0:
        return
    for piece in range(lo // PIECE * PIECE, hi, PIECE):
        start, stop = max(piece, lo), min(piece + PIECE, hi)
        if start >= stop:
            continue
        if w.rows == 1:
            yield _Stretch(start, stop, slice(None), 0, slice(start - first, stop - first))
            continue
        e = torch.arange(start, stop, device=device)
        columns = e % w.width - w.column
        chosen = torch.nonzero((columns >= 0) & (columns < w.columns)).view(-1)
        yield _Stretch(start, stop, chosen, (e // w.width - w.row)[chosen], columns[chosen])


def _origin(job: DecodeJob, stretch: _Stretch) -> torch.Tensor:
    """The stretch's elements of the origin as float32."""
    if isinstance(stretch.columns, slice):
        bits = job.origin[job.at + stretch.columns.start : job.at + stretch.columns.stop]
    else:
        bits = job.origin[stretch.rows * job.pitch + stretch.columns + job.at]
    return _to_float32(bits, job.origin_dtype)


def _to_float32(bits: torch.Tensor, dtype: str) -> torch.Tensor:
    if dtype == "BF16":
        return (bits.to(torch.int32) << 16).view(torch.float32)
    if dtype == "F16":
        return bits.view(torch.float16).to(torch.float32)
    return bits.view(torch.float32)


def from_float32(x: torch.Tensor, dtype: str) -> torch.Tensor:
    """Round float32 to the bits of `dtype`, int16 or int32; the torch twin of ``dtypes.from_float32``."""
    if dtype == "BF16":
        u = x.view(torch.int32)
        bits = ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).to(torch.int16)
    elif dtype == "F16":
        bits = x.to(torch.float16).view(torch.int16)
    else:
        bits = x.view(torch.int32)
    return torch.where(torch.isnan(x), torch.tensor(NAN[dtype], dtype=bits.dtype, device=x.device), bits)


def _direction(job: DecodeJob, direction: PackedDirection, start: int, stop: int) -> torch.Tensor:
    """p of section 8 at elements start .. stop of one piece, float32."""
    device = job.origin.device
    if direction.factors is None:
        p = torch.zeros(stop - start, dtype=torch.float32, device=device)
    else:
        p = _factor_sum(direction.factors, start, stop)
    packing = direction.packing
    if packing is NONE:
        return p
    number, inside = divmod(start - job.first, PIECE)
    length = min(PIECE, job.size - (start - inside))
    at = number * packed_size(PIECE, packing) * packing.planes
    raw = direction.packed[at : at + packed_size(length, packing) * packing.planes]
    within = slice(inside, inside + stop - start)
    if packing is FLOAT32:
        return p + _join(raw.view(4, -1)[:, within]).view(torch.float32)
    codes = _unpack(raw, length, packing)[within].to(torch.float32)
    scale = torch.tensor(float(direction.scale), dtype=torch.float32, device=device)
    shift = torch.tensor(float(direction.shift), dtype=torch.float32, device=device)
    scaled, offset = codes * scale, torch.sign(codes) * shift
    return p + (scaled - offset)


def _factor_sum(factors: Factors, lo: int, hi: int) -> torch.Tensor:
    _, r, m = factors.a.shape
    columns = factors.b.shape[2]
    first, last = lo // columns, -(-hi // columns)
    rows = torch.arange(first, last, device=factors.a.device)
    matrix, row = rows // m, rows % m
    if len(rows) * columns <= 2 * (hi - lo):
        p = torch.zeros((len(rows), columns), dtype=torch.float32, device=rows.device)
        for j in range(r):
            p = p + factors.a[matrix, j, row][:, None] * factors.b[matrix, j]
        skip = lo - first * columns
        return p.reshape(-1)[skip : skip + hi - lo]
    # Part of one or two long rows: element by element.
    e = torch.arange(lo, hi, device=rows.device)
    row, column = e // columns, e % columns
    p = torch.zeros(hi - lo, dtype=torch.float32, device=rows.device)
    for j in range(r):
        p = p + factors.a[row // m, j, row % m] * factors.b[row // m, j, column]
    return p


def _join(planes: torch.Tensor) -> torch.Tensor:
    """Return the int32 elements [x] of planes [w, x], the lowest byte first."""
    word = planes[0].to(torch.int32)
    for i in range(1, len(planes)):
        word = word | (planes[i].to(torch.int32) << (8 * i))
    return word


def _unpack(packed: torch.Tensor, count: int, packing: Packing) -> torch.Tensor:
    """Return int32 codes [count] of one piece; the torch twin of ``packing.unpack_codes``, without its checks."""
    if packing.name == "word":
        return _join(packed.view(2, -1)) - packing.zero
    k = packing.per_byte
    full = count // (BLOCK * k) * BLOCK
    joined = []
    for block in (packed[:full].view(-1, BLOCK), packed[full:].view(1, -1)):
        rest, planes = block.to(torch.int32), []
        for _ in range(k):
            planes.append(rest % packing.radix)
            rest = rest // packing.radix
        joined.append(torch.stack(planes, 1).reshape(-1))
    codes: torch.Tensor = torch.cat(joined)[:count] - packing.zero
    return codes
