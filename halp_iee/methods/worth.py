"""What a structure is worth, given what its units are worth: the sum over all units, or shares of groups in series."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from halp_iee.methods.structure import Units

_LEAST = 1e-9  # of a group's importance: units worth nothing still have a logarithm


def shares_in_series(
    scores: Mapping[str, np.ndarray], active: Units | None = None, standing: Units | None = None
) -> dict[str, np.ndarray]:
    """Scores whose sum over a structure S, each group taking its best units first, is

        V(S) = sum over groups g of log( sum of I_j over the units j in S_g )

    up to a constant. A signal goes through the groups one after the other, so what arrives is the product of what
    each lets through: the first unit of an empty group is worth most and every further one less, however many there
    are. The plain sum (eq. 2 and 4) sees no difference between the hundredth unit of a wide group and the second of
    a narrow one, and empties groups whose units cost much.

    Within a group the order is that of I, so an additive solver finds the best S.

    Args:
        scores: I, one number a unit, not negative.
        active: units that may be kept; None: all.
        standing: units that are kept in any case; the others are worth what they add to these.

    Returns:
        One number a unit; 1 for units that stand, 0 for those that may not be kept.

    Source: none; the papers maximise the sum.
    """
    worth: dict[str, np.ndarray] = {}
    for name, values in scores.items():
        held = np.zeros(0, dtype=np.int64) if standing is None else standing[name]
        free = np.setdiff1d(np.arange(len(values)) if active is None else active[name], held)
        free = free[np.argsort(-values[free], kind="stable")]
        sums = float(values[held].sum()) + np.concatenate([[0.0], np.cumsum(values[free])])
        sums = sums + _LEAST * max(float(sums[-1]), 1e-30) * np.arange(len(held) + 1, len(held) + len(sums) + 1)
        gains = np.diff(np.log(sums))
        if not len(held) and len(gains):  # of the first unit: infinite; no second one gains more than log 2
            gains[0] = np.log(2.0)
        worth[name] = np.zeros(len(values))
        worth[name][free], worth[name][held] = gains, 1.0
    return worth
