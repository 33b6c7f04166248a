"""The stages that put a run on disk: artifact, result.json and report.html."""

from __future__ import annotations

import os
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import halp_iee
from halp_iee.measure import runtime
from halp_iee.measure.flops import Counts, count
from halp_iee.measure.training_cost import TrainingCost
from halp_iee.report.collect import group_steps, staircases
from halp_iee.run.command import command
from halp_iee.run.directory import RunDirectory, sha256, write_json
from halp_iee.run.job import Job
from halp_iee.run.stages import Cost, Measured, Network, Slimmed
from halp_iee.run.training import Reference
from halp_iee.slim.artifact import save
from halp_iee.train.records import steps_per_epoch
from halp_profiler.devices import attached
from halp_profiler.files import whole


def artifact(job: Job, network: Network, slimmed: Slimmed, cost: Cost, run: RunDirectory) -> Path:
    """The slim network as a safetensors file with its recipe."""
    provenance = {
        "model": job.model, "data": job.data, "method": job.method, "seed": job.seed, "target_ms": cost.target_ms,
        "predicted_ms": cost.model.predict(slimmed.widths), "device": job.device.name, "source": cost.model.source,
        "num_classes": network.data.num_classes if network.data else None,
        "input_shape": list(network.example.shape[1:]),
    }  # fmt: skip
    save(slimmed.small, run.artifact, provenance=provenance)
    return run.artifact


def result(
    job: Job, network: Network, cost: Cost, reference: Reference, slimmed: Slimmed, artifact: Path,
    measured: Measured, run: RunDirectory, wall_seconds: float,
) -> dict[str, Any]:  # fmt: skip
    """Everything that others script against, as one JSON document; written to `result.json`."""
    dense, slim = count(network.graph), count(network.graph, slimmed.widths)
    if not all(slimmed.widths.values()):
        # What a removed branch had on the units of what passes it by (its last BatchNorm) is gone too.
        slim = replace(slim, params=sum(parameter.numel() for parameter in slimmed.small.parameters()))
    predicted_ms, dense_predicted_ms = cost.model.predict(slimmed.widths), cost.model.dense_ms
    dense_ms, slim_ms = measured.dense_ms or dense_predicted_ms, measured.slim_ms or predicted_ms
    batch = job.device.batch
    # A fraction is of the dense latency that was timed in turn with the slim one, whatever the machine does meanwhile.
    target_ms = cost.target_ms if measured.dense_ms is None else job.target.of_ms(measured.dense_ms, batch)
    return {
        "model": job.model, "data": job.data, "method": job.method, "seed": job.seed,
        "device": cost.table["device"], "threads": job.device.threads, "batch": batch,
        "runtime": " ".join(runtime.describe().values()) if cost.clock else _not_run(cost),
        "target": str(job.target), "target_ms": target_ms,
        "dense_ms": dense_ms, "predicted_ms": predicted_ms, "measured_ms": measured.slim_ms,
        "dense_predicted_ms": dense_predicted_ms, "dense_measured_ms": measured.dense_ms,
        "source": cost.model.source, "unstable": measured.unstable,
        "fps_dense": 1000.0 * batch / dense_ms, "fps": 1000.0 * batch / slim_ms,
        "top1_dense": reference.top1, "top1": measured.top1,
        "params_dense": dense.params, "params": slim.params, "macs_dense": dense.macs, "macs": slim.macs,
        "train_flops_ratio": _flops_ratio(job, network, dense, slimmed),
        "train_seconds_dense": reference.train_seconds, "train_seconds": slimmed.train_seconds,
        "train_cost": dict(slimmed.bill), "wall_seconds": wall_seconds,
        "solver": slimmed.solver, "gap": slimmed.gap,
        "artifact": str(artifact), "onnx": str(run.onnx), "report": str(run.report),
        "num_classes": network.data.num_classes if network.data else None,
        "input_shape": list(network.example.shape[1:]), "version": halp_iee.__version__,
        "sha256": {file.name: sha256(file) for file in (artifact, run.onnx) if file.is_file()},
    }  # fmt: skip


