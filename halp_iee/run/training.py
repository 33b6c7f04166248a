"""The stages of a run that train: the dense reference, and the ways to the slim network."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from halp_iee.measure.flops import count
from halp_iee.measure.training_cost import TrainingCost, iee_flops_per_sample
from halp_iee.methods.iee import IEE
from halp_iee.methods.search import LatencySearch
from halp_iee.progress import Progress, Task
from halp_iee.run.directory import RunDirectory
from halp_iee.run.job import Job
from halp_iee.run.searches import configuration, search, total_steps, training_bill
from halp_iee.run.stages import Cost, Network, Slimmed
from halp_iee.train import EventLog, History, evaluate, fit, make_optimizer
from halp_iee.train import Progress as Step
from halp_iee.train.events import read
from halp_iee.train.processes import Processes, training_device
from halp_iee.train.records import Data


@dataclass(frozen=True)
class Reference:
    """The dense network that the slim one is held against.

    Attributes:
        model: trained, or as it was given.
        top1: on the test set, in torch; None when it was not trained and no weights were given.
        train_seconds: None when it was not trained.
        events: what happened, for the report.
    """

    model: nn.Module
    top1: float | None
    train_seconds: float | None
    events: tuple[dict[str, Any], ...] = ()


def check(job: Job, network: Network) -> None:
    """Everything that can be known to be wrong with the training before the table is made.

    Raises:
        UsageError: the update period is longer than the training, or the method has no such setting.
    """
    if network.data is not None and job.method != "one-shot":
        configuration(job, total_steps(job, network.data))
    training_device(job.train_on)
    if job.tensorboard:
        from halp_iee.train.tensorboard import Board

        Board(Path())


def reference(job: Job, network: Network, run: RunDirectory, progress: Progress) -> Reference:
    """Train the dense network for as many epochs as the slim one will be; or take the weights given."""
    data = network.data
    if data is None:
        return Reference(network.model, None, None)
    if job.weights is not None:
        return Reference(network.model, evaluate(network.model, data.test).top1, None)
    if not job.dense and job.method != "halp" and not job.recipe.distill:
        return Reference(network.model, None, None)
    model = copy.deepcopy(network.model)
    log = _log(job, run, run.dense, "dense")
    history, events = _fit(job, model, data, run.dense, "dense reference", progress, log=log)
    return Reference(model, history.top1, history.seconds, events)


def train_to_target(
    job: Job, network: Network, cost: Cost, reference: Reference, run: RunDirectory, progress: Progress
) -> Slimmed:
    """Find the structure while the network trains: with IEE, or from a trained network with HALP."""
    data = network.data
    assert data is not None, "the command line asks for data"
    steps = total_steps(job, data)
    model = copy.deepcopy(reference.model if job.method == "halp" else network.model)
    model.to(training_device(job.train_on))
    optimizer = make_optimizer(model, job.recipe)
    log = _log(job, run, run.slim, "slim")
    method = search(
        job, steps, model, network.graph, cost.model, target_ms=cost.target_ms, optimizer=optimizer,
        measure=cost.clock, on_event=lambda event: log.log(event.pop("kind"), **event),
    )  # fmt: skip
    identity = {
        "target": f"{cost.target_ms:.6g} ms",
        "latency table": f"{cost.table['device']}, {cost.model.source}, dense {cost.model.dense_ms:.6g} ms",
        "settings": json.dumps(vars(method.config), sort_keys=True),
    }
    name = {"iee": "IEE", "halp": "HALP"}[job.method]
    teacher = reference.model if job.recipe.distill else None
    history, events = _fit(job, model, data, run.slim, name, progress, method, optimizer, log, identity, teacher)
    bill = training_bill(method, count(network.graph).macs, events, steps, job.recipe.batch_size, _macs_of(network))
    if teacher is not None:
        bill = bill.add("teacher", steps=steps, batch=job.recipe.batch_size, macs=0)
    if job.weights is None and (teacher is not None or job.method == "halp"):  # it had to be trained for this
        bill = bill.add("dense", steps=steps, batch=job.recipe.batch_size, macs=0)
    final = [e for e in events if e["event"] in ("settle", "grow", "prune")][-1]
    return Slimmed(
        small=method.slim(), keep=method.keep, widths=method.widths, gap=final["gap"], solver=final["solver"],
        top1=history.top1, train_flops=bill.flops, train_seconds=history.seconds,
        events=(*reference.events, *events), bill=_itemised(method, bill, history, steps, network),
    )  # fmt: skip


def _macs_of(network: Network) -> Callable[[Mapping[str, int]], int]:
    return lambda widths: count(network.graph, dict(widths)).macs


def _itemised(
    method: LatencySearch, bill: TrainingCost, history: History, steps: int, network: Network
) -> dict[str, Any]:
    """The bill for `result.json`: counted, by the paper's formula, and in seconds really spent."""
    seconds = {name: spent for name, (_, spent) in history.phases.items()}
    last = "explore" if isinstance(method, IEE) else "importance"  # in whose last step the structure was timed
    timing = method.overhead_seconds.get("measurement", 0.0)
    if last in seconds:
        seconds |= {last: seconds[last] - timing, "measurement": timing}
    items: dict[str, Any] = {
        "stages": {name: {"steps": one.steps, "flops": one.flops} for name, one in bill.per_stage.items()},
        "seconds": seconds,
        "step_seconds": {name: seconds[name] / max(1, n) for name, (n, _) in history.phases.items()},
        "overhead_seconds": dict(method.overhead_seconds),
    }
    if isinstance(method, IEE):
        config = method.config
        share = iee_flops_per_sample(
            _macs_of(network)(method.widths), count(network.graph).macs, update_share=config.steps / steps,
            stages=(config.H, config.J, config.Q),
        )  # fmt: skip
        items["flops_ratio_by_formula"] = share / (3 * count(network.graph).macs)
    return items


