"""Measures a table, or goes on with one: every width, or those that ``adaptive`` finds to matter."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from halp_profiler import table as tables
from halp_profiler.adaptive import adaptive, held_out_errors, weighted_median
from halp_profiler.backends.base import Backend
from halp_profiler.errors import DeviceError, UsageError
from halp_profiler.grid import crossing, exhaustive
from halp_profiler.kernel import Kernel, KernelRange
from halp_profiler.noted import digest, done, number
from halp_profiler.readings import Progress, Readings

MODES = ("adaptive", "exhaustive")


@dataclass(frozen=True)
class Result:
    """What a sweep came to.

    Attributes:
        path: the table.
        measured: points measured by this call.
        resumed: points that were there already.
        held_out_error: median of |predicted - measured| / measured over the points held out, each weighted by
            what it takes, for a network's latency is their sum; nan without any.
        worst_held_out_error: its maximum, over all of them alike.
        refused: kernel key -> why it could not be timed.
        complete: False when the time budget ended the refinement before the error was reached.
        seconds: wall clock.
    """

    path: Path
    measured: int
    resumed: int
    held_out_error: float
    worst_held_out_error: float
    refused: dict[str, str]
    complete: bool
    seconds: float


def merged(ranges: Iterable[KernelRange]) -> tuple[KernelRange, ...]:
    """One range a kernel, wide enough for all of its layers, which are counted."""
    found: dict[Kernel, KernelRange] = {}
    for r in ranges:
        known = found.get(r.kernel, r)
        found[r.kernel] = KernelRange(
            r.kernel,
            (min(known.c_in[0], r.c_in[0]), max(known.c_in[1], r.c_in[1])),
            (min(known.c_out[0], r.c_out[0]), max(known.c_out[1], r.c_out[1])),
            r.layers + (known.layers if r.kernel in found else 0),
        )
    return tuple(found.values())


def run(
    backend: Backend,
    ranges: Sequence[KernelRange],
    path: str | Path,
    *,
    mode: str = "adaptive",
    max_error: float = 0.02,
    time_budget_s: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Measures a table, or goes on with one that was begun.

    Every point is written as soon as it is measured; points that the file holds are not measured again.
    The coarse grid is always completed, the refinement ends with the time budget.

    Args:
        backend: what measures.
        ranges: the kernels and the widths at which they may be needed.
        path: the table; made when it is not there.
        mode: ``adaptive``, or ``exhaustive`` for every width in the ranges.
        max_error: relative error on held-out points below which a gap is not refined.
        time_budget_s: seconds for the whole call; None: until the error is reached.
        seed: of the choice of held-out points.
        progress: called after every few points.

    Raises:
        UsageError: an unknown mode, an impossible error or budget.
        TableError: the file is broken, of another device, or cannot be written.
        DeviceError: the device runs none of the kernels; those that it does not run are in the result.
    """
    if mode not in MODES:
        raise UsageError("The sweep cannot start", f"mode is {mode!r}", f"Use one of {', '.join(MODES)}")
    if not 0 < max_error < 1:
        raise UsageError("The sweep cannot start", f"max_error is {max_error}", "Give a share, e.g. 0.02")
    if time_budget_s is not None and not time_budget_s > 0:
        raise UsageError("The sweep cannot start", f"time_budget_s is {time_budget_s}", "Give seconds above 0")
    refused = {r.kernel.key: why for r in ranges if (why := backend.refusal(r.kernel))}
    if expect := getattr(backend, "expect", None):
        expect(ranges)
    companions = getattr(backend, "companions", None)
    beside = companions(ranges) if companions else []
    wanted = [r for r in merged([*ranges, *beside]) if r.kernel.key not in refused]
    known = tables.create_or_check(path, backend.header())
    log = Readings(backend, Path(path), {p.key: p for p in known.points}, progress, time_budget_s)
    asked = {"plan": digest(wanted), "mode": mode, "max_error": max_error, "time_budget_s": time_budget_s}
    if (before := done(known.sweeps, asked)) is not None:
        return Result(
            Path(path), 0, len(known.points), number(before, "held_out_error"), number(before, "worst_held_out_error"),
            refused, bool(before.get("complete")), time.monotonic() - log.start,
        )  # fmt: skip
    wanted = _that_run(log, wanted, refused)
    if mode == "exhaustive":
        complete = log.measure([q for r in wanted for q in exhaustive(r)], must=True)
    else:
        complete = adaptive(log, wanted, max_error, np.random.default_rng(seed))
    errors = held_out_errors(log, wanted)
    result = Result(
        Path(path), log.measured, len(known.points), weighted_median(errors),
        max((e for e, _ in errors), default=float("nan")), refused, complete, time.monotonic() - log.start,
    )  # fmt: skip
    tables.append_sweep(
        path, {**asked, "complete": complete, **_errors_of(result), "seconds": round(result.seconds, 1)}
    )
    log.report(0)
    return result


def _that_run(log: Readings, ranges: Sequence[KernelRange], refused: dict[str, str]) -> list[KernelRange]:
    """The kernels that the device really runs, each tried at its full width; the others go to ``refused``.

    Raises:
        DeviceError: it runs none of them.
    """
    full = {
        r.kernel: crossing(r.kernel, [r.c_in[1] // r.kernel.quantum * r.kernel.quantum], [r.c_out[1]]) for r in ranges
    }
    try:
        log.measure([q for r in ranges for q in full[r.kernel]], must=True)
        return list(ranges)
    except DeviceError:
        pass  # one of them at least: find out which
    run: list[KernelRange] = []
    last: DeviceError | None = None
    for r in ranges:
        try:
            log.measure(full[r.kernel], must=True)
            run.append(r)
        except DeviceError as e:
            refused[r.kernel.key], last = e.why, e
    if ranges and not run and last is not None:
        raise last
    return run


def _errors_of(result: Result) -> dict[str, float]:
    errors = {"held_out_error": result.held_out_error, "worst_held_out_error": result.worst_held_out_error}
    return {name: round(value, 5) for name, value in errors.items() if np.isfinite(value)}
