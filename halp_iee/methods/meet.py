"""Meets a latency as it is measured, not as it is predicted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from halp_iee.errors import TargetError, UsageError

if TYPE_CHECKING:
    from halp_iee.solve import Answer


_AGAIN = 2
"""How often what lies in the band is timed once more."""

_MET = (0.97, 1.0)
"""Where a latency is met, as a share of the target; the band lies within."""


def is_met(measured_ms: float, target_ms: float) -> bool:
    """Whether a measured latency lies within 0.97 to 1 of its target."""
    return _MET[0] * target_ms <= measured_ms <= _MET[1] * target_ms


@dataclass(frozen=True)
class Trial:
    """One network that was solved for, built and timed in the deployment runtime."""

    budget_ms: float
    measured_ms: float
    answer: Answer


@dataclass(frozen=True)
class Band:
    """Where a measured latency counts as met: between `low` and `high` of the target.

    Both edges leave room for the run-to-run spread of the machine, so that the network is still between 0.97 and 1
    of its target when it is measured again at the end; its middle is what is aimed at.
    """

    low: float = 0.978
    high: float = 0.992

    @property
    def aim(self) -> float:
        return (self.low + self.high) / 2


def same_network(one: Answer, other: Answer) -> bool:
    """Whether two answers are the same network: then it need not be built and timed again."""
    return one is other or (one.latency_ms == other.latency_ms and one.widths == other.widths)


def meet_as_measured(
    solve_at: Callable[[float], Answer],
    measure: Callable[[Answer], float],
    target_ms: float,
    *,
    band: Band | None = None,
    rounds: int = 10,
    start_ms: float | None = None,
) -> tuple[Trial, ...]:
    """Solve, build, time, correct the budget, and solve again until measured meets the target.

    The budget given to the solver is corrected by the ratio of measured to predicted of the
    last trial, and kept between the largest budget that came out under the band and the
    smallest that came out over it, so a staircase cannot make it swing for ever.

    One timing of a busy machine may lie in the band by luck. So what lies in it is timed twice more, and only if the
    three together do is it met; else it goes on with what the three say.

    Args:
        solve_at: the best structure under a predicted budget in ms.
        measure: the latency of a structure, in ms, timed in the deployment runtime.
        target_ms: what was asked for.
        band: what counts as met; by default 0.978 to 0.992 of the target.
        rounds: timings at the most.
        start_ms: the first budget for the solver, where a measurement has corrected it already; by default the
            middle of the band.

    Returns:
        All trials in order of merit: those in or under the band first, slowest (fullest)
        first; then those between the band and the target; then those over it.

    Raises:
        TargetError: no trial was at or under the target; says the fastest that was measured.
        UsageError: `measure` returned what is no latency.
    """
    band = band or Band()
    aim = target_ms * band.aim
    safe = target_ms * band.high  # what lies between it and the target is met, but may be over it when timed again
    budget, under, over = aim if start_ms is None else start_ms, 0.0, float("inf")
    trials: list[Trial] = []
    refused: TargetError | None = None
    timings = 0

    def in_band(ms: float) -> bool:
        return band.low * target_ms <= ms <= safe

    def timed(answer: Answer) -> float:
        ms = measure(answer)
        if not 0.0 < ms < float("inf"):
            raise UsageError("the structure cannot be timed", f"measure says {ms!r} ms", "return milliseconds above 0")
        return ms

    while timings < rounds:
        try:
            answer = solve_at(budget)
        except TargetError as error:
            refused, under = error, max(under, budget)  # the floor lies higher than this budget
            if not trials or over == float("inf"):
                raise
            budget, timings = (under + over) / 2, timings + 1
            continue
        known = next((t for t in trials if same_network(t.answer, answer)), None)
        timings += 1
        measured = timed(answer) if known is None else known.measured_ms
        if known is not None:
            trials.remove(known)
        elif in_band(measured):
            again = min(_AGAIN, rounds - timings)
            timings += again
            measured = (measured + sum(timed(answer) for _ in range(again))) / (1 + again)
        trials.append(Trial(budget, measured, answer))
        if in_band(measured):
            break
        if measured > safe:
            over = min(over, budget)
        else:
            under = max(under, budget)
        budget = aim * answer.latency_ms / measured
        if not under < budget < over:
            budget = (under + over) / 2 if over < float("inf") else under * 1.02
        # Where the target is met safely, if under the band, a step that straddles it is not worth many more timings.
        near = any(is_met(t.measured_ms, target_ms) and t.measured_ms <= safe for t in trials)
        fine = 1e-2 if near else 1e-3
        if over - under < fine * target_ms:
            break  # the step that straddles the target cannot be split any further
    met = sorted(
        (t for t in trials if t.measured_ms <= target_ms), key=lambda t: (t.measured_ms > safe, -t.measured_ms)
    )
    missed = sorted((t for t in trials if t.measured_ms > target_ms), key=lambda t: t.measured_ms)
    if not met:
        fastest = missed[0].measured_ms
        raise TargetError(
            f"the target of {target_ms:.4g} ms was not met",
            f"the fastest network found was measured at {fastest:.4g} ms"
            + (f" and the solver reports: {refused.why}" if refused else ""),
            f"ask for {fastest:.4g} ms or more",
        )
    return (*met, *missed)
