"""Steps that a file has already: which of some checkpoints are among them, and whether one still is what it was."""

from __future__ import annotations

from collections.abc import Sequence

from relex_codec.checkpoints.checkpoint import TensorReader
from relex_codec.core.digests import EXACT_DIGEST, digest, part_digest
from relex_codec.core.dtypes import Bits
from relex_codec.core.text import quote
from relex_codec.decoding.origin_reader import converted
from relex_codec.decoding.tensor_decoder import TensorDecoder
from relex_codec.errors import CheckpointError, InvalidArgument
from relex_codec.format import constants as f
from relex_codec.format.index import Index
from relex_codec.format.tensor_record import TensorRecord

Found = list[tuple[int, str]]
"""Steps and the paths of their checkpoints."""


def split(found: Sequence[tuple[int, str]], index: Index) -> tuple[Found, Found]:
    """Return the checkpoints of steps that a file has, and those of later ones.

    Raises:
        InvalidArgument: there are none of later ones, or some of steps that lie between those of the file.
    """
    steps = {int(step) for step in index.steps}
    last = int(index.steps[-1])
    known = [one for one in found if one[0] in steps]
    new = [one for one in found if one[0] not in steps]
    if early := [step for step, _ in new if step < last]:
        raise InvalidArgument(f"step {early[0]} cannot be appended to {index.path}, whose last step is {last}")
    if not new:
        what = f"step {known[0][0]} is" if len(known) == 1 else f"all {len(known)} steps are"
        raise InvalidArgument(f"{what} in {index.path} already, whose last step is {last}: nothing to append")
    return known, new


def check_unchanged(decoder: TensorDecoder, step: int, checkpoint: TensorReader) -> None:
    """Compare a checkpoint with what a file with the exact tier has of its step, by digests: nothing is restored.

    Raises:
        CheckpointError: they are not the same.
    """
    index = decoder.container.index
    number = [int(at) for at in index.steps].index(step) + 1
    layout = index.layout_of(number)
    same = {tensor.name: (tensor.dtype, tensor.shape) for tensor in layout.tensors}
    if same != {name: (info.dtype, info.shape) for name, info in checkpoint.tensors.items()}:
        raise _changed(index, step, checkpoint, "has other tensors")
    for tensor in layout.tensors:
        for lo in range(0, tensor.size, f.PIECE):
            bits = checkpoint.read(tensor.name, lo, min(lo + f.PIECE, tensor.size))
            if not _is_same(decoder, index.target(tensor), number, lo // f.PIECE, bits):
                raise _changed(index, step, checkpoint, f"has other weights in tensor {quote(tensor.name)}")


def _is_same(decoder: TensorDecoder, tensor: TensorRecord, number: int, piece: int, bits: Bits) -> bool:
    from relex_codec.exact.tier_reader import Key, Streams  # numba is only needed here

    index, tier = decoder.container.index, decoder.exact
    segment = tier.segment_of(number)
    if tier.holds(segment, tensor.number):
        (part,) = tier.pieces(tensor.number, piece, piece + 1)
        group, place = tier.place(segment, part)
        key = Key(segment, number - tier.segments[segment].first, group)
        blob = tier.fetch([key])[key]
        assert isinstance(blob, Streams)
        found = blob.digests[place * EXACT_DIGEST : (place + 1) * EXACT_DIGEST]
        return part_digest(bits) == found
    if tensor.in_base and tensor.dtype == tensor.origin_dtype:
        wanted: bytes = index.digests[tensor.digests[piece]].tobytes()
        return digest(bits) == wanted
    lo = piece * f.PIECE
    start = converted(decoder.origins.read_span(tensor, lo, lo + len(bits)), tensor)
    return bool((bits == start).all())


def _changed(index: Index, step: int, checkpoint: TensorReader, what: str) -> CheckpointError:
    return CheckpointError(
        f"{checkpoint.path} {what} than {index.path} has of step {step}: it was replaced since, or is of another run; "
        "append later steps only, or encode the whole run again"
    )
