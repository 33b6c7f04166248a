"""What the searches for a structure under a latency share: judging, solving, resizing, meeting the target.

IEE and HALP differ in when they prune, wake and grow; everything else is here.
"""

from __future__ import annotations

import copy
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from halp_iee.errors import TargetError, UsageError
from halp_iee.importance import NEEDS_GRADIENTS, score
from halp_iee.methods.elastic import ElasticNetwork
from halp_iee.methods.meet import Band, meet_as_measured
from halp_iee.methods.structure import Units, count, from_lists, iou, overlap, prunable_sizes, to_lists
from halp_iee.solve import Answer, floor_ms, solve
from halp_iee.train.method import Method
from halp_iee.train.processes import Processes

if TYPE_CHECKING:
    from halp_iee.graph import ChannelGraph
    from halp_iee.latency import LatencyModel

Event = dict[str, Any]

_SETTLED = Band(0.955, 0.975)
"""Lower than what is only pruned aims at: when the training is over, a last measurement cannot be corrected for."""

_LAST_GAP, _PASSING_GAP = 5e-4, 2e-3
"""Within how much of the best a decision is proved. For one that a later one replaces, closer proofs only take time."""


class SearchConfig(Protocol):
    """The settings that every search has."""

    @property
    def criterion(self) -> str: ...
    @property
    def solver(self) -> str: ...
    @property
    def min_fraction(self) -> float: ...
    @property
    def seed(self) -> int: ...


