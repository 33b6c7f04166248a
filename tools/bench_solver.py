"""Solve the width problem of well-known networks on latency tables, beside HALP's solver and CP-SAT.

For every network and target: importance kept, the proved gap, the latency of the answer and the seconds, for

    joint       this project's default
    halp        the published knapsack, vectorised, its capacity corrected until the true latency holds
    halp-steps  the same as its authors run it: in ten exponential steps, p_in brought up to date at each
    recurrence  the published recurrence in plain Python, item by item, one shot (its true latency is printed: it
                may miss the budget); latencies in whole 1/1000 ms as in the paper; given up after --limit seconds,
                and then the share of its work that was done is said
    cp-sat      OR-Tools on coarser widths (--cp-sat-step), with its seconds to the gap that joint has on the same
                widths (row joint with that step); given up after --limit seconds a reading

Every answer has been checked by code that is not a solver's. The importance is the magnitude of the initial weights.
Rows are kept in --work, so the bench can be run in pieces; --markdown writes all that is there.

    python tools/bench_solver.py --work DIR [--gpu titanv] [--batch 64] [--tables DIR] [--only NAME] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from halp_iee.errors import HalpError, TargetError
from halp_iee.solve import Answer, build, solve
from halp_iee.solve.halp import modelled_ms

NETWORKS = (
    "resnet50", "resnet152", "mobilenet_v2", "efficientnet_b0", "regnet_y_400mf", "googlenet", "densenet121",
)  # fmt: skip
SOLVERS = ("joint", "halp", "halp-steps", "recurrence", "cp-sat")
PER_MS = 1000
_FIRST = 0.9
"""Share of the dense latency that is solved for before anything is timed."""


def question(name: str, options: Any) -> tuple[Any, Any]:
    """The latency model of a network and one score a unit."""
    import torch

    from halp_iee import models, trace
    from halp_iee.cli.progress import Bars
    from halp_iee.importance import score
    from halp_iee.latency import LatencyModel, LatencyTable
    from halp_iee.run import stages
    from halp_iee.run.job import DeviceChoice

    torch.manual_seed(0)
    network = models.build(name)
    shape = tuple(options.input_shape) if options.input_shape else models.default_input_shape(name)
    graph = trace(network, torch.randn(options.batch, *shape))
    if options.tables is not None:
        table = LatencyTable.load(options.tables / f"{name}.jsonl")
    else:
        choice = DeviceChoice(name=options.gpu, batch=options.batch)
        table = stages.find_or_make_table(graph, name, choice, shape, Bars()).table
    scores = score("magnitude_l2", network, graph, seed=0)
    return LatencyModel(graph, table), {group: np.asarray(s) for group, s in scores.items()}


def recurrence(
    cost: Any, scores: Mapping[str, Any], budget_ms: float, step: int, limit_s: float
) -> tuple[float, float, float] | float:
    """(importance, true ms, seconds) of the published knapsack over single units, in plain Python.

    Items in falling order of importance a group, each taken only after the one before it (a unit's predecessor is
    tracked a capacity, as in the reference); negative costs count as 0. Where the limit is reached, the share of its
    items that were done.
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
    if capacity < 0:  # with p_in held at dense not even the narrowest outputs fit: it can only take those
        return problem.value(problem.least), problem.predict_ms(problem.least), time.perf_counter() - start
    best = [0.0] * (capacity + 1)
    taken = [[0] * len(problem.groups) for _ in range(capacity + 1)]
    for done, (g, i, weight, value) in enumerate(items):
        if time.perf_counter() - start > limit_s:
            return done / len(items)
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


