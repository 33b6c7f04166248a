"""The width problem as data: numpy only, no network, no table.

Choose a width k_g for every group g so as to

    maximise    sum_g V_g(k_g)
    subject to  fixed_ms + sum_l T_l(c_in_l(k), c_out_l(k)) <= budget_ms,   k_g in widths_g

where V_g(k) is the summed importance of the k best units of g, T_l is the latency of layer l and
c_in_l, c_out_l are affine in the widths: one group, a multiple of one (flatten), a sum of several
(concatenation), or a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np

Cost = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class UnitGroup:
    """One group to decide.

    Attributes:
        name: as in the graph.
        size: units that the dense network has.
        order: the units that may be kept, in the order in which they are taken: the standing ones
            first, then by falling score, equal scores by index. Keeping k means ``order[:k]``.
        standing: how many of them are kept whatever happens.
        widths: admissible widths, rising, int64, shape (W,).
        values: importance kept at each of them, never falling, float64, shape (W,).
    """

    name: str
    size: int
    order: np.ndarray
    standing: int
    widths: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Axis:
    """Channels on one side of a layer: ``fixed + sum per * k[group]`` over decided groups.

    Attributes:
        terms: (index of the group in the problem, channels that one unit of it has).
        fixed: channels that no decision changes.
    """

    terms: tuple[tuple[int, int], ...]
    fixed: int

    def channels(self, widths: np.ndarray) -> np.ndarray:
        """Channels for widths of shape (..., groups), int64 of shape (...)."""
        total = np.full(widths.shape[:-1], self.fixed, dtype=np.int64)
        for group, per in self.terms:
            total = total + per * widths[..., group]
        return total


@dataclass(frozen=True, eq=False)
class LayerTerm:
    """One layer's latency: ``ms(c_in, c_out)``, arrays that broadcast, in ms.

    Attributes:
        alike: equal for layers that cost the same at the same channels, so that they are tabulated once;
            None says nothing.
    """

    name: str
    c_in: Axis
    c_out: Axis
    ms: Cost
    alike: Hashable = None

    @property
    def groups(self) -> tuple[int, ...]:
        """Indices of the groups that this layer's latency depends on, rising."""
        return tuple(sorted({group for group, _ in self.c_in.terms + self.c_out.terms}))


@dataclass(frozen=True, eq=False)
class Problem:
    """A width problem, complete.

    Attributes:
        groups: the groups to decide.
        layers: the layers whose latency depends on a decision.
        fixed_ms: everything else.
        budget_ms: the most that the whole may cost.
        settled: groups that are not decided -> the units that they keep.
        dense_ms: latency with every unit of every group.
        predict_ms: latency at widths of shape (groups,) exactly as the cost model sums it; what decides
            whether the budget holds where the order of a sum would.
    """

    groups: tuple[UnitGroup, ...]
    layers: tuple[LayerTerm, ...]
    fixed_ms: float
    budget_ms: float
    settled: dict[str, np.ndarray]
    dense_ms: float
    predict_ms: Callable[[np.ndarray], float]

    @property
    def allowance_ms(self) -> float:
        """The budget less a margin for the rounding of sums, which are taken in different orders."""
        return self.budget_ms * (1.0 - 1e-12)

    @property
    def ceiling_ms(self) -> float:
        """The budget with that margin added: what is over it is certainly over the budget."""
        return self.budget_ms * (1.0 + 1e-12)

    def first_within(self, widths: np.ndarray) -> int | None:
        """The first of many widths, shape (many, groups), that the budget holds, or None."""
        latency_ms = self.latency_ms(widths)
        for index in np.flatnonzero(latency_ms <= self.ceiling_ms):
            if latency_ms[index] <= self.allowance_ms or self.predict_ms(widths[index]) <= self.budget_ms:
                return int(index)
        return None

    @property
    def least(self) -> np.ndarray:
        """The least widths, shape (groups,)."""
        return np.array([group.widths[0] for group in self.groups], dtype=np.int64)

    @property
    def most(self) -> np.ndarray:
        """The largest widths, shape (groups,)."""
        return np.array([group.widths[-1] for group in self.groups], dtype=np.int64)

    def latency_ms(self, widths: np.ndarray) -> np.ndarray:
        """Latency in ms, shape (...), at widths of shape (..., groups)."""
        total = np.full(widths.shape[:-1], self.fixed_ms, dtype=np.float64)
        for layer in self.layers:
            total = total + layer.ms(layer.c_in.channels(widths), layer.c_out.channels(widths))
        return total

    def value(self, widths: np.ndarray) -> float:
        """Importance kept at admissible ``widths``, shape (groups,)."""
        return float(
            sum(group.values[np.searchsorted(group.widths, k)] for group, k in zip(self.groups, widths, strict=True))
        )

    def keep(self, widths: np.ndarray) -> dict[str, np.ndarray]:
        """The units that those widths keep, by group name, sorted; settled groups included."""
        chosen = {group.name: np.sort(group.order[: int(k)]) for group, k in zip(self.groups, widths, strict=True)}
        return {**self.settled, **chosen}
