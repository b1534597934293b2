"""Signal and quantization noise: of outputs, and layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["LayerReport", "Parameters", "Sums", "add_case", "decibels", "layer_report", "sqnr"]


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """A layer of the float model, and what became of its output."""

    name: str
    op: str
    tensor: str
    sqnr_db: float
    """of its output, with the errors of all layers before it"""
    own_sqnr_db: float | None
    """of the output's quantization alone; None: it is not quantized, or as its operand is"""
    weights_sqnr_db: float | None
    """of its weights' quantization"""
    clipped: float
    """share of the output's values beyond the range of int8"""
    scale: float | None
    zero_point: int | None

    @property
    def worst_db(self) -> float:
        """The least that its own quantization leaves."""
        return min((v for v in (self.own_sqnr_db, self.weights_sqnr_db) if v is not None), default=200.0)


@dataclass
class Sums:
    """Sums of squares over inferences."""

    signal: float = 0.0
    noise: float = 0.0
    own: float = 0.0
    clipped: int = 0
    count: int = 0


@dataclass(frozen=True)
class Parameters:
    scale: float
    zero_point: int
    low: int
    high: int
    own: bool
    """no tensor before has this scale"""


def add_case(total: Sums, wanted: NDArray[np.float64], got: NDArray[np.float64], p: Parameters | None) -> None:
    """Add a tensor of an inference: as in the float model, and as in the quantized one."""
    total.signal += float((wanted**2).sum())
    total.noise += float(((wanted - got) ** 2).sum())
    total.count += wanted.size
    if p is not None:
        steps = np.rint(wanted / p.scale) + p.zero_point
        total.clipped += int(((steps < p.low) | (steps > p.high)).sum())
        total.own += float((((np.clip(steps, p.low, p.high) - p.zero_point) * p.scale - wanted) ** 2).sum())


def layer_report(
    name: str, op: str, tensor: str, parameters: Parameters | None, sums: Sums, weights: float | None
) -> LayerReport:
    """What was summed up of a layer."""
    own = parameters is not None and parameters.own
    return LayerReport(
        name=name,
        op=op,
        tensor=tensor,
        sqnr_db=round(decibels(sums.signal, sums.noise), 2),
        own_sqnr_db=round(decibels(sums.signal, sums.own), 2) if own else None,
        weights_sqnr_db=weights,
        clipped=sums.clipped / max(sums.count, 1),
        scale=parameters.scale if parameters else None,
        zero_point=parameters.zero_point if parameters else None,
    )


def decibels(signal: float, noise: float) -> float:
    """Signal to noise in dB, at most 200."""
    if noise <= signal * 1e-20:
        return 200.0
    return float(10 * np.log10(max(signal, 1e-300) / noise))


def sqnr(reference: Sequence[Sequence[NDArray]], answers: Sequence[Sequence[NDArray]]) -> float:
    """Signal to quantization noise of the outputs in dB, over all inferences; the mean of several outputs."""
    results = []
    for wanted, got in zip(zip(*reference, strict=True), zip(*answers, strict=True), strict=True):
        signal = sum(float((w.astype(np.float64) ** 2).sum()) for w in wanted)
        pairs = zip(wanted, got, strict=True)
        noise = sum(float(((w.astype(np.float64) - g.astype(np.float64)) ** 2).sum()) for w, g in pairs)
        results.append(decibels(signal, noise))
    return float(np.mean(results))
