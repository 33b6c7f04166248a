"""Pruning a trained network in one step, and correcting it by what its final measurement says."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from halp_iee.errors import TargetError
from halp_iee.measure.flops import count
from halp_iee.methods.meet import Band, Trial, is_met, meet_as_measured, same_network
from halp_iee.progress import Progress
from halp_iee.run.clock import RuntimeClock
from halp_iee.run.directory import RunDirectory
from halp_iee.run.job import Job
from halp_iee.run.question import answerer
from halp_iee.run.stages import Cost, Measured, Network, Slimmed
from halp_iee.run.training import Reference, fine_tune
from halp_iee.solve import Answer
from halp_iee.train import evaluate
from halp_iee.train.records import steps_per_epoch

_REVISIONS = 3


def prune_to_target(
    job: Job, network: Network, cost: Cost, reference: Reference, run: RunDirectory, progress: Progress
) -> Slimmed:
    """Judge the trained channels once, solve, meet the target as measured, and fine-tune if asked."""
    scores = _judge(job, network, progress)
    solve_at = answerer(job.question, network.graph, cost.model, scores, job.solver)
    once = _OneShot(job, network, reference, run, progress, solve_at)
    if cost.clock is None or job.question.keep_importance is not None:
        return once.built(solve_at(cost.target_ms))
    return once.met(cost.clock, cost.target_ms)


@dataclass(frozen=True)
class _OneShot:
    """What stays the same while one network is pruned, measured and corrected."""

    job: Job
    network: Network
    reference: Reference
    run: RunDirectory
    progress: Progress
    solve_at: Callable[[float], Answer]

    def met(self, clock: RuntimeClock, target_ms: float) -> Slimmed:
        """The network that meets the target as timed; it can be revised as long as nothing was trained into it."""
        best = self.meeting(clock, target_ms)
        slimmed = self.built(best.answer)
        return slimmed if self.job.finetune_epochs else replace(slimmed, revise=_Revision(self, clock, best, target_ms))

    def meeting(self, clock: RuntimeClock, target_ms: float, start_ms: float | None = None) -> Trial:
        """The best trial of the loop that meets a latency as measured."""
        with self.progress.task("meeting the target as measured"):
            return meet_as_measured(self.solve_at, lambda a: clock(a.keep), target_ms, start_ms=start_ms)[0]

    def built(self, answer: Answer) -> Slimmed:
        """The network of an answer, fine-tuned if asked, and tested."""
        network, small = self.network, self.network.graph.slim(answer.keep)
        top1, flops, seconds, events = None, None, None, self.reference.events
        if network.data is not None:
            if self.job.finetune_epochs:
                macs = count(network.graph, answer.widths).macs
                flops, seconds, tuned = fine_tune(self.job, network, small, macs, self.run, self.progress)
                events = (*events, *tuned)
            top1 = evaluate(small, network.data.test).top1
        return Slimmed(
            small, dict(answer.keep), dict(answer.widths), answer.gap, answer.solver, top1, flops, seconds, events
        )


@dataclass(frozen=True)
class _Revision:
    """Corrects a network that met the target when it was chosen, and in the final measurement did not.

    The machine may have changed in between: the new search begins at the budget that the final measurement suggests,
    and times against the dense latency that was measured with it. A network that was chosen far under the target, as
    the steps are too coarse for a nearer one, is corrected only when it comes out over it.
    """

    once: _OneShot
    clock: RuntimeClock
    trial: Trial
    target_ms: float
    left: int = field(default=_REVISIONS)

    def __call__(self, measured: Measured) -> Slimmed | None:
        if measured.dense_ms is None or measured.slim_ms is None or self.left == 0:
            return None
        job = self.once.job
        target_ms = job.target.of_ms(measured.dense_ms, job.device.batch)
        share, chosen_at = measured.slim_ms / target_ms, self.trial.measured_ms / self.target_ms
        if is_met(measured.slim_ms, target_ms) or (share <= 1.0 and not is_met(chosen_at, 1.0)):
            return None
        self.once.progress.say(f"measured at {share:.1%} of the target: correcting the widths")
        self.clock.scale_to(measured.dense_ms)
        try:
            best = self.once.meeting(self.clock, target_ms, self.trial.budget_ms * Band().aim / share)
        except TargetError:
            return None  # what there is stands, and the result says by how much it misses
        if same_network(best.answer, self.trial.answer):
            return None
        again = _Revision(self.once, self.clock, best, target_ms, self.left - 1)
        return replace(self.once.built(best.answer), revise=again)


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
