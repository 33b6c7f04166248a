"""Solve the width problem of well-known networks on latency tables, beside HALP's solver and CP-SAT.

For every network and target: importance kept, the proved gap, the latency of the answer and the seconds, for

    joint       this project's default
    halp        the published knapsack, vectorised, its capacity corrected until the true latency holds
    halp-steps  the same as its authors run it: in ten exponential steps, p_in brought up to date at each
    recurrence  the published recurrence in plain Python, item by item, one shot (its true latency is printed: it
                may miss the budget); latencies in whole 1/1000 ms as in the paper
    cp-sat      OR-Tools, with its seconds to the gap that joint reached, on coarser widths (--cp-sat-step)

Every answer has been checked by code that is not a solver's. The importance is the magnitude of the initial weights.

    python tools/bench_solver.py [--gpu titanv] [--batch 64] [--only resnet50] [--targets 0.3] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from halp_iee.errors import HalpError, TargetError
from halp_iee.solve import build, solve
from halp_iee.solve.halp import modelled_ms

NETWORKS = (
    "resnet50", "resnet152", "mobilenet_v2", "efficientnet_b0", "regnet_y_400mf", "googlenet", "densenet121",
)  # fmt: skip
SOLVERS = ("joint", "halp", "halp-steps", "recurrence", "cp-sat")
PER_MS = 1000
_MOST_ITEMS = 30_000_000


def question(name: str, gpu: str, batch: int, shape: tuple[int, ...] | None, table: str | None) -> tuple[Any, Any]:
    """The latency model of a network and one score a unit."""
    import torch

    from halp_iee import models, trace
    from halp_iee.cli.assemble import device_choice
    from halp_iee.cli.progress import Bars
    from halp_iee.importance import score
    from halp_iee.latency import LatencyModel
    from halp_iee.run import stages

    torch.manual_seed(0)
    network = models.build(name)
    shape = shape or models.default_input_shape(name)
    graph = trace(network, torch.randn(batch, *shape))
    choice = device_choice(
        gpu=gpu, source="auto", threads=1, batch=batch, table=table, time_budget_s=None, max_error=0.02
    )
    cost = LatencyModel(graph, stages.find_or_make_table(graph, name, choice, shape, Bars()).table)
    scores = score("magnitude_l2", network, graph, seed=0)
    return cost, {group: np.asarray(s) for group, s in scores.items()}


def recurrence(cost: Any, scores: Mapping[str, Any], budget_ms: float, step: int) -> tuple[float, float, float] | None:
    """(importance, true ms, seconds) of the published knapsack over single units, in plain Python.

    Items in falling order of importance a group, each taken only after the one before it (a unit's predecessor is
    tracked a capacity, as in the reference); negative costs count as 0. None where it would take minutes.
    """
    problem = build(cost, scores, budget_ms, steps=step)
    start = time.perf_counter()
    current = problem.most
    items: list[tuple[int, int, int, float]] = []
    base_ms = float(problem.latency_ms(current))
    for g, (group, curve) in enumerate(zip(problem.groups, modelled_ms(problem, current), strict=True)):
        base_ms += float(curve[0])
        for i in range(1, len(group.widths)):
            weight = max(0, round((float(curve[i]) - float(curve[i - 1])) * PER_MS))
            items.append((g, i, weight, float(group.values[i] - group.values[i - 1])))
    capacity = math.floor((budget_ms - base_ms) * PER_MS)
    if len(items) * (capacity + 1) > _MOST_ITEMS:
        return None
    if capacity < 0:  # with p_in held at dense not even the narrowest outputs fit: it can only take those
        return problem.value(problem.least), problem.predict_ms(problem.least), time.perf_counter() - start
    best = [0.0] * (capacity + 1)
    taken = [[0] * len(problem.groups) for _ in range(capacity + 1)]
    for g, i, weight, value in items:
        for room in range(capacity, weight - 1, -1):
            before = room - weight
            if taken[before][g] == i - 1 and best[before] + value > best[room]:
                best[room] = best[before] + value
                taken[room] = taken[before].copy()
                taken[room][g] = i
    widths = np.array([group.widths[i] for group, i in zip(problem.groups, taken[capacity], strict=True)])
    return problem.value(widths), problem.predict_ms(widths), time.perf_counter() - start


def halp_in_steps(cost: Any, scores: Mapping[str, Any], budget_ms: float, step: int) -> tuple[float, float, float]:
    """(importance, true ms, seconds) of the published solver in ten exponential steps to the budget."""
    start = time.perf_counter()
    dense_ms, keep, answer = cost.predict({}), None, None
    for k in range(1, 11):
        stage_ms = dense_ms * (budget_ms / dense_ms) ** (k / 10)
        answer = solve(cost, scores, stage_ms, "halp", active=keep, steps=step, as_published=True)
        keep = answer.keep
    assert answer is not None
    return answer.value, answer.latency_ms, time.perf_counter() - start


def cp_sat_to(cost: Any, scores: Mapping[str, Any], budget_ms: float, step: int, gap: float) -> tuple[Any, float]:
    """CP-SAT's answer and seconds, its time limit doubled until its gap is the one given or 20 s are over."""
    limit, spent = 1.0, 0.0
    while True:
        start = time.perf_counter()
        answer = solve(cost, scores, budget_ms, "cp-sat", steps=step, time_limit_s=limit)
        spent = time.perf_counter() - start
        if answer.gap <= max(gap, 1e-4) or limit >= 16.0:
            return answer, spent
        limit *= 4.0


