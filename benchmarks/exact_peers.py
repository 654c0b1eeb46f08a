"""What else keeps every checkpoint of a run bit for bit: the peers of the exact tier, behind one small interface.

Every peer codes the checkpoints as arrays of uint16, all tensors after each other, one file per stored step; the base
is given and not counted. Sizes are lengths of files, not disk blocks. All peers are asked for one thread, but z4ai
starts two at times, so exact.py, which measures them, keeps the process on one core.

How the settings were chosen: by the sizes and speeds of 12 steps each of the two real runs that the README describes
(sparse: 1.0 % of the values change per step; dense: 2.9 %), in bits per parameter and step.

xor+zstd   Sparse, level 1 0.213, 3 0.214, 9 0.196, 19 0.176; dense 0.515, 0.515, 0.465, 0.377. Level 9 codes about
           200 MB/s, level 19 under 10, so it is 9. Long-distance matching (window 2^27) would save 1 to 2 % more and is
           left out; planes save 8 %.
patches+zstd  Not tuned: it stands for what is in use (see its docstring). Levels 1, 3 and 9 take 0.211, 0.210, 0.209
           (sparse) and 0.725, 0.708, 0.697 (dense). Gaps as LEB128 bytes would save 5 to 7 %, planes 10 %, the XOR in
           place of the new value 38 %: gaps+zstd (tuned) goes further along that way.
gaps+zstd (tuned)  Levels up to 9 save under 1 %, for the streams hold hardly a match, only skewed bytes. Gaps as
           LEB128 bytes take 8.86 bits per change (sparse), as two planes of u16 8.57, with runs of 255 8.10, where a
           geometric law has 8.03. Changes as XOR take 3.4 bits, as zigzag bytes 2.5, as sign and magnitude bytes 2.4,
           as here 2.05, where their order-0 entropy is 1.79.
z4ai       ``dtype="bf16"`` halves the size (sparse 0.123 against 0.231); its levels 3, 9 and 19 change less than 1 %,
           so it keeps its default. Version 0.2.0, from ``pip install z4ai``.
zstd       Byte planes at level 1 take 10.99 bits, at 3 11.42 and at 9 11.23; whole values 12.54 at 1 and 3, 12.50 at 9.
"""

from __future__ import annotations

import importlib
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import zstandard
from exact_source import Bits, Read, from_ordered, ordered
from numpy.typing import NDArray


class Peer(ABC):
    """Codes a run into a folder, one file per stored step."""

    name: str
    chained = True  # a step is coded against the one before, so reading step k reads k files

    @abstractmethod
    def pack(self, before: Bits, now: Bits) -> bytes:
        """Return one step coded, given the one before it."""

    @abstractmethod
    def unpack(self, data: bytes, before: Bits) -> Bits:
        """Return the step that `pack` coded. May change `before` and return it."""

    def encode(self, read: Read, steps: int, out: Path) -> None:
        """Write the steps 1 to `steps` into the folder `out`, which must not exist."""
        out.mkdir(parents=True)
        before = read(0)
        for position in range(1, steps + 1):
            now = read(position)
            (out / f"{position:06}").write_bytes(self.pack(before, now))
            before = now

    def size(self, out: Path) -> int:
        """Return the bytes of all files."""
        return sum(path.stat().st_size for path in out.iterdir())

    def restore(self, out: Path, base: Bits, step: int) -> Bits:
        """Return the stored step at this position, from 1 on, reading no file that it does not need."""
        if not self.chained:
            return self.unpack((out / f"{step:06}").read_bytes(), base)
        return next(islice(self.replay(out, base), step - 1, None))

    def replay(self, out: Path, base: Bits) -> Iterator[Bits]:
        """Yield all stored steps in order, each valid until the next is asked for."""
        values = base.copy() if self.chained else base
        for position in range(1, len(list(out.iterdir())) + 1):
            values = self.unpack((out / f"{position:06}").read_bytes(), values)
            yield values


def _to_planes(values: Bits) -> bytes:
    """Return the low bytes, then the high bytes."""
    return values.view(np.uint8).reshape(-1, 2).T.tobytes()


