"""The stages of a run that train: the dense reference, and the two ways to the slim network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from halp_iee.measure.flops import count
from halp_iee.measure.training_cost import TrainingCost
from halp_iee.methods.config import IEEConfig
from halp_iee.methods.iee import IEE
from halp_iee.methods.meet import meet_as_measured
from halp_iee.progress import Progress, Task
from halp_iee.run.directory import RunDirectory
from halp_iee.run.job import Job
from halp_iee.run.stages import Cost, Network, Slimmed
from halp_iee.solve import Answer, solve
from halp_iee.train import EventLog, History, evaluate, fit, make_optimizer
from halp_iee.train import Progress as Step
from halp_iee.train.events import read
from halp_iee.train.records import Data, steps_per_epoch


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


def reference(job: Job, network: Network, run: RunDirectory, progress: Progress) -> Reference:
    """Train the dense network for as many epochs as the slim one will be; or take the weights given."""
    data = network.data
    if data is None:
        return Reference(network.model, None, None)
    if job.weights is not None:
        return Reference(network.model, evaluate(network.model, data.test).top1, None)
    if not job.dense:
        return Reference(network.model, None, None)
    model = copy.deepcopy(network.model)
    history, events = _fit(job, model, data, run.dense, "dense reference", progress)
    return Reference(model, history.top1, history.seconds, events)


def default_stages(steps: int) -> IEEConfig:
    """IEE's stages for a training of so many optimizer steps.

    The paper's H = J = Q = 150 and 13 cycles are 4.5% of its training on ImageNet; in a training
    of some hundred steps that would leave no time to judge a channel. Here a cycle is 3% of
    the training, never under 9 steps nor over the paper's 450, and the update period ends at 40%.
    """
    stage = min(150, max(3, round(0.01 * steps)))
    cycles = max(1, min(13, int(0.4 * steps) // (3 * stage)))
    return IEEConfig(H=stage, J=stage, Q=stage, T=cycles)


def train_to_target(
    job: Job, network: Network, cost: Cost, reference: Reference, run: RunDirectory, progress: Progress
) -> Slimmed:
    """Find the structure with IEE while the network trains."""
    data = network.data
    assert data is not None, "the command line asks for data"
    steps = job.recipe.epochs * steps_per_epoch(len(data.train), job.recipe.batch_size)
    config = job.iee or default_stages(steps)
    config = replace(config, solver=job.solver, seed=job.seed, start="dense" if job.weights else config.start)
    _check_length(config, steps)
    model = copy.deepcopy(network.model)
    optimizer = make_optimizer(model, job.recipe)
    log = EventLog(run.slim / "events.jsonl")
    iee = IEE(
        model, network.graph, cost.model, target_ms=cost.target_ms, optimizer=optimizer, config=config,
        measure=cost.clock, on_event=lambda event: log.log(event.pop("kind"), **event),
    )  # fmt: skip
    identity = {"target": f"{cost.target_ms:.6g} ms"}
    history, events = _fit(job, model, data, run.slim, "IEE", progress, iee, optimizer, log, identity)
    flops = _iee_flops(network, config, events, steps, job.recipe.batch_size)
    final = [e for e in events if e["event"] in ("settle", "grow")][-1]
    return Slimmed(
        small=iee.slim(), keep=iee.keep, widths=iee.widths, gap=final["gap"], solver=final["solver"], top1=history.top1,
        train_flops=flops, train_seconds=history.seconds, events=(*reference.events, *events),
    )  # fmt: skip


def _check_length(config: IEEConfig, steps: int) -> None:
    from halp_iee.errors import UsageError

    if config.steps > steps:
        raise UsageError(
            "IEE's update period does not fit into the training",
            f"T (H + J + Q) is {config.steps} steps and the training has {steps}",
            "train for more epochs, or take fewer cycles or shorter stages",
        )


def prune_to_target(
    job: Job, network: Network, cost: Cost, reference: Reference, run: RunDirectory, progress: Progress
) -> Slimmed:
    """Judge the trained channels once, solve, meet the target as measured, and fine-tune if asked."""
    scores = _judge(job, network, progress)

    def solve_at(budget_ms: float) -> Answer:
        return solve(cost.model, scores, budget_ms, job.solver)

    if cost.clock is None:
        answer = solve_at(cost.target_ms)
    else:
        clock = cost.clock
        with progress.task("meeting the target as measured"):
            answer = meet_as_measured(solve_at, lambda a: clock(a.keep), cost.target_ms)[0].answer
    small = network.graph.slim(answer.keep)
    top1, flops, seconds, events = None, None, None, reference.events
    if network.data is not None:
        if job.finetune_epochs:
            log = EventLog(run.slim / "events.jsonl")
            history, tuned = _fit(job, small, network.data, run.slim, "fine-tuning", progress, log=log)
            seconds, events = history.seconds, (*events, *tuned)
            macs = count(network.graph, answer.widths).macs
            bill = TrainingCost(count(network.graph).macs)
            flops = bill.add("train", steps=history.steps, batch=job.recipe.batch_size, macs=macs).flops
        top1 = evaluate(small, network.data.test).top1
    return Slimmed(
        small, dict(answer.keep), dict(answer.widths), answer.gap, answer.solver, top1, flops, seconds, events
    )


def _judge(job: Job, network: Network, progress: Progress) -> dict[str, np.ndarray]:
    """Importance of every unit: over the training set where the criterion needs gradients, else of the weights."""
    from halp_iee.importance import NEEDS_GRADIENTS, score

    model = copy.deepcopy(network.model)
    if job.criterion not in NEEDS_GRADIENTS:
        return {n: s.numpy() for n, s in score(job.criterion, model, network.graph).items()}
    assert network.data is not None, "the command line asks for data"
    sums: dict[str, np.ndarray] = {}
    model.eval()  # a trained network is judged with its own statistics
    size = job.recipe.batch_size
    total = min(100, steps_per_epoch(len(network.data.train), size))
    with progress.task(f"importance by {job.criterion}", total) as task:
        batches = network.data.train.batches(size, epoch=0, seed=job.seed, shuffle=True)
        for i, (images, labels) in zip(range(total), batches, strict=False):
            model.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            for name, values in score(job.criterion, model, network.graph).items():
                sums[name] = sums.get(name, 0.0) + values.numpy()
            task.update(i + 1)
    return sums


def _fit(
    job: Job, model: nn.Module, data: Data, directory: Path, name: str, progress: Progress,
    method: IEE | None = None, optimizer: torch.optim.Optimizer | None = None, log: EventLog | None = None,
    identity: dict[str, str] | None = None,
) -> tuple[History, tuple[dict[str, Any], ...]]:  # fmt: skip
    """Train with checkpoints and a bar; every event of the log carries the phase that it belongs to."""
    recipe = job.recipe if name != "fine-tuning" else job.recipe.replace(epochs=job.finetune_epochs)
    log = log or EventLog(directory / "events.jsonl")
    with log, progress.task(f"{name}, {recipe.epochs} epochs") as task:
        history = fit(
            model, data, recipe, method=method, optimizer=optimizer, checkpoint_dir=directory,
            identity={"model": job.model, **(identity or {})}, events=log, progress=_shown(task, method),
        )  # fmt: skip
    assert log.path is not None
    phase = "dense" if name == "dense reference" else "slim"
    return history, tuple({**event, "phase": phase} for event in read(log.path))


def _shown(task: Task, method: IEE | None) -> Callable[[Step], None]:
    def show(at: Step) -> None:
        stage = "" if method is None or method.done else f"cycle {method.cycle + 1}/{method.config.T} {method.stage}  "
        top1 = "" if at.test_top1 is None else f"  top-1 {100 * at.test_top1:.1f}%"
        task.update(at.step, at.steps, f"{stage}loss {at.loss:.3f}{top1}")

    return show


def _iee_flops(
    network: Network, config: IEEConfig, events: tuple[dict[str, Any], ...], steps: int, batch: int
) -> float:
    """Training FLOPs as really run: every stage at the size that the network had in it."""
    bill = TrainingCost(count(network.graph).macs)
    macs = count(network.graph).macs
    for event in events:
        if event["event"] in ("start", "prune", "grow", "settle"):
            now = count(network.graph, event["widths"]).macs
            if event["event"] == "prune":  # H ran at the size before, J and Q belong to the size after
                bill = bill.add("estimate", steps=config.H, batch=batch, macs=macs)
                bill = bill.add("improve", steps=config.J, batch=batch, macs=now)
                bill = bill.add("explore", steps=config.Q, batch=batch, macs=now)
            macs = now
    return bill.add("train", steps=steps - config.steps, batch=batch, macs=macs).flops
