"""`halp-iee frontier`: importance against latency, before anyone trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from halp_iee.cli import options, show
from halp_iee.cli.progress import Bars

if TYPE_CHECKING:
    from halp_iee.graph import ChannelGraph
    from halp_iee.latency import LatencyModel, LatencyTable


weights_option = click.option(
    "--weights", default=None, metavar="FILE", help="Safetensors file with the trained weights of the network."
)
importance_option = click.option(
    "--importance", "criterion", default="magnitude_l2", show_default=True, metavar="NAME",
    help="How units are judged, by their weights: magnitude_l1, magnitude_l2, bn_scale or random.",
)  # fmt: skip
html_option = click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), default=None, metavar="FILE",
    help="Write a picture too: one self-contained page.",
)  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """A traced network, its table, its latency model and its units' scores."""

    graph: ChannelGraph
    table: LatencyTable
    cost: LatencyModel
    scores: dict[str, Any]


def prepare(
    model: str,
    weights: str | None,
    criterion: str,
    input_shape: tuple[int, ...] | None,
    seed: int,
    device: Mapping[str, Any],
    bars: Bars,
) -> Prepared:
    """Build, trace, find or make the table, and judge the units by their weights.

    Raises:
        UsageError: a criterion that needs data. HalpError: whatever of the rest is wrong.
    """
    import torch

    from halp_iee import models, trace
    from halp_iee.cli.assemble import device_choice
    from halp_iee.errors import UsageError
    from halp_iee.importance import CRITERIA, NEEDS_GRADIENTS, score
    from halp_iee.latency import LatencyModel
    from halp_iee.run import stages
    from halp_iee.train.weights import load_weights

    by_weight = [name for name in CRITERIA if name not in NEEDS_GRADIENTS]
    if criterion not in by_weight:
        raise UsageError(
            f"cannot judge channels by {criterion!r} here",
            f"without data there are {', '.join(by_weight)}",
            "choose one",
        )
    choice = device_choice(**device)
    torch.manual_seed(seed)
    network = models.build(model)
    if weights is not None:
        load_weights(network, weights)
    shape = input_shape or models.default_input_shape(model)
    graph = trace(network, torch.randn(choice.batch, *shape))
    made = stages.find_or_make_table(graph, model, choice, shape, bars)
    cost = LatencyModel(graph, made.table)
    return Prepared(graph, made.table, cost, dict(score(criterion, network, graph, seed=seed)))


@click.command("frontier", cls=show.Command)
@options.model
@weights_option
@importance_option
@click.option("--points", type=click.IntRange(2, 200), default=12, show_default=True, help="How many budgets.")
@options.width_limits
@options.allow_block_removal
@options.keep_importance
@options.also
@html_option
@options.input_shape
@options.device
@options.seed
@options.json_flag
def command(
    model: str,
    weights: str | None,
    criterion: str,
    points: int,
    min_fraction: float,
    width_step: int,
    allow_block_removal: bool,
    keep_importance: float | None,
    also: tuple[str, ...],
    html: Path | None,
    input_shape: tuple[int, ...] | None,
    seed: int,
    as_json: bool,
    **device: Any,
) -> int:
    """Sweep importance against latency without training.

    Solves for the best widths at many budgets between the floor, which no pruning gets under, and the dense latency.
    With --keep-importance also for the least latency that keeps that share; with --also every point holds that
    budget on that table too.

    \b
      halp-iee frontier --model resnet50 --html frontier.html
      halp-iee frontier --model resnet50 --also titanv-b32.jsonl=0.4
    """
    from halp_iee.run.question import Budget, Question, further, priced
    from halp_iee.solve import solve_latency
    from halp_iee.solve.frontier import frontier, frontier_all

    budgets = tuple(Budget.parse(text) for text in also)
    question = Question(min_fraction, width_step, budgets, keep_importance, allow_block_removal)

    bars = Bars()
    found = prepare(model, weights, criterion, input_shape, seed, device, bars)
    table, scores = found.table, found.scores
    cost = priced(question, found.graph, found.cost)
    whole = sum(float(s.sum()) for s in scores.values())
    limits = question.limits({name: len(values) for name, values in scores.items()})
    fastest = None
    others = further(question, found.graph)
    spent_ms: list[dict[str, float]] = []
    with bars.task("solving"):
        if others:
            both = frontier_all(cost, others, scores, points, **limits)
            answers, spent_ms = [answer for answer, _ in both], [spent for _, spent in both]
        else:
            answers = frontier(cost, scores, points, **limits)
        if keep_importance is not None:
            fastest = solve_latency(cost, scores, keep_importance * whole * (1.0 - 1e-12), **limits)
            answers = sorted([*answers, fastest.answer], key=lambda a: (a.latency_ms, a.value))
    rows: list[dict[str, Any]] = [
        {
            "latency_ms": a.latency_ms, "fraction": a.latency_ms / cost.dense_ms, "importance": a.value / whole,
            "gap": a.gap, "widths": a.widths,
        }
        for a in answers
    ]  # fmt: skip
    for row, spent in zip(rows, spent_ms, strict=False):
        row["also_ms"] = spent
    held = "".join(f", within {ms:.4g} ms on {label.rpartition('=')[0]}" for label, (_, ms) in others.items())
    note = f"latencies summed from a {table.source} table, importance {criterion}{held}"
    if html is not None:
        from halp_iee.doctor.page import write_frontier

        write_frontier(html, f"{model}: importance against latency on {table.device}", note, cost.dense_ms, rows)
    if as_json:
        show.emit_json({
            "model": model, "device": table.device, "source": table.source, "dense_ms": cost.dense_ms,
            "floor_ms": rows[0]["latency_ms"], "also": {label: ms for label, (_, ms) in others.items()}, "points": rows,
            "fastest": None if fastest is None else {
                "keep_importance": keep_importance, "latency_ms": fastest.answer.latency_ms,
                "least_ms": fastest.least_ms, "gap": fastest.gap, "widths": fastest.answer.widths,
            },
            "html": None if html is None else str(html),
        })  # fmt: skip
        return 0
    show.line(f"{model} on {table.device}, {note}\n")
    cells = [
        [f"{r['latency_ms']:.4g}", f"{r['fraction']:.2f}", f"{100 * r['importance']:.1f}%", f"{100 * r['gap']:.3f}%"]
        for r in rows
    ]
    cells = [[*c, *(f"{ms:.4g}" for ms in r.get("also_ms", {}).values())] for c, r in zip(cells, rows, strict=True)]
    bars_ = ["#" * round(40 * r["importance"]) for r in rows]
    headers = ["latency ms", "of dense", "importance kept", "gap at most", *(f"ms, {label}" for label in others), ""]
    show.line(show.table(headers, [[*c, bar] for c, bar in zip(cells, bars_, strict=True)]))
    if fastest is not None:
        show.line(
            f"\n{100 * fastest.importance / whole:.4g}% of the importance takes {fastest.answer.latency_ms:.4g} ms, "
            f"{fastest.answer.latency_ms / cost.dense_ms:.3f} of dense; proved: not under {fastest.least_ms:.4g} ms"
        )
    return 0
