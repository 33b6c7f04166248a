"""What choices that are known say about where the dual is least."""

from __future__ import annotations

import numpy as np

from halp_iee.solve.search import Search


class Lines:
    """Choices k of widths, each with its line V(k) - price * (T(k) - budget), which bounds the dual from below.

    The least of the highest of them is under the dual's least (J. E. Kelley, Journal of the SIAM 8 (1960)).
    """

    def __init__(self, search: Search, ceiling_ms: float) -> None:
        self.search, self.ceiling_ms = search, ceiling_ms
        self.points: list[np.ndarray] = []
        self._value = np.zeros(0)
        self._over_ms = np.zeros(0)

    def add(self, point: np.ndarray) -> bool:
        """Add a choice, as grid indices of the groups; False where it is known."""
        value, over_ms = self.search.value(point), self.search.latency_ms(point) - self.ceiling_ms
        if any(np.array_equal(point, one) for one in self.points):
            return False
        self.points.append(point)
        self._value, self._over_ms = np.append(self._value, value), np.append(self._over_ms, over_ms)
        return True

    @property
    def straddle(self) -> bool:
        """Whether there are choices on both sides of the budget."""
        return bool((self._over_ms > 0.0).any() and (self._over_ms <= 0.0).any())

    def best(self, price: float) -> tuple[np.ndarray, float]:
        """The choice worth most at a price, and what it is worth."""
        worth = self._value - price * self._over_ms
        pick = int(np.argmax(worth))
        return self.points[pick], float(worth[pick])

    def lowest(self) -> tuple[float, float]:
        """At which price the highest of the lines is lowest, and how low."""
        apart = self._over_ms[:, None] - self._over_ms
        with np.errstate(divide="ignore", invalid="ignore"):
            crossings = (self._value[:, None] - self._value) / apart
        at = np.unique(np.append(crossings[np.isfinite(crossings) & (crossings > 0.0)], 0.0))
        highest = (self._value - at[:, None] * self._over_ms).max(axis=1)
        lowest = int(np.argmin(highest))
        return float(at[lowest]), float(highest[lowest])
