"""Which widths of a kernel to measure: a coarse grid that knows the device's steps, middles of gaps, random ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from halp_profiler.backends.base import Request
from halp_profiler.kernel import Kernel, KernelRange
from halp_profiler.steps import Steps

Lines = tuple[list[int], list[int]]
"""Of one axis: the widths without which nothing works, and the others of the coarse grid."""


def coarse(r: KernelRange, steps: Steps) -> tuple[Lines, Lines]:
    """The lines of the input's axis and of the output's."""
    into = _lines(*r.c_in, steps.block_in, steps, r.kernel.quantum)
    if r.kernel.diagonal:
        return into, ([r.c_out[1]], [])
    first, rest = _lines(*r.c_out, steps.block_out, None, 1)
    if steps.align_out > 1 and first[0] < first[-1]:  # both sides of the largest width on the fast path, and a half
        top = first[-1] // steps.align_out * steps.align_out
        more = {top, top - 1, top // 2 // steps.align_out * steps.align_out + 1}
        rest = sorted({*rest, *(c for c in more if first[0] < c < first[-1])} - set(first))
    return into, (first, rest)


def _lines(low: int, high: int, block: int, steps: Steps | None, quantum: int) -> tuple[list[int], list[int]]:
    """The coarse lines of one axis; ``steps`` on the input's axis, where alignment makes a difference."""
    if low == high:
        return [low], []
    first = {low, high, min(block, high)}
    rest = {min(high, block * k) for k in range(1, 9)} | {block * k - block + 1 for k in (1, 2)}
    power = block
    while power < high:
        rest.add(power)
        power *= 2
    if block == 1:
        rest |= {low + round((high - low) * f) for f in (0.25, 0.5, 0.75)}
    if steps is not None and steps.align > 1:
        rest |= {c for c in (2, 4, 8, 12) if c < steps.free_below} | {steps.free_below - 1}
        aligned_high = high // steps.align * steps.align
        first |= {aligned_high, high - 1 if high % steps.align == 0 else high, steps.free_below + 1, 1}
        rest |= {steps.align, 3, steps.align + 1, block + 1, 2 * block - 1, high // 2 // block * block + 1}

    def kept(lines: set[int]) -> list[int]:
        return sorted({c // quantum * quantum for c in lines if low <= c // quantum * quantum <= high})

    return kept(first), kept(rest - first)


def crossing(kernel: Kernel, into: Iterable[int], out: Iterable[int]) -> list[Request]:
    if kernel.diagonal:
        return [Request(kernel, int(c), kernel.c_out_of(int(c))) for c in into]
    outs = [int(c) for c in out]
    return [Request(kernel, int(c), o) for c in into for o in outs]


def exhaustive(r: KernelRange) -> list[Request]:
    q = r.kernel.quantum
    into = range(-(-r.c_in[0] // q) * q, r.c_in[1] + 1, q)
    return crossing(r.kernel, into, range(r.c_out[0], r.c_out[1] + 1))


def middles(lines: np.ndarray, steps: Steps, axis: int, quantum: int) -> list[int]:
    """The widths halfway between neighbouring lines of one kind."""
    block = steps.block_out if axis else steps.block_in
    if axis or steps.align <= 1:
        kinds = [(lines, block)]
    else:
        free = lines < steps.free_below
        aligned = lines % steps.align == 0
        kinds = [(lines[free], 1), (lines[~free & aligned], block), (lines[~free & ~aligned], 1)]
    out = []
    for kind, (mine, size) in enumerate(kinds):
        for low, high in zip(mine[:-1].tolist(), mine[1:].tolist(), strict=True):
            middle = (low + high) // 2 // size * size if size > 1 else (low + high) // 2 // quantum * quantum
            if kind == 2 and middle % steps.align == 0:
                middle += 1
            if low < middle < high:
                out.append(middle)
    return out


def mixed(requests: Sequence[Request], rng: np.random.Generator) -> list[Request]:
    """In random order: what is measured together is then a bit of everything, as in a network."""
    return [requests[i] for i in rng.permutation(len(requests))]


def draw(rng: np.random.Generator, ends: tuple[int, int], multiple: int) -> int:
    low, high = -(-ends[0] // multiple), ends[1] // multiple
    return int(rng.integers(low, high + 1)) * multiple if 0 < low <= high else ends[1]
