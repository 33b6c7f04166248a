"""`halp-iee frontier`: importance against latency, before anyone trains."""

from __future__ import annotations

from typing import Any

import click

from halp_iee.cli import options, show
from halp_iee.cli.progress import Bars


@click.command("frontier")
@options.model
@click.option(
    "--weights", default=None, metavar="FILE", help="Safetensors file with the trained weights of the network."
)
@click.option(
    "--importance", "criterion", default="magnitude_l2", show_default=True, metavar="NAME",
    help="How units are judged, by their weights: magnitude_l1, magnitude_l2, bn_scale or random.",
)  # fmt: skip
@click.option("--points", type=click.IntRange(2, 200), default=12, show_default=True, help="How many budgets.")
@options.input_shape
@options.device
@options.seed
@options.json_flag
def command(
    model: str,
    weights: str | None,
    criterion: str,
    points: int,
    input_shape: tuple[int, ...] | None,
    seed: int,
    as_json: bool,
    **device: Any,
) -> int:
    """Sweep importance against latency without training.

    Solves for the best widths at many budgets between the floor, which no pruning gets under, and the dense latency.
    """
    import torch

    from halp_iee import models, trace
    from halp_iee.cli.assemble import device_choice
    from halp_iee.errors import UsageError
    from halp_iee.importance import CRITERIA, NEEDS_GRADIENTS, score
    from halp_iee.latency import LatencyModel
    from halp_iee.run import stages
    from halp_iee.solve.frontier import frontier
    from halp_iee.train.weights import load_weights

    by_weight = [name for name in CRITERIA if name not in NEEDS_GRADIENTS]
    if criterion not in by_weight:
        raise UsageError(
            f"cannot judge channels by {criterion!r} here",
            f"without data there are {', '.join(by_weight)}",
            "choose one",
        )
    choice, bars = device_choice(**device), Bars()
    torch.manual_seed(seed)
    network = models.build(model)
    if weights is not None:
        load_weights(network, weights)
    shape = input_shape or models.default_input_shape(model)
    graph = trace(network, torch.randn(choice.batch, *shape))
    made = stages.find_or_make_table(graph, model, choice, shape, bars)
    cost = LatencyModel(graph, made.table)
    scores = score(criterion, network, graph, seed=seed)
    whole = sum(float(s.sum()) for s in scores.values())
    with bars.task("solving"):
        answers = frontier(cost, scores, points)
    rows: list[dict[str, Any]] = [
        {
            "latency_ms": a.latency_ms, "fraction": a.latency_ms / cost.dense_ms, "importance": a.value / whole,
            "gap": a.gap, "widths": a.widths,
        }
        for a in answers
    ]  # fmt: skip
    if as_json:
        show.emit_json({
            "model": model, "device": made.table.device, "source": made.table.source, "dense_ms": cost.dense_ms,
            "floor_ms": rows[0]["latency_ms"], "points": rows,
        })  # fmt: skip
        return 0
    click.echo(
        f"{model} on {made.table.device}, latencies summed from a {made.table.source} table, importance {criterion}\n"
    )
    cells = [
        [f"{r['latency_ms']:.4g}", f"{r['fraction']:.2f}", f"{100 * r['importance']:.1f}%", f"{100 * r['gap']:.3f}%"]
        for r in rows
    ]
    bars_ = ["#" * round(40 * r["importance"]) for r in rows]
    headers = ["latency ms", "of dense", "importance kept", "gap at most", ""]
    click.echo(show.table(headers, [[*c, bar] for c, bar in zip(cells, bars_, strict=True)]))
    return 0