def rows_of(name: str, cost: Any, scores: Any, target: float, solvers: Sequence[str], options: Any) -> list[list[str]]:
    dense_ms = float(cost.predict({}))
    budget_ms, rows, reached = target * dense_ms, [], 1e-3
    whole = sum(float(np.sum(s)) for s in scores.values())

    def row(solver: str, step: int, value: float, ms: float, gap: float | None, wall: float, cpu: float) -> None:
        met = "" if ms <= budget_ms * (1 + 1e-9) else " over"
        rows.append([
            name, f"{target:g}", solver, str(step), f"{100 * value / whole:.3f}", f"{ms / dense_ms:.4f}{met}",
            "" if gap is None else f"{100 * gap:.4f}", f"{wall:.2f}", f"{cpu:.2f}",
        ])  # fmt: skip
        print("  ".join(cell.rjust(w) for cell, w in zip(rows[-1], WIDTHS, strict=True)), flush=True)

    for solver in solvers:
        cpu = time.process_time()
        try:
            if solver == "recurrence":
                found = recurrence(cost, scores, budget_ms, options.recurrence_step)
                if found is not None:
                    row(solver, options.recurrence_step, *found[:2], None, found[2], time.process_time() - cpu)
            elif solver == "halp-steps":
                value, ms, wall = halp_in_steps(cost, scores, budget_ms, options.step)
                row(solver, options.step, value, ms, None, wall, time.process_time() - cpu)
            elif solver == "cp-sat":
                answer, wall = cp_sat_to(cost, scores, budget_ms, options.cp_sat_step, reached)
                row(
                    solver,
                    options.cp_sat_step,
                    answer.value,
                    answer.latency_ms,
                    answer.gap,
                    wall,
                    time.process_time() - cpu,
                )
            else:
                answer = solve(cost, scores, budget_ms, solver, steps=options.step)
                reached = answer.gap if solver == "joint" else reached
                row(
                    solver,
                    options.step,
                    answer.value,
                    answer.latency_ms,
                    answer.gap,
                    answer.seconds,
                    time.process_time() - cpu,
                )
        except TargetError:
            print(f"{name:>16}  {target:g}  {solver}: under the floor", flush=True)
            if solver == "joint":
                rows.append([name, f"{target:g}", "joint", str(options.step), "under the floor", "", "", "", ""])
                break
        except HalpError as error:
            print(f"{name:>16}  {target:g}  {solver}: {error}", flush=True)
    return rows


HEADERS = ("network", "target", "solver", "step", "importance %", "of dense", "gap %", "s", "CPU s")
WIDTHS = (16, 6, 10, 4, 12, 12, 8, 7, 7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--cp-sat-step", type=int, default=16)
    parser.add_argument("--recurrence-step", type=int, default=1)
    parser.add_argument("--targets", type=float, nargs="+", default=[0.2, 0.3, 0.55, 0.8])
    parser.add_argument("--solvers", nargs="+", default=["joint", "halp"], choices=SOLVERS)
    parser.add_argument("--only", nargs="+", default=list(NETWORKS))
    parser.add_argument("--gpu", default="titanv")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--input-shape", type=int, nargs=3, default=None)
    parser.add_argument("--table", default=None)
    parser.add_argument("--markdown", type=Path, default=None, help="append the results as a table")
    options = parser.parse_args()
    print("  ".join(header.rjust(w) for header, w in zip(HEADERS, WIDTHS, strict=True)))
    rows: list[list[str]] = []
    source = ""
    for name in options.only:
        shape = tuple(options.input_shape) if options.input_shape else None
        cost, scores = question(name, options.gpu, options.batch, shape, options.table)
        source = cost.source
        for target in options.targets:
            rows += rows_of(name, cost, scores, target, options.solvers, options)
    if options.markdown is not None:
        load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
        lines = [
            f"\nA {source} table of {options.gpu}, batch {options.batch}. {os.cpu_count()} cores, "
            f"Python {platform.python_version()}, numpy {np.__version__}, one thread, load average {load}.\n",
            f"| {' | '.join(HEADERS)} |", "|" + " --- |" * len(HEADERS), *(f"| {' | '.join(row)} |" for row in rows),
        ]  # fmt: skip
        with options.markdown.open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