def cp_sat_to(
    cost: Any, scores: Mapping[str, Any], budget_ms: float, step: int, gap: float, limit_s: float
) -> tuple[Answer, float]:
    """CP-SAT's answer and seconds, its time limit raised fourfold until its gap is the one given or all is spent."""
    limit = min(1.0, limit_s)
    while True:
        start = time.perf_counter()
        answer = solve(cost, scores, budget_ms, "cp-sat", steps=step, time_limit_s=limit)
        spent = time.perf_counter() - start
        if answer.gap <= max(gap, 1e-4) or limit >= limit_s:
            return answer, spent
        limit = min(4.0 * limit, limit_s)


def row_of(solver: str, cost: Any, scores: Any, budget_ms: float, options: Any) -> dict[str, Any]:
    """What one solver does with one question."""
    found: dict[str, Any] = {"step": options.step}
    cpu = time.process_time()
    try:
        if solver == "recurrence":
            one = recurrence(cost, scores, budget_ms, options.step, options.limit)
            if isinstance(one, float):
                found |= {"note": f"given up after {options.limit:g} s with {100 * one:.1f}% of its items done"}
            else:
                found |= {"value": one[0], "ms": one[1], "s": one[2]}
        elif solver == "halp-steps":
            value, ms, seconds = halp_in_steps(cost, scores, budget_ms, options.step)
            found |= {"value": value, "ms": ms, "s": seconds}
        elif solver == "cp-sat":
            found["step"] = options.cp_sat_step
            same = solve(cost, scores, budget_ms, steps=options.cp_sat_step)
            cpu = time.process_time()
            answer, seconds = cp_sat_to(cost, scores, budget_ms, options.cp_sat_step, same.gap, options.limit)
            found |= {"value": answer.value, "ms": answer.latency_ms, "gap": answer.gap, "s": seconds}
            reached = answer.gap <= max(same.gap, 1e-4)
            taken = f"{seconds:.1f} s" if reached else f"> {options.limit:g} s"
            found["note"] = f"to joint's gap there: {taken}, joint {100 * same.gap:.4f}% in {same.seconds:.2f} s"
        else:
            answer = solve(cost, scores, budget_ms, solver, steps=options.step)
            found |= {"value": answer.value, "ms": answer.latency_ms, "gap": answer.gap, "s": answer.seconds}
    except TargetError:
        found["note"] = "under the floor"
    except HalpError as error:
        found["note"] = error.why
    return found | {"cpu_s": time.process_time() - cpu}


_ABOUT = """# The solver

What `tools/bench_solver.py` printed: well-known networks, importance the magnitude of the initial weights. Every answer
was checked by code that is not a solver's. "gap" is proved: no widths within the budget keep more than that much more
importance. A latency marked "over" missed its budget. `joint`, `halp` and the published methods work on widths in steps
of one channel, CP-SAT on the steps given, and its note says how long it takes to the gap that `joint` proves on those.
One thread (CP-SAT: one a core), after one solve that is not timed: the first also pays for memory. Work is counted in
table entries, so answers do not depend on the load of the machine; "s" does, and "CPU s" less so.
"""
HEADERS = ("network", "target", "solver", "step", "importance %", "of dense", "gap %", "s", "CPU s", "note")
WIDTHS = (16, 6, 10, 4, 12, 12, 8, 7, 7, 0)


def cells(row: Mapping[str, Any]) -> list[str]:
    """One line of the table."""
    line = [row["network"], f"{row['target']:g}", row["solver"], str(row["step"])]
    if "value" in row:
        over = "" if row["ms"] <= row["budget_ms"] * (1 + 1e-9) else " over"
        line += [f"{100 * row['value'] / row['whole']:.3f}", f"{row['ms'] / row['dense_ms']:.4f}{over}"]
        line += [f"{100 * row['gap']:.4f}" if "gap" in row else "", f"{row['s']:.2f}", f"{row['cpu_s']:.2f}"]
    else:
        line += [""] * 5
    return [*line, row.get("note", "")]


