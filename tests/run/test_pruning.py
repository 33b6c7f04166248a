"""A network pruned in one step is corrected by what its final measurement says, and only then."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from halp_iee.errors import TargetError
from halp_iee.methods.meet import Band, is_met
from halp_iee.progress import Silent
from halp_iee.run.pruning import _OneShot
from halp_iee.run.stages import Measured, Slimmed
from halp_iee.run.target import Target


@dataclass(frozen=True)
class FakeAnswer:
    latency_ms: float
    keep: dict[str, np.ndarray] = field(default_factory=dict)
    widths: tuple[()] = ()


@dataclass
class FakeClock:
    """True latency over the solver's, on the scale of a dense latency; the machine may change it."""

    off: float
    dense_ms: float = 10.0

    def __call__(self, keep: dict[str, np.ndarray]) -> float:
        return float(keep["at"]) * self.off

    def scale_to(self, dense_ms: float) -> None:
        self.dense_ms = dense_ms


class OneShot(_OneShot):
    def built(self, answer: Any) -> Slimmed:
        return Slimmed(None, answer.keep, {}, 0.0, "joint", None, None, None, ())  # type: ignore[arg-type]


def one_shot(step: float = 0.0, finetune_epochs: int = 0) -> OneShot:
    """Solved for on a staircase of the given step, or as finely as asked."""

    def solve_at(budget_ms: float) -> FakeAnswer:
        at = budget_ms if not step else np.floor(budget_ms / step) * step
        if at <= 0:
            raise TargetError("too fast", "the floor", "ask for more")
        return FakeAnswer(at, {"at": np.float64(at)})

    job = SimpleNamespace(
        target=Target(0.4, "fraction"), device=SimpleNamespace(batch=1), finetune_epochs=finetune_epochs
    )
    return OneShot(job, None, None, None, Silent(), solve_at)  # type: ignore[arg-type]


def final(slimmed: Slimmed, clock: FakeClock) -> Measured:
    return Measured(10.0, clock(slimmed.keep), None, False)


@pytest.mark.parametrize("drift", [0.9, 0.96, 1.02, 1.1])
def test_where_the_machine_changed_in_between_the_widths_follow_it(drift: float) -> None:
    clock = FakeClock(1.2)
    first = one_shot().met(clock, 4.0)
    assert Band().low * 4.0 <= clock(first.keep) <= Band().high * 4.0
    clock.off *= drift
    assert not is_met(final(first, clock).slim_ms, 4.0)
    again = first.revise(final(first, clock))
    assert again is not None
    assert is_met(final(again, clock).slim_ms, 4.0)
    assert again.revise(final(again, clock)) is None, "what is met is left as it is"


def test_what_is_met_or_was_never_near_or_was_trained_is_left_as_it_is() -> None:
    clock = FakeClock(1.2)
    met = one_shot().met(clock, 4.0)
    assert met.revise(final(met, clock)) is None
    assert met.revise(Measured(None, None, None, False)) is None
    coarse = one_shot(step=1.0).met(clock, 4.0)
    assert clock(coarse.keep) == pytest.approx(3.6)
    assert coarse.revise(final(coarse, clock)) is None
    clock.off *= 1.2
    again = coarse.revise(final(coarse, clock))
    assert again is not None, "what comes out over the target is corrected all the same"
    assert final(again, clock).slim_ms <= 4.0
    assert one_shot(finetune_epochs=1).met(clock, 4.0).revise is None


def test_a_machine_that_does_not_come_to_rest_ends_after_three_corrections() -> None:
    clock, corrections = FakeClock(1.2), 0
    slimmed = one_shot().met(clock, 4.0)
    while slimmed is not None:
        clock.off *= 1.1
        slimmed = slimmed.revise(final(slimmed, clock))
        corrections += slimmed is not None
    assert corrections == 3


def test_where_nothing_is_as_fast_any_more_what_there_is_stands() -> None:
    clock = FakeClock(1.2)
    coarse = one_shot(step=3.25)
    first = coarse.met(clock, 4.0)
    assert is_met(clock(first.keep), 4.0)
    clock.off *= 1.2
    assert first.revise(final(first, clock)) is None


def test_the_correction_times_on_the_scale_of_the_final_measurement() -> None:
    """The whole machine became slower by a half, dense network included: of a fraction nothing is to be corrected."""
    clock = FakeClock(1.2)
    first = one_shot().met(clock, 4.0)
    assert first.revise(Measured(15.0, 1.5 * clock(first.keep), None, False)) is None
    slower = Measured(15.0, 1.6 * clock(first.keep), None, False)
    clock.off *= 1.6
    again = first.revise(slower)
    assert again is not None
    assert clock.dense_ms == 15.0
    assert is_met(clock(again.keep), 6.0)
