"""Gaps of a grid are filled by what its lines have in common, and not by the noise of single readings."""

from __future__ import annotations

import numpy as np
import pytest

from halp_profiler.completion import completed


def sparse(rng: np.random.Generator, truth: np.ndarray, rows: np.ndarray, columns: np.ndarray, share: float):
    """Complete lines crossing, and of the others a share of the cells, at least one a line."""
    known = rng.random(truth.shape) < share
    known[np.arange(len(truth)), rng.integers(0, truth.shape[1], len(truth))] = True
    known[rng.integers(0, len(truth), truth.shape[1]), np.arange(truth.shape[1])] = True
    known[np.ix_(rows, columns)] = True
    return np.where(known, truth, np.nan)


def world(seed: int, noise: float = 0.0):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(12, 40, 2))
    rows, columns = (np.sort(rng.choice(n, n // 3, replace=False)) for n in shape)
    base = np.outer(np.sort(rng.uniform(1, 20, shape[0])), np.sort(rng.uniform(1, 20, shape[1])))
    # Steps: whole lines that are slower than their neighbours say.
    slower = [np.where(rng.random(n) < 0.5, rng.uniform(1.2, 2.0, n), 1.0) for n in shape]
    slower[0][rows], slower[1][columns] = 1.0, 1.0
    truth = base * np.outer(*slower)
    return rng, rows, columns, base, truth, truth * np.exp(noise * rng.standard_normal(shape))


def error(filled: np.ndarray, truth: np.ndarray, grid: np.ndarray) -> float:
    gaps = np.isnan(grid)
    return float(np.average(np.abs(filled[gaps] / truth[gaps] - 1), weights=truth[gaps]))


@pytest.mark.parametrize("seed", range(8))
def test_steps_of_whole_lines_are_carried_along_them(seed: int) -> None:
    rng, rows, columns, base, truth, seen = world(seed)
    grid = sparse(rng, seen, rows, columns, 0.5)
    filled = completed(grid, base, rows, columns)
    assert np.array_equal(filled[~np.isnan(grid)], grid[~np.isnan(grid)])
    assert error(filled, truth, grid) < 0.05 < error(base, truth, grid)


@pytest.mark.parametrize("seed", range(8))
def test_what_is_only_noise_stays_where_it_was_read(seed: int) -> None:
    rng, rows, columns, base, _, _ = world(seed)
    truth = base
    grid = sparse(rng, truth * np.exp(0.1 * rng.standard_normal(truth.shape)), rows, columns, 0.05)
    grid[np.ix_(rows, columns)] = truth[np.ix_(rows, columns)]
    assert error(completed(grid, base, rows, columns), truth, grid) < 0.04  # a reading is 8% off on average


@pytest.mark.parametrize("seed", range(8))
def test_what_complete_lines_miss_is_counted_once(seed: int) -> None:
    # A cell off both kinds of complete lines must not be made slower for its row and for its column again.
    rng, rows, columns, base, _, _ = world(seed)
    truth = base.copy()
    off = np.ix_(np.setdiff1d(np.arange(len(base)), rows), np.setdiff1d(np.arange(base.shape[1]), columns))
    truth[off] *= 1.3
    grid = sparse(rng, truth, rows, columns, 0.0)
    filled = completed(grid, base, rows, columns)
    gaps = np.isnan(grid[off])
    ratio = np.median((filled[off] / base[off])[gaps])
    assert 1.0 < ratio < 1.35


def test_a_whole_grid_and_one_with_nothing_to_learn_from() -> None:
    base = np.outer(np.arange(1.0, 5), np.arange(1.0, 7))
    every = np.arange(4), np.arange(6)
    assert np.array_equal(completed(base * 1.1, base, *every), base * 1.1)
    grid = np.where(np.arange(4)[:, None] < 2, base, np.nan)
    assert np.array_equal(completed(grid, base, np.arange(2), np.arange(6)), base)
