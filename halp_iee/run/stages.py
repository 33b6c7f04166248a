"""The stages of a run but for the training: each takes and returns a frozen record."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

import halp_iee
from halp_iee import models
from halp_iee.errors import TableError, TargetError, UsageError
from halp_iee.graph import ChannelGraph, trace
from halp_iee.latency import LatencyModel, LatencyTable
from halp_iee.latency.profile import default_table_path, missing_from, profile_network
from halp_iee.latency.table import find as find_table
from halp_iee.latency.table import search_folders
from halp_iee.methods.structure import Units, prunable_sizes
from halp_iee.progress import Progress
from halp_iee.run.clock import RuntimeClock
from halp_iee.run.completing import copy_to_complete
from halp_iee.run.directory import RunDirectory, read_json, write_json
from halp_iee.run.job import DeviceChoice, Job, short_name
from halp_iee.run.question import priced
from halp_iee.solve import solve
from halp_iee.train.processes import Processes
from halp_profiler.devices import Device
from halp_profiler.devices import find as find_device

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
class Table:
    """A latency table that covers the network, and the device that it is for."""

    table: LatencyTable
    device: Device

    @property
    def path(self) -> Path:
        """Its file."""
        assert self.table.path is not None, "it was read from a file"
        return self.table.path

    @property
    def local(self) -> bool:
        """Whether the device is at hand, so that whole networks can be timed on it."""
        header = self.table.header
        return header.source == "measured" and self.device.attached and header.backend == "onnxruntime-cpu"


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
class TimedNetwork:
    """What a run keeps of a whole network that it timed."""

    widths: dict[str, Annotated[int, Field(gt=0)]]
    measured_ms: Annotated[float, Field(gt=0, allow_inf_nan=False)]


TimedNetworks = Annotated[list[TimedNetwork], Field(min_length=1)]
"""The dense network first."""


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
        bill: what each stage of the training cost: steps, FLOPs, and where the loop told them apart, seconds.
        events: what happened, for the report.
        revise: where the structure can still be changed, gives one that is corrected for what the final measurement
            said, or None where that met the target or nothing lies nearer.
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
    bill: Mapping[str, Any] = field(default_factory=dict)
    revise: Callable[[Measured], Slimmed | None] | None = None


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
        TargetError: nothing in the network can be pruned.
    """
    from halp_iee.train.weights import load_weights

    data = None
    if job.data is not None:
        from halp_iee.train.data import load

        # The run's seed is not the data's: it must not change what is learned and tested on.
        data = load(job.data, image_size=job.input_shape[-1] if job.input_shape else None)
        if job.input_shape and tuple(job.input_shape) != data.input_shape:
            raise UsageError(
                f"the data {job.data} does not come in the shape {job.input_shape}",
                f"its images are {data.input_shape}",
                "leave --input-shape out, or give that shape",
            )
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
    graph = trace(model, example)
    prunable_sizes(graph)  # says before anything is timed or trained that there is nothing to prune
    return Network(model, graph, data, example)


def table(job: Job, network: Network, progress: Progress) -> Table:
    """The latency table of the device: the one given, the one there is, or a new one."""
    processes = Processes.here()
    shape = tuple(network.example.shape[1:])
    made: list[Table] = []

    def make() -> Path:
        made.append(find_or_make_table(network.graph, job.model, job.device, shape, progress))
        return made[0].path

    path = processes.once(make)  # one process sweeps; the others read what it wrote
    return made[0] if made else Table(LatencyTable.load(path), _device(job.device))


