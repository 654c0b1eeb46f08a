"""Decoding with other coefficients than the line's, and along other ways than the directions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from relex_codec.core.dtypes import F32, FLOATS, Bits, bits_dtype, from_float32, to_float32
from relex_codec.decoding.tensor_decoder import TensorDecoder
from relex_codec.decoding.tensors import read_weights
from relex_codec.decoding.tiers import StepTier, layout_at
from relex_codec.errors import InvalidArgument
from relex_codec.format import constants as f
from relex_codec.format.tensor_record import TensorRecord
from relex_codec.trust.fits import Curve, parse_curve, predicted

from .coefficients import read_coefficients
from .directions import parts_of
from .export import Weights


class FittedDecoder(TensorDecoder):
    """A decoder whose tier ``line`` is another curve through the coefficients; everything else is as in the file.

    Args:
        decoder: of the file.
        curve: through the coefficients of the observed steps.
    """

    def __init__(self, decoder: TensorDecoder, curve: Curve) -> None:
        super().__init__(decoder.container, decoder.base)
        self._curve = curve
        found = read_coefficients(decoder)
        observed = decoder.container.index.manifest.observed
        self._steps, self._values = found.steps[:observed].tolist(), found.values[:, :observed]
        predicted(curve, self._steps, self._values, [float(self._steps[-1])])  # whether there are enough steps

    def at(self, step: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        """Return the coefficients of all directions at a step, float64."""
        return predicted(self._curve, self._steps, self._values, [step])[:, 0]

    def coefficients(self, tensor: TensorRecord, steps: Sequence[StepTier]) -> F32:
        """Return g of each direction of a ``moving`` tensor at each of some steps, float32 [S, k]."""
        rows = slice(tensor.directions.start, tensor.directions.stop)
        with np.errstate(over="ignore"):
            g = np.array([self.at(step.step)[rows] for step in steps]).astype(np.float32)
        if not np.isfinite(g).all():
            raise InvalidArgument(f"step {steps[0].step:g} is too far out: a coefficient there exceeds float32")
        return g


@dataclass(frozen=True)
class Secant:
    """The straight way that the end of a run went: from a stored step near the middle of the observed ones to the last.

    At step S it is ``W(last) + (S - last) / (last - middle) * (W(last) - W(middle))``, computed in float32 from the
    stored bits and rounded once to the tensor's dtype. Where the bits are equal at both steps they stay, so that
    infinities and NaNs do too. Tensors of other dtypes than BF16, F16 and F32 are those of the last observed step.

    Attributes:
        middle, last: stored steps.
    """

    middle: int
    last: int

    @classmethod
    def of(cls, decoder: TensorDecoder) -> Secant:
        """Return the secant of a file.

        Raises:
            InvalidArgument: the file has no exact tier, or one observed step.
        """
        index = decoder.container.index
        if not index.has_exact:
            raise InvalidArgument(
                f"{index.path} has no tier 'exact', from whose steps a secant is drawn: it was encoded without --exact"
            )
        observed = [int(step) for step in index.steps[: index.manifest.observed]]
        if len(observed) < 2:
            raise InvalidArgument(f"{index.path} has one observed step, a secant takes two")
        last = observed[-1]
        return cls(min(observed[:-1], key=lambda step: (abs(2 * step - last), -step)), last)

    def factor(self, step: float) -> np.float32:
        """How many times the way from `middle` to `last` is added at a step."""
        return np.float32((step - self.last) / (self.last - self.middle))

    def at(self, step: float, dtype: str, middle: Bits, last: Bits) -> Bits:
        """Return the bits at a step of elements of which the bits at both stored steps are given."""
        if dtype not in FLOATS:
            return last
        with np.errstate(over="ignore", invalid="ignore"):
            end = to_float32(last, dtype)
            found = from_float32(end + self.factor(step) * (end - to_float32(middle, dtype)), dtype)
        return np.where(middle == last, last, found)

    def parts(self, decoder: TensorDecoder, tensor: TensorRecord, step: float) -> Iterator[tuple[Bits, Bits]]:
        """Yield the bits of a tensor in the base and at a step, part by part."""
        index = decoder.container.index
        there = layout_at(index, StepTier(float(self.middle), "exact")).get(tensor.name) is tensor
        begin = self.middle if there else self.last  # what was not there yet stays as it is at the end
        steps = [StepTier(0.0, "base"), StepTier(float(begin), "exact"), StepTier(float(self.last), "exact")]
        plan = decoder.plan([(tensor, parts_of(tensor.size))], steps)
        with decoder.fetcher.ahead(plan):
            for window in plan.tensors[0].windows:
                base, middle, last = (bits.reshape(-1) for bits in decoder.decode_window(window, steps))
                yield base, self.at(step, tensor.dtype, middle, last)

    def weights(self, decoder: TensorDecoder, tensors: Sequence[TensorRecord], step: float) -> Iterator[memoryview]:
        """Yield the bytes of whole tensors at a step as they lie in a safetensors file."""
        for tensor in tensors:
            found = [bits for _, bits in self.parts(decoder, tensor, step)]
            yield np.concatenate([*found, np.empty(0, bits_dtype(tensor.dtype))]).view(np.uint8).data

    def distance(self, decoder: TensorDecoder, step: float) -> float:
        """Return the L1 norm of what a step adds to the base over that of the base, which reads all of them."""
        moved = total = 0.0
        for tensor in decoder.container.index.layout.tensors:
            if tensor.dtype not in FLOATS or tensor.kind == f.TIED:
                continue
            sums = np.zeros(2)
            with np.errstate(over="ignore", invalid="ignore"):
                for base, bits in self.parts(decoder, tensor, step):
                    start = to_float32(base, tensor.dtype).astype(np.float64)
                    sums += np.abs(to_float32(bits, tensor.dtype) - start).sum(), np.abs(start).sum()
            if np.isfinite(sums).all():
                moved, total = moved + sums[0], total + sums[1]
        return moved / total if total else float("nan")


def weights_along(decoder: TensorDecoder, step: StepTier, along: str, device: Any) -> Weights:
    """Return what gives the bytes of tensors at a step.

    Args:
        along: what tier ``line`` follows, as `Run.save`.

    Raises:
        InvalidArgument: it is nothing that can be followed, or not to this step.
    """
    if along == "secant":
        secant = Secant.of(decoder)
        if step.tier != "line" or step.step <= secant.last:
            reach = f"begins at the last observed step, {secant.last}, and goes beyond"
            raise InvalidArgument(f"the secant {reach}: not to {step.step:g}")
        return lambda tensors: secant.weights(decoder, tensors, step.step)
    used = decoder
    if along != "line":
        curve = parse_curve(along)
        if step.tier != "line":
            what = f"step {step.step:g} is read from {step.tier!r}"
            raise InvalidArgument(f"fit {curve} is for tier 'line', {what}: ask for 'line'")
        used = FittedDecoder(decoder, curve)
    return lambda tensors: read_weights(used, tensors, step, device)
