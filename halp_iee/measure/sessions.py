"""Latencies that another session of the runtime confirms: many short sessions, until their median is known well enough.

What a session settles once, such as where in memory its weights and buffers lie, more rounds of it do not average out:
from session to session the ratio of two networks moves by 0.2 to 3%. So sessions are sampled, and rounds within them
only as far as a session is worth it.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from halp_iee.measure.latency import make_call
from halp_profiler.timing import time_interleaved

_OF_A_MEDIAN = math.sqrt(math.pi / 2.0)
"""The standard error of a median over that of a mean, of normal samples."""

_KNOWN = 0.01
"""A ratio that is not known to this share of itself is called unstable."""


@dataclass(frozen=True)
class Sessions:
    """What several sessions said of some files; in each, all of them were timed in turn.

    Attributes:
        medians_ms: label -> the median of each session, shape (sessions,).
        shaky: how many sessions were unsteady in themselves.
    """

    medians_ms: Mapping[str, np.ndarray]
    shaky: int = 0

    @property
    def count(self) -> int:
        return len(next(iter(self.medians_ms.values())))

    def ms(self, label: str) -> float:
        """The median over the sessions."""
        return float(np.median(self.medians_ms[label]))

    def ratio(self, label: str, over: str) -> float:
        """The median over the sessions of the ratio of two files, of which a drift of the machine cancels."""
        return float(np.median(self.medians_ms[label] / self.medians_ms[over]))

    @property
    def error(self) -> float:
        """Standard error, relative, of the ratios to the first file (of a single file: of its latency).

        sqrt(pi/2) s / sqrt(n), s the standard deviation of the logarithms over the n sessions; infinite for one.
        """
        if self.count < 2:
            return math.inf
        first, *others = (np.log(ms) for ms in self.medians_ms.values())
        spreads = [np.std(other - first, ddof=1) for other in others] or [np.std(first, ddof=1)]
        return float(_OF_A_MEDIAN * max(spreads) / math.sqrt(self.count))

    @property
    def unstable(self) -> bool:
        """Whether the ratios are not known to 1%, or most sessions were unsteady in themselves."""
        return self.error > _KNOWN or 2 * self.shaky > self.count


def time_sessions(
    files: Mapping[str, str | os.PathLike[str] | bytes],
    *,
    threads: int = 1,
    batch: int | None = None,
    seconds: float = 0.1,
    least: int = 5,
    most: int = 25,
    error: float = 0.004,
    limit_s: float = 20.0,
) -> Sessions:
    """Time files side by side in session after session of ONNX Runtime until the error is small enough.

    When to stop depends on the error alone, never on what the latency is, so it does not favour any outcome.

    Args:
        files: label -> path or bytes of an ONNX file; ratios are judged to the first.
        threads: threads inside one operator.
        batch: images at once; files with a fixed batch must have this one.
        seconds: least time spent on each file in each session.
        least: sessions at the least; two where the time limit is over.
        most: sessions at the most.
        error: the relative standard error (``Sessions.error``) at which it stops.
        limit_s: no further session is begun after this many seconds.

    Raises:
        ArtifactError: a file is missing or broken.
        DeviceError: ONNX Runtime or the device is not there.
        UsageError: the inputs do not fit.
    """
    medians: dict[str, list[float]] = {label: [] for label in files}
    shaky, since = 0, time.perf_counter()
    while True:
        calls = {label: make_call(file, label=label, threads=threads, batch=batch) for label, file in files.items()}
        timings = time_interleaved(calls, min_seconds=seconds, min_rounds=4, alike=True)
        shaky += any(timing.unstable for timing in timings.values())
        for label, timing in timings.items():
            medians[label].append(timing.median_ms)
        found = Sessions({label: np.asarray(ms) for label, ms in medians.items()}, shaky)
        late = time.perf_counter() - since > limit_s
        if found.count >= most or (late and found.count >= 2) or (found.count >= least and found.error <= error):
            return found
