"""HALP: one way down from a trained network to a latency, by a schedule of knapsacks.

Source: Shen et al., "Structural Pruning via Latency-Saliency Knapsack" (HALP, NeurIPS 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from halp_iee.methods.config import HALPConfig
from halp_iee.methods.schedule import exponential
from halp_iee.methods.search import Event, LatencySearch
from halp_iee.methods.structure import Units

if TYPE_CHECKING:
    from halp_iee.graph import ChannelGraph
    from halp_iee.latency import LatencyModel


class HALP(LatencySearch):
    """Prunes a trained network to a latency in k steps while it is fine-tuned. Drops into anyone's loop:

        halp = HALP(model, graph, cost, target=0.3, optimizer=optimizer)
        for x, y in loader:
            optimizer.zero_grad(); loss(model(x), y).backward(); optimizer.step()
            halp.step()

    Every `interval` optimizer steps, t = 1 .. k:

        I       mean importance over the interval
        C_t     = exp(t/k log Psi + (1 - t/k) log dense latency)
        Theta_K <- argmax over subsets of Theta_K of sum I   s.t.   latency <= C_t

    What is pruned does not come back. After step k the structure is corrected to the target as measured
    and the rest of the training fine-tunes it. At every moment the network that is trained is physically as small
    as its structure.

    Deviations. The published knapsack (`solver="halp"`) holds the input widths of a layer fixed and therefore
    misses its budget; by default the `joint` solver decides. The correction may give units back, with the values
    that they had, where the last structure is faster than asked for.

    Args:
        model: trained weights; the dense network that `graph` was traced from. It is changed in place.
        graph, cost, target, optimizer, target_ms, measure, on_event, local_gradients: as for `LatencySearch`.
        config: the settings.

    Raises:
        UsageError: a target outside (0, 1], or an optimizer of another model.
        TargetError: no structure is as fast as that, or nothing can be pruned.
    """

    config: HALPConfig

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        cost: LatencyModel,
        target: float = 0.3,
        *,
        optimizer: torch.optim.Optimizer,
        target_ms: float | None = None,
        config: HALPConfig | None = None,
        measure: Callable[[Units], float] | None = None,
        on_event: Callable[[Event], None] | None = None,
        local_gradients: bool = False,
    ) -> None:
        super().__init__(
            model, graph, cost, target, optimizer=optimizer, target_ms=target_ms, config=config or HALPConfig(),
            measure=measure, on_event=on_event, local_gradients=local_gradients,
        )  # fmt: skip
        self.stage = "importance"
        self._left = self.config.interval
        alike = {name: np.ones(len(units)) for name, units in self.active.items()}
        self._solve(alike, self.psi_ms)  # raises under the floor, before anyone trains

    @property
    def status(self) -> str:
        return "" if self.done else f"pruning step {self.cycle + 1}/{self.config.steps}"

    def budget_ms(self, step: int) -> float:
        """C_t of the pruning step `step`, counted from 1."""
        return exponential(self.cost.dense_ms, self.psi_ms, step / self.config.steps)

    def step(self) -> bool:
        """Count one optimizer step and prune when it is time. Call it after `optimizer.step()`.

        Returns:
            Whether the model's parameters were replaced: what remembers them, such as
            DistributedDataParallel, must then be made anew.
        """
        if self.done:
            return False
        self.elastic.adopt_slots()
        self._left -= 1
        if self._left > 0:
            return False
        self._prune()
        self._forget()
        self.cycle += 1
        self._left = self.config.interval
        if self.cycle >= self.config.steps:
            self.stage = "done"
            self._hook.remove()
            self._settle()
        return True

    def expect(self, remaining: int) -> None:
        if not self.done:
            config = self.config
            self._left = min(self._left, max(1, remaining))
            more = 1 + max(0, remaining - self._left) // config.interval
            self.config = replace(config, steps=min(config.steps, self.cycle + more))

    def _last(self) -> bool:
        return self.cycle + 1 >= self.config.steps

    def _judging(self) -> bool:
        return not self.done

    def _prune(self) -> None:
        scores = self._collect()
        # What is dormant keeps what it earned when it was last awake, for the correction at the end.
        self.scores = {
            name: self._merged(values, self.scores.get(name), self.active[name]) for name, values in scores.items()
        }
        before = self.active
        answer, budget = self._solve_or_floor(scores, self.budget_ms(self.cycle + 1))
        self.active = self._of(answer)
        self._emit("prune", answer, budget, before=before)
        self.elastic.save_awake()
        self._resize(self.active)

    @staticmethod
    def _merged(values: np.ndarray, earlier: np.ndarray | None, awake: np.ndarray) -> np.ndarray:
        if earlier is None:
            return values.copy()
        merged = earlier.copy()
        merged[awake] = values[awake]
        return merged

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain data from which `load_state_dict` goes on bit for bit."""
        state = super().state_dict()
        return {**state, "meta": {**state["meta"], "left": self._left, "steps": self.config.steps}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`. The model is left at the size it had; load its values and the optimizer's after."""
        super().load_state_dict(state)
        self._left = state["meta"]["left"]
        self.config = replace(self.config, steps=int(state["meta"]["steps"]))
