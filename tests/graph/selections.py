"""Random selections of units."""

from __future__ import annotations

import numpy as np

from halp_iee.graph import ChannelGraph


def random_keep(graph: ChannelGraph, seed: int) -> dict[str, np.ndarray]:
    """Any non-empty subset of every prunable group, from one unit to all of them."""
    random = np.random.default_rng(seed)
    return {
        group.name: random.choice(group.size, size=random.integers(1, group.size + 1), replace=False)
        for group in graph.groups
        if group.prunable
    }


def halves(graph: ChannelGraph) -> dict[str, np.ndarray]:
    return {g.name: np.arange(0, g.size, 2) for g in graph.groups if g.prunable}


def single(graph: ChannelGraph) -> dict[str, np.ndarray]:
    return {g.name: np.array([g.size - 1]) for g in graph.groups if g.prunable}
