"""IEE: iterative exploitation and exploration, for channels under a latency.

Source: Sun et al., "Advancing Weight and Channel Sparsification with Enhanced Saliency",
section 3 and appendix section 4. The paper's Algorithm 1 taken literally prunes after H - 1
steps, never explores with J = 0 and never grows with Q = 0; here the stages are explicit,
so each of H, J and Q may be anything and the ablations of Table 4 can be run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from halp_iee.graph.passages import passages
from halp_iee.methods.config import IEEConfig
from halp_iee.methods.schedule import exponential
from halp_iee.methods.search import Event, LatencySearch
from halp_iee.methods.structure import Units, count, from_lists, overlap, prunable_sizes, to_lists

if TYPE_CHECKING:
    from halp_iee.graph import ChannelGraph
    from halp_iee.latency import LatencyModel

Stage = Literal["importance", "accuracy", "explore", "done"]


class IEE(LatencySearch):
    """Finds the best structure under a latency while the network trains. Drops into anyone's loop:

        iee = IEE(model, graph, cost, target=0.3, optimizer=optimizer)
        for x, y in loader:
            optimizer.zero_grad(); loss(model(x), y).backward(); optimizer.step()
            iee.step()

    The model is made physically small at once and trained so. Its dormant channels lie in a
    store; they come back only in the Reactivate & Explore stage, when Theta_K is frozen bit
    for bit, BatchNorm statistics and optimizer state included. When `stage` is `done` the
    structure is final and `keep` names it.

    Per cycle t of H + J + Q steps, with Psi the budget and Omega^t the update budget:

        H steps    train Theta_K, accumulate I(Theta_K)
        Prune      Theta_K <- argmax I  s.t.  latency <= Psi - Omega^t     (eq. 2)
        J steps    train Theta_K
        Q steps    wake Theta_P with its most recent values, train it      (eq. 3)
        Grow       Theta_K <- Theta_K + argmax I(Theta_P)  s.t. latency <= Psi  (eq. 4)

    Deviations. The appendix calls the knapsack with R_j at a fixed input width; here by
    default the `joint` solver keeps the true T(p_in, p_out) within the budget
    (`solver="halp"` is the published one). Momentum of woken units starts at zero.

    Args:
        model, graph, cost, target, optimizer, target_ms, measure, on_event, local_gradients: as for
            `LatencySearch`.
        config: the settings.

    Raises:
        UsageError: a target outside (0, 1], or an optimizer of another model.
        TargetError: no structure is as fast as that, or nothing can be pruned.
    """

    config: IEEConfig

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        cost: LatencyModel,
        target: float = 0.3,
        *,
        optimizer: torch.optim.Optimizer,
        target_ms: float | None = None,
        config: IEEConfig | None = None,
        measure: Callable[[Units], float] | None = None,
        on_event: Callable[[Event], None] | None = None,
        local_gradients: bool = False,
    ) -> None:
        super().__init__(
            model, graph, cost, target, optimizer=optimizer, target_ms=target_ms, config=config or IEEConfig(),
            measure=measure, on_event=on_event, local_gradients=local_gradients,
        )  # fmt: skip
        self.stage: Stage = "importance"
        self._left = self.config.H
        self._grown: Units = {}
        self._floor: dict[str, int] = {}
        even = self._solve(self._even_scores(), self.psi_ms)
        narrow = passages(graph) if self.config.floor else ()
        self._floor = {name: math.ceil(self.config.floor * even.widths[name]) for name in narrow}
        if self.config.start == "random":
            self.active = self._of(even)
            self._emit("start", even, self.psi_ms)
        self.elastic.resize(self.active)

    @property
    def status(self) -> str:
        return "" if self.done else f"cycle {self.cycle + 1}/{self.config.T} {self.stage}"

    # The step

    def step(self) -> bool:
        """Count one optimizer step and do what is due after it. Call it after `optimizer.step()`.

        Returns:
            Whether the model's parameters were replaced: what remembers them, such as
            DistributedDataParallel, must then be made anew.
        """
        if self.done:
            return False
        self.elastic.adopt_slots()
        if self.stage == "explore" and self.config.freeze:
            self.elastic.put_back()
        self._left -= 1
        resized = False
        while self._left <= 0 and not self.done:
            self._end_of_stage()
            resized = True
        return resized

    def _end_of_stage(self) -> None:
        if self.stage == "importance":
            self._prune()
            self.stage, self._left = "accuracy", self.config.J
        elif self.stage == "accuracy":
            self._wake()
            self.stage, self._left = "explore", self.config.Q
        elif self.stage == "explore":
            self._grow()
            self.cycle += 1
            finished = self.cycle >= self.config.T
            self.stage, self._left = ("done", 0) if finished else ("importance", self.config.H)
            if finished:
                self._hook.remove()
                self._settle()
        self._forget()

    def expect(self, remaining: int) -> None:
        if self.done:
            return
        config = self.config
        cycle = config.H + config.J + config.Q
        ahead = {"importance": config.J + config.Q, "accuracy": config.Q}.get(self.stage, 0)
        if remaining < self._left + ahead:  # this cycle's last decision is still to come before the training ends
            config = replace(config, J=0 if self.stage == "importance" else config.J, Q=0)
            self._left = min(self._left, max(1, remaining))
        more = 1 + max(0, remaining - self._left - ahead) // cycle
        self.config = replace(config, T=min(config.T, self.cycle + more))

    def _last(self) -> bool:
        return self.cycle + 1 >= self.config.T

    def _judging(self) -> bool:
        return self.stage in ("importance", "explore")

    def evaluation(self, model: nn.Module | None = None) -> AbstractContextManager[object]:
        """Within it the model computes what its active structure alone computes, while exploring too."""
        if self.stage != "explore":
            return nullcontext()
        return self.graph.masked(self.active, model=self.elastic.model if model is None else model)

    # Budgets

    def budget_ms(self, cycle: int) -> float:
        """Psi of this cycle; above the target only while descending from the dense network."""
        if self.config.start == "random":
            return self.psi_ms
        a = (cycle + 1) / max(1.0, self.config.descend * self.config.T)
        return max(self.psi_ms, exponential(self.cost.dense_ms, self.psi_ms, a))

    def omega_ms(self, cycle: int) -> float:
        """Omega^t, the update budget of this cycle, in ms."""
        a = cycle / max(1, self.config.T - 1)
        return self.psi_ms * exponential(self.config.omega_start, self.config.omega_end, a)

    # Structure

    def _least(self) -> dict[str, int]:
        return {name: max(least, self._floor.get(name, 1)) for name, least in super()._least().items()}

    def _even_scores(self) -> dict[str, np.ndarray]:
        """Scores by which the random Theta_K is drawn: which units is chance, how many of each group is nearly even.

        A subset drawn from all units has about the same share of every group. Under a latency the shares that come
        nearest to that, at the widths which the device likes, maximise -sum_g n_g / w_g, n_g units of which w_g
        stay: alpha-fairness with alpha = 2. The k-th unit, in a random order, is worth n_g / (k (k - 1)). Scores
        that were random themselves would make the solver keep whatever is cheap, and starve the rest.
        """
        rng = np.random.default_rng((self.config.seed, 0))
        scores = {}
        for name, size in prunable_sizes(self.graph).items():
            k = np.arange(2, size + 1)
            scores[name] = rng.permutation(np.concatenate([[2.0 * size], size / (k * (k - 1.0))]))
        return scores

    def _random_scores(self, salt: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((self.config.seed, salt))
        return {name: rng.random(size) for name, size in prunable_sizes(self.graph).items()}

    def _prune(self) -> None:
        scores = self._collect()
        budget = self.budget_ms(self.cycle) - self.omega_ms(self.cycle)
        grown, before = self._grown, self.active
        answer, budget = self._solve_or_floor(scores, budget)
        self.scores = {name: values.copy() for name, values in scores.items()}
        self.active = self._of(answer)
        survived = overlap(grown, self.active) / max(1, count(grown)) if grown else None
        self._emit("prune", answer, budget, before=before, survival=survived)
        self.elastic.save_awake()
        self._resize(self.active)

    def _wake(self) -> None:
        self.elastic.save_awake()
        positions = self.elastic.positions(self.active)
        self.elastic.reset_slots(except_=positions)
        if self.config.reactivate == "zero":
            self.elastic.zero_values(except_=positions)
        self._resize({})
        self.elastic.freeze(self.active)

    def _grow(self) -> None:
        self.elastic.thaw()
        scores = self._collect() if self.config.grow == "importance" else self._random_scores(1 + self.cycle)
        frozen = self.elastic.positions(self.active) if self.config.freeze else None
        self.elastic.save_awake(except_=frozen)
        budget = self.budget_ms(self.cycle)
        before = self.active
        if self.cost.predict({name: len(units) for name, units in before.items()}) > budget:
            # The training has become shorter since the prune (`expect`), and with it the way down.
            answer = self._solve(self.scores, budget, active=before)
        else:
            answer = self._solve(scores, budget, standing=before)
        self.active = self._of(answer)
        self._grown = {n: np.setdiff1d(u, before[n]) for n, u in self.active.items()}
        for name, values in scores.items():  # Theta_K keeps what it earned before the prune
            standing = before.get(name)
            merged = values.copy()
            if standing is not None and name in self.scores:
                merged[standing] = self.scores[name][standing]
            self.scores[name] = merged
        self._emit("grow", answer, budget, before=before, grown=count(self._grown))
        self._resize(self.active)

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain data from which `load_state_dict` goes on bit for bit."""
        state = super().state_dict()
        lengths = {name: getattr(self.config, name) for name in "JQT"}  # `expect` may have made them shorter
        mine = {**lengths, "left": self._left, "grown": to_lists(self._grown)}
        return {**state, "meta": {**state["meta"], **mine}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`. The model is left at the size it had; load its values and the optimizer's after."""
        super().load_state_dict(state)
        self._left, self._grown = state["meta"]["left"], from_lists(state["meta"]["grown"])
        lengths: dict[str, Any] = {n: int(state["meta"].get(n, getattr(self.config, n))) for n in "JQT"}
        self.config = replace(self.config, **lengths)
        if self.stage == "explore":
            self.elastic.freeze(self.active)