def _from_planes(data: bytes) -> Bits:
    """Invert `_to_planes`."""
    return np.frombuffer(data, np.uint8).reshape(2, -1).T.copy().view("<u2").reshape(-1)


class XorZstd(Peer):
    """XOR with the step before, byte planes, zstd."""

    name = "xor+zstd"
    level = 9

    def pack(self, before: Bits, now: Bits) -> bytes:
        """Return one frame of zstd."""
        return zstandard.ZstdCompressor(level=self.level).compress(_to_planes(before ^ now))

    def unpack(self, data: bytes, before: Bits) -> Bits:
        """XOR the frame into `before`."""
        before ^= _from_planes(zstandard.ZstdDecompressor().decompress(data))
        return before


class Zstd(Peer):
    """Every checkpoint by itself: byte planes, zstd."""

    name = "zstd"
    chained = False
    level = 1

    def pack(self, before: Bits, now: Bits) -> bytes:
        """Return one frame of zstd."""
        return zstandard.ZstdCompressor(level=self.level).compress(_to_planes(now))

    def unpack(self, data: bytes, before: Bits) -> Bits:
        """Return what the frame holds."""
        return _from_planes(zstandard.ZstdDecompressor().decompress(data))


class Z4ai(Peer):
    """z4ai's delta of two checkpoints: XOR, then bit fields or a bitmap of what is not zero, zstd and rANS."""

    name = "z4ai"

    def __init__(self) -> None:
        self._module = importlib.import_module("z4ai")

    def pack(self, before: Bits, now: Bits) -> bytes:
        """Return one delta frame (which holds a digest of `before`)."""
        delta: bytes = self._module.compress_delta(now.tobytes(), before.tobytes(), dtype="bf16", threads=1)
        return delta

    def unpack(self, data: bytes, before: Bits) -> Bits:
        """Return `before` with the delta undone, after z4ai has checked the digest."""
        return np.frombuffer(self._module.decompress_delta(data, before.tobytes()), "<u2")


class PatchesZstd(Peer):
    """Gaps between changed positions as uint16, or uint32 where one is larger, and the new values, in one zstd frame.

    It imitates what trainers send to inference engines in reinforcement learning, where it is called delta weight sync:

    - slime, ``--update-weight-encoding deltas_zstd`` (https://github.com/THUDM/slime, docs/en/advanced/
      delta-weight-sync.md): gaps as uint16, as uint32 for a tensor with a larger one, values verbatim, all in zstd at
      level 1. NeMo RL and vime have options of the same name and encoding.
    - PULSESync (Miahi and Belilovsky, "Understanding and Exploiting Weight Update Sparsity for Communication-Efficient
      Distributed RL", https://arxiv.org/abs/2602.03839; code in https://github.com/one-covenant/grail): differences of
      sorted indices in the smallest integers that hold them, values verbatim, zstd at level 1.
    - TRL (https://huggingface.co/blog/delta-weight-sync): indices and values as safetensors, not compressed.

    Here level 3, which takes 1 to 2 % less than level 1.
    """

    name = "patches+zstd"
    level = 3
    header = struct.Struct("<IB")  # changes, and bytes of a gap

    def pack(self, before: Bits, now: Bits) -> bytes:
        """Return the header and one frame of zstd: gaps, then values."""
        positions = np.flatnonzero(before != now)
        gaps = np.diff(positions, prepend=-1) - 1
        width = 2 if gaps.max(initial=0) < 1 << 16 else 4
        raw = gaps.astype(f"<u{width}").tobytes() + now[positions].tobytes()
        return self.header.pack(positions.size, width) + zstandard.ZstdCompressor(level=self.level).compress(raw)

    def unpack(self, data: bytes, before: Bits) -> Bits:
        """Write the values into `before`."""
        count, width = self.header.unpack_from(data)
        raw = zstandard.ZstdDecompressor().decompress(data[self.header.size :])
        gaps = np.frombuffer(raw, f"<u{width}", count)
        before[np.cumsum(gaps.astype(np.int64) + 1) - 1] = np.frombuffer(raw, "<u2", count, count * width)
        return before


