"""Latencies over many sessions of the runtime: how well they are known, and when it is enough."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halp_iee.measure import sessions
from halp_iee.measure.sessions import Sessions, time_sessions
from halp_profiler.timing import Timing


class Runtime:
    """Sessions whose ratio is off by a random share each, while the machine itself drifts much further."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seed: int, spread: float, shaky: bool = False) -> None:
        self.rng, self.spread, self.shaky, self.opened = np.random.default_rng(seed), spread, shaky, 0
        monkeypatch.setattr(sessions, "make_call", lambda file, **_: self._opened)
        monkeypatch.setattr(sessions, "time_interleaved", self._timed)

    def _opened(self) -> None:
        raise AssertionError("no clock runs in this test")

    def _timed(self, calls, *, alike, **options):
        assert alike
        self.opened += 1
        drift = self.rng.uniform(1.0, 3.0)
        ms = {"dense": 10.0 * drift, "slim": 4.0 * drift * self.rng.lognormal(0.0, self.spread)}
        return {name: Timing(ms[name], *[0.0] * 4, 9, 0.0, self.shaky) for name in calls}


@pytest.mark.parametrize("spread", [0.001, 0.01, 0.03])
def test_the_ratio_is_known_as_well_as_it_says(spread, monkeypatch) -> None:
    """Whatever the machine does, the ratio is right within three of the errors it states."""
    within = 0
    for seed in range(60):
        Runtime(monkeypatch, seed, spread)
        found = time_sessions({"dense": "a", "slim": "b"}, error=0.004, most=200)
        assert found.count >= 5
        assert found.error <= 0.004
        within += abs(found.ratio("slim", "dense") / 0.4 - 1.0) <= 3.0 * found.error
    assert within >= 52


def test_steady_networks_take_few_sessions_and_unsteady_ones_many_but_not_too_many(monkeypatch) -> None:
    counts = []
    for spread in (0.001, 0.01, 0.1):
        runtime = Runtime(monkeypatch, 0, spread)
        found = time_sessions({"dense": "a", "slim": "b"}, error=0.004, most=45)
        assert found.count == runtime.opened
        counts.append(found.count)
    assert counts[0] == 5 < counts[1] < counts[2] == 45
    assert found.unstable, "10% from session to session is not known to 1% after 45"


def test_the_time_limit_leaves_two_sessions(monkeypatch) -> None:
    runtime = Runtime(monkeypatch, 0, 0.1)
    time_sessions({"dense": "a", "slim": "b"}, limit_s=0.0)
    assert runtime.opened == 2


def test_sessions_that_were_unsteady_in_themselves_are_told(monkeypatch) -> None:
    Runtime(monkeypatch, 0, 0.0, shaky=True)
    assert time_sessions({"dense": "a", "slim": "b"}).unstable
    Runtime(monkeypatch, 0, 0.0)
    assert not time_sessions({"dense": "a", "slim": "b"}).unstable


@given(st.lists(st.floats(0.1, 100.0), min_size=1, max_size=30), st.floats(0.01, 1.0))
def test_a_drift_cancels_of_the_ratio_and_not_of_the_latency(dense, ratio) -> None:
    ms = np.asarray(dense)
    found = Sessions({"dense": ms, "slim": ratio * ms})
    assert found.ratio("slim", "dense") == pytest.approx(ratio)
    assert found.ms("dense") == pytest.approx(np.median(ms))
    assert found.error == np.inf if len(dense) == 1 else found.error < 1e-9
    alone = Sessions({"dense": ms})
    assert len(dense) == 1 or alone.error == pytest.approx(
        np.sqrt(np.pi / 2) * np.std(np.log(ms), ddof=1) / np.sqrt(len(ms))
    )
