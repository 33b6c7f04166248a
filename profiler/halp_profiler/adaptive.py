"""Where an adaptive sweep spends its time: on gaps that are wrong, readings that stand out, points held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from halp_profiler.backends.base import Request
from halp_profiler.grid import coarse, crossing, draw, middles, mixed
from halp_profiler.kernel import Kernel, KernelRange
from halp_profiler.readings import MOST_READINGS, Readings
from halp_profiler.spikes import standing_out
from halp_profiler.surface import HELD_OUT
from halp_profiler.table import Point, PointKey

_JUDGES = 4  # held-out points a kernel
_ROUNDS = 6  # of measuring more where those are off: a device that is not steady would never be done
_SHARE_FOR_JUDGING = 0.15
_SHARE_FOR_SETTLING = 0.2  # of the time: points that stand out from their neighbours are read again
_SMALL = 0.05  # latencies under this share of the kernel's dense one count as this much: they hardly matter


def adaptive(log: Readings, ranges: Sequence[KernelRange], max_error: float, rng: np.random.Generator) -> bool:
    """A coarse grid, always; then, while there is time, gaps halved, spikes read again, points held out to judge by.

    Returns:
        Whether the held-out error came under ``max_error`` in time.
    """
    judging, settling = ((share * log.budget_s if log.budget_s else 0.0) for share in
                         (_SHARE_FOR_JUDGING, _SHARE_FOR_SETTLING))  # fmt: skip
    reserve = judging + settling
    order = np.random.default_rng(0)  # of its own: the held-out points are the same however many were measured
    grids = {r.kernel: coarse(r, log.backend.steps(r.kernel)) for r in ranges}
    ends = [q for r in ranges for q in crossing(r.kernel, *(axis[0] for axis in grids[r.kernel]))]
    log.measure(mixed(ends, order), must=True)
    rest = [q for r in ranges for q in crossing(r.kernel, *(sorted({*a, *b}) for a, b in grids[r.kernel]))]
    in_time = log.measure(mixed(rest, order), must=False, until_left_s=reserve)
    open_ranges = sorted(ranges, key=lambda r: -_dense_ms(log, r))  # the dearest kernels matter most
    while open_ranges and in_time:
        in_time, open_ranges = _refine(log, open_ranges, max_error, reserve, order)
    _settle(log, ranges, max_error, judging)
    _judge(log, ranges, rng)
    _repair(log, ranges, max_error)
    return _improve(log, ranges, max_error, rng) and in_time


def _judge(log: Readings, ranges: Sequence[KernelRange], rng: np.random.Generator) -> None:
    """Measures points that are held out, where a kernel has fewer than it should."""
    judges = [q for r in ranges for q in _held_out(log, r, rng, _JUDGES - len(_judges(log, r.kernel)))]
    log.measure(mixed(judges, rng), must=False, flag=HELD_OUT)


def _improve(log: Readings, ranges: Sequence[KernelRange], max_error: float, rng: np.random.Generator) -> bool:
    """While the held-out error is too large: lines through the points that are furthest off, and others held out."""
    for _ in range(_ROUNDS):
        if not weighted_median(held_out_errors(log, ranges)) > max_error:
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
        _settle(log, ranges, max_error, 0.0)
        _judge(log, ranges, rng)
    return not weighted_median(held_out_errors(log, ranges)) > max_error


def _settle(log: Readings, ranges: Sequence[KernelRange], max_error: float, reserve: float) -> None:
    """Points that stand out from their neighbours are read again, those first that are off by most milliseconds."""
    for _ in range(MOST_READINGS - 1):
        found = [
            (excess_ms * r.layers, (r.kernel, c_in, c_out))
            for r in ranges
            for c_in, c_out, excess_ms in standing_out(log.surface(r.kernel), max_error)
        ]
        found.sort(key=lambda f: -f[0])
        if not found or not log.read_again([key for _, key in found], reserve):
            return


def _repair(log: Readings, ranges: Sequence[KernelRange], max_error: float) -> None:
    """Where a held-out point disagrees, it and its neighbours are read again."""
    for _ in range(MOST_READINGS - 1):
        suspects: dict[PointKey, None] = {}
        for r in ranges:
            surface = log.surface(r.kernel)
            for p in _judges(log, r.kernel):
                if abs(float(surface(p.c_in, p.c_out)) - p.median_ms) > 2 * max_error * max(p.median_ms, 1e-6):
                    corners = ((r.kernel, *at) for at in surface.corners(p.c_in, p.c_out))
                    suspects.update(dict.fromkeys([p.key, *corners]))
        if not log.read_again(suspects):
            return


def _judges(log: Readings, kernel: Kernel) -> list[Point]:
    return [p for p in log.of(kernel) if HELD_OUT in p.flags]


def _dense_ms(log: Readings, r: KernelRange) -> float:
    point = log.points.get((r.kernel, r.c_in[1], r.kernel.c_out_of(r.c_in[1]) if r.kernel.diagonal else r.c_out[1]))
    return point.median_ms if point else 0.0


def _refine(
    log: Readings, ranges: Sequence[KernelRange], max_error: float, reserve: float, rng: np.random.Generator
) -> tuple[bool, list[KernelRange]]:
    """Tries the middle of every gap of the kernels' grids; where a surface is wrong there, a line is measured.

    Before, a middle that disagrees is read again together with what it was held against: one stray reading must not
    cost a line, and then a line in either half of it.

    Returns:
        Whether there was time for it, and the kernels in which a gap was wrong, so that its halves are to be tried.
    """
    probes = [p for r in ranges for p in _probes(log, r)]
    if not log.measure(mixed([p.request for p in probes], rng), must=False, until_left_s=reserve):
        return False, list(ranges)
    wrong = _wrong(log, probes, max_error)
    for _ in range(MOST_READINGS - 1):
        if not log.read_again([key for p in wrong for key in (p.key, *p.between)], reserve):
            return False, list(ranges)
        wrong = _wrong(log, wrong, max_error)
    lines: list[Request] = []
    for p in wrong:
        kernel, at = p.range.kernel, p.request
        if not kernel.diagonal:
            lines += crossing(kernel, p.others, [at.c_out]) if p.axis else crossing(kernel, [at.c_in], p.others)
    return log.measure(mixed(lines, rng), must=False, until_left_s=reserve), list({p.range: None for p in wrong})


def _wrong(log: Readings, probes: Sequence[_Probe], max_error: float) -> list[_Probe]:
    """Those at which the surface without any of them is off."""
    found = []
    for r in dict.fromkeys(p.range for p in probes):
        mine = [p for p in probes if p.range == r]
        surface = log.surface(r.kernel, without={p.key for p in mine})
        small = _SMALL * _dense_ms(log, r)
        for p in mine:
            truth = log.points[p.key].median_ms
            if abs(float(surface(p.request.c_in, p.request.c_out)) - truth) > max_error * max(truth, small):
                found.append(p)
    return found


@dataclass(frozen=True)
class _Probe:
    """The middle of a gap, the points that it lies between, and the lines that would cross a new one."""

    range: KernelRange
    axis: int
    request: Request
    between: tuple[PointKey, ...]
    others: tuple[int, ...]

    @property
    def key(self) -> PointKey:
        return self.request.kernel, self.request.c_in, self.request.c_out


def _probes(log: Readings, r: KernelRange) -> list[_Probe]:
    kernel, steps, surface = r.kernel, log.backend.steps(r.kernel), log.surface(r.kernel)
    full_in, full_out = int(surface.lines_in[-1]), int(surface.lines_out[-1])
    found = []
    for axis in (0,) if kernel.diagonal else (0, 1):
        lines, others = (surface.lines_in, surface.lines_out)[:: -1 if axis else 1]
        tried = {(p.c_out if axis else p.c_in) for p in log.of(kernel)}
        for middle in middles(lines, steps, axis, kernel.quantum):
            if middle in tried:
                continue
            if axis:
                at = Request(kernel, full_in, middle)
            else:
                at = Request(kernel, middle, kernel.c_out_of(middle) if kernel.diagonal else full_out)
            between = tuple((kernel, *corner) for corner in surface.corners(at.c_in, at.c_out))
            found.append(_Probe(r, axis, at, between, tuple(int(c) for c in others)))
    return found


def _held_out(log: Readings, r: KernelRange, rng: np.random.Generator, number: int) -> list[Request]:
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


def weighted_median(errors: Sequence[tuple[float, float]]) -> float:
    """Of (error, weight): the error that half of the weight does not exceed; nan of nothing."""
    if not errors:
        return float("nan")
    values, weights = np.array(sorted(errors)).T
    return float(values[np.searchsorted(np.cumsum(weights), weights.sum() / 2)])


def held_out_errors(log: Readings, ranges: Sequence[KernelRange]) -> list[tuple[float, float]]:
    """(relative error, latency in ms) of every point that was held out."""
    errors = []
    for r in ranges:
        if judges := _judges(log, r.kernel):
            surface = log.surface(r.kernel)
            errors += [
                (abs(float(surface(p.c_in, p.c_out)) / p.median_ms - 1), p.median_ms) for p in judges if p.median_ms > 0
            ]
    return errors
