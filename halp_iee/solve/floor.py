"""The least latency that any admissible widths reach."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from halp_iee.solve.joint import coarse_oracle
from halp_iee.solve.network import compile_network
from halp_iee.solve.problem import Problem
from halp_iee.solve.search import Search


@dataclass(frozen=True, eq=False)
class Floor:
    """Least latency: between ``least_ms`` (proved) and ``reached_ms`` (at ``widths``); equal when exact."""

    least_ms: float
    reached_ms: float
    widths: np.ndarray


def find_floor(problem: Problem) -> Floor:
    """The dynamic program with latency as the only aim; non-monotone tables are fine."""
    network = compile_network(problem)
    search = Search(network)
    oracle = coarse_oracle(network)
    least, choice = oracle.choose(math.inf)
    starts = [oracle.points(choice), oracle.first_points(choice), np.zeros(search.count, dtype=np.int64)]
    reached = min((search.polish(start, math.inf) for start in starts), key=search.latency_ms)
    widths = search.widths(reached)
    reached_ms = problem.predict_ms(widths)
    return Floor(min(network.constant_ms + least, reached_ms), reached_ms, widths)
