"""The stages of a run but for the training: each takes and returns a frozen record."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

import halp_iee
from halp_iee import models
from halp_iee.errors import TargetError
from halp_iee.graph import ChannelGraph, trace
from halp_iee.latency import LatencyModel, LatencyTable
from halp_iee.latency.profile import default_table_path, profile_network
from halp_iee.methods.elastic import Units
from halp_iee.progress import Progress
from halp_iee.run.clock import RuntimeClock
from halp_iee.run.directory import RunDirectory
from halp_iee.run.job import DeviceChoice, Job
from halp_iee.solve import solve

if TYPE_CHECKING:
    from halp_iee.train.data import Data

CALIBRATION_NETWORKS = 4
"""Random slim networks that are built and timed, beside the dense one, to calibrate a table."""


@dataclass(frozen=True)
class Network:
    """The dense network, its data and its channel graph."""

    model: nn.Module
    graph: ChannelGraph
    data: Data | None
    example: Tensor


@dataclass(frozen=True)
class Cost:
    """What any structure costs, and what was asked for.

    Attributes:
        model: predicts ms for any widths; calibrated when the device is at hand.
        clock: times structures in the runtime; None when the device is not attached.
        target_ms: the latency asked for.
        calibration: (predicted before, predicted after, measured) in ms for every network timed.
        table: what the report says of the table.
    """

    model: LatencyModel
    clock: RuntimeClock | None
    target_ms: float
    calibration: tuple[tuple[float, float, float], ...]
    table: dict[str, Any]


@dataclass(frozen=True)
class Slimmed:
    """The structure that was chosen, and the trained network that has it.

    Attributes:
        small: an ordinary module, physically small.
        keep: the units kept.
        widths: how many, of every group.
        gap: how far the solver's last answer may be from the best, as a share of its bound.
        solver: which one answered.
        top1: on the test set, in torch; None without data.
        train_flops: of the whole training; None if nothing was trained.
        train_seconds: of the whole training.
        events: what happened, for the report.
    """

    small: nn.Module
    keep: Units
    widths: dict[str, int]
    gap: float
    solver: str
    top1: float | None
    train_flops: float | None
    train_seconds: float | None
    events: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Measured:
    """Latency as timed in the runtime; None where the device is not attached.

    Attributes:
        dense_ms, slim_ms: medians, timed in turn.
        top1: of the exported file, in the runtime.
        unstable: whether the spread was too wide to be trusted.
    """

    dense_ms: float | None
    slim_ms: float | None
    top1: float | None
    unstable: bool


def network(job: Job) -> Network:
    """Load the data, build the network (trained weights if given), and trace it.

    Raises:
        UsageError, DataError, ArtifactError, GraphError: whatever of these is wrong with the job.
    """
    from halp_iee.train.weights import load_weights

    data = None
    if job.data is not None:
        from halp_iee.train.data import load

        data = load(job.data, seed=job.seed)
    torch.manual_seed(job.seed)
    shape = job.input_shape or (data.input_shape if data else models.default_input_shape(job.model))
    if data is not None:
        model = models.build(job.model, num_classes=data.num_classes, in_channels=shape[0], image_size=shape[-1])
        models.check_fits(model, shape, data.num_classes)
    else:
        model = models.build(job.model)
    if job.weights is not None:
        load_weights(model, job.weights)
    generator = torch.Generator().manual_seed(job.seed)
    example = torch.randn(job.device.batch, *shape, generator=generator)
    return Network(model, trace(model, example), data, example)


def table(job: Job, network: Network, progress: Progress) -> LatencyTable:
    """The latency table of the device: the one given, the one there is, or a new one."""
    return find_or_make_table(network.graph, job.model, job.device, tuple(network.example.shape[1:]), progress)


def find_or_make_table(
    graph: ChannelGraph,
    model: str,
    device: DeviceChoice,
    shape: tuple[int, ...],
    progress: Progress,
    out: Path | None = None,
) -> LatencyTable:
    """Bring a table to where it covers the network; what it holds already is not measured again.

    Args:
        shape: of one input, which decides how long a sweep may take when nothing is said.
        out: the table's file; else the one that `device` names, else one in the user's cache.
    """
    path = out or device.table or default_table_path(device.name, model, batch=device.batch, threads=device.threads)
    seconds = device.time_budget_s or (60.0 if math.prod(shape) < 20_000 else 180.0)
    with progress.task(f"latency table for {device.name}") as task:
        return profile_network(
            graph, device.name, path, source=device.source, batch=device.batch, threads=device.threads,
            time_budget_s=seconds, max_error=device.max_error,
            progress=lambda done, total, eta_s: task.update(done, total),
        )  # fmt: skip


def cost(job: Job, network: Network, table: LatencyTable, progress: Progress) -> Cost:
    """A latency model of the network, calibrated against whole networks when the device is at hand.

    Raises:
        TargetError: the target is under what any structure can reach.
        UsageError: the dense network is fast enough already.
    """
    model = LatencyModel(network.graph, table)
    if table.source == "modelled" or not table.is_local:
        progress.say(
            f"NOTE: {job.device.name} is not attached. Its latencies are MODELLED from its datasheet, not measured."
        )
        return Cost(model, None, job.target.resolve_ms(model.dense_ms, job.device.batch), (), table.summary())
    clock = RuntimeClock(network.graph, network.example, threads=job.device.threads)
    prunable = {g.name: g.size for g in network.graph.groups if g.prunable}
    points: list[tuple[dict[str, int], float]] = []
    with progress.task("calibration against whole networks", CALIBRATION_NETWORKS + 1) as task:
        points.append((network.graph.full_widths, clock.dense_ms))
        task.update(1)
        # Structures like those that will be asked for: the error that matters is the one there.
        share = job.target.resolve_ms(clock.dense_ms, job.device.batch) / clock.dense_ms
        rng = np.random.default_rng(job.seed)
        for i in range(CALIBRATION_NETWORKS):
            scores = {name: rng.random(size) for name, size in prunable.items()}
            budget_ms = model.dense_ms * share ** ((i + 1) / CALIBRATION_NETWORKS)
            try:
                answer = solve(model, scores, budget_ms)
            except TargetError:
                continue  # the calibrated floor is what counts, and it is checked below
            points.append((answer.widths, clock(answer.keep)))
            task.update(2 + i)
    calibrated = model.calibrate(points)
    target_ms = job.target.resolve_ms(clock.dense_ms, job.device.batch)
    solve(calibrated, {name: np.ones(size) for name, size in prunable.items()}, target_ms)  # raises under the floor
    record = tuple((model.predict(w), calibrated.predict(w), ms) for w, ms in points)
    return Cost(calibrated, clock, target_ms, record, table.summary())


def export(
    job: Job, network: Network, dense: nn.Module, slimmed: Slimmed, run: RunDirectory, progress: Progress
) -> Path:
    """ONNX files of the dense and the slim network, each behind the parity gate on real data."""
    from halp_iee.export.onnx import export_onnx

    checks = []
    if network.data is not None:
        images, _ = next(iter(network.data.test.batches(len(network.example), epoch=0, seed=0, shuffle=False)))
        checks = [images] if len(images) == len(network.example) else []
    provenance = {
        "halp_iee.version": halp_iee.__version__, "halp_iee.model": job.model, "halp_iee.data": job.data or "",
        "halp_iee.target": str(job.target), "halp_iee.method": job.method, "halp_iee.seed": str(job.seed),
    }  # fmt: skip
    with progress.task("export to ONNX, with the parity gate", 2) as task:
        export_onnx(dense, network.example, run.dense_onnx, metadata=provenance, check_inputs=checks)
        task.update(1)
        export_onnx(slimmed.small, network.example, run.onnx, metadata=provenance, check_inputs=checks)
    return run.onnx


def measure(job: Job, network: Network, cost: Cost, exported: Path, run: RunDirectory, progress: Progress) -> Measured:
    """Time both files in turn in the runtime, and the accuracy of the small one there."""
    from halp_iee.measure.accuracy import top1_onnx
    from halp_iee.measure.latency import measure_onnx

    top1 = None
    if network.data is not None:
        batches = network.data.test.batches(256, epoch=0, seed=0, shuffle=False)
        top1 = top1_onnx(exported, batches, threads=job.device.threads).top1
    if cost.clock is None:
        return Measured(None, None, top1, False)
    with progress.task("measurement in the runtime"):
        files = {"dense": run.dense_onnx, "slim": exported}
        timings = measure_onnx(files, threads=job.device.threads, batch=job.device.batch, seconds=3.0)
    dense, slim = timings["dense"], timings["slim"]
    return Measured(dense.median_ms, slim.median_ms, top1, dense.unstable or slim.unstable)
