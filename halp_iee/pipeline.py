"""The spine: from a network that is too slow to one that is fast enough, and the proof of it.

    model -> trace -> ChannelGraph -> LatencyTable (profiler) -> LatencyModel
          -> importance -> solve -> masks / IEE prune and grow -> slim -> artifact -> export -> measure -> report

Each stage is a function of `halp_iee.run` that takes and returns a named, frozen record. `train` and
`prune` differ in one line: who chooses the units.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halp_iee.progress import Progress, Silent
from halp_iee.run import pruning, results, stages, training
from halp_iee.run.directory import RunDirectory
from halp_iee.run.job import Job
from halp_iee.run.reload import read_result
from halp_iee.run.stopwatch import Stopwatch
from halp_iee.train.processes import started


@dataclass(frozen=True)
class Finished:
    """A run that is over: its result and where everything lies."""

    result: dict[str, Any]
    directory: Path


Choose = Callable[[Job, stages.Network, stages.Cost, training.Reference, RunDirectory, Progress], stages.Slimmed]


def train(job: Job, directory: Path | None = None, progress: Progress | None = None, fresh: bool = False) -> Finished:
    """Train a network to a latency: with IEE, from scratch or from trained weights, or with HALP.

    The run can be stopped at any moment; the same job in the same directory goes on. A run
    that is finished is not done again: its result comes back.

    Raises:
        HalpError: a bad job (UsageError, DataError), a device that is not there (DeviceError),
            a target out of reach (TargetError), or another run's directory.
    """
    return _run(job, directory, progress or Silent(), fresh, training.train_to_target)


def prune(job: Job, directory: Path | None = None, progress: Progress | None = None, fresh: bool = False) -> Finished:
    """Make a trained network fit a latency in one step, then fine-tune it if the job has epochs for that."""
    return _run(job, directory, progress or Silent(), fresh, pruning.prune_to_target)


def _run(job: Job, directory: Path | None, progress: Progress, fresh: bool, choose: Choose) -> Finished:
    with ExitStack() as during:
        processes = during.enter_context(started())
        network = stages.network(job)  # before the directory is made: a bad job leaves nothing behind
        training.check(job, network)
        run = processes.once(lambda: RunDirectory(directory or job.default_directory()))
        if processes.first:
            during.enter_context(run.locked())
        finished = processes.once(lambda: _finished(job, run, fresh))
        if finished is not None:
            if processes.first:
                progress.say(f"{run.root} is finished already; --fresh runs it again")
            return Finished(finished, run.root)

        watch = Stopwatch(run, progress) if processes.first else Silent()
        table = stages.table(job, network, watch)
        processes.once(lambda: run.keep_table(table.path))
        cost = stages.cost(job, network, table, run, watch)
        reference = training.reference(job, network, run, watch)
        slimmed = choose(job, network, cost, reference, run, watch)

        def prove() -> dict[str, Any]:
            chosen: stages.Slimmed | None = slimmed
            while chosen is not None:
                final = chosen
                artifact = results.artifact(job, network, final, cost, run)
                exported = stages.export(job, network, reference.model, final, run, watch)
                measured = stages.measure(job, network, cost, exported, run, watch)
                chosen = final.revise(measured) if final.revise else None
            seconds = watch.seconds if isinstance(watch, Stopwatch) else 0.0
            result = results.result(job, network, cost, reference, final, artifact, measured, run, seconds)
            results.report(result, job, network, cost, final, run)
            return result

        return Finished(processes.once(prove), run.root)


def _finished(job: Job, run: RunDirectory, fresh: bool) -> dict[str, Any] | None:
    """The result, if the run is over."""
    if fresh:
        run.clear()
    run.claim(job.config())
    return read_result(run) if run.result.exists() else None
