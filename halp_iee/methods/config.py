"""Settings of IEE and HALP, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from halp_iee.errors import UsageError
from halp_iee.importance import CRITERIA


@dataclass(frozen=True)
class IEEConfig:
    """Settings of IEE.

    Attributes:
        H: iterations of Importance Estimation in each cycle: train Theta_K, accumulate I.
        J: iterations of Accuracy Improvement: train the pruned Theta_K.
        Q: iterations of Reactivate & Explore: train Theta_P, Theta_K frozen.
        T: number of cycles.
        omega_start: Omega^0 as a fraction of Psi (0.3 in the paper).
        omega_end: Omega^T as a fraction of Psi. The paper gives none and its exponential
            schedule cannot reach 0. At 0.02 the last cycles exchange single channels, so
            the structure comes to rest by itself and no last jump is left to absorb.
        criterion: importance, by name of `halp_iee.importance.CRITERIA`; prunes and grows.
        start: `dense`: everything is active and the budget comes down to Psi over the first
            `descend` of the cycles; `random`: a random Theta_K with R(Theta_K) = Psi, which throws
            away what the network has learned, if it comes trained.
        descend: with `start="dense"`, the fraction of cycles that the descent takes.
        solver: which of `halp_iee.solve`'s solvers decides.
        min_fraction: least fraction of its units that a group keeps (never under one unit).
        floor: least width of the groups that everything must pass (`graph.passages`), as a share of their width in
            the random Theta_K, which is nearly even. Importance is summed over layers whose gradients differ by
            their depth a hundredfold at the start of a training, and a passage that is cut to a few units then
            seldom widens again. Branches may become as narrow as they will. 0: as published.
        grow: `importance`, or `random` (ablation).
        reactivate: `mru`: most recently used values, or `zero` (ablation).
        freeze: Theta_K is frozen while Theta_P is explored; False is the ablation.
        seed: of the random start and of random growth.
    """

    H: int = 10
    J: int = 10
    Q: int = 10
    T: int = 8
    omega_start: float = 0.3
    omega_end: float = 0.02
    criterion: str = "taylor_bn"
    start: Literal["random", "dense"] = "dense"
    descend: float = 0.5
    solver: str = "joint"
    min_fraction: float = 0.0
    floor: float = 0.5
    grow: Literal["importance", "random"] = "importance"
    reactivate: Literal["mru", "zero"] = "mru"
    freeze: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("H", "T"):
            if getattr(self, name) < 1:
                raise UsageError(
                    f"IEE cannot run with {name} = {getattr(self, name)}",
                    "it needs one or more",
                    f"set {name} to at least 1",
                )
        for name in ("J", "Q"):
            if getattr(self, name) < 0:
                raise UsageError(
                    f"IEE cannot run with {name} = {getattr(self, name)}",
                    "iterations are counted from 0",
                    f"set {name} to 0 or more",
                )
        for name, choices in (("start", ("random", "dense")), ("grow", ("importance", "random")),
                              ("reactivate", ("mru", "zero"))):  # fmt: skip
            if getattr(self, name) not in choices:
                raise UsageError(
                    f"IEE cannot run with {name}={getattr(self, name)!r}", f"there are {' and '.join(choices)}",
                    "choose one of them",
                )  # fmt: skip
        if not 0 < self.omega_end <= self.omega_start < 1:
            raise UsageError(
                "IEE's update budget is off",
                f"0 < omega_end <= omega_start < 1 must hold and they are {self.omega_end} and {self.omega_start}",
                "leave them out for the paper's 0.3 falling to 0.02",
            )
        if not 0 <= self.floor <= 1:
            raise UsageError(
                f"IEE cannot run with floor = {self.floor}", "it is a share of a width, in [0, 1]", "leave it out"
            )
        _check_common(self.criterion, self.min_fraction)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole update period, T (H + J + Q)."""
        return self.T * (self.H + self.J + self.Q)


@dataclass(frozen=True)
class HALPConfig:
    """Settings of HALP.

    Attributes:
        steps: k, pruning steps on the way down (30 in the paper).
        interval: optimizer steps before each, over which importance is accumulated (320 in the paper).
        criterion: importance, by name of `halp_iee.importance.CRITERIA`.
        solver: which of `halp_iee.solve`'s solvers decides.
        min_fraction: least fraction of its units that a group keeps (never under one unit).
        seed: of the criterion `random`.
    """

    steps: int = 10
    interval: int = 20
    criterion: str = "taylor_bn"
    solver: str = "joint"
    min_fraction: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "interval"):
            if getattr(self, name) < 1:
                raise UsageError(
                    f"HALP cannot run with {name} = {getattr(self, name)}",
                    "it needs one or more",
                    f"set {name} to at least 1",
                )
        _check_common(self.criterion, self.min_fraction)

    @property
    def period(self) -> int:
        """Optimizer steps until the structure is final."""
        return self.steps * self.interval


def _check_common(criterion: str, min_fraction: float) -> None:
    if criterion not in CRITERIA:
        raise UsageError(
            f"unknown importance criterion {criterion!r}", f"there are {', '.join(CRITERIA)}", "choose one of them"
        )
    if not 0 <= min_fraction <= 1:
        raise UsageError(
            f"a group cannot keep a share of {min_fraction:g} of its units", "it must lie in [0, 1]", "leave it at 0"
        )
