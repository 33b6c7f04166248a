"""From a job to the search that it asks for, its default lengths, and what its training costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from torch import nn

from halp_iee.errors import UsageError
from halp_iee.graph import ChannelGraph
from halp_iee.latency import LatencyModel
from halp_iee.measure.training_cost import TrainingCost
from halp_iee.methods.config import HALPConfig, IEEConfig
from halp_iee.methods.halp import HALP
from halp_iee.methods.iee import IEE
from halp_iee.methods.search import LatencySearch
from halp_iee.run.job import Job
from halp_iee.train.records import Data, steps_per_epoch


def total_steps(job: Job, data: Data) -> int:
    """Optimizer steps of the whole training."""
    return job.recipe.epochs * steps_per_epoch(len(data.train), job.recipe.batch_size)


def default_stages(steps: int, *, trained: bool = False) -> IEEConfig:
    """IEE's stages for a training of so many optimizer steps, of a network that comes ``trained`` or not.

    The paper has H = J = Q = 150 and 13 cycles, from a random structure, 3.6% of its training on ImageNet; a training
    of 100,000 steps and more has those lengths here. A training of some hundred steps needs a larger share to
    judge a channel by, and cannot afford to explore for long: what is explored stands still meanwhile, and a woken
    unit that never lived has learned nothing that could be waited for. So H and J are 2% of the training and Q 0.15%,
    never over 150, and the update period ends at a third of it. The start is the whole network, brought down.

    What comes trained has most of its channels judged already, and a short training must mend what every exchange
    breaks: there the period ends at a fifth, as HALP's way down does, and Omega^0 is 0.1 Psi instead of 0.3.
    """
    stage = min(150, max(3, round(0.02 * steps)))
    explore = min(150, max(1, round(0.0015 * steps)))
    period = steps // 5 if trained else steps // 3
    cycles = max(1, min(13, period // (2 * stage + explore)))
    return IEEConfig(H=stage, J=stage, Q=explore, T=cycles, omega_start=0.1 if trained else 0.3)


def default_descent(steps: int) -> HALPConfig:
    """HALP's way down for a training of so many optimizer steps.

    The paper's 30 steps of 320 iterations are 9% of its fine-tuning on ImageNet. Here the way down is 20% of the
    training, in at most 30 steps of no fewer than 5 iterations.
    """
    period = max(1, int(0.2 * steps))
    pruning_steps = max(1, min(30, period // 5))
    return HALPConfig(steps=pruning_steps, interval=max(1, period // pruning_steps))


def configuration(job: Job, steps: int) -> IEEConfig | HALPConfig:
    """The settings of the job's search, for a training of so many optimizer steps.

    Raises:
        UsageError: a switch that the method does not have, a value out of range, or an update period that is
            longer than the training.
    """
    config: IEEConfig | HALPConfig
    common: dict[str, Any] = {"solver": job.solver, "seed": job.seed, "criterion": job.criterion}
    if job.method == "halp":
        config = default_descent(steps)
    else:
        config = job.iee or default_stages(steps, trained=job.weights is not None)
    known = {field.name for field in fields(config)}
    odd = sorted(job.switches.keys() - known)
    if odd:
        raise UsageError(
            f"{job.method} has no setting {odd[0]!r}", f"it has {', '.join(sorted(known))}", "leave it out"
        )
    config = replace(config, **{**common, **job.switches})
    if isinstance(config, IEEConfig):
        period, what = config.steps, f"T (H + J + Q) = {config.T} ({config.H} + {config.J} + {config.Q})"
    else:
        period, what = config.period, f"steps x interval = {config.steps} x {config.interval}"
    if period > steps:
        raise UsageError(
            f"the update period of {job.method} does not fit into the training",
            f"{what} is {period} optimizer steps and the training has {steps}",
            "train for more epochs, or take fewer cycles or shorter stages",
        )
    return config


def search(
    job: Job, steps: int, model: nn.Module, graph: ChannelGraph, cost: LatencyModel, **options: Any
) -> LatencySearch:
    """The search that the job asks for; `options` as `LatencySearch` takes them."""
    config = configuration(job, steps)
    if isinstance(config, HALPConfig):
        return HALP(model, graph, cost, config=config, **options)
    return IEE(model, graph, cost, config=config, **options)


def training_bill(
    method: LatencySearch,
    dense_macs: int,
    events: Sequence[Mapping[str, Any]],
    steps: int,
    batch: int,
    macs_of: Callable[[Mapping[str, int]], int],
) -> TrainingCost:
    """Training FLOPs as really run: every stage at the size that the network had in it.

    Args:
        events: the log of the training, with the step at which each decision was made.
        steps: of the whole training.
        macs_of: forward MACs of the network with given widths.
    """
    bill, macs, at = TrainingCost(dense_macs), dense_macs, 0
    for event in events:
        kind = event["event"]
        if kind not in ("start", "prune", "grow", "settle"):
            continue
        since, at = at, event["step"]
        if kind == "prune":
            stage = "estimate" if isinstance(method, IEE) else "descend"
            bill = bill.add(stage, steps=at - since, batch=batch, macs=macs)  # type: ignore[arg-type]
        elif kind == "grow":
            assert isinstance(method, IEE), "HALP does not grow"
            improve = min(method.config.J, at - since)
            bill = bill.add("improve", steps=improve, batch=batch, macs=macs)
            bill = bill.add("explore", steps=at - since - improve, batch=batch, macs=macs)
        macs = macs_of(event["widths"])
    return bill.add("train", steps=steps - at, batch=batch, macs=macs)
