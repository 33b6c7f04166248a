import gc

import pytest

from halp_profiler.timing import time_interleaved


class Clock:
    """A clock that only moves when a call takes its time."""

    def __init__(self):
        self.now = 0
        self.order = []

    def __call__(self):
        return self.now

    def call(self, label, ns):
        def run():
            self.order.append(label)
            self.now += ns() if callable(ns) else ns

        return run


def test_every_call_gets_its_own_time():
    clock = Clock()
    calls = {"a": clock.call("a", 1_000_000), "b": clock.call("b", 3_000_000)}
    timings = time_interleaved(calls, min_rounds=7, min_seconds=0, clock_ns=clock)
    assert list(timings) == ["a", "b"]
    assert timings["a"].median_ms == pytest.approx(1.0)
    assert timings["b"].p99_ms == pytest.approx(3.0)
    assert timings["a"].samples == 7
    assert not timings["a"].unstable


def test_a_drift_of_the_machine_touches_all_calls_alike():
    clock = Clock()
    slower = [1.0]

    def drifting():
        slower[0] *= 1.01
        return int(1_000_000 * slower[0])

    calls = {label: clock.call(label, drifting) for label in "abc"}
    timings = time_interleaved(calls, min_rounds=30, min_seconds=0, clock_ns=clock)
    medians = [t.median_ms for t in timings.values()]
    assert max(medians) / min(medians) < 1.05


def test_short_calls_are_timed_many_at_once():
    clock = Clock()
    calls = {"short": clock.call("short", 1000)}
    timing = time_interleaved(calls, min_rounds=5, min_seconds=0, warmup=1, clock_ns=clock)["short"]
    assert timing.median_ms == pytest.approx(0.001)
    assert len(clock.order) >= 5 * 50


def test_an_unsteady_call_is_called_unstable():
    clock = Clock()
    ticks = iter(range(10**9))
    calls = {"a": clock.call("a", lambda: 1_000_000 if next(ticks) % 4 < 2 else 2_000_000)}
    assert time_interleaved(calls, min_rounds=20, min_seconds=0, clock_ns=clock)["a"].unstable


def test_rounds_go_on_until_the_time_is_spent():
    clock = Clock()
    timing = time_interleaved({"a": clock.call("a", 10_000_000)}, min_rounds=2, min_seconds=0.5, clock_ns=clock)["a"]
    assert timing.samples == 50


def test_the_garbage_collector_is_back_even_after_an_error():
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        time_interleaved({"a": lambda: 1 / 0})
    assert gc.isenabled()


def test_nothing_to_time_is_no_error():
    assert time_interleaved({}) == {}


def test_what_is_compared_is_timed_alike():
    """Beside a short call a long one gets its untimed run too, if asked; two long ones need none."""
    for alike, runs in ((False, 5), (True, 10)):
        clock = Clock()
        calls = {"long": clock.call("long", 6_000_000), "short": clock.call("short", 1_000_000)}
        timings = time_interleaved(calls, min_rounds=5, min_seconds=0, warmup=2, alike=alike, clock_ns=clock)
        assert clock.order.count("long") == 3 + runs
        assert clock.order.count("short") == 3 + 10
        assert timings["long"].median_ms == pytest.approx(6.0)
    clock = Clock()
    calls = {"long": clock.call("long", 6_000_000), "longer": clock.call("longer", 9_000_000)}
    time_interleaved(calls, min_rounds=5, min_seconds=0, warmup=2, alike=True, clock_ns=clock)
    assert len(clock.order) == 2 * (3 + 5)
