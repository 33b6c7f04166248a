"""IEE: iterative exploitation and exploration, for channels under a latency.

Source: Sun et al., "Advancing Weight and Channel Sparsification with Enhanced Saliency",
section 3 and appendix section 4. The paper's Algorithm 1 taken literally prunes after H - 1
steps, never explores with J = 0 and never grows with Q = 0; here the stages are explicit,
so each of H, J and Q may be anything and the ablations of Table 4 can be run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from halp_iee.errors import UsageError
from halp_iee.importance import score
from halp_iee.methods.config import IEEConfig
from halp_iee.methods.elastic import ElasticNetwork
from halp_iee.methods.meet import meet_as_measured
from halp_iee.methods.schedule import exponential
from halp_iee.methods.structure import Units, count, from_lists, iou, overlap, prunable_sizes, to_lists
from halp_iee.solve import Answer, floor_ms, solve

if TYPE_CHECKING:
    from halp_iee.graph import ChannelGraph
    from halp_iee.latency import LatencyModel

Stage = Literal["importance", "accuracy", "explore", "done"]
Event = dict[str, Any]


class IEE:
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
        model: the dense network that `graph` was traced from. It is changed in place.
        graph: its channel graph.
        cost: predicts the latency of any widths, in ms.
        target: fraction of the dense latency; or give `target_ms`.
        optimizer: the optimizer over the model's parameters; it is kept in step.
        target_ms: Psi in ms, instead of `target`.
        config: the settings.
        measure: times a structure in the deployment runtime, in ms. If given, the last structure
            is corrected until it meets the target as measured.
        on_event: called with a record of every start, prune, grow and settle.

    Raises:
        UsageError: a target outside (0, 1], or no optimizer.
        TargetError: no structure is as fast as that, or nothing can be pruned.
    """

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
    ) -> None:
        if target_ms is None and not 0.0 < target <= 1.0:
            raise UsageError(
                f"the latency target {target!r} is not a fraction",
                "it must lie in (0, 1]",
                "give for example 0.3 for 30% of the dense latency",
            )
        if graph.model is model:  # the graph needs the dense network, and this one is about to shrink
            graph = replace(graph, model=copy.deepcopy(model))
        self.graph, self.cost, self.config = graph, cost, config or IEEConfig()
        self.psi_ms = target * cost.dense_ms if target_ms is None else target_ms
        self.measure, self.on_event = measure, on_event
        self.stage: Stage = "importance"
        self.cycle = 0
        self._left = self.config.H
        self._previous: dict[str, Units] = {}
        self._grown: Units = {}
        self._sums: dict[str, Tensor] = {}
        self._batches = 0
        self.scores: dict[str, np.ndarray] = {}
        self.elastic = ElasticNetwork(model, graph, optimizer)
        self.active: Units = self._initial_structure()
        self.elastic.resize(self.active)
        self._hook = optimizer.register_step_pre_hook(self._before_optimizer_step)

    # What the caller may look at

    @property
    def keep(self) -> Units:
        """Theta_K: the active units of every prunable group."""
        return {name: units.copy() for name, units in self.active.items()}

    @property
    def widths(self) -> dict[str, int]:
        """How many units of every group are awake in the model at this moment."""
        awake = self.elastic.keep
        return {g.name: len(awake[g.name]) if g.name in awake else g.size for g in self.graph.groups}

    @property
    def done(self) -> bool:
        """Whether the update period is over and the structure final."""
        return self.stage == "done"

    @property
    def target_ms(self) -> float:
        return self.psi_ms

    # The step

    def step(self) -> None:
        """Count one optimizer step and do what is due after it. Call it after `optimizer.step()`."""
        if self.stage == "done":
            return
        self.elastic.adopt_slots()
        if self.stage == "explore" and self.config.freeze:
            self.elastic.restore(self.elastic.positions(self.active))
        self._left -= 1
        while self._left <= 0 and self.stage != "done":
            self._end_of_stage()

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
        self._sums, self._batches = {}, 0

    def _before_optimizer_step(self, *_: object) -> None:
        """Accumulate I while gradients and the values they belong to are both at hand."""
        if self.stage not in ("importance", "explore"):
            return
        positions = self.graph.positions(self.elastic.keep)
        now = score(self.config.criterion, self.elastic.model, self.graph, positions=positions)
        for name, values in now.items():
            self._sums[name] = self._sums[name] + values if name in self._sums else values
        self._batches += 1

    def _collect(self) -> dict[str, np.ndarray]:
        if not self._batches:  # with Q = 0 nothing was observed: the last knowledge stands
            return dict(self.scores)
        return {name: (total / self._batches).cpu().numpy() for name, total in self._sums.items()}

    def evaluation(self) -> AbstractContextManager[object]:
        """Within it the model computes what its active structure alone computes, while exploring too."""
        if self.stage != "explore":
            return nullcontext()
        return self.graph.masked(self.active, model=self.elastic.model)

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
        return {n: max(1, round(size * self.config.min_fraction)) for n, size in prunable_sizes(self.graph).items()}

    def _random_scores(self, salt: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((self.config.seed, salt))
        return {name: rng.random(size) for name, size in prunable_sizes(self.graph).items()}

    def _initial_structure(self) -> Units:
        everything = {name: np.arange(size) for name, size in prunable_sizes(self.graph).items()}
        if self.config.start == "dense":
            return everything
        answer = solve(self.cost, self._random_scores(0), self.psi_ms, self.config.solver, min_units=self._least())
        self._emit("start", answer, self.psi_ms)
        return self._of(answer)

    def _of(self, answer: Answer) -> Units:
        """The decided groups of an answer; it also lists those that are frozen."""
        return {name: answer.keep[name] for name in prunable_sizes(self.graph)}

    def _solve(
        self,
        scores: Mapping[str, np.ndarray],
        budget_ms: float,
        active: Units | None = None,
        standing: Units | None = None,
    ) -> Answer:
        return solve(
            self.cost, scores, budget_ms, self.config.solver, min_units=self._least(), active=active, standing=standing
        )

    def _prune(self) -> None:
        scores = self._collect()
        budget = self.budget_ms(self.cycle) - self.omega_ms(self.cycle)
        grown, before = self._grown, self.active
        # Where Psi is above the floor but Psi - Omega is not, as much is exchanged as there is.
        floor = floor_ms(self.cost, scores, active=self.active, min_units=self._least())
        budget = max(budget, floor)
        answer = self._solve(scores, budget, active=self.active)
        self.scores = {name: values.copy() for name, values in scores.items()}
        self.active = self._of(answer)
        survived = overlap(grown, self.active) / max(1, count(grown)) if grown else None
        self._emit("prune", answer, budget, before=before, survival=survived)
        self.elastic.save_awake()
        self.elastic.resize(self.active)

    def _wake(self) -> None:
        self.elastic.save_awake()
        positions = self.elastic.positions(self.active)
        self.elastic.reset_slots(except_=positions)
        if self.config.reactivate == "zero":
            self.elastic.zero_values(except_=positions)
        self.elastic.resize({})

    def _grow(self) -> None:
        scores = self._collect() if self.config.grow == "importance" else self._random_scores(1 + self.cycle)
        frozen = self.elastic.positions(self.active) if self.config.freeze else None
        self.elastic.save_awake(except_=frozen)
        budget = self.budget_ms(self.cycle)
        before = self.active
        answer = self._solve(scores, budget, standing=self.active)
        self.active = self._of(answer)
        self._grown = {n: np.setdiff1d(u, before[n]) for n, u in self.active.items()}
        for name, values in scores.items():  # Theta_K keeps what it earned before the prune
            standing = before.get(name)
            merged = values.copy()
            if standing is not None and name in self.scores:
                merged[standing] = self.scores[name][standing]
            self.scores[name] = merged
        self._emit("grow", answer, budget, before=before, grown=count(self._grown))
        self.elastic.resize(self.active)

    def _settle(self) -> None:
        """Correct the last structure until it meets the target as measured, if it can be measured."""
        if self.measure is None:
            return
        measure = self.measure
        trials = meet_as_measured(self._nearest, lambda answer: measure(answer.keep), self.psi_ms)
        best = trials[0]
        before = self.active
        self.elastic.save_awake()
        self.active = self._of(best.answer)
        self._emit(
            "settle", best.answer, best.budget_ms, before=before, measured_ms=best.measured_ms, trials=len(trials)
        )
        self.elastic.resize(self.active)

    def _nearest(self, budget_ms: float) -> Answer:
        """Under the present latency pruned from Theta_K, above it grown from Theta_P."""
        if self.cost.predict(self.widths) > budget_ms:
            return self._solve(self.scores, budget_ms, active=self.active)
        return self._solve(self.scores, budget_ms, standing=self.active)

    def slim(self) -> nn.Module:
        """The network with the active structure, as `ChannelGraph.slim` gives it and proves it.

        The model itself is as small already; this one also carries the recipe that
        `halp_iee.save` needs.
        """
        self.elastic.save_awake()
        dense = copy.deepcopy(self.graph.model)
        with torch.no_grad():
            for name, tensor in {**dict(dense.named_parameters()), **dict(dense.named_buffers())}.items():
                tensor.copy_(self.elastic.store[name])
        return replace(self.graph, model=dense).slim(self.active)

    def _emit(self, kind: str, answer: Answer, budget_ms: float, before: Units | None = None, **more: Any) -> None:
        if self.on_event is None:
            return
        after = self._of(answer)
        previous = self._previous.get(kind)
        self._previous[kind] = after
        self.on_event({
            "kind": kind, "cycle": self.cycle, "budget_ms": budget_ms, "latency_ms": answer.latency_ms,
            "value": answer.value, "gap": answer.gap, "solver": answer.solver, "seconds": answer.seconds,
            "iou": None if previous is None else iou(previous, after),
            "changed": None if before is None else count(before) + count(after) - 2 * overlap(before, after),
            "widths": dict(answer.widths), **more,
        })  # fmt: skip

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain data from which `load_state_dict` goes on bit for bit."""
        return {
            "tensors": {
                **self.elastic.state_tensors(),
                **{f"sum/{n}": v.clone() for n, v in self._sums.items()},
                **{f"score/{n}": torch.from_numpy(v.copy()) for n, v in self.scores.items()},
            },
            "meta": {
                "stage": self.stage, "cycle": self.cycle, "left": self._left, "batches": self._batches,
                "active": to_lists(self.active), "awake": to_lists(self.elastic.keep),
                "grown": to_lists(self._grown),
                "previous": {k: to_lists(s) for k, s in self._previous.items()},
            },
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`. The model is left at the size it had; load its values and the optimizer's after."""
        tensors, meta = state["tensors"], state["meta"]
        self.stage, self.cycle, self._left = meta["stage"], meta["cycle"], meta["left"]
        self._batches = meta["batches"]
        self.active = from_lists(meta["active"])
        self._grown = from_lists(meta["grown"])
        self._previous = {kind: from_lists(structure) for kind, structure in meta["previous"].items()}
        self._sums = {k.removeprefix("sum/"): v.clone() for k, v in tensors.items() if k.startswith("sum/")}
        self.scores = {k.removeprefix("score/"): v.numpy().copy() for k, v in tensors.items() if k.startswith("score/")}
        self.elastic.load_state(tensors, from_lists(meta["awake"]))
        if self.stage == "done":
            self._hook.remove()
