"""Is one ONNX file faster than another? A paired answer with a confidence interval."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from halp_iee.errors import UsageError
from halp_iee.measure.engine import Inputs
from halp_iee.measure.latency import make_call
from halp_profiler.timing import time_interleaved

Verdict = Literal["same", "faster", "slower"]
_RESAMPLES = 4000
_LEAST_BLOCKS = 8  # fewer paired values make no interval worth the name


@dataclass(frozen=True)
class Comparison:
    """A candidate beside a reference.

    Attributes:
        ratio: candidate's latency over the reference's, the median over the blocks; under 1 is faster.
        low, high: bounds of the confidence interval of ``ratio``.
        confidence: its level.
        verdict: of the candidate: ``faster`` or ``slower`` when the whole interval lies on that side of
            the band of indifference around 1, else ``same``.
        indifference: half-width of that band.
        candidate_ms, reference_ms: medians over the blocks.
        blocks: number of paired measurements.
    """

    ratio: float
    low: float
    high: float
    confidence: float
    verdict: Verdict
    indifference: float
    candidate_ms: float
    reference_ms: float
    blocks: int


def compare_onnx(
    candidate: str | os.PathLike[str] | bytes,
    reference: str | os.PathLike[str] | bytes,
    *,
    threads: int = 1,
    batch: int | None = None,
    inputs: Inputs | None = None,
    seconds: float = 4.0,
    blocks: int = 20,
    confidence: float = 0.95,
    indifference: float = 0.01,
    provider: str = "CPUExecutionProvider",
) -> Comparison:
    """Time two ONNX files against each other; see ``compare_calls``. ``inputs`` go to both.

    Raises:
        ArtifactError: a file is missing or broken.
        DeviceError: ONNX Runtime or the device is not there.
        UsageError: the inputs do not fit.
    """
    calls = [
        make_call(file, label=label, threads=threads, batch=batch, inputs=inputs, provider=provider)
        for label, file in (("the candidate", candidate), ("the reference", reference))
    ]
    return compare_calls(
        calls[0], calls[1], seconds=seconds, blocks=blocks, confidence=confidence, indifference=indifference
    )


def compare_calls(
    candidate: Callable[[], Any],
    reference: Callable[[], Any],
    *,
    seconds: float = 4.0,
    blocks: int = 20,
    confidence: float = 0.95,
    indifference: float = 0.01,
) -> Comparison:
    """Compare two functions by their latency.

    The time is cut into blocks; in each the two run interleaved and give one ratio of medians. Slow
    drift of the machine acts on both and leaves the ratio alone, and neighbouring runs, which are not
    independent, stay inside one block. The interval is the percentile bootstrap of the median ratio
    over the blocks.

    Args:
        candidate, reference: what is timed.
        seconds: total time for each of the two.
        blocks: number of ratios, at least 8.
        confidence: level of the interval.
        indifference: differences up to this share are not worth a verdict.

    Raises:
        UsageError: too few blocks, or a level outside (0, 1).
    """
    if blocks < _LEAST_BLOCKS:
        raise UsageError("Cannot compare", f"{blocks} blocks are too few", f"Ask for {_LEAST_BLOCKS} or more")
    if not 0 < confidence < 1:
        raise UsageError("Cannot compare", f"confidence is {confidence}", "Give a level between 0 and 1, e.g. 0.95")
    each = seconds / blocks
    pairs = np.empty((blocks, 2))
    for block in range(blocks):
        calls = {"candidate": candidate, "reference": reference}
        timing = time_interleaved(calls, min_seconds=each, min_rounds=4, alike=True)
        pairs[block] = timing["candidate"].median_ms, timing["reference"].median_ms
    return judge(pairs, confidence=confidence, indifference=indifference)


def judge(pairs_ms: np.ndarray, *, confidence: float = 0.95, indifference: float = 0.01) -> Comparison:
    """The verdict over paired medians, shape (blocks, 2): candidate, reference, in ms. Deterministic."""
    ratios = pairs_ms[:, 0] / pairs_ms[:, 1]
    chosen = np.random.default_rng(0).integers(len(ratios), size=(_RESAMPLES, len(ratios)))
    medians = np.median(ratios[chosen], axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(medians, [tail, 1 - tail])
    verdict: Verdict = "same"
    if high < 1 - indifference:
        verdict = "faster"
    elif low > 1 + indifference:
        verdict = "slower"
    candidate_ms, reference_ms = np.median(pairs_ms, axis=0)
    return Comparison(
        ratio=float(np.median(ratios)),
        low=float(low),
        high=float(high),
        confidence=confidence,
        verdict=verdict,
        indifference=indifference,
        candidate_ms=float(candidate_ms),
        reference_ms=float(reference_ms),
        blocks=len(ratios),
    )
