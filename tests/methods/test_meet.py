"""Meeting a latency as measured: over many staircases and many ways in which the prediction is wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from halp_iee.errors import TargetError, UsageError
from halp_iee.methods.meet import Band, meet_as_measured


@dataclass(frozen=True)
class FakeAnswer:
    latency_ms: float
    widths: tuple[()] = ()


class Machine:
    """Structures at random predicted latencies; the true one is off by a scale, an offset and noise."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        count = int(rng.integers(5, 400))
        self.predicted = np.sort(rng.uniform(0.5, 10.0, count))
        self.true = self.predicted * rng.uniform(0.7, 1.4) + rng.uniform(0, 0.3) + rng.normal(0, 0.02, count)
        self.trials = 0

    def solve_at(self, budget_ms: float) -> FakeAnswer:
        below = self.predicted[self.predicted <= budget_ms]
        if not len(below):
            raise TargetError("too fast", f"the floor is {self.predicted[0]:.3g} ms", "ask for more")
        return FakeAnswer(float(below[-1]))

    def measure(self, answer: FakeAnswer) -> float:
        self.trials += 1
        return float(self.true[np.searchsorted(self.predicted, answer.latency_ms)])


@pytest.mark.parametrize("seed", range(200))
def test_what_comes_first_is_at_or_under_the_target_or_the_floor_is_named(seed: int) -> None:
    machine = Machine(seed)
    target_ms = float(np.random.default_rng(seed + 1000).uniform(0.5, 12.0))
    try:
        trials = meet_as_measured(machine.solve_at, machine.measure, target_ms)
    except TargetError as error:
        assert "ms" in str(error)
        assert error.exit_code == 4
        return
    assert trials[0].measured_ms <= target_ms
    assert machine.trials <= 10
    safe = [t.measured_ms for t in trials if t.measured_ms <= Band().high * target_ms]
    assert [t.measured_ms for t in trials[: len(safe)]] == sorted(safe, reverse=True)


def test_where_the_steps_are_fine_the_target_is_met_within_the_band() -> None:
    band = Band()
    for seed in range(50):
        rng = np.random.default_rng(seed)
        scale, offset, target_ms = rng.uniform(0.7, 1.4), rng.uniform(0.0, 0.3), rng.uniform(2.0, 8.0)
        trials = meet_as_measured(FakeAnswer, lambda a, s=scale, o=offset: a.latency_ms * s + o, target_ms)
        assert band.low * target_ms <= trials[0].measured_ms <= band.high * target_ms
        assert len(trials) <= 4


def test_a_timing_that_is_in_the_band_by_luck_is_not_believed() -> None:
    """Each first timing of a structure is out by some percent; means of three are out by less."""
    band, lucky = Band(), 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        target_ms, timed = float(rng.uniform(2.0, 8.0)), dict[float, list[float]]()

        def measure(answer: FakeAnswer, rng=rng, timed=timed) -> float:
            ms = answer.latency_ms * 1.2 * (1.0 + float(rng.normal(0.0, 0.02)))
            timed.setdefault(answer.latency_ms, []).append(ms)
            return ms

        try:
            best = meet_as_measured(FakeAnswer, measure, target_ms)[0]
        except TargetError:
            continue
        of_best = timed[best.answer.latency_ms]
        assert best.measured_ms == pytest.approx(float(np.mean(of_best)))
        assert sum(map(len, timed.values())) <= 10
        in_band = [band.low * target_ms <= ms <= band.high * target_ms for ms in of_best]
        lucky += in_band[0] and not band.low * target_ms <= best.measured_ms <= band.high * target_ms
        if in_band[0] and sum(map(len, timed.values())) < 10:
            assert len(of_best) == 3
    assert lucky > 0, "no timing was in the band by luck: nothing was tried"


def test_a_network_that_was_timed_is_not_timed_again() -> None:
    timed: list[float] = []

    def measure(answer: FakeAnswer) -> float:
        timed.append(answer.latency_ms)
        return 0.9 * answer.latency_ms

    # Two structures only: 1 ms, and one far over the target.
    trials = meet_as_measured(lambda budget_ms: FakeAnswer(1.0 if budget_ms < 5.0 else 9.0), measure, 4.0)
    assert trials[0].measured_ms == 0.9
    assert len(timed) == len(set(timed))


@pytest.mark.parametrize("ms", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_no_latency_is_refused(ms: float) -> None:
    with pytest.raises(UsageError, match="measure says"):
        meet_as_measured(lambda budget: FakeAnswer(budget), lambda answer: ms, 1.0)  # type: ignore[arg-type, return-value]
