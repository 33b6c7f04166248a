"""What is asked of the solver besides the target: limits on the widths, more budgets, or the least latency."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from halp_iee.errors import UsageError
from halp_iee.run.target import Target
from halp_iee.solve import Answer, solve, solve_all, solve_latency

if TYPE_CHECKING:
    from halp_iee.graph import ChannelGraph
    from halp_iee.latency import LatencyModel


@dataclass(frozen=True)
class Budget:
    """Another budget that the same network must hold: a latency table, and a target as in ``--latency-target``."""

    table: str
    target: Target

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``TABLE=TARGET``.

        Raises:
            UsageError: it has another form, or the target is none.
        """
        table, found, target = text.rpartition("=")
        if not found or not table.strip():
            raise UsageError(
                f"cannot read the budget {text!r}", "it is not TABLE=TARGET", "give e.g. titanv.jsonl=0.5 or tx2=20ms"
            )
        return cls(table.strip(), Target.parse(target))

    def __str__(self) -> str:
        return f"{self.table}={self.target}"


@dataclass(frozen=True)
class Question:
    """How the widths are asked for.

    Attributes:
        min_fraction: least share of its units that a group keeps; never under one unit.
        width_step: widths are multiples of it, or a group's whole size.
        also: further budgets that the same widths must hold, in the order given.
        keep_importance: a share of all importance: then the least latency that keeps it is looked for.
        allow_block_removal: residual branches may be removed whole.
    """

    min_fraction: float = 0.0
    width_step: int = 1
    also: tuple[Budget, ...] = ()
    keep_importance: float | None = None
    allow_block_removal: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.min_fraction <= 1.0:
            raise UsageError("the widths cannot be limited", f"min_fraction is {self.min_fraction!r}", "give 0 to 1")
        if self.width_step < 1:
            raise UsageError("the widths cannot be limited", f"width_step is {self.width_step!r}", "give 1 or more")
        if self.keep_importance is not None and not 0.0 < self.keep_importance <= 1.0:
            raise UsageError(
                "no widths can keep that importance", f"keep_importance is {self.keep_importance!r}",
                "give a share above 0 and up to 1",
            )  # fmt: skip
        if self.keep_importance is not None and self.also:
            raise UsageError(
                "two questions at once", "an importance to keep and further budgets were given", "leave one out"
            )

    def limits(self, sizes: Mapping[str, int]) -> dict[str, Any]:
        """The keyword arguments that the solvers take, for groups of these sizes."""
        least = {name: max(1, math.ceil(self.min_fraction * size - 1e-9)) for name, size in sizes.items()}
        return {"min_units": least, "steps": self.width_step}

    def config(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "min_fraction": self.min_fraction, "width_step": self.width_step,
            "also": [str(budget) for budget in self.also], "keep_importance": self.keep_importance,
            "allow_block_removal": self.allow_block_removal,
        }  # fmt: skip


def priced(question: Question, graph: ChannelGraph, model: Any) -> Any:
    """The cost model in which branches may be removed, where that is asked for.

    Raises:
        UsageError: it is asked for, and the network has no branch that can be removed.
    """
    if not question.allow_block_removal:
        return model
    from halp_iee.solve.branches import WithBranches

    if not graph.branches:
        raise UsageError(
            "no branch can be removed whole",
            "the network has none that one module adds to its own input and nothing else reads",
            "leave --allow-block-removal out",
        )
    return WithBranches(model, graph.branches)


def further(question: Question, graph: ChannelGraph) -> dict[str, tuple[Any, float]]:
    """The further budgets: as given -> (cost model, target in ms).

    Raises:
        TableError: a table that is not there or does not cover the network.
    """
    others: dict[str, tuple[Any, float]] = {}
    for budget in question.also:
        model = _model(graph, budget.table)
        target_ms = budget.target.resolve_ms(model.dense_ms, model.table.batch)
        others[str(budget)] = (priced(question, graph, model), target_ms)
    return others


def answerer(
    question: Question, graph: ChannelGraph, cost: LatencyModel, scores: Mapping[str, np.ndarray], solver: str
) -> Callable[[float], Answer]:
    """The best widths as a function of the budget in ms, under everything else that is asked.

    Raises:
        UsageError: several budgets, or an importance to keep, with another solver than ``joint``.
        TableError: a table that is not there or does not cover the network.
    """
    if question.allow_block_removal and solver == "halp":
        raise UsageError(
            "the solver halp cannot answer this", "branches may be removed, and it looks at one group at a time",
            "use --solver joint or cp-sat",
        )  # fmt: skip
    limits = question.limits({name: len(values) for name, values in scores.items()})
    if (question.also or question.keep_importance is not None) and solver != "joint":
        raise UsageError(
            f"the solver {solver} cannot answer this", "it takes one budget and nothing else", "use --solver joint"
        )
    if question.keep_importance is not None:
        share = question.keep_importance
        wanted = share * sum(math.fsum(np.asarray(values, dtype=np.float64)) for values in scores.values())
        return lambda _: solve_latency(cost, scores, wanted * (1.0 - 1e-12), **limits).answer
    if not question.also:
        return lambda budget_ms: solve(cost, scores, budget_ms, solver, **limits)
    others = further(question, graph)

    def solve_at(budget_ms: float) -> Answer:
        answer, spent = solve_all({"": (cost, budget_ms), **others}, scores, **limits)
        # The caller corrects its own budget, whichever of them binds.
        return replace(answer, latency_ms=spent[""], budget_ms=budget_ms)

    return solve_at


def _model(graph: ChannelGraph, table: str) -> LatencyModel:
    from halp_iee.latency import LatencyModel, LatencyTable
    from halp_iee.latency.table import find

    path = Path(table)
    return LatencyModel(graph, LatencyTable.load(path if path.is_file() else find(table)))