def fine_tune(
    job: Job, network: Network, small: nn.Module, macs: int, run: RunDirectory, progress: Progress
) -> tuple[float, float, tuple[dict[str, Any], ...]]:
    """Train the slim network for the epochs asked for; its training FLOPs and seconds, and what happened."""
    assert network.data is not None, "checked with the job"
    log = _log(job, run, run.slim, "slim")
    teacher = copy.deepcopy(network.model) if job.recipe.distill else None
    history, events = _fit(job, small, network.data, run.slim, "fine-tuning", progress, log=log, teacher=teacher)
    bill = TrainingCost(count(network.graph).macs)
    flops = bill.add("train", steps=history.steps, batch=job.recipe.batch_size, macs=macs).flops
    return flops, history.seconds, events


def _log(job: Job, run: RunDirectory, directory: Path, phase: str) -> EventLog:
    """The event log of one training; the first process writes it."""
    if not Processes.here().first:
        return EventLog(None)
    mirror = None
    training_device(job.train_on)
    if job.tensorboard:
        from halp_iee.train.tensorboard import Board

        mirror = Board(run.tensorboard / phase)
    return EventLog(directory / "events.jsonl", mirror)


def _fit(
    job: Job, model: nn.Module, data: Data, directory: Path, name: str, progress: Progress,
    method: LatencySearch | None = None, optimizer: torch.optim.Optimizer | None = None, log: EventLog | None = None,
    identity: dict[str, str] | None = None, teacher: nn.Module | None = None,
) -> tuple[History, tuple[dict[str, Any], ...]]:  # fmt: skip
    """Train with checkpoints and a bar; every event of the log carries the phase that it belongs to."""
    recipe = job.recipe if name != "fine-tuning" else job.recipe.replace(epochs=job.finetune_epochs)
    if teacher is None:
        recipe = recipe.replace(distill=0.0)
    log = log or EventLog(directory / "events.jsonl")
    with log, progress.task(f"{name}, {recipe.epochs} epochs") as task:
        history = fit(
            model, data, recipe, method=method, optimizer=optimizer, teacher=teacher, checkpoint_dir=directory,
            identity={"model": job.model, **(identity or {})}, events=log, progress=_shown(task, method),
            device=training_device(job.train_on),
        )  # fmt: skip
    for module in (model, teacher):  # what follows is built, exported and compared on the CPU
        if module is not None:
            module.to("cpu")
    phase = "dense" if name == "dense reference" else "slim"
    logged = Processes.here().once(lambda: read(directory / "events.jsonl"))
    return history, tuple({**event, "phase": phase} for event in logged)


def _shown(task: Task, method: LatencySearch | None) -> Callable[[Step], None]:
    def show(at: Step) -> None:
        stage = "" if method is None or not method.status else f"{method.status}  "
        top1 = "" if at.test_top1 is None else f"  top-1 {100 * at.test_top1:.1f}%"
        task.update(at.step, at.steps, f"{stage}loss {at.loss:.3f}{top1}")

    return show
