"""No judgement at all: what every criterion must beat."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from halp_iee.importance.units import Scores

if TYPE_CHECKING:
    from halp_iee.graph import ChannelGraph


def random(graph: ChannelGraph, seed: int) -> Scores:
    """Scores drawn uniformly from (0, 1], the same for the same seed."""
    rng = np.random.default_rng(seed)
    return {group.name: torch.from_numpy(1.0 - rng.random(group.size)) for group in graph.groups if group.prunable}
