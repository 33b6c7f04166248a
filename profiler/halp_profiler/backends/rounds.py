"""From kernels that are ready to run to points: rounds beside a reference, again where unsteady, flagged at last."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from halp_profiler.backends.base import Request
from halp_profiler.records import Point
from halp_profiler.timing import Timing, time_interleaved

UNSTABLE_OVER = 0.08
DISTURBED_OVER = 1.12  # the reference this much slower than usual: another process has the machine
_PATIENCE = 5  # batches after which a slow machine counts as the usual one

Call = Callable[[], object]


@dataclass(frozen=True)
class Prepared:
    """A kernel that is ready to run.

    Attributes:
        many: runs it ``runs`` times.
        runs: how often.
        one: runs it once, where the first run differs from the following; its latency is subtracted.
        call_ms: the cost of an empty call, subtracted where there is no ``one``.
        each_ms: what stands beside the kernel in each of its runs, subtracted from each.
    """

    many: Call
    runs: int
    one: Call | None = None
    call_ms: float = 0.0
    each_ms: float = 0.0

    def share_ms(self, many_ms: float, one_ms: float | None) -> float:
        """The latency of one run, in ms, never negative."""
        base, runs = (self.call_ms, self.runs) if one_ms is None else (one_ms, self.runs - 1)
        return max(0.0, (many_ms - base) / runs - self.each_ms)


class Clock(Protocol):
    """Times calls in interleaved rounds; see ``halp_profiler.timing.time_interleaved``."""

    def __call__(
        self, calls: Mapping[str, Call], *, min_rounds: int, min_seconds: float, warmup: int, unstable_over: float
    ) -> dict[str, Timing]: ...


class Watch(Protocol):
    """Looks at the device while it is timed."""

    def start(self) -> None:
        """Called before rounds begin."""
        ...

    def stop(self) -> tuple[str, ...]:
        """Called after them: what disturbed them, as flags; empty when nothing did."""
        ...

    def facts(self) -> dict[str, Any]:
        """What a table's header says of the device's state."""
        ...


class Rounds:
    """Times prepared kernels, and doubts what it sees.

    A reference is timed along with them. Where it is slower than it was before, or the watch saw the device
    disturbed, everything is measured again, twice at most, and flagged if that does not help. When the
    reference stays slow for long, that is the machine's pace from then on; when the watch is never content,
    points are measured once and flagged. A point whose own spread is too
    large is measured once more with three times the rounds, and flagged ``unstable`` if it stays so.

    Args:
        reference: always the same work.
        min_rounds, min_seconds: per call, see ``time_interleaved``.
        watch: what looks at the device meanwhile.
        clock: what times; by default the processor's clock around each call.
    """

    def __init__(
        self,
        reference: Call,
        *,
        min_rounds: int = 9,
        min_seconds: float = 0.004,
        watch: Watch,
        clock: Clock = time_interleaved,
    ) -> None:
        self.min_rounds, self.min_seconds = min_rounds, min_seconds
        self._clock, self._watch, self._reference = clock, watch, reference
        usual = clock({"": reference}, min_rounds=20, min_seconds=0.02, warmup=2, unstable_over=UNSTABLE_OVER)
        self._reference_ms = usual[""].median_ms
        self._slow_in_a_row = self._seen_in_a_row = 0

    def how(self) -> dict[str, Any]:
        """What a table's header says about it."""
        return {
            "statistics": f"median and quartiles of {self.min_rounds} or more interleaved rounds",
            "unstable_over": UNSTABLE_OVER,
            "disturbed_over": DISTURBED_OVER,
            "state": self._watch.facts(),
        }

    def points(self, requests: Sequence[Request], prepared: Sequence[Prepared]) -> list[Point]:
        """One point a request, in order."""
        points, flags = self._quietest(requests, prepared, self.min_rounds, tries=3)
        shaky = [i for i, p in enumerate(points) if p.flags]
        points = [_flagged(p, flags) for p in points]
        if shaky:
            some, theirs = [requests[i] for i in shaky], [prepared[i] for i in shaky]
            again, flags = self._quietest(some, theirs, 3 * self.min_rounds, tries=1)
            for i, point in zip(shaky, again, strict=True):
                points[i] = _flagged(point, flags)
        return points

    def _quietest(
        self, requests: Sequence[Request], prepared: Sequence[Prepared], rounds: int, tries: int
    ) -> tuple[list[Point], tuple[str, ...]]:
        """The points of the quietest try, and the flags that even this one deserves."""
        found: list[tuple[int, float, tuple[str, ...], list[Point]]] = []
        if self._seen_in_a_row >= _PATIENCE:
            tries = 1  # whoever disturbs does not go away: waiting any more would only cost time
        for _ in range(tries):
            self._watch.start()
            points, reference_ms = self._time(requests, prepared, rounds)
            seen = self._watch.stop()
            found.append((len(seen), reference_ms, seen, points))
            if not seen and reference_ms <= DISTURBED_OVER * self._reference_ms:
                break
        _, reference_ms, seen, points = min(found, key=lambda f: f[:2])
        self._seen_in_a_row = self._seen_in_a_row + 1 if seen else 0
        slow = reference_ms > DISTURBED_OVER * self._reference_ms
        self._slow_in_a_row = self._slow_in_a_row + 1 if slow else 0
        self._reference_ms = min(self._reference_ms, reference_ms)
        if self._slow_in_a_row >= _PATIENCE:
            self._reference_ms, self._slow_in_a_row = reference_ms, 0
        return points, (*seen, "disturbed") if slow else seen

    def _time(
        self, requests: Sequence[Request], prepared: Sequence[Prepared], rounds: int
    ) -> tuple[list[Point], float]:
        calls: dict[str, Call] = {f"{i}": p.many for i, p in enumerate(prepared)}
        calls |= {f"{i}one": p.one for i, p in enumerate(prepared) if p.one is not None}
        calls["reference"] = self._reference
        timings = self._clock(
            calls, min_rounds=rounds, min_seconds=self.min_seconds, warmup=1, unstable_over=UNSTABLE_OVER
        )
        points = []
        for i, (request, ready) in enumerate(zip(requests, prepared, strict=True)):
            timing, one = timings[f"{i}"], timings.get(f"{i}one")
            one_ms = None if one is None else one.median_ms
            median, p25, p75 = (ready.share_ms(ms, one_ms) for ms in (timing.median_ms, timing.p25_ms, timing.p75_ms))
            flags = ("unstable",) if timing.unstable else ()
            points.append(Point(request.kernel, request.c_in, request.c_out, median, p25, p75, timing.samples, flags))
        return points, timings["reference"].median_ms


def _flagged(point: Point, flags: tuple[str, ...]) -> Point:
    return replace(point, flags=(*point.flags, *flags)) if flags else point


def runs_for(call: Call, wanted_ms: float, most: int) -> int:
    """How often ``call`` fits into ``wanted_ms``, from its quickest of three runs; 1 to ``most``."""
    quickest_ns = float("inf")
    for _ in range(3):
        start = time.perf_counter_ns()
        call()
        quickest_ns = min(quickest_ns, time.perf_counter_ns() - start)
    return max(1, min(most, int(wanted_ms * 1e6 / max(quickest_ns, 1.0))))
