"""Latency of ONNX files as timed in ONNX Runtime, several of them interleaved so that drift cancels."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from halp_iee.errors import UnstableError, UsageError
from halp_iee.measure.engine import Inputs, bind, random_feeds
from halp_iee.measure.runtime import OnnxEngine
from halp_profiler.timing import Timing, time_interleaved


def measure_onnx(
    files: Mapping[str, str | os.PathLike[str] | bytes],
    *,
    threads: int = 1,
    batch: int | None = None,
    inputs: Inputs | None = None,
    seconds: float = 2.0,
    retries: int = 2,
    strict: bool = False,
    provider: str = "CPUExecutionProvider",
    progress: Callable[[str], None] | None = None,
) -> dict[str, Timing]:
    """Time ONNX files side by side.

    The files are run in turn, round after round, so that what slows the machine for a while slows all
    of them alike. A measurement that comes out unstable is repeated up to ``retries`` times and the
    steadiest one is returned, still flagged if it is flagged.

    Args:
        files: label -> path or bytes of an ONNX file.
        threads: threads inside one operator.
        batch: images at once; files with a fixed batch must have this one. 1 or the file's own if not given.
        inputs: arrays for every file; random ones of the declared shapes when not given.
        seconds: least time spent on each file.
        retries: how often an unstable measurement is repeated.
        strict: raise rather than return an unstable measurement.
        provider: ONNX Runtime's name of the device.
        progress: called with a line of text when something is repeated.

    Raises:
        ArtifactError: a file is missing or broken.
        DeviceError: ONNX Runtime or the device is not there.
        UnstableError: ``strict``, and unstable to the end.
        UsageError: nothing to time, or the inputs do not fit.
    """
    if not files:
        raise UsageError("Nothing to measure", "no file was given", "Name at least one ONNX file")
    calls = {
        label: make_call(file, label=label, threads=threads, batch=batch, inputs=inputs, provider=provider)
        for label, file in files.items()
    }
    best = time_interleaved(calls, min_seconds=seconds, alike=True)
    for attempt in range(retries):
        shaky = [label for label, timing in best.items() if timing.unstable]
        if not shaky:
            break
        if progress is not None:
            progress(f"{', '.join(shaky)}: unsteady, measuring again ({attempt + 1} of {retries})")
        # All of them again, not only the shaky ones: they are compared with each other.
        again = time_interleaved(calls, min_seconds=seconds, alike=True)
        if _worst_spread(again) < _worst_spread(best):
            best = again
    if strict:
        for label, timing in best.items():
            if timing.unstable:
                raise UnstableError(
                    f"The latency of {label} is not steady",
                    f"after {retries} repeats its quartiles are {100 * timing.spread:.1f}% of its median apart",
                    "Close other programs, use fewer threads or measure for longer",
                )
    return best


def make_call(
    file: str | os.PathLike[str] | bytes,
    *,
    label: str,
    threads: int = 1,
    batch: int | None = None,
    inputs: Inputs | None = None,
    provider: str = "CPUExecutionProvider",
) -> Callable[[], Any]:
    """A function without arguments that runs the file once; what can be prepared is prepared."""
    source = file if isinstance(file, bytes) else os.fspath(file)
    engine = OnnxEngine.load(source, threads=threads, provider=provider)
    if inputs is None:
        feeds = random_feeds(engine.inputs, batch=batch, label=label)
    else:
        feeds = bind(engine.inputs, inputs, label=label)
    return engine.prepare(feeds)


def fps(timing_or_ms: Timing | float, batch: int = 1) -> float:
    """Images a second: ``1000 batch / median``."""
    median_ms = timing_or_ms if isinstance(timing_or_ms, (int, float)) else timing_or_ms.median_ms
    return 1000.0 * batch / median_ms


def _worst_spread(timings: Mapping[str, Timing]) -> float:
    return max(timing.spread for timing in timings.values())
