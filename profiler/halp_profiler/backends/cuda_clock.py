"""Times calls on a GPU by events on its own clock, in interleaved rounds, with its L2 cache warm or cold."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from halp_profiler.backends.rounds import Call
from halp_profiler.timing import Timing

_MAX_ROUNDS = 10_000


class Events(Protocol):
    """A pair of events around a call; the runtime's own."""

    def between_ms(self, call: Call) -> float:
        """Launches ``call`` between two events, waits for the second, and gives the time between them in ms."""
        ...


class CudaClock:
    """As ``time_interleaved``, but a sample is the time between two events around one call.

    Warm: every call runs once untimed before its sample, and finds in the L2 cache what that left there. Cold: a buffer
    larger than the cache is overwritten before every sample, outside of its events.

    Args:
        events: what times.
        flush: overwrites the cache; None: warm.
        now_s: the host's clock, which ends the rounds.
    """

    def __init__(
        self, events: Events, flush: Call | None = None, now_s: Callable[[], float] = time.perf_counter
    ) -> None:
        self._events, self._flush, self._now_s = events, flush, now_s

    def __call__(
        self, calls: Mapping[str, Call], *, min_rounds: int, min_seconds: float, warmup: int, unstable_over: float
    ) -> dict[str, Timing]:
        plan = list(calls.items())
        for _, call in plan:
            for _ in range(max(1, warmup)):
                self._events.between_ms(call)
        samples: dict[str, list[float]] = {label: [] for label in calls}
        start, rounds, least = self._now_s(), 0, max(1, min_rounds)
        while plan and rounds < _MAX_ROUNDS and (
            rounds < least or self._now_s() - start < min_seconds * len(plan)
        ):  # fmt: skip
            turn = rounds % len(plan)
            for label, call in plan[turn:] + plan[:turn]:
                (self._flush or call)()
                samples[label].append(self._events.between_ms(call))
            rounds += 1
        return {label: Timing.of(np.asarray(ms), unstable_over) for label, ms in samples.items()}
