"""MEST's data efficiency: examples that are never forgotten are left out of the second phase, with any method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halp_iee.errors import UsageError
from halp_iee.train.processes import Processes
from halp_iee.train.recipe import Recipe


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


class TwoPhases:
    """Which examples the project's own loop trains on: all of them, and from `recipe.informative_after` on those
    that `ForgettingEvents` finds informative. In several processes each sees its part of an epoch, and they are put
    together at its end.

    Args:
        recipe: with `informative_after`.
        examples: how many the training set has.
        processes: that train.
    """

    def __init__(self, recipe: Recipe, examples: int, processes: Processes) -> None:
        self.recipe, self.processes = recipe, processes
        self.forgetting = ForgettingEvents(examples)
        self.only: np.ndarray | None = None
        self._epoch = torch.full((examples,), -1, dtype=torch.int8)  # of this epoch: not seen, wrong, right

    def observe(self, indices: np.ndarray, correct: Tensor) -> None:
        """Note which examples of a batch were classified rightly."""
        if self.only is None:
            self._epoch[torch.from_numpy(indices)] = correct.cpu().to(torch.int8)

    def end_epoch(self, finished: int) -> bool:
        """Count the events of the epoch; True if the second phase begins after it.

        Args:
            finished: epochs, this one included.

        Raises:
            UsageError: too few examples are left for the processes and the parts of a batch.
        """
        if self.only is not None:
            return False
        epoch = self._together()
        seen = torch.nonzero(epoch >= 0).flatten()
        self.forgetting.observe(seen, epoch[seen])
        self._epoch.fill_(-1)
        if finished != self.recipe.informative_after:
            return False
        self.only = self.forgetting.informative(self.recipe.informative_above).numpy()
        least = self.processes.world * self.recipe.accumulate
        if len(self.only) < least:
            raise UsageError(
                "the second phase cannot begin",
                f"{len(self.only)} informative examples cannot be divided among {least} parts of a batch",
                "lower informative_above, or count for longer",
            )
        return True

    def _together(self) -> Tensor:
        """What all processes have seen in this epoch; no two of them see the same example."""
        return torch.stack(self.processes.gather(self._epoch)).amax(0)

    def state_dict(self) -> dict[str, Tensor]:
        """The same in every process, so any of them can go on from it."""
        state = {**self.forgetting.state_dict(), "epoch": self._together()}
        return state if self.only is None else {**state, "only": torch.from_numpy(self.only.copy())}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state_dict`.

        Raises:
            ValueError: it is of another training set.
        """
        if any(state[name].shape != self._epoch.shape for name in ("events", "learned", "right", "epoch")):
            raise ValueError(f"its forgetting events are not of {len(self._epoch)} examples")
        self.forgetting.load_state_dict(state)
        self._epoch = state["epoch"].clone()
        self.only = state["only"].numpy().copy() if "only" in state else None