def _beside(joint: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> str:
    """What is left open, over the budget or below `halp`, in words."""
    wide = [f"{row['network']} at {row['target']:g} {100 * row['gap']:.2f}%" for row in joint if row["gap"] > 1e-3]
    over = [row for row in joint if row["ms"] > row["budget_ms"] * (1 + 1e-9)]
    halp = {(row["network"], row["target"]): row for row in rows if row["solver"] == "halp" and "value" in row}
    pairs = [(row, halp[key]) for row in joint if (key := (row["network"], row["target"])) in halp]
    below = [one for one, other in pairs if one["value"] < other["value"] * (1 - 1e-9)]
    said = f"Gaps over 0.1%: {', '.join(wide) or 'none'}. Over the budget: {len(over)} of {len(joint)}."
    return said + (f" Less importance than halp: {len(below)} of {len(pairs)}." if pairs else "")


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """All rows, one table a title."""
    lines = [
        *_ABOUT.splitlines(),
        f"Python {platform.python_version()}, numpy {np.__version__}, {os.cpu_count()} cores shared with other work.",
    ]
    for title in dict.fromkeys(row["title"] for row in rows):
        here = [row for row in rows if row["title"] == title]
        joint = [row for row in here if row["solver"] == "joint" and "gap" in row]
        lines += ["", f"## {title}", ""]
        if joint:
            worst = max(joint, key=lambda row: row["gap"])
            slow = max(joint, key=lambda row: row["cpu_s"])
            lines += [
                f"joint: largest gap {100 * worst['gap']:.4f}% ({worst['network']} at {worst['target']:g}), most CPU "
                f"time {slow['cpu_s']:.2f} s ({slow['network']} at {slow['target']:g}). {_beside(joint, here)}", "",
            ]  # fmt: skip
        lines += [f"| {' | '.join(HEADERS)} |", "|" + " --- |" * len(HEADERS)]
        lines += [f"| {' | '.join(cells(row))} |" for row in here]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="where the rows are kept")
    parser.add_argument("--title", default=None, help="heading of these rows")
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--cp-sat-step", type=int, default=16)
    parser.add_argument("--limit", type=float, default=20.0, help="seconds for recurrence and a reading of cp-sat")
    parser.add_argument("--targets", type=float, nargs="+", default=[0.2, 0.3, 0.55, 0.8])
    parser.add_argument("--solvers", nargs="+", default=["joint", "halp"], choices=SOLVERS)
    parser.add_argument("--only", nargs="*", default=list(NETWORKS))
    parser.add_argument("--gpu", default="titanv")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--input-shape", type=int, nargs=3, default=None)
    parser.add_argument("--tables", type=Path, default=None, help="a folder with NETWORK.jsonl")
    parser.add_argument("--markdown", type=Path, default=None, help="write all rows there")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    kept = options.work / "rows.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    for name in options.only:
        if options.tables is not None and not (options.tables / f"{name}.jsonl").is_file():
            print(f"{name}: no table", flush=True)
            continue
        cost: Any = None
        title = options.title or f"{options.gpu}, batch {options.batch}"
        for target in options.targets:
            for solver in options.solvers:
                key = (title, name, target, solver)
                if any((r["title"], r["network"], r["target"], r["solver"]) == key for r in rows):
                    continue
                if cost is None:
                    cost, scores = question(name, options)
                    # Memory that the process never had before is dear to get on some machines: get it once, untimed.
                    solve(cost, scores, _FIRST * float(cost.predict({})), steps=options.step)
                dense_ms = float(cost.predict({}))
                row = {
                    "title": title, "network": name, "source": cost.source, "target": target, "solver": solver,
                    "dense_ms": dense_ms, "budget_ms": target * dense_ms,
                    "whole": sum(float(np.sum(s)) for s in scores.values()),
                }  # fmt: skip
                row |= row_of(solver, cost, scores, target * dense_ms, options)
                rows.append(row)
                print("  ".join(c.rjust(w) for c, w in zip(cells(row), WIDTHS, strict=True)), flush=True)
                with kept.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    if options.markdown is not None:
        options.markdown.write_text(markdown(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
