"""The least latency that any admissible widths reach."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from halp_iee.solve.network import compile_network, left_of
from halp_iee.solve.problem import Problem
from halp_iee.solve.relax import coarse_oracle
from halp_iee.solve.search import Search

_ROUNDS = 8


@dataclass(frozen=True, eq=False)
class Floor:
    """Least latency: between ``least_ms`` (proved) and ``reached_ms`` (at ``widths``); equal when exact."""

    least_ms: float
    reached_ms: float
    widths: np.ndarray


def find_floor(problem: Problem) -> Floor:
    """The dynamic program with latency as the only aim; non-monotone tables are fine.

    Where widths had to be coarsened, those that cannot be among the fastest are ruled out and the rest
    looked at more finely.
    """
    if not problem.groups:
        only_ms = problem.predict_ms(problem.most)
        return Floor(only_ms, only_ms, problem.most)
    network = compile_network(problem)
    search = Search(network)
    best, best_ms = None, math.inf
    proved_ms = -math.inf
    for _ in range(_ROUNDS):
        oracle = coarse_oracle(network, near=None if best is None else search.widths(best))
        least, choice = oracle.choose(math.inf)
        # What was ruled out costs at least best_ms.
        proved_ms = max(proved_ms, min(network.constant_ms + least, best_ms))
        grids = [variable.grid for variable in network.variables]
        firsts = oracle.cells.starts
        first = [int(grids[g][firsts[g][choice.cells[g]]]) for g in range(search.count)]
        for widths in (choice.widths, np.array(first)):
            point = search.polish(search.indices(widths), math.inf)
            latency_ms = search.latency_ms(point)
            if latency_ms < best_ms:
                best, best_ms = point, latency_ms
        if proved_ms >= best_ms * (1.0 - 1e-12) or not oracle.elimination.exact:
            break
        left = left_of(network, oracle.cells, [least_ms < best_ms for least_ms in oracle.fastest()])
        if left is None:
            proved_ms = best_ms
            break
        network = left
    assert best is not None
    widths = search.widths(best)
    reached_ms = problem.predict_ms(widths)
    return Floor(min(proved_ms, reached_ms), reached_ms, widths)
