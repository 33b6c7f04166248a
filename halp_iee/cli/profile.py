"""`halp-iee profile`: a network's layers, timed over channel counts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from halp_iee.cli import options, show
from halp_iee.cli.progress import Bars

if TYPE_CHECKING:
    from halp_iee.graph import ChannelGraph
    from halp_iee.latency import LatencyTable
    from halp_iee.run.job import DeviceChoice


@click.command("profile", cls=show.Command)
@options.model
@options.input_shape
@options.device
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="The table's file; one that is there is continued.  [default: in the user's cache]",
)
@click.option(
    "--emit",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="Measure nothing; write what is to be measured, for `python -m halp_profiler run FILE` on the device itself.",
)
@click.option(
    "--devices",
    default=None,
    metavar="LIST",
    help="Several devices of one kind at once, a process each: cuda:0,cuda:1 or cpu:0,cpu:1.",
)
@options.json_flag
def command(
    model: str,
    input_shape: tuple[int, ...] | None,
    out: Path | None,
    emit: Path | None,
    devices: str | None,
    as_json: bool,
    **device: Any,
) -> int:
    """Time a network's layers over channel counts and write a latency table.

    What the table holds already is not measured again, so an interrupted sweep goes on when it is called again. For
    a device that is not attached the table is modelled from its datasheet, and says so in every line that uses it.

    \b
      halp-iee profile --model resnet50
      halp-iee profile --gpu titanv --model resnet50
      halp-iee profile --gpu cuda:0 --backend tensorrt --precision fp16 --model resnet50
      halp-iee profile --devices cuda:0,cuda:1 --model resnet50
    """
    import torch

    from halp_iee import models, trace
    from halp_iee.cli.assemble import device_choice
    from halp_iee.latency import LatencyModel
    from halp_iee.run import stages

    choice = device_choice(**device)
    bars = Bars()
    network = models.build(model)
    shape = input_shape or models.default_input_shape(model)
    graph = trace(network, torch.randn(choice.batch, *shape))
    if emit is not None:
        return _emit(graph, emit, choice, as_json)
    if devices is not None:
        table = _on_several(graph, model, devices, choice, bars, out)
    else:
        table = stages.find_or_make_table(graph, model, choice, shape, bars, out, in_place=True).table
    cost = LatencyModel(graph, table)
    if as_json:
        show.emit_json({**table.summary(), "model": model, "dense_ms": cost.dense_ms,
                        "layers": [vars(layer) for layer in cost.describe()]})  # fmt: skip
        return 0
    if table.source == "modelled":
        show.line(f"MODELLED from the datasheet of {table.device}, not measured.")
    show.line(table.path)
    holds = f"{len(table)} points of {len(table.kernels)} kernels"
    show.line(f"{holds} on {table.device}, batch {table.batch}, {table.source}\n")
    rows = [[la.name, f"{la.c_in} -> {la.c_out}", f"{la.dense_ms:.4g}", f"{100 * la.share:.1f}%"]
            for la in sorted(cost.describe(), key=lambda la: -la.dense_ms)[:12]]  # fmt: skip
    show.line(show.table(["layer", "channels", "ms", "share"], rows))
    show.line(f"\n{model} dense: {cost.dense_ms:.4g} ms as the sum of {len(cost.layers)} layers, {table.source}; "
               f"{1000 * table.batch / cost.dense_ms:.0f} FPS")  # fmt: skip
    return 0


def _on_several(
    graph: ChannelGraph, model: str, devices: str, choice: DeviceChoice, bars: Bars, out: Path | None
) -> LatencyTable:
    """Profile on several devices and read the merged table."""
    from halp_iee.latency import LatencyTable
    from halp_iee.latency.layers import sweep_plan
    from halp_iee.latency.profile import default_table_path
    from halp_iee.run.job import short_name
    from halp_profiler import fleet
    from halp_profiler.devices import find, names_of

    names = names_of(devices)
    settings: dict[str, Any] = {
        "source": "measured", "threads": choice.threads, "batch": choice.batch, "precision": choice.precision,
        "backend": choice.backend, "layout": choice.layout, "l2": choice.l2,
    }  # fmt: skip
    path = out or default_table_path(find(names[0] if names else devices), short_name(model), **settings)
    with bars.task(f"latency table on {len(names)} devices") as task:
        fleet.run(
            names, sweep_plan(graph), path, settings=settings, max_error=choice.max_error,
            time_budget_s=choice.time_budget_s, progress=lambda done, total, eta_s: task.update(done, total),
        )  # fmt: skip
    return LatencyTable.load(path)


def _emit(graph: ChannelGraph, path: Path, choice: DeviceChoice, as_json: bool) -> int:
    """Write the plan of a sweep, and say how to carry it out where only the profiler is installed."""
    from halp_iee.latency.profile import emit

    settings: dict[str, Any] = {"device": choice.name, "threads": choice.threads, "batch": choice.batch}
    settings |= {"max_error": choice.max_error, "precision": choice.precision, "backend": choice.backend}
    settings |= {"layout": choice.layout, "l2": choice.l2}
    settings |= {"time_budget_s": choice.time_budget_s} if choice.time_budget_s else {}
    plan = emit(graph, path, **settings)
    if as_json:
        show.emit_json({"plan": str(path), "kernels": len(plan.ranges)})
        return 0
    show.line(f"{path}: {len(plan.ranges)} kernels to measure. On the device, with halp_profiler and one runtime:\n")
    show.line(f"  python -m halp_profiler run {path.name} --out table.jsonl\n\nThen give the table to --table.")
    return 0
