"""Where a training stands, and what it has done."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class EpochRecord:
    """One finished epoch: mean training loss and share of hits while training, test figures if evaluated."""

    epoch: int
    loss: float
    train_top1: float
    lr: float
    test_top1: float | None
    test_loss: float | None
    seconds: float


@dataclass(frozen=True)
class History:
    """What a run has done.

    Attributes:
        epochs: the finished ones, in order.
        steps: optimizer steps taken.
        finished: False when `stop_after` ended it early.
        resumed_from: the step that it went on from; None when it began here.
        seconds: in training, over all sessions of the run, evaluation included.
        phases: the method's phase -> (steps, seconds) spent in it, evaluation not included.
        method_seconds: of these, inside the method itself: judging, solving, resizing, timing.
    """

    epochs: tuple[EpochRecord, ...]
    steps: int
    finished: bool
    resumed_from: int | None
    seconds: float
    phases: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    method_seconds: float = 0.0

    @property
    def top1(self) -> float:
        """Share of hits on the test set after the last epoch that was evaluated."""
        return next((e.test_top1 for e in reversed(self.epochs) if e.test_top1 is not None), math.nan)


@dataclass(frozen=True)
class Progress:
    """Where the run stands after a step; `test_top1` is the newest one, None before the first."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    lr: float
    test_top1: float | None


@dataclass
class Position:
    """Where the run stands, all of it in the checkpoint."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    hits: int = 0
    seen: int = 0
    epoch_seconds: float = 0.0
    seconds: float = 0.0
    method_seconds: float = 0.0
    phases: dict[str, list[float]] = field(default_factory=dict)
    epochs: list[dict[str, Any]] = field(default_factory=list)

    def check(self) -> None:
        """Raise ValueError or TypeError if a file has put in what cannot be."""
        counts = (self.epoch, self.batch, self.step, self.hits, self.seen)
        if not all(type(n) is int and n >= 0 for n in counts):
            raise ValueError(f"its position {counts} is not one")
        if not all(
            isinstance(x, (int, float)) for x in (self.loss_sum, self.epoch_seconds, self.seconds, self.method_seconds)
        ):
            raise ValueError("its position holds sums that are no numbers")
        for steps, seconds in self.phases.values():
            if not (steps >= 0 and seconds >= 0):
                raise ValueError("its position holds phases that cannot be")
        for record in self.epochs:
            EpochRecord(**record)
