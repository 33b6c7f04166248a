"""Times callables fairly: interleaved rounds, so that a drift of the machine touches all of them alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

_SAMPLE_NS = 50_000  # a sample shorter than this is mostly the clock's own cost
_SETTLE_NS = 5_000_000  # calls shorter than this find their data displaced by the others, and get one free run


@dataclass(frozen=True)
class Timing:
    """How long one call takes.

    Attributes:
        median_ms, p25_ms, p75_ms, p90_ms, p99_ms: quantiles over the samples, of one call each.
        samples: how many samples were taken; all of them count.
        spread: (p75 - p25) / median.
        unstable: whether the spread is over the threshold that was asked for.
    """

    median_ms: float
    p25_ms: float
    p75_ms: float
    p90_ms: float
    p99_ms: float
    samples: int
    spread: float
    unstable: bool

    @classmethod
    def of(cls, samples_ms: np.ndarray, unstable_over: float) -> Timing:
        """The statistics of ``samples_ms``, shape (n,), n >= 1."""
        p25, median, p75, p90, p99 = np.percentile(samples_ms, (25, 50, 75, 90, 99)).tolist()
        spread = (p75 - p25) / median if median > 0 else 0.0
        return cls(median, p25, p75, p90, p99, len(samples_ms), spread, spread > unstable_over)


def time_interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    min_seconds: float = 0.2,
    min_rounds: int = 10,
    max_rounds: int = 10_000,
    warmup: int = 2,
    unstable_over: float = 0.1,
    alike: bool = False,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, Timing]:
    """Times every call in rounds, one sample a call and round, in an order that turns from round to round.

    A sample is as many calls in a row as take 50 us or more, divided by their number. A call shorter
    than 5 ms runs once untimed before its sample, so that what the other calls did to the caches is not
    charged to it. The garbage collector rests meanwhile.

    Args:
        calls: label -> what to time.
        min_seconds: rounds go on until this much time per call is spent ...
        min_rounds: ... and at least this many rounds are done.
        max_rounds: never more rounds than this.
        warmup: untimed calls of each before the first round.
        unstable_over: the spread (interquartile range over median) from which a timing is called unstable.
        alike: where one of the calls gets an untimed run, all do: for calls that are compared with each other, one of
            which may be near the 5 ms.
        clock_ns: the clock, in ns.

    Returns:
        label -> Timing, in the order of ``calls``; empty when there are no calls.
    """
    samples = sample_interleaved(
        calls, min_seconds=min_seconds, min_rounds=min_rounds, max_rounds=max_rounds, warmup=warmup, alike=alike,
        clock_ns=clock_ns,
    )  # fmt: skip
    return {label: Timing.of(ms, unstable_over) for label, ms in samples.items()}


def sample_interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    min_seconds: float = 0.2,
    min_rounds: int = 10,
    max_rounds: int = 10_000,
    warmup: int = 2,
    alike: bool = False,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, np.ndarray]:
    """The samples themselves, in ms of one call, shape (rounds,); see ``time_interleaved``."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _samples(calls, min_seconds, max(1, min_rounds), max_rounds, max(1, warmup), alike, clock_ns)
    finally:
        if collecting:
            gc.enable()


def _samples(
    calls: Mapping[str, Callable[[], object]],
    min_seconds: float,
    min_rounds: int,
    max_rounds: int,
    warmup: int,
    alike: bool,
    clock_ns: Callable[[], int],
) -> dict[str, np.ndarray]:
    plan: list[tuple[str, Callable[[], object], int, bool]] = []
    for label, call in calls.items():
        quickest = min(_elapsed(call, 1, clock_ns) for _ in range(warmup + 1))
        repeats = max(1, -(-_SAMPLE_NS // max(1, quickest)))
        plan.append((label, call, min(repeats, 1000), quickest < _SETTLE_NS))
    if alike and any(settle for *_, settle in plan):
        plan = [(label, call, repeats, True) for label, call, repeats, _ in plan]
    samples: dict[str, list[float]] = {label: [] for label in calls}
    start, rounds = clock_ns(), 0
    budget_ns = min_seconds * 1e9 * len(plan)
    while plan and rounds < max_rounds and (rounds < min_rounds or clock_ns() - start < budget_ns):
        turn = rounds % len(plan)
        for label, call, repeats, settle in plan[turn:] + plan[:turn]:
            if settle:
                call()
            samples[label].append(_elapsed(call, repeats, clock_ns) / repeats / 1e6)
        rounds += 1
    return {label: np.asarray(ms) for label, ms in samples.items()}


def _elapsed(call: Callable[[], object], repeats: int, clock_ns: Callable[[], int]) -> int:
    start = clock_ns()
    for _ in range(repeats):
        call()
    return clock_ns() - start
