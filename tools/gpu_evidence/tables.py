"""Latency tables of the device; predicted against measured; the solver's networks timed beside the dense one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from gpu_evidence import whole
from gpu_evidence.part import Part
from gpu_evidence.resnet import ResNet50
from halp_iee import models
from halp_iee.errors import HalpError
from halp_iee.graph import ChannelGraph, trace
from halp_iee.importance import score
from halp_iee.latency import LatencyModel, LatencyTable
from halp_iee.latency.profile import missing_from, profile_with_result
from halp_iee.measure.flops import count
from halp_iee.methods.structure import prunable_sizes
from halp_iee.solve import floor_ms, solve
from halp_profiler.devices import Device, find
from halp_profiler.errors import DeviceError

_FLOOR = 1.02
CALIBRATION = ((0.75, "solved"), (0.6, "odd"), (0.45, "solved"), (0.3, "even"))
HELD_OUT = (
    (0.3, "solved"), (0.55, "solved"), (0.8, "solved"), (0.4, "solved"), (0.45, "even"), (0.6, "even"), (0.3, "even"),
    (0.75, "even"), (0.5, "odd"), (0.35, "odd"), (0.65, "odd"), (0.85, "odd"),
)  # fmt: skip
"""(share of the dense latency, how the widths are drawn); none of the second is used to calibrate."""


def device_of(part: Part) -> Device:
    """The GPU, even where the package that asks the driver about it is missing."""
    if not part.cuda:
        return find("cpu")
    try:
        return find(part.where)
    except DeviceError:
        facts = torch.cuda.get_device_properties(0)
        details = (("capability", f"{facts.major}.{facts.minor}"), ("memory_mb", facts.total_memory >> 20))
        return Device(part.where, facts.name, "cuda", True, None, details)


def resnet50() -> nn.Module:
    """torchvision's, or the same network of our own where torchvision is missing or does not fit torch."""
    try:
        return models.build("resnet50")
    except Exception:  # a torchvision that was built for another torch fails in many ways
        return ResNet50()


def traced(part: Part) -> ChannelGraph:
    torch.manual_seed(0)
    model = models.build("resnet20", 10, 3) if part.tiny else resnet50()
    return trace(model.eval(), torch.randn(1, *part.image))


def sweep(part: Part, batch: int, precision: str) -> None:
    """One table; every point is in its file as soon as it is measured.

    The sweep is given less time than the part: the points without which nothing can be predicted are measured
    however long they take.
    """
    graph = traced(part)
    table, swept = profile_with_result(
        graph, device_of(part), part.table(batch, precision), model=part.network, source="measured", batch=batch,
        precision=precision if part.cuda else "fp32", backend="torch-cudagraph" if part.cuda else "torch",
        layout=whole.layout_of(precision) if part.cuda else None, time_budget_s=max(1.0, 0.6 * part.seconds),
    )  # fmt: skip
    flags: dict[str, int] = {}
    for kernel in table.kernels:
        for point in table.points(kernel):
            for flag in point.flags:
                flags[flag] = flags.get(flag, 0) + 1
    missing = missing_from(table, graph)
    part.row(
        network=part.network, batch=batch, precision=precision, layout=table.header.layout,
        backend=table.header.backend,
        kernels=len(table.kernels), points=swept.measured + swept.resumed, seconds=swept.seconds,
        held_out_error=swept.held_out_error, worst_held_out_error=swept.worst_held_out_error, complete=swept.complete,
        refused=swept.refused, flags=flags, missing=len(missing),
        sum_of_layers_ms=None if missing else LatencyModel(graph, table).dense_ms,
        bytes=part.table(batch, precision).stat().st_size,
    )  # fmt: skip


def reachable_ms(cost: LatencyModel, scores: Mapping[str, Any], share: float) -> float:
    """That share of the dense latency, or where no widths get there, hardly more than the least they reach."""
    return max(share * cost.dense_ms, _FLOOR * floor_ms(cost, scores))


