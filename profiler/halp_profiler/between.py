"""Between which measured widths every other width lies, and how far: interpolation on a staircase."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from halp_profiler.steps import Steps

_FREE, _ALIGNED, _UNALIGNED = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Weights:
    """For every asked width the two lines that it lies between, and the share of the upper one."""

    lower: np.ndarray
    upper: np.ndarray
    share: np.ndarray

    def __getitem__(self, at: np.ndarray | tuple[np.ndarray | int, ...]) -> Weights:
        return Weights(self.lower[at], self.upper[at], self.share[at])

    def of(self, values: np.ndarray) -> np.ndarray:
        """What lies between the lines' ``values``, whose last axis is the lines."""
        return values[..., self.lower] * (1 - self.share) + values[..., self.upper] * self.share


@dataclass(frozen=True, eq=False)
class Between:
    """The lines of a grid and the steps between them.

    Input widths fall into kinds (free, aligned, not aligned; see ``Steps``), each interpolated among its own kind;
    unaligned ones know no blocks on either axis.
    """

    lines_in: np.ndarray
    lines_out: np.ndarray
    steps: Steps

    def kind(self, c: np.ndarray) -> np.ndarray:
        s = self.steps
        aligned = np.where((s.align <= 1) | (c % max(1, s.align) == 0), _ALIGNED, _UNALIGNED)
        return np.where(c < s.free_below, _FREE, aligned)

    def rows(self, asked: np.ndarray) -> tuple[Weights, np.ndarray]:
        """The input's lines around every asked width, and whether it knows no blocks on the output's axis."""
        kinds, held = self.kind(asked), self.kind(self.lines_in)
        lower, upper = np.empty(len(asked), np.int64), np.empty(len(asked), np.int64)
        share = np.empty(len(asked))
        for kind in np.unique(kinds):
            here, mine = kinds == kind, np.flatnonzero(held == kind)
            if not len(mine):
                mine = np.arange(len(self.lines_in))
            block = self.steps.block_in if kind == _ALIGNED else 1
            found = _weights(self.lines_in[mine], asked[here], block)
            lower[here], upper[here], share[here] = mine[found.lower], mine[found.upper], found.share
        return Weights(lower, upper, share), kinds == _UNALIGNED

    def columns(self, asked: np.ndarray, plain: bool) -> Weights:
        """The output's lines around every asked width; ``plain``: of input widths that know no blocks."""
        return _weights(self.lines_out, asked, 1 if plain else self.steps.block_out)

    @cached_property
    def every_row(self) -> tuple[Weights, np.ndarray]:
        """``rows`` of every width from the first line to the last: the same few are asked for again and again."""
        return self.rows(np.arange(self.lines_in[0], self.lines_in[-1] + 1))

    @cached_property
    def every_column(self) -> Weights:
        """``columns`` of every width from the first line to the last, with blocks in row 0 and without in row 1."""
        every = np.arange(self.lines_out[0], self.lines_out[-1] + 1)
        with_blocks, without = self.columns(every, False), self.columns(every, True)
        return Weights(*(np.stack(p) for p in zip(_parts(with_blocks), _parts(without), strict=True)))


def at_pairs(grid: np.ndarray, rows: Weights, columns: Weights) -> np.ndarray:
    """The grid at pairs of widths, which broadcast."""
    u, v = rows.share, columns.share
    low = grid[rows.lower, columns.lower] * (1 - v) + grid[rows.lower, columns.upper] * v
    high = grid[rows.upper, columns.lower] * (1 - v) + grid[rows.upper, columns.upper] * v
    return low * (1 - u) + high * u


def at_rectangle(grid: np.ndarray, rows: Weights, columns: Weights) -> np.ndarray:
    """The grid at every row with every column: to the last bit what ``at_pairs`` says, and quicker."""
    crossed = columns.of(grid)
    u = rows.share[:, None]
    out = crossed[rows.lower]
    out *= 1 - u
    out += crossed[rows.upper] * u
    return out


def _parts(weights: Weights) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return weights.lower, weights.upper, weights.share


def _weights(lines: np.ndarray, asked: np.ndarray, block: int) -> Weights:
    last = len(lines) - 1
    upper = np.minimum(np.searchsorted(lines, asked), last)
    lower = np.where(lines[upper] > asked, np.maximum(upper - 1, 0), upper)
    if block > 1:
        asked_block, line_block = -(-asked // block), -(-lines // block)
        blocks, first = np.unique(line_block, return_index=True)
        top = np.append(first[1:], len(lines)) - 1
        at = np.minimum(np.searchsorted(blocks, asked_block), len(blocks) - 1)
        own = blocks[at] == asked_block
        upper = np.where(own, np.clip(upper, first[at], top[at]), top[at])
        before = np.where(blocks[at] > asked_block, np.maximum(at - 1, 0), at)
        lower = np.where(own, np.clip(lower, first[at], top[at]), top[before])
        # Inside a block positions are channels; between blocks they are the blocks' tops.
        position = np.where(own, asked, asked_block * block).astype(float)
        start = np.where(own, lines[lower], line_block[lower] * block)
        end = np.where(own, lines[upper], line_block[upper] * block)
    else:
        position, start, end = asked.astype(float), lines[lower], lines[upper]
    span = end - start
    share = np.clip(np.where(span > 0, (position - start) / np.maximum(span, 1), 0.0), 0.0, 1.0)
    return Weights(lower, upper, share)