def find_or_make_table(
    graph: ChannelGraph,
    model: str,
    device: DeviceChoice,
    shape: tuple[int, ...],
    progress: Progress,
    out: Path | None = None,
    in_place: bool = False,
) -> Table:
    """Bring a table to where it covers the network; what it holds already is not measured again.

    Args:
        graph, model: of the network, and its name, which a new table is called after.
        device: what it is for, and how it is measured.
        shape: of one input, which decides how long a sweep may take when nothing is said.
        out: the table's file; else the one that `device` names, else one in the user's cache.
        in_place: whether the one that `device` names is completed itself, and not in a copy.
    """
    found = _device(device)
    given = out or (_existing(device.table) if device.table else _shipped(found, model, device))
    if given is not None and given.is_file() and out is None:
        table = LatencyTable.load(given)
        _check_table(table, found, device)
        if not missing_from(table, graph):
            progress.say(f"latency table for {found.label}: {given}, {table.source}, as it is")
            return Table(table, found)
        if not (device.table and in_place):  # one that ships with the package is nobody's to change
            given = copy_to_complete(given, model)
    if given is not None:
        given.parent.mkdir(parents=True, exist_ok=True)
    seconds = device.time_budget_s or (60.0 if math.prod(shape) < 20_000 else 180.0)
    with progress.task(f"latency table for {found.label}") as task:
        table = profile_network(
            graph, found, given, model=short_name(model), source=None if device.source == "auto" else device.source,
            batch=device.batch, threads=device.threads, time_budget_s=seconds, max_error=device.max_error,
            backend=device.backend, precision=device.precision, layout=device.layout, l2=device.l2,
            progress=lambda done, total, eta_s: task.update(done, total),
        )  # fmt: skip
    return Table(table, found)


def _device(device: DeviceChoice) -> Device:
    """The device asked for; one that nobody here knows is that of the table given, if that is its name."""
    try:
        return find_device(device.name)
    except UsageError:
        if device.table is None or not _existing(device.table).is_file():
            raise
        table = LatencyTable.load(_existing(device.table))
        if table.device.casefold() != device.name.casefold():
            raise
        kind = str(table.header.device.get("kind", "cpu"))
        return Device(device.name, table.device, kind, attached=False)


def _existing(path_or_name: str) -> Path:
    """The table of that name or path; a path that does not exist yet is where a new one goes."""
    path = Path(path_or_name)
    return path if path.suffix == ".jsonl" and path.parent.is_dir() else find_table(path_or_name)


def _shipped(found: Device, model: str, device: DeviceChoice) -> Path | None:
    """A modelled table that ships with the package; a measured one is of its own machine, and a new one is better."""
    if found.attached or device.source == "measured":
        return None
    name = default_table_path(
        found, short_name(model), batch=device.batch, threads=device.threads, precision=device.precision
    ).name
    return next((folder / name for folder in search_folders() if (folder / name).is_file()), None)


def _check_table(table: LatencyTable, found: Device, device: DeviceChoice) -> None:
    """Raise TableError where a table is for another device, or was made otherwise, than is asked for."""
    asked = {"device": found.label, "batch": device.batch, "precision": device.precision}
    has = {"device": table.device, "batch": table.batch, "precision": table.header.precision}
    if device.backend is not None:
        asked, has = asked | {"backend": device.backend}, has | {"backend": table.header.backend}
    if device.layout is not None:
        asked, has = asked | {"layout": device.layout}, has | {"layout": table.header.layout}
    if found.kind == "cpu":
        asked, has = asked | {"threads": device.threads}, has | {"threads": table.threads or 0}
    if device.source != "auto":
        asked, has = asked | {"source": device.source}, has | {"source": table.source}
    for name, value in asked.items():
        if has[name] != value:
            raise TableError(
                f"the latency table {table.path} is not for this run",
                f"its {name} is {has[name]} and the run's is {value}",
                "choose with --gpu, --batch, --threads, --precision, --backend and --source, or leave --table out",
            )


def cost(job: Job, network: Network, table: Table, run: RunDirectory, progress: Progress) -> Cost:
    """A latency model of the network, calibrated against whole networks when the device is at hand.

    What was timed is kept in the run, so a run that goes on sees the same costs and the same target.

    Raises:
        TargetError: the target is under what any structure can reach.
        UsageError: the dense network is fast enough already.
    """
    model, batch = LatencyModel(network.graph, table.table), job.device.batch
    everything = {name: np.ones(size) for name, size in prunable_sizes(network.graph).items()}
    if not table.local:
        progress.say(_not_timed(table))
        model = priced(job.question, network.graph, model)
        target_ms = job.target.resolve_ms(model.dense_ms, batch)
        solve(model, everything, target_ms)  # raises under the floor
        return Cost(model, None, target_ms, (), table.table.summary())
    clock = RuntimeClock(network.graph, network.example, threads=job.device.threads)
    points = Processes.here().once(lambda: _time_whole_networks(job, network, model, clock, run, progress))
    clock.scale_to(points[0][1])
    calibrated = priced(job.question, network.graph, model.calibrate(points))
    target_ms = job.target.resolve_ms(points[0][1], batch)
    solve(calibrated, everything, target_ms)
    record = tuple((model.predict(widths), calibrated.predict(widths), ms) for widths, ms in points)
    return Cost(calibrated, clock, target_ms, record, table.table.summary())


