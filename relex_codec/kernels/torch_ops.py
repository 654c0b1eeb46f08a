"""The torch kernel: FORMAT.md section 8 through torch operations, on any device.

Each line is one kernel launch that rounds its result, so nothing can be contracted into a fused multiply-add.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..dtypes import NAN
from ..errors import Corrupt
from ..format import BLOCK, FLOAT32, NONE, Packing
from . import Factors, Term


def decode_piece(
    origin: torch.Tensor, origin_dtype: str, dtype: str, terms: Sequence[Term], start: int
) -> torch.Tensor:
    """Decode the piece that begins at element `start` of a ``moving`` tensor on the device of `origin`.

    Args:
        origin: bits [x] of `origin_dtype`, as int16 or int32.
        terms: the tensor's directions in order, over the same elements (their arrays are moved to the device).

    Returns:
        Bits [x] of `dtype`, as int16 or int32.

    Raises:
        Corrupt: a code outside its packing's range.
    """
    x = _to_float32(origin, origin_dtype)
    for term in terms:
        p = _direction_piece(term, start, len(x), origin.device)
        x = x + p * torch.tensor(float(term.coefficient), dtype=torch.float32, device=origin.device)
    return _from_float32(x, dtype)


def _to_float32(bits: torch.Tensor, dtype: str) -> torch.Tensor:
    if dtype == "BF16":
        return (bits.to(torch.int32) << 16).view(torch.float32)
    if dtype == "F16":
        return bits.view(torch.float16).to(torch.float32)
    return bits.view(torch.float32)


def _from_float32(x: torch.Tensor, dtype: str) -> torch.Tensor:
    if dtype == "BF16":
        u = x.view(torch.int32)
        bits = ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).to(torch.int16)
    elif dtype == "F16":
        bits = x.to(torch.float16).view(torch.int16)
    else:
        bits = x.view(torch.int32)
    return torch.where(torch.isnan(x), torch.tensor(NAN[dtype], dtype=bits.dtype, device=x.device), bits)


def _direction_piece(term: Term, start: int, count: int, device: torch.device) -> torch.Tensor:
    if term.factors is None:
        p = torch.zeros(count, dtype=torch.float32, device=device)
    else:
        p = _factor_sum(term.factors, start, start + count, device)
    if term.packing is NONE:
        return p
    packed = torch.from_numpy(term.packed.copy()).to(device)
    if term.packing is FLOAT32:
        return p + packed.view(4, -1).t().contiguous().view(-1).view(torch.float32)
    codes = _unpack(packed, count, term.packing).to(torch.float32)
    step = torch.tensor(float(term.step), dtype=torch.float32, device=device)
    shift = torch.tensor(float(term.shift), dtype=torch.float32, device=device)
    scaled, offset = codes * step, torch.sign(codes) * shift
    return p + (scaled - offset)


def _factor_sum(factors: Factors, lo: int, hi: int, device: torch.device) -> torch.Tensor:
    _, r, m = factors.a.shape
    columns = factors.b.shape[2]
    first, last = lo // columns, -(-hi // columns)
    rows = torch.arange(first, last, device=device)
    matrix, row = rows // m, rows % m
    # Only the matrices that the piece touches travel to the device.
    low, high = first // m, (last - 1) // m + 1
    a = torch.from_numpy(factors.a[low:high].copy()).to(device)
    b = torch.from_numpy(factors.b[low:high].copy()).to(device)
    p = torch.zeros((len(rows), columns), dtype=torch.float32, device=device)
    for j in range(r):
        product = a[matrix - low, j, row][:, None] * b[matrix - low, j]
        p = p + product
    skip = lo - first * columns
    return p.reshape(-1)[skip : skip + hi - lo]


def _unpack(packed: torch.Tensor, count: int, packing: Packing) -> torch.Tensor:
    """Return int32 codes [count]; the torch twin of ``packing.unpack_codes``."""
    if packing.name == "word":
        low, high = packed.view(2, -1).to(torch.int32)
        digits, padding = low | (high << 8), low[:0]
    else:
        k = packing.per_byte
        if k > 2 and len(packed) and int(packed.max()) >= packing.radix**k:
            raise Corrupt(
                f"byte {int(packed.max())} in {packing.name} codes, at most {packing.radix**k - 1} is possible"
            )
        full = count // (BLOCK * k) * BLOCK
        parts = []
        for block in (packed[:full].view(-1, BLOCK), packed[full:].view(1, -1)):
            rest, planes = block.to(torch.int32), []
            for _ in range(k):
                planes.append(rest % packing.radix)
                rest = rest // packing.radix
            parts.append(torch.stack(planes, 1).reshape(-1))
        everything = torch.cat(parts)
        digits, padding = everything[:count], everything[count:]
    if len(digits) and int(digits.max()) > 2 * packing.zero:
        raise Corrupt(f"a {packing.name} code lies outside -{packing.zero} .. {packing.zero}")
    if len(padding) and bool((padding != packing.zero).any()):
        raise Corrupt(f"the padding of {packing.name} codes is not zero")
    codes: torch.Tensor = digits - packing.zero
    return codes