def draw(graph: ChannelGraph, cost: LatencyModel, rng: np.random.Generator, share: float, kind: str) -> Any:
    """Units kept: ``solved`` as the solver chooses them for random scores; ``odd`` any width whatever; ``even``
    multiples of 8, as a person would choose."""
    sizes = prunable_sizes(graph)
    if kind == "solved":
        scores = {name: rng.random(size) for name, size in sizes.items()}
        return dict(solve(cost, scores, reachable_ms(cost, scores, share)).keep)
    keep = {}
    for name, size in sizes.items():
        width = int(rng.integers(max(1, int(size * share / 2)), size + 1))
        width = width if kind == "odd" else min(size, max(8, width // 8 * 8))
        keep[name] = np.sort(rng.choice(size, width, replace=False))
    return keep


@dataclass
class Beside:
    """Times slim networks beside the dense one, so that a drift of the clock touches both."""

    part: Part
    batch: int
    precision: str
    dense: whole.Whole
    dense_ms: float = 0.0

    @classmethod
    def of(cls, part: Part, dense: nn.Module, batch: int, precision: str) -> Beside:
        ready = whole.ready(part, dense, batch, precision)
        made = cls(part, batch, precision, ready)
        made.dense_ms = float(np.median(whole.timed_ms(part, {"dense": ready.call}, made.seconds, precision)["dense"]))
        return made

    @property
    def seconds(self) -> float:
        return 0.05 if self.part.tiny else 1.0

    def __call__(self, slim: nn.Module) -> tuple[float, float, whole.Whole]:
        """(latency in ms at the dense network's first pace, its share of the dense latency, the network)."""
        ready = whole.ready(self.part, slim, self.batch, self.precision)
        found = whole.timed_ms(self.part, {"dense": self.dense.call, "slim": ready.call}, self.seconds, self.precision)
        share = float(np.median(found["slim"] / found["dense"]))
        return share * self.dense_ms, share, ready


def predicted(part: Part, batch: int, precision: str) -> None:
    """12 pruned networks that calibration never saw, predicted from the table and timed."""
    graph = traced(part)
    cost = LatencyModel(graph, LatencyTable.load(part.table(batch, precision)))
    held_out = HELD_OUT[:3] if part.tiny else HELD_OUT
    beside = Beside.of(part, graph.model, batch, precision)
    part.row(role="dense", batch=batch, precision=precision, raw_ms=cost.dense_ms, measured_ms=beside.dense_ms,
             folded=beside.dense.folded)  # fmt: skip
    points: list[tuple[dict[str, int], float]] = [(graph.full_widths, beside.dense_ms)]
    calibrated = cost
    for role, wanted, seed in (("calibration", CALIBRATION, 1), ("held-out", held_out, 2)):
        for i, (share, kind) in enumerate(wanted):
            try:
                keep = draw(graph, cost, np.random.default_rng([seed, i]), share, kind)
                measured_ms, of_dense, _ = beside(graph.slim(keep))
            except (HalpError, RuntimeError) as error:
                part.row(role=role, kind=kind, share=share, failed=f"{type(error).__name__}: {_first(error)}")
                continue
            widths = graph.widths(keep)
            raw_ms = cost.predict(widths)
            row = {"role": role, "batch": batch, "precision": precision, "kind": kind, "drawn_for": share}
            if role == "calibration":
                points.append((widths, measured_ms))
                part.row(**row, raw_ms=raw_ms, measured_ms=measured_ms, of_dense=of_dense)
                continue
            predicted_ms = calibrated.predict(widths)
            part.row(**row, raw_ms=raw_ms, predicted_ms=predicted_ms, measured_ms=measured_ms, of_dense=of_dense,
                     error=predicted_ms / measured_ms - 1.0)  # fmt: skip
        if role == "calibration":
            calibrated = cost.calibrate(points)
            fit = calibrated.calibration
            assert fit is not None, "it was just fitted"
            _points_file(part, batch, precision).write_text(json.dumps([[w, ms] for w, ms in points]) + "\n")
            part.row(role="fit", batch=batch, precision=precision, scale=fit.scale, offset_ms=fit.offset_ms,
                     worst_residual=fit.worst)  # fmt: skip


def _points_file(part: Part, batch: int, precision: str) -> Any:
    return part.out / "parts" / f"calibration-b{batch}-{precision}.json"


def _calibrated(part: Part, cost: LatencyModel, batch: int, precision: str) -> LatencyModel:
    path = _points_file(part, batch, precision)
    return cost.calibrate([(w, ms) for w, ms in json.loads(path.read_text())]) if path.is_file() else cost


def solved(part: Part, batch: int, precision: str) -> None:
    """The solver's networks at 0.3 and 0.55 of the dense latency, timed for frames a second beside the dense one."""
    graph = traced(part)
    raw = LatencyModel(graph, LatencyTable.load(part.table(batch, precision)))
    cost = _calibrated(part, raw, batch, precision)
    importance = score("magnitude_l2", graph.model, graph)
    beside = Beside.of(part, graph.model, batch, precision)
    whole_network = count(graph)
    about = {"batch": batch, "precision": precision, "calibrated": cost is not raw}
    part.row(network="dense", **about, measured_ms=beside.dense_ms, fps=1000 * batch / beside.dense_ms,
             predicted_ms=cost.dense_ms, macs=whole_network.macs, params=whole_network.params,
             energy_mj=energy(beside, beside.dense))  # fmt: skip
    for solver, target in (("joint", 0.55), ("joint", 0.3), ("halp", 0.55), ("halp", 0.3)):
        # What is asked for is a share of the latency as measured; as a budget, of what is predicted for it.
        budget_ms = reachable_ms(cost, importance, target)
        answer = solve(cost, importance, budget_ms, solver, as_published=solver == "halp")
        measured_ms, of_dense, ready = beside(graph.slim(answer.keep))
        counts = count(graph, answer.widths)
        part.row(
            network=f"{solver} {target}", **about, target=target, budget_ms=budget_ms,
            floor_is_above_target=budget_ms > target * cost.dense_ms, measured_ms=measured_ms, of_dense=of_dense,
            fps=1000 * batch / measured_ms, speedup=1 / of_dense, predicted_ms=answer.latency_ms,
            macs=counts.macs, params=counts.params, gap=answer.gap, solve_seconds=answer.seconds,
            energy_mj=energy(beside, ready),
        )  # fmt: skip


def energy(beside: Beside, ready: whole.Whole) -> float | None:
    """None for lack of time as well."""
    if beside.part.left_s() < 10:
        return None
    return whole.energy_mj(beside.part, ready, beside.batch)


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
