"""How the nonzeros of a weight are laid out for the kernels. Pure functions over numpy arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LANES = 16
BLOCK = 32
_GATHER_COST = 8.0
"""A gathered slot over a permuted one, in time."""


@dataclass(frozen=True)
class Rows:
    """Nonzeros neuron by neuron.

    Attributes:
        start: [rows + 1] int64.
        index: [nonzeros] uint16 where the columns allow it, else int32.
        values: [nonzeros] float32.
        columns: inputs of the layer.
    """

    start: np.ndarray
    index: np.ndarray
    values: np.ndarray
    columns: int

    @property
    def rows(self) -> int:
        return len(self.start) - 1


@dataclass(frozen=True)
class Tiles:
    """The same for one sample: tiles of 16 neurons across the lanes; see `kernel.c`.

    Attributes:
        steps: [tiles, blocks] uint8.
        first: [tiles] int64.
        values: [slots, 16] float32.
        index: [slots, 16] uint8.
        rest: [tiles] int32.
        rest_first: [tiles] int64.
        rest_values: [rest slots, 16] float32.
        rest_index: [rest slots, 16] uint16.
    """

    steps: np.ndarray
    first: np.ndarray
    values: np.ndarray
    index: np.ndarray
    rest: np.ndarray
    rest_first: np.ndarray
    rest_values: np.ndarray
    rest_index: np.ndarray


def rows_of(weight: np.ndarray) -> Rows:
    """Nonzeros of a dense weight [rows, columns], in the order of the columns."""
    row, column = np.nonzero(weight)
    start = np.zeros(len(weight) + 1, dtype=np.int64)
    np.cumsum(np.bincount(row, minlength=len(weight)), out=start[1:])
    small = weight.shape[1] <= 1 << 16
    index = column.astype(np.uint16 if small else np.int32)
    return Rows(start, index, np.ascontiguousarray(weight[row, column], dtype=np.float32), weight.shape[1])


def tiles_of(rows: Rows) -> Tiles:
    """Tiles with so many slots a block that permuting and gathering together take least time.

    A block of a tile gets s slots if at least `threshold` of its 16 neurons have s nonzeros there; the rest
    is gathered. The best of a few thresholds is taken for each tile.
    """
    tiles = -(-rows.rows // LANES)
    blocks = -(-rows.columns // BLOCK)
    counts = np.diff(rows.start)
    row = np.repeat(np.arange(rows.rows), counts)
    column = rows.index.astype(np.int64)
    # Place of every nonzero within its neuron's block: nonzeros lie in the order of their columns.
    key = row * blocks + column // BLOCK
    place = np.arange(len(key)) - np.searchsorted(key, key, side="left")
    most = int(place.max()) + 1 if len(place) else 0
    having = np.zeros((tiles, blocks, most + 1), dtype=np.int64)  # neurons with more than s nonzeros there
    np.add.at(having, (row // LANES, column // BLOCK, place), 1)
    steps = np.zeros((tiles, blocks), dtype=np.int64)
    best = np.full(tiles, np.inf)
    for threshold in (1, 2, 3, 4, 5, 6, 8, 17):
        trial = (having >= threshold).sum(2)
        over = place >= trial[row // LANES, column // BLOCK]
        rest = _most_a_tile(row[over], rows.rows, tiles)
        cost = trial.sum(1) + _GATHER_COST * rest
        better = cost < best
        steps[better], best[better] = trial[better], cost[better]
    steps = np.minimum(steps, 255)
    return _filled(rows, row, column, place, steps, tiles, blocks)


def _most_a_tile(row: np.ndarray, rows: int, tiles: int) -> np.ndarray:
    """[tiles]: the largest number of entries that any neuron of a tile has."""
    counts = np.zeros(tiles * LANES, dtype=np.int64)
    counts[:rows] = np.bincount(row, minlength=rows)
    return counts.reshape(tiles, LANES).max(1)


def _filled(
    rows: Rows, row: np.ndarray, column: np.ndarray, place: np.ndarray, steps: np.ndarray, tiles: int, blocks: int
) -> Tiles:
    tile, block, lane = row // LANES, column // BLOCK, row % LANES
    offset = np.zeros(tiles * blocks + 1, dtype=np.int64)
    np.cumsum(steps.reshape(-1), out=offset[1:])
    slots = int(offset[-1])
    values = np.zeros((slots, LANES), dtype=np.float32)
    index = np.zeros((slots, LANES), dtype=np.uint8)
    inside = place < steps[tile, block]
    slot = offset[tile * blocks + block][inside] + place[inside]
    values[slot, lane[inside]] = rows.values[inside]
    index[slot, lane[inside]] = column[inside] % BLOCK
    over = ~inside
    rest = _most_a_tile(row[over], rows.rows, tiles)
    rest_first = np.concatenate([[0], np.cumsum(rest)]).astype(np.int64)
    rest_values = np.zeros((int(rest_first[-1]), LANES), dtype=np.float32)
    rest_index = np.zeros((int(rest_first[-1]), LANES), dtype=np.uint16)
    among = np.arange(int(over.sum())) - np.searchsorted(row[over], row[over], side="left")
    slot = rest_first[tile[over]] + among
    rest_values[slot, lane[over]] = rows.values[over]
    rest_index[slot, lane[over]] = column[over]
    return Tiles(
        steps.astype(np.uint8), offset[:-1:blocks].copy() if blocks else np.zeros(tiles, np.int64), values, index,
        rest.astype(np.int32), rest_first[:-1].copy(), rest_values, rest_index,
    )  # fmt: skip
