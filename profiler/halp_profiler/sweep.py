"""Measures a table: a coarse grid, then more where held-out points demand it; see ``grid`` for which widths."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from halp_profiler import table as tables
from halp_profiler.backends.base import Backend, Request
from halp_profiler.errors import DeviceError, UsageError
from halp_profiler.grid import coarse, crossing, draw, exhaustive, middles, mixed
from halp_profiler.kernel import Kernel, KernelRange
from halp_profiler.noted import digest, done, number
from halp_profiler.surface import HELD_OUT, Surface
from halp_profiler.table import Point, PointKey

MODES = ("adaptive", "exhaustive")
Progress = Callable[[int, int, float], None]
"""Called with (points done, points planned so far, seconds left)."""

_JUDGES = 4  # held-out points a kernel
_ROUNDS = 6  # of measuring more where those are off: a device that is not steady would never be done
_SHARE_FOR_JUDGING = 0.15
_SMALL = 0.05  # latencies under this share of the kernel's dense one count as this much: they hardly matter


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
    log = _Log(backend, Path(path), {p.key: p for p in known.points}, progress, time_budget_s)
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
        complete = _adaptive(log, wanted, max_error, np.random.default_rng(seed))
    errors = _held_out_errors(log, wanted)
    result = Result(
        Path(path), log.measured, len(known.points), _weighted_median(errors),
        max((e for e, _ in errors), default=float("nan")), refused, complete, time.monotonic() - log.start,
    )  # fmt: skip
    tables.append_sweep(
        path, {**asked, "complete": complete, **_errors_of(result), "seconds": round(result.seconds, 1)}
    )
    log.report(0)
    return result


def _that_run(log: _Log, ranges: Sequence[KernelRange], refused: dict[str, str]) -> list[KernelRange]:
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


@dataclass
class _Log:
    """The one mutable thing of a sweep: the points so far, and their file."""

    backend: Backend
    path: Path
    points: dict[PointKey, Point]
    progress: Progress | None
    budget_s: float | None
    start: float = field(default_factory=time.monotonic)
    measured: int = 0

    def left_s(self) -> float:
        return float("inf") if self.budget_s is None else self.budget_s - (time.monotonic() - self.start)

    def measure(self, requests: Sequence[Request], *, must: bool, flag: str = "", until_left_s: float = 0.0) -> bool:
        """Measures what is not there yet; False when the time ran out first (never if ``must``)."""
        todo = [q for q in dict.fromkeys(requests) if not self._has(q, flag)]
        together = self.backend.together
        for i in range(0, len(todo), together):
            if not must and self.left_s() <= until_left_s:
                return False
            new = self.backend.measure(todo[i : i + together])
            if flag:
                new = [_flagged(p, flag) for p in new]
            self.keep(new)
            self.report(len(todo) - i - len(new))
        return True

    def keep(self, new: Sequence[Point]) -> None:
        """On disk first, then in memory."""
        tables.append(self.path, new)
        self.points.update((p.key, p) for p in new)
        self.measured += len(new)

    def _has(self, request: Request, flag: str) -> bool:
        point = self.points.get((request.kernel, request.c_in, request.c_out))
        return point is not None and (HELD_OUT not in point.flags or flag == HELD_OUT)

    def report(self, planned: int) -> None:
        if self.progress:
            pace = (time.monotonic() - self.start) / max(1, self.measured)
            eta = planned * pace if self.budget_s is None else min(planned * pace, max(0.0, self.left_s()))
            self.progress(self.measured, self.measured + planned, eta)

    def surface(self, kernel: Kernel) -> Surface:
        mine = (p for p in self.points.values() if p.kernel == kernel)
        return Surface(kernel, mine, self.backend.steps(kernel))


def _adaptive(log: _Log, ranges: Sequence[KernelRange], max_error: float, rng: np.random.Generator) -> bool:
    reserve = 0.0 if log.budget_s is None else _SHARE_FOR_JUDGING * log.budget_s
    order = np.random.default_rng(0)  # of its own: the held-out points are the same however many were measured
    grids = {r.kernel: coarse(r, log.backend.steps(r.kernel)) for r in ranges}
    ends = [q for r in ranges for q in crossing(r.kernel, *(axis[0] for axis in grids[r.kernel]))]
    log.measure(mixed(ends, order), must=True)
    rest = [q for r in ranges for q in crossing(r.kernel, *(sorted({*a, *b}) for a, b in grids[r.kernel]))]
    in_time = log.measure(mixed(rest, order), must=False, until_left_s=reserve)
    open_ranges = sorted(ranges, key=lambda r: -_dense_ms(log, r))  # the dearest kernels matter most
    while open_ranges and in_time:
        in_time, open_ranges = _refine(log, open_ranges, max_error, reserve, order)
    _judge(log, ranges, rng)
    _repair(log, ranges, max_error)
    return _improve(log, ranges, max_error, rng) and in_time


def _judge(log: _Log, ranges: Sequence[KernelRange], rng: np.random.Generator) -> None:
    """Measures points that are held out, where a kernel has fewer than it should."""
    judges = [q for r in ranges for q in _held_out(log, r, rng, _JUDGES - len(_judges(log, r.kernel)))]
    log.measure(mixed(judges, rng), must=False, flag=HELD_OUT)


def _improve(log: _Log, ranges: Sequence[KernelRange], max_error: float, rng: np.random.Generator) -> bool:
    """While the held-out error is too large: lines through the points that are furthest off, and others held out."""
    for _ in range(_ROUNDS):
        if not _weighted_median(_held_out_errors(log, ranges)) > max_error:
            return True
        lines: list[Request] = []
        for r in ranges:
            surface = log.surface(r.kernel)
            into, out = ([int(c) for c in axis] for axis in (surface.lines_in, surface.lines_out))
            for p in _judges(log, r.kernel):
                if abs(float(surface(p.c_in, p.c_out)) - p.median_ms) > max_error * p.median_ms:
                    lines += crossing(r.kernel, [p.c_in], [*out, p.c_out])
                    lines += [] if r.kernel.diagonal else crossing(r.kernel, into, [p.c_out])
        if not log.measure(mixed(lines, rng), must=False):
            return False
        _judge(log, ranges, rng)
    return not _weighted_median(_held_out_errors(log, ranges)) > max_error


def _repair(log: _Log, ranges: Sequence[KernelRange], max_error: float) -> None:
    """Where a held-out point disagrees, it and its neighbours are measured again: what disturbed a point only
    ever made it slower, so the quicker of the two readings stands."""
    suspects: dict[PointKey, None] = {}
    for r in ranges:
        surface = log.surface(r.kernel)
        for p in _judges(log, r.kernel):
            if abs(float(surface(p.c_in, p.c_out)) - p.median_ms) > 2 * max_error * max(p.median_ms, 1e-6):
                suspects.update(dict.fromkeys([p.key, *((r.kernel, *at) for at in surface.corners(p.c_in, p.c_out))]))
    old = [log.points[key] for key in suspects if key in log.points]
    for i in range(0, len(old), log.backend.together):
        if log.left_s() <= 0:
            return
        some = old[i : i + log.backend.together]
        for before, again in zip(some, log.backend.measure([Request(*p.key) for p in some]), strict=True):
            if again.median_ms < before.median_ms and len(again.flags) <= len(before.flags):
                log.keep([_flagged(again, HELD_OUT) if HELD_OUT in before.flags else again])


def _judges(log: _Log, kernel: Kernel) -> list[Point]:
    return [p for p in log.points.values() if p.kernel == kernel and HELD_OUT in p.flags]


def _dense_ms(log: _Log, r: KernelRange) -> float:
    point = log.points.get((r.kernel, r.c_in[1], r.kernel.c_out_of(r.c_in[1]) if r.kernel.diagonal else r.c_out[1]))
    return point.median_ms if point else 0.0


def _refine(
    log: _Log, ranges: Sequence[KernelRange], max_error: float, reserve: float, rng: np.random.Generator
) -> tuple[bool, list[KernelRange]]:
    """Tries the middle of every gap of the kernels' grids; where a surface is wrong there, a line is measured.

    Returns:
        Whether there was time for it, and the kernels in which a gap was wrong, so that its halves are to be tried.
    """
    probes = [p for r in ranges for p in _probes(log, r)]
    if not log.measure(mixed([p.request for p in probes], rng), must=False, until_left_s=reserve):
        return False, list(ranges)
    lines: list[Request] = []
    wrong: dict[Kernel, KernelRange] = {}
    for p in probes:
        kernel, at = p.range.kernel, p.request
        truth = log.points[(kernel, at.c_in, at.c_out)].median_ms
        if abs(p.said_ms - truth) > max_error * max(truth, _SMALL * _dense_ms(log, p.range)):
            wrong[kernel] = p.range
            if not kernel.diagonal:
                lines += crossing(kernel, p.others, [at.c_out]) if p.axis else crossing(kernel, [at.c_in], p.others)
    return log.measure(mixed(lines, rng), must=False, until_left_s=reserve), list(wrong.values())


@dataclass(frozen=True)
class _Probe:
    """The middle of a gap, what the surface says there, and the lines that would cross a new one."""

    range: KernelRange
    axis: int
    request: Request
    said_ms: float
    others: tuple[int, ...]


def _probes(log: _Log, r: KernelRange) -> list[_Probe]:
    kernel, steps, surface = r.kernel, log.backend.steps(r.kernel), log.surface(r.kernel)
    full_in, full_out = int(surface.lines_in[-1]), int(surface.lines_out[-1])
    found = []
    for axis in (0,) if kernel.diagonal else (0, 1):
        lines, others = (surface.lines_in, surface.lines_out)[:: -1 if axis else 1]
        tried = {(p.c_out if axis else p.c_in) for p in log.points.values() if p.kernel == kernel}
        for middle in middles(lines, steps, axis, kernel.quantum):
            if middle in tried:
                continue
            if axis:
                at = Request(kernel, full_in, middle)
            else:
                at = Request(kernel, middle, kernel.c_out_of(middle) if kernel.diagonal else full_out)
            said = float(surface(at.c_in, at.c_out))
            found.append(_Probe(r, axis, at, said, tuple(int(c) for c in others)))
    return found


def _held_out(log: _Log, r: KernelRange, rng: np.random.Generator, number: int) -> list[Request]:
    """A few random widths, most of them ones that a solver likes to choose."""
    steps, kernel = log.backend.steps(r.kernel), r.kernel
    out = []
    for i in range(number):
        c_in = draw(rng, r.c_in, max(kernel.quantum, steps.align if i else 1))
        c_out = kernel.c_out_of(c_in) if kernel.diagonal else draw(rng, r.c_out, 1)
        request = Request(kernel, c_in, c_out)
        known = log.points.get((kernel, c_in, c_out))
        if known is None or HELD_OUT in known.flags:
            out.append(request)
    return out


def _weighted_median(errors: Sequence[tuple[float, float]]) -> float:
    """Of (error, weight): the error that half of the weight does not exceed; nan of nothing."""
    if not errors:
        return float("nan")
    values, weights = np.array(sorted(errors)).T
    return float(values[np.searchsorted(np.cumsum(weights), weights.sum() / 2)])


def _held_out_errors(log: _Log, ranges: Sequence[KernelRange]) -> list[tuple[float, float]]:
    """(relative error, latency in ms) of every point that was held out."""
    errors = []
    for r in ranges:
        if judges := _judges(log, r.kernel):
            surface = log.surface(r.kernel)
            errors += [
                (abs(float(surface(p.c_in, p.c_out)) / p.median_ms - 1), p.median_ms) for p in judges if p.median_ms > 0
            ]
    return errors


def _flagged(p: Point, flag: str) -> Point:
    return Point(p.kernel, p.c_in, p.c_out, p.median_ms, p.p25_ms, p.p75_ms, p.samples, (*p.flags, flag))
