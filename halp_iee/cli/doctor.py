"""`halp-iee doctor`: what a target will do, before anyone trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from halp_iee.cli import options, show
from halp_iee.cli.frontier import html_option, importance_option, prepare, weights_option
from halp_iee.cli.progress import Bars
from halp_iee.run.target import Target

_CURVES = 4


@click.command("doctor", cls=show.Command)
@options.model
@options.target
@weights_option
@importance_option
@html_option
@options.input_shape
@options.device
@options.seed
@options.json_flag
def command(
    model: str,
    target: Target,
    weights: str | None,
    criterion: str,
    html: Path | None,
    input_shape: tuple[int, ...] | None,
    seed: int,
    as_json: bool,
    **device: Any,
) -> int:
    """Say what a latency target will do to a network, before anyone trains.

    Where the time goes, what no width changes, the floor under which no pruning gets, which layers sit just above a
    step and how many channels to drop, which widths are traps, and what pruning by MACs would have cost. Exit code 4
    when the target is under the floor.

    \b
      halp-iee doctor --model resnet50 --gpu titanv --latency-target 0.3 --html doctor.html
    """
    from halp_iee.doctor import diagnose
    from halp_iee.doctor.diagnosis import curve_ms
    from halp_iee.doctor.page import write_diagnosis
    from halp_iee.doctor.words import headline, sentences

    bars = Bars()
    found = prepare(model, weights, criterion, input_shape, seed, device, bars)
    table = found.table
    budget_ms = target.resolve_ms(found.cost.dense_ms, table.batch)
    with bars.task("solving"):
        diagnosis = diagnose(
            found.cost, found.scores, budget_ms, found.graph.groups, device=table.device, batch=table.batch
        )
    if html is not None:
        named = dict.fromkeys([*(s.group for s in diagnosis.steps), *(t.group for t in diagnosis.traps)])
        drawn = list(named)[:_CURVES]
        curves = {g: curve_ms(found.cost, g, len(found.scores[g])).tolist() for g in drawn}
        write_diagnosis(html, model, diagnosis, curves)
    if as_json:
        page = None if html is None else str(html)
        show.emit_json({"model": model, "target": str(target), **diagnosis.to_json(), "html": page})
    else:
        show.line(headline(model, diagnosis) + "\n")
        for line in sentences(model, diagnosis):
            show.line(f"- {line}")
        rows = [
            [
                row.name, f"{row.c_in} -> {row.c_out}", f"{row.dense_ms:.4g}", f"{100 * row.share:.1f}%",
                "" if row.chosen_ms is None else f"{row.chosen_c_in} -> {row.chosen_c_out}",
                "" if row.chosen_ms is None else f"{row.chosen_ms:.4g}",
            ]
            for row in diagnosis.layers[:12]
        ]  # fmt: skip
        show.line("\n" + show.table(["layer", "channels", "ms", "share", "at the target", "ms"], rows))
        if html is not None:
            show.line(f"\npage     {html}")
    return 0 if diagnosis.reachable else 4
