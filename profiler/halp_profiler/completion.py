"""What a grid says where it was not measured: how far single points on its sparse lines are to be believed."""

from __future__ import annotations

import numpy as np

_RIDGES = np.array([0.3, 1.0, 3.0, 10.0, 30.0, 100.0, np.inf])
"""How many points a line must have before it is believed as much as what the others say; infinite: never."""


def completed(grid_ms: np.ndarray, base_ms: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """A grid without gaps.

    Where line i of the input meets line j of the output, the latency is base_ij exp(a_i + b_j): what the complete
    lines say there, times how much slower either line is than they expect. a and b minimise

        sum over measured (i, j) of (log(grid_ij / base_ij) - a_i - b_j)^2 + r (|a|^2 + |b|^2),

    and are 0 on complete lines. One reading says both that a line lies behind a step, which holds for all of it, and
    what disturbed that reading, which holds nowhere else; r weighs the two. It is the one of ``_RIDGES`` under which
    measured points are best foretold by the others (leave-one-out, by milliseconds).

    Args:
        grid_ms: shape (lines in, lines out), nan where nothing was measured.
        base_ms: what the complete lines say, everywhere.
        rows, columns: the complete lines; all that they cross in was measured.

    Returns:
        Of the same shape; what was measured stands.
    """
    known = np.isfinite(grid_ms)
    sparse_row, sparse_column = np.ones(grid_ms.shape[0], bool), np.ones(grid_ms.shape[1], bool)
    sparse_row[rows], sparse_column[columns] = False, False
    i, j = np.nonzero(known & (base_ms > 0) & (grid_ms > 0) & (sparse_row[:, None] | sparse_column))
    factor = np.ones_like(base_ms)
    if len(i):
        of_row, of_column = np.cumsum(sparse_row) - 1, np.cumsum(sparse_column) - 1
        count = int(sparse_row.sum())
        lines = np.zeros((len(i), count + int(sparse_column.sum())))
        lines[np.flatnonzero(sparse_row[i]), of_row[i[sparse_row[i]]]] = 1.0
        lines[np.flatnonzero(sparse_column[j]), count + of_column[j[sparse_column[j]]]] = 1.0
        effects = _ridge(lines, np.log(grid_ms[i, j] / base_ms[i, j]), grid_ms[i, j])
        a, b = np.zeros(len(sparse_row)), np.zeros(len(sparse_column))
        a[sparse_row], b[sparse_column] = effects[:count], effects[count:]
        factor = np.exp(a[:, None] + b)
    return np.where(known, grid_ms, base_ms * factor)


def _ridge(lines: np.ndarray, logs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The effects of the lines under the ridge that foretells best; all ridges come from one decomposition."""
    values, vectors = np.linalg.eigh(lines.T @ lines)
    turned = lines @ vectors
    along = turned.T @ logs
    best = (np.inf, np.zeros(len(values)))
    for ridge in _RIDGES:
        share = 1.0 / (np.maximum(values, 0.0) + ridge)
        leverage = (turned**2) @ share
        left_out = (logs - turned @ (share * along)) / np.maximum(1.0 - leverage, 1e-6)
        error = float(np.average(np.abs(left_out), weights=weights))
        if error <= best[0] * (1.0 + 1e-6):  # of ridges that do equally well the largest, whatever the last bits say
            best = (error, vectors @ (share * along))
    return best[1]
