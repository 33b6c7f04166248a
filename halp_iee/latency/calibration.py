"""From whole networks that were timed to what the sum over their layers is to be corrected by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_FOR_WEIGHTS = 7  # networks from which on a third number is looked for
_BETTER = 0.8  # of the error without it: so much less it must err on networks that it was not fitted to
_LESS = 0.1  # of the quickest network's latency: so much at most is taken off again, however small a network is
_ALIKE = 0.1  # networks whose latencies are within this share of each other tell nothing of an offset


@dataclass(frozen=True)
class Calibration:
    """``measured = scale * sum of layers + weight_ms_per_mb * weights + offset_ms``, fitted to whole networks.

    Attributes:
        scale: of every layer.
        offset_ms: of a call, for what no layer stands for. Below 0 where the caches serve a small network better than
            the table, whose kernels ran in a larger one.
        predicted_ms, measured_ms: the points; predicted by the layers alone.
        residuals: (fitted - measured) / measured of each point.
        weight_ms_per_mb: of a layer's weights: the fewer a network has, the more of them stay in the caches.
    """

    scale: float
    offset_ms: float
    predicted_ms: tuple[float, ...]
    measured_ms: tuple[float, ...]
    residuals: tuple[float, ...]
    weight_ms_per_mb: float = 0.0

    @property
    def worst(self) -> float:
        """The largest relative residual."""
        return max((abs(r) for r in self.residuals), default=0.0)


def fitted(predicted: np.ndarray, measured: np.ndarray, weights_mb: np.ndarray) -> tuple[float, float, float]:
    """Scale, offset and ms a MB of weights of the least relative error, ``sum ((s p + d w + o - m) / m)^2``.

    The offset is at least minus a tenth of the quickest network's latency. With one network, or networks that take
    equally long, only the scale is fitted. The weights count from seven networks on, and only where that makes the
    prediction of networks that were left out of the fit, each in turn, clearly better. From five networks on, those
    over three times the median error off are left out of a second fit.

    Args:
        predicted: sums over layers, in ms, shape (n,).
        measured: in ms, above 0, shape (n,).
        weights_mb: shape (n,).
    """
    fit = _fit(predicted, measured, None)
    if len(measured) >= _FOR_WEIGHTS and np.ptp(weights_mb) > _ALIKE * weights_mb.max():
        plain, heavy = (_left_out(predicted, measured, w) for w in (None, weights_mb))
        if heavy < _BETTER * plain:
            fit = _fit(predicted, measured, weights_mb)
    good = _good(fit, predicted, measured, weights_mb)
    if not good.all():
        fit = _fit(predicted[good], measured[good], weights_mb[good] if fit[2] else None)
    return fit


def _good(fit: tuple[float, float, float], p: np.ndarray, m: np.ndarray, w: np.ndarray) -> np.ndarray:
    error = np.abs(fit[0] * p + fit[1] + fit[2] * w - m) / m
    return error <= max(3 * float(np.median(error)), 1e-3) if len(m) >= 5 else np.ones(len(m), bool)


def _left_out(p: np.ndarray, m: np.ndarray, w: np.ndarray | None) -> float:
    """Relative error on every network by the fit to the others: root of the mean square, the worst one left out."""
    errors = []
    for i in range(len(m)):
        rest = np.arange(len(m)) != i
        scale, offset, per_mb = _fit(p[rest], m[rest], None if w is None else w[rest])
        errors.append(abs(scale * p[i] + offset + (0.0 if w is None else per_mb * w[i]) - m[i]) / m[i])
    return float(np.sqrt(np.mean(np.sort(errors)[:-1] ** 2)))  # one disturbed network decides nothing


def _fit(predicted: np.ndarray, measured: np.ndarray, weights_mb: np.ndarray | None) -> tuple[float, float, float]:
    p = predicted / measured
    alone = float(p.sum() / (p @ p)) if (p @ p) > 0 else 1.0
    if len(p) < 2 or np.ptp(predicted) < _ALIKE * predicted.max():
        return alone, 0.0, 0.0
    columns = [p] if weights_mb is None else [p, weights_mb / measured]
    for offset in (None, -_LESS * float(measured.min())):
        terms = columns if offset is not None else [*columns, 1 / measured]
        given = (offset or 0.0) / measured
        found, *_ = np.linalg.lstsq(np.stack(terms, 1), 1 - given, rcond=None)
        fixed = float(found[-1]) if offset is None else offset
        if found[0] > 0 and fixed >= -_LESS * measured.min():
            return float(found[0]), fixed, float(found[1]) if weights_mb is not None else 0.0
    return alone, 0.0, 0.0