def _not_run(cost: Cost) -> str:
    header = cost.model.table.header
    if header.source == "modelled":
        return "modelled from the datasheet"
    return f"predicted from a table of {header.backend}"


def _flops_ratio(job: Job, network: Network, dense: Counts, slimmed: Slimmed) -> float | None:
    """Training FLOPs over those of training the dense network for the same epochs."""
    if slimmed.train_flops is None or network.data is None:
        return None
    steps = job.recipe.epochs * steps_per_epoch(len(network.data.train), job.recipe.batch_size)
    whole = TrainingCost(dense.macs).add("dense", steps=steps, batch=job.recipe.batch_size, macs=dense.macs)
    return slimmed.train_flops / whole.flops


def report(result: dict[str, Any], job: Job, network: Network, cost: Cost, slimmed: Slimmed, run: RunDirectory) -> None:
    """Write the evidence, the page, and last the result: where a result is, the run is complete."""
    write_json(run.evidence, evidence(result, job, network, cost, slimmed))
    write_report(run, result)
    write_card(run, result)
    write_json(run.result, result)


def write_report(run: RunDirectory, result: dict[str, Any]) -> Path:
    """The page, made from what the run recorded; it can be made again at any time."""
    from halp_iee.export.deploy import exports_of
    from halp_iee.report.html import write
    from halp_iee.run.directory import read_json

    known = read_json(run.evidence, dict[str, Any])
    return write({"result": result, "exports": exports_of(run), **known}, run.report)


def write_card(run: RunDirectory, result: dict[str, Any], license: str | None = None) -> Path:
    """The folder to upload: model card, artifact, ONNX file and what was exported into the run beside them.

    A licence that was stated before stays.
    """
    from halp_iee.export.deploy import exports_of
    from halp_iee.report.card import UNKNOWN_LICENSE, write_folder
    from halp_iee.run.directory import read_json

    known = read_json(run.evidence, dict[str, Any])
    if license is not None:
        with whole(run.license) as partial:
            partial.write_text(license + "\n", encoding="utf-8")
    stated = run.license.read_text(errors="replace").strip() if run.license.is_file() else UNKNOWN_LICENSE
    exports = [one for one in exports_of(run) if Path(one["path"]).resolve().parent == run.root.resolve()]
    files = [path for path in (run.artifact, run.onnx) if path.is_file()]
    files += [Path(file) for one in exports for file in one.get("files", ()) if Path(file).is_file()]
    return write_folder(
        run.hub, result, files, exports=exports, license=stated, reproduce=str(known.get("reproduce", ""))
    )


def evidence(result: dict[str, Any], job: Job, network: Network, cost: Cost, slimmed: Slimmed) -> dict[str, Any]:
    """What the page shows beyond the result."""
    full = network.graph.full_widths
    steps = group_steps(cost.model, slimmed.widths)
    return {
        "layers": [
            {"name": layer.name, "dense_ms": float(layer.ms(layer.c_in(full), layer.c_out(full))),
             "slim_ms": float(layer.ms(layer.c_in(slimmed.widths), layer.c_out(slimmed.widths)))}
            for layer in cost.model.layers
        ],
        "fixed_ms": cost.model.fixed_ms,
        "groups": [
            {"name": g.name, "size": g.size, "kept": slimmed.widths.get(g.name, g.size), "prunable": g.prunable,
             "reason": g.reason, "steps": steps.get(g.name, [])} for g in network.graph.groups
        ],
        "staircases": staircases(cost.model, slimmed.widths),
        "events": [{**{k: v for k, v in e.items() if k != "event"}, "kind": e["event"]} for e in slimmed.events],
        "calibration": [{"before_ms": b, "predicted_ms": p, "measured_ms": m} for b, p, m in cost.calibration],
        "table": cost.table,
        "environment": {
            "halp-iee": halp_iee.__version__, "python": platform.python_version(), "system": platform.platform(),
            "processor": attached()[0].label, "cores": os.cpu_count(),
            **_versions(),
        },
        "reproduce": command(job),
    }  # fmt: skip


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "torchvision", "onnx", "numpy")} | runtime.describe()
