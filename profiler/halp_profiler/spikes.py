"""Readings that stand out from those around them: latencies rarely fall, and more rarely for one width alone."""

from __future__ import annotations

import numpy as np

from halp_profiler.surface import Surface


def standing_out(surface: Surface, tolerance: float) -> list[tuple[int, int, float]]:
    """The measured points that are slower than both of their neighbours, or quicker than both, on either axis.

    Neighbours are the next lines of the same kind (see ``Steps``). At the ends, where there is one neighbour only, it
    is the least width that should not be slower and the largest that should not be quicker.

    Args:
        tolerance: share of the neighbour's latency by which a point may be beyond it.

    Returns:
        (c_in, c_out, ms beyond the neighbour) of each.
    """
    if len(surface.parts) > 1:
        return [found for part in surface.parts for found in standing_out(part, tolerance)]
    ms = surface.grid_ms
    beyond = np.zeros_like(ms)
    for kind in surface.kinds_in():
        beyond[kind] = _beyond(ms[kind], tolerance)
    if not surface.kernel.diagonal:
        beyond = np.maximum(beyond, _beyond(ms.T, tolerance).T)
    rows, columns = np.nonzero(surface.measured & (beyond > 0))
    kernel = surface.kernel
    return [
        (c_in, kernel.c_out_of(c_in) if kernel.diagonal else int(surface.lines_out[j]), float(beyond[i, j]))
        for i, j in zip(rows.tolist(), columns.tolist(), strict=True)
        for c_in in (int(surface.lines_in[i]),)
    ]


def _beyond(ms: np.ndarray, tolerance: float) -> np.ndarray:
    """Of every entry along the first axis: by how much it lies outside of its two neighbours, 0 where it does not."""
    if len(ms) < 2:
        return np.zeros_like(ms)
    above = np.concatenate([ms[1:2], np.maximum(ms[:-2], ms[2:]), np.full_like(ms[:1], np.inf)])
    below = np.concatenate([np.full_like(ms[:1], -np.inf), np.minimum(ms[:-2], ms[2:]), ms[-2:-1]])
    return np.maximum(0.0, np.maximum(ms - above * (1 + tolerance), below * (1 - tolerance) - ms))
