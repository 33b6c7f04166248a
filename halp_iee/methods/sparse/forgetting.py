"""MEST's data efficiency: examples that are never forgotten are left out of the second phase, with any method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from halp_iee.errors import UsageError


class ForgettingEvents:
    """Counts, for every training example, how often it was classified wrongly after it had been right.

    In phase one call `observe` for every batch; then train phase two on `informative(threshold)`.

    Args:
        examples: how many the training set has.

    Source: Toneva et al. 2019; Yuan et al. 2021 (MEST), section 4.
    """

    def __init__(self, examples: int) -> None:
        if examples < 1:
            raise UsageError(f"{examples} examples cannot be counted", "there must be at least one", "pass len(data)")
        self.events = torch.zeros(examples, dtype=torch.int64)
        self.learned = torch.zeros(examples, dtype=torch.bool)
        self._right = torch.zeros(examples, dtype=torch.bool)

    def observe(self, indices: Tensor, correct: Tensor) -> None:
        """Note whether the examples `indices` [N] were classified rightly, `correct` [N] bool.

        Raises:
            UsageError: an index that is no example.
        """
        indices, correct = indices.cpu(), correct.cpu().bool()
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(self.events):
            raise UsageError(
                "forgetting events cannot be counted",
                f"indices from {int(indices.min())} to {int(indices.max())} for {len(self.events)} examples",
                "count the examples of the whole training set",
            )
        self.events[indices] += (self._right[indices] & ~correct).long()
        self.learned[indices] |= correct
        self._right[indices] = correct

    def informative(self, threshold: int, *, as_published: bool = False) -> Tensor:
        """Indices of the examples for phase two: forgotten more than `threshold` times, or never learned.

        Args:
            threshold: th; 0 leaves out the examples that were never forgotten.
            as_published: MEST's eq. 2 as printed, `f(x) <= th`, which is the set that its text removes.

        Raises:
            UsageError: nothing would be left.
        """
        keep = (self.events > threshold) | ~self.learned
        chosen = torch.nonzero(self.events <= threshold if as_published else keep).flatten()
        if not len(chosen):
            raise UsageError(
                "no example is left for the second phase",
                f"none of {len(self.events)} was forgotten more than {threshold} times",
                "lower the threshold, or count for longer",
            )
        return chosen

    def state_dict(self) -> dict[str, Tensor]:
        return {"events": self.events.clone(), "learned": self.learned.clone(), "right": self._right.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.events, self.learned, self._right = (state[k].clone() for k in ("events", "learned", "right"))