def _not_timed(table: Table) -> str:
    """What a reader must know of latencies that no whole network here confirms."""
    header, label = table.table.header, table.device.label
    if header.source == "modelled":
        return f"NOTE: {label} is not attached: its latencies are MODELLED from its datasheet."
    where = "is not attached" if not table.device.attached else f"was timed with {header.backend}"
    return f"NOTE: {label} {where}: latencies are PREDICTED from its table, and no whole network is timed here."


def _time_whole_networks(
    job: Job, network: Network, model: LatencyModel, clock: RuntimeClock, run: RunDirectory, progress: Progress
) -> list[tuple[dict[str, int], float]]:
    """(widths, measured ms) of the dense network and of a few random ones on the way down to the target.

    Each is kept as soon as it is timed; what an earlier call has timed is not timed again.
    """
    timed = read_json(run.calibration, TimedNetworks) if run.calibration.exists() else []
    if timed:
        clock.scale_to(timed[0].measured_ms)

    def point(number: int, widths: dict[str, int], keep: Units | None) -> TimedNetwork:
        if number >= len(timed):
            timed.append(TimedNetwork(widths, clock.dense_ms if keep is None else clock(keep)))
            write_json(run.calibration, [asdict(one) for one in timed])
        return timed[number]

    with progress.task("calibration against whole networks", CALIBRATION_NETWORKS + 1) as task:
        points = [point(0, network.graph.full_widths, None)]
        task.update(1)
        share = job.target.resolve_ms(clock.dense_ms, job.device.batch) / clock.dense_ms
        rng = np.random.default_rng(job.seed)
        for i in range(CALIBRATION_NETWORKS):
            scores = {name: rng.random(size) for name, size in prunable_sizes(network.graph).items()}
            try:
                answer = solve(model, scores, model.dense_ms * share ** ((i + 1) / CALIBRATION_NETWORKS))
            except TargetError:
                continue  # the calibrated floor is what counts, and the caller checks it
            points.append(point(len(points), answer.widths, answer.keep))
            task.update(2 + i)
    return [(one.widths, one.measured_ms) for one in points]


def export(
    job: Job, network: Network, dense: nn.Module, slimmed: Slimmed, run: RunDirectory, progress: Progress
) -> Path:
    """ONNX files of the dense and the slim network, each behind the parity gate on real data."""
    from halp_iee.export.onnx import export_onnx
    from halp_iee.export.parity import DEAF

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
        done = export_onnx(slimmed.small, network.example, run.onnx, metadata=provenance, check_inputs=checks)
    if not done.responds:
        progress.say(f"note: {DEAF}; its latency is right all the same")
    return run.onnx


def measure(job: Job, network: Network, cost: Cost, exported: Path, run: RunDirectory, progress: Progress) -> Measured:
    """Time both files in turn in the runtime, and the accuracy of the small one there."""
    from halp_iee.measure.accuracy import top1_onnx
    from halp_iee.measure.sessions import time_sessions

    top1 = None
    if network.data is not None:
        batches = network.data.test.batches(256, epoch=0, seed=0, shuffle=False)
        top1 = top1_onnx(exported, batches, threads=job.device.threads).top1
    if cost.clock is None:
        return Measured(None, None, top1, False)
    with progress.task("measurement in the runtime"):
        timed = time_sessions(
            {"dense": run.dense_onnx, "slim": exported}, threads=job.device.threads, batch=job.device.batch,
            least=25, most=60, error=0.003, limit_s=40.0,
        )  # fmt: skip
    dense_ms = timed.ms("dense")
    return Measured(dense_ms, dense_ms * timed.ratio("slim", "dense"), top1, timed.unstable)