class LatencySearch(Method):
    """Base of the methods that find a structure under a latency while the network trains.

    The model is always as large as what is trained: dormant units lie in a store. In several processes the
    first one decides and the others follow, so the structure is the same everywhere.

    Args:
        model: the dense network that `graph` was traced from. It is changed in place.
        graph: its channel graph.
        cost: predicts the latency of any widths, in ms.
        target: fraction of the dense latency; or give `target_ms`.
        optimizer: the optimizer over the model's parameters, or a wrapper of it; it is kept in step.
        target_ms: Psi in ms, instead of `target`.
        config: the settings.
        measure: times a structure in the deployment runtime, in ms. If given, the last structure
            is corrected until it meets the target as measured.
        on_event: called with a record of every decision.
        local_gradients: in several processes without DistributedDataParallel, each has the gradients of its
            own images only; then they are summed for judging, since the importance of a unit is
            |sum of g|, not the mean of |g|.

    Raises:
        UsageError: a target outside (0, 1], or an optimizer of another model.
        TargetError: no structure is as fast as that, or nothing can be pruned.
    """

    config: SearchConfig
    stage: str

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        cost: LatencyModel,
        target: float = 0.3,
        *,
        optimizer: torch.optim.Optimizer,
        target_ms: float | None = None,
        config: SearchConfig,
        measure: Callable[[Units], float] | None = None,
        on_event: Callable[[Event], None] | None = None,
        local_gradients: bool = False,
    ) -> None:
        if target_ms is None and not 0.0 < target <= 1.0:
            raise UsageError(
                f"the latency target {target!r} is not a fraction",
                "it must lie in (0, 1]",
                "give for example 0.3 for 30% of the dense latency",
            )
        if graph.model is model:  # the graph needs the dense network, and this one is about to shrink
            graph = replace(graph, model=copy.deepcopy(model))
        self.graph, self.cost, self.config = graph, cost, config
        self.psi_ms = target * cost.dense_ms if target_ms is None else target_ms
        self.measure, self.on_event, self.local_gradients = measure, on_event, local_gradients
        self.cycle = 0
        self.scores: dict[str, np.ndarray] = {}
        self.overhead_seconds: dict[str, float] = {}
        self._previous: dict[str, Units] = {}
        self._sums: dict[str, Tensor] = {}
        self._batches = 0
        self.elastic = ElasticNetwork(model, graph, optimizer)
        self.active: Units = {name: np.arange(size) for name, size in prunable_sizes(graph).items()}
        self._hook = self.elastic.optimizer.register_step_pre_hook(self._before_optimizer_step)

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
    def phase(self) -> str:
        return "train" if self.done else self.stage

    @property
    def target_ms(self) -> float:
        return self.psi_ms

    def evaluation(self, model: nn.Module | None = None) -> AbstractContextManager[object]:
        """Within it the model (or its average) computes what its active structure alone computes."""
        return nullcontext()

    def follow(self, average: nn.Module) -> None:
        """Resize `average`, a copy of the model (EMA), with the model, each value with its own."""
        self.elastic.follow(average)

    # Judging

    @abstractmethod
    def _judging(self) -> bool:
        """Whether importance is being accumulated."""

    def _before_optimizer_step(self, _: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Judge when the gradients are there: now, or where a closure makes them (Lightning), after it."""
        closure = next((given for given in (*args[1:], *kwargs.values()) if callable(given)), None)
        if closure is None:
            self._observe()
            return None

        def observed() -> Any:
            result = closure()
            self._observe()
            return result

        return (*args[:1], observed), {}

    def _observe(self) -> None:
        """Accumulate I while gradients and the values they belong to are both at hand."""
        if not self._judging():
            return
        since = time.perf_counter()
        with self._summed_gradients():
            now = score(
                self.config.criterion, self.elastic.model, self.graph, positions=self.elastic.now,
                seed=1000 * self.config.seed + self.cycle,
            )  # fmt: skip
        if all(torch.isfinite(values).all() for values in now.values()):  # else the optimizer is led astray too
            for name, values in now.items():
                self._sums[name] = self._sums[name] + values if name in self._sums else values
            self._batches += 1
        self._spent("importance", since)

    def _summed_gradients(self) -> AbstractContextManager[object]:
        if not self.local_gradients or Processes.here().world == 1 or self.config.criterion not in NEEDS_GRADIENTS:
            return nullcontext()
        return _SummedGradients(self.elastic.model)

    def _collect(self) -> dict[str, np.ndarray]:
        if not self._batches:  # with Q = 0 nothing was observed: the last knowledge stands
            return dict(self.scores)
        return {name: (total / self._batches).cpu().numpy() for name, total in self._sums.items()}

    def _forget(self) -> None:
        self._sums, self._batches = {}, 0

    # Deciding

    @abstractmethod
    def _last(self) -> bool:
        """Whether what is decided now stands."""

    def _least(self) -> dict[str, int]:
        return {n: max(1, round(size * self.config.min_fraction)) for n, size in prunable_sizes(self.graph).items()}

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
        since = time.perf_counter()
        gap = _LAST_GAP if self._last() else _PASSING_GAP
        answer = Processes.here().once(
            lambda: solve(
                self.cost, scores, budget_ms, self.config.solver, min_units=self._least(), active=active,
                standing=standing, tolerance=gap,
            )
        )  # fmt: skip
        self._spent("solver", since)
        return answer

    def _solve_or_floor(self, scores: Mapping[str, np.ndarray], budget_ms: float) -> tuple[Answer, float]:
        """The best part of Theta_K within the budget, or its fastest part where none is; and the budget used.

        Psi can be above the floor and Psi - Omega under it: then as much is exchanged as there is.
        """
        try:
            return self._solve(scores, budget_ms, active=self.active), budget_ms
        except TargetError:
            floor = Processes.here().once(
                lambda: floor_ms(self.cost, scores, active=self.active, min_units=self._least())
            )
            return self._solve(scores, floor, active=self.active), floor

    def _settle(self) -> None:
        """Correct the last structure until it meets the target as measured, if it can be measured."""
        if self.measure is None:
            return
        measure = self.measure
        since = time.perf_counter()
        trials = meet_as_measured(
            self._nearest, lambda answer: Processes.here().once(lambda: measure(answer.keep)), self.psi_ms,
            band=_SETTLED,
        )  # fmt: skip
        self._spent("measurement", since)
        best = trials[0]
        before = self.active
        self.elastic.save_awake()
        self.active = self._of(best.answer)
        self._emit(
            "settle", best.answer, best.budget_ms, before=before, measured_ms=best.measured_ms, trials=len(trials)
        )
        self._resize(self.active)

    def _nearest(self, budget_ms: float) -> Answer:
        """Under the present latency pruned from Theta_K, above it grown from Theta_P."""
        if self.cost.predict(self.widths) > budget_ms:
            return self._solve(self.scores, budget_ms, active=self.active)
        return self._solve(self.scores, budget_ms, standing=self.active)

    def _resize(self, keep: Units) -> None:
        since = time.perf_counter()
        self.elastic.resize(keep)
        self._spent("surgery", since)

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

    def _spent(self, on: str, since: float) -> None:
        self.overhead_seconds[on] = self.overhead_seconds.get(on, 0.0) + time.perf_counter() - since

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
                "stage": self.stage, "cycle": self.cycle, "batches": self._batches,
                "active": to_lists(self.active), "awake": to_lists(self.elastic.keep),
                "previous": {k: to_lists(s) for k, s in self._previous.items()},
                "overhead_seconds": dict(self.overhead_seconds),
            },
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`. The model is left at the size it had; load its values and the optimizer's after."""
        tensors, meta = state["tensors"], state["meta"]
        self.stage, self.cycle, self._batches = meta["stage"], meta["cycle"], meta["batches"]
        self.active = from_lists(meta["active"])
        self._previous = {kind: from_lists(structure) for kind, structure in meta["previous"].items()}
        self.overhead_seconds = dict(meta["overhead_seconds"])
        self._sums = {k.removeprefix("sum/"): v.clone() for k, v in tensors.items() if k.startswith("sum/")}
        self.scores = {k.removeprefix("score/"): v.numpy().copy() for k, v in tensors.items() if k.startswith("score/")}
        self.elastic.load_state(tensors, from_lists(meta["awake"]))
        if self.done:
            self._hook.remove()


class _SummedGradients:
    """Within it every gradient is the sum over the processes; afterwards each has its own again."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.own: list[Tensor | None] = []

    def __enter__(self) -> None:
        import torch.distributed as dist

        self.own = [p.grad for p in self.parameters]
        for p in self.parameters:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad.clone()
            dist.all_reduce(p.grad)

    def __exit__(self, *_: object) -> None:
        for p, own in zip(self.parameters, self.own, strict=True):
            p.grad = own