def _to_bytes(numbers: NDArray[np.int64]) -> bytes:
    """Write each number as 255 as often as it holds 255, then the rest: good for gaps up to some hundreds."""
    ends = np.cumsum(numbers // 255 + 1)
    out = np.full(ends[-1] if ends.size else 0, 255, np.uint8)
    out[ends - 1] = numbers % 255
    return out.tobytes()


def _from_bytes(data: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Invert `_to_bytes`."""
    ends = np.flatnonzero(data != 255)
    numbers: NDArray[np.int64] = data[ends] + 255 * (np.diff(ends, prepend=-1) - 1)
    return numbers


class GapsZstd(Peer):
    """Positions of changed values as gaps, and their changes as signs and magnitudes in units of the last place.

    Five streams: quotients of the gaps by 2^k (`_to_bytes`, zstd), their k low bits (raw; k is 0 while the mean gap is
    below 128), signs (1 bit, raw), magnitudes below 4 (2 bits, four in a byte, zstd), and the larger ones less 4
    (`_to_bytes`, zstd). The units are those of `ordered`, so a value that changes its sign has a large magnitude.
    """

    name = "gaps+zstd (tuned)"
    level = 1
    header = struct.Struct("<IB4I")  # changes, k, and the bytes of all streams but the last

    def pack(self, before: Bits, now: Bits) -> bytes:
        """Return the header and the five streams."""
        positions = np.flatnonzero(before != now)
        count = positions.size
        gaps = np.diff(positions, prepend=-1) - 1
        k = max(0, int(np.log2(before.size / (64 * count)))) if count else 0
        low = (gaps[:, None] >> np.arange(k)) & 1
        change = (ordered(now[positions]) - ordered(before[positions])).view(np.int16).astype(np.int64)
        size = np.abs(change) - 1
        small = np.zeros(-(-count // 4) * 4, np.uint8)
        small[:count] = np.minimum(size, 3)
        quads = small.reshape(-1, 4) << np.arange(0, 8, 2, dtype=np.uint8)
        zstd = zstandard.ZstdCompressor(level=self.level)
        streams = [
            zstd.compress(_to_bytes(gaps >> k)),
            np.packbits(low.astype(np.uint8)).tobytes(),
            np.packbits(change < 0).tobytes(),
            zstd.compress(np.bitwise_or.reduce(quads, axis=1).tobytes()),
            zstd.compress(_to_bytes(size[size >= 3] - 3)),
        ]
        return self.header.pack(count, k, *map(len, streams[:-1])) + b"".join(streams)

    def unpack(self, data: bytes, before: Bits) -> Bits:
        """Apply the changes to `before`."""
        count, k, *lengths = self.header.unpack_from(data)
        ends = np.cumsum([self.header.size, *lengths]).tolist()
        streams = [data[begin:end] for begin, end in zip(ends, [*ends[1:], None], strict=True)]
        zstd = zstandard.ZstdDecompressor()
        packed = {i: zstd.decompress(streams[i]) for i in (0, 3, 4)} | {i: streams[i] for i in (1, 2)}
        gaps, bits, signs, quads, large = (np.frombuffer(packed[i], np.uint8) for i in range(5))
        low = np.unpackbits(bits, count=count * k).reshape(count, k).astype(np.int64)
        positions = np.cumsum((_from_bytes(gaps) << k) + (low << np.arange(k)).sum(axis=1) + 1) - 1
        size = ((quads[:, None] >> np.arange(0, 8, 2, dtype=np.uint8)) & 3).reshape(-1)[:count].astype(np.int64)
        size[size == 3] += _from_bytes(large)
        change = np.where(np.unpackbits(signs, count=count), -1 - size, 1 + size).astype(np.uint16)
        before[positions] = from_ordered(ordered(before[positions]) + change)
        return before


PEERS: dict[str, type[Peer]] = {peer.name: peer for peer in (Zstd, XorZstd, Z4ai, PatchesZstd, GapsZstd)}
