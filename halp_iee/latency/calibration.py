"""From whole networks that were timed to what the sum over their layers is to be corrected by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_LESS = 0.1  # of the quickest network's latency: so much at most is taken off again, however small a network is
_ALIKE = 0.1  # networks whose latencies are within this share of each other tell nothing of an offset


@dataclass(frozen=True)
class Calibration:
    """``measured = scale * sum of layers + offset_ms``, fitted to whole networks.

    Attributes:
        scale: of every layer.
        offset_ms: of a call, for what no layer stands for. Below 0 where the caches serve a small network better than
            the table, whose kernels ran in a larger one.
        predicted_ms, measured_ms: the points; predicted by the layers alone.
        residuals: (fitted - measured) / measured of each point.
    """

    scale: float
    offset_ms: float
    predicted_ms: tuple[float, ...]
    measured_ms: tuple[float, ...]
    residuals: tuple[float, ...]

    @property
    def worst(self) -> float:
        """The largest relative residual."""
        return max((abs(r) for r in self.residuals), default=0.0)


def fitted(predicted: np.ndarray, measured: np.ndarray) -> tuple[float, float]:
    """Scale and offset of the least relative error, ``sum ((s p + o - m) / m)^2``.

    The offset is at least minus a tenth of the quickest network's latency. With one network, or networks that take
    equally long, only the scale is fitted. From five networks on, those over three times the median error off are left
    out of a second fit.

    Args:
        predicted: sums over layers, in ms, shape (n,).
        measured: in ms, above 0, shape (n,).
    """
    fit = _fit(predicted, measured)
    good = _good(fit, predicted, measured)
    return fit if good.all() else _fit(predicted[good], measured[good])


def _good(fit: tuple[float, float], p: np.ndarray, m: np.ndarray) -> np.ndarray:
    error = np.abs(fit[0] * p + fit[1] - m) / m
    return error <= max(3 * float(np.median(error)), 1e-3) if len(m) >= 5 else np.ones(len(m), bool)


def _fit(predicted: np.ndarray, measured: np.ndarray) -> tuple[float, float]:
    p = predicted / measured
    alone = float(p.sum() / (p @ p)) if (p @ p) > 0 else 1.0
    if len(p) < 2 or np.ptp(predicted) < _ALIKE * predicted.max():
        return alone, 0.0
    (scale, offset), *_ = np.linalg.lstsq(np.stack([p, 1 / measured], 1), np.ones(len(p)), rcond=None)
    least = -_LESS * float(measured.min())
    if scale > 0 and offset >= least:
        return float(scale), float(offset)
    rest = 1 - least / measured  # the offset stays at its least
    scale = float(p @ rest / (p @ p))
    return (scale, least) if scale > 0 and offset < least else (alone, 0.0)
