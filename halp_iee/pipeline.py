"""The spine: from a network that is too slow to one that is fast enough, and the proof of it.

    model -> trace -> ChannelGraph -> LatencyTable (profiler) -> LatencyModel
          -> importance -> solve -> masks / IEE prune and grow -> slim -> artifact -> export -> measure -> report

Each stage is a function of `halp_iee.run` that takes and returns a named, frozen record. `train` and
`prune` differ in one line: who chooses the units.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halp_iee.progress import Progress, Silent
from halp_iee.run import results, stages, training
from halp_iee.run.directory import RunDirectory
from halp_iee.run.job import Job
from halp_iee.run.reload import read_result


@dataclass(frozen=True)
class Finished:
    """A run that is over: its result and where everything lies."""

    result: dict[str, Any]
    directory: Path


Choose = Callable[[Job, stages.Network, stages.Cost, training.Reference, RunDirectory, Progress], stages.Slimmed]


def train(job: Job, directory: Path | None = None, progress: Progress | None = None, fresh: bool = False) -> Finished:
    """Train a network to a latency with IEE, from scratch or from trained weights.

    The run can be stopped at any moment; the same job in the same directory goes on. A run
    that is finished is not done again: its result comes back.

    Raises:
        HalpError: a bad job (UsageError, DataError), a device that is not there (DeviceError),
            a target out of reach (TargetError), or another run's directory.
    """
    return _run(job, directory, progress or Silent(), fresh, training.train_to_target)


def prune(job: Job, directory: Path | None = None, progress: Progress | None = None, fresh: bool = False) -> Finished:
    """Make a trained network fit a latency in one step, then fine-tune it if the job has epochs for that."""
    return _run(job, directory, progress or Silent(), fresh, training.prune_to_target)


def _run(job: Job, directory: Path | None, progress: Progress, fresh: bool, choose: Choose) -> Finished:
    network = stages.network(job)  # before the directory is made: a bad job leaves nothing behind
    run = RunDirectory(directory or job.default_directory())
    with run.locked():
        if fresh:
            run.clear()
        run.claim(job.config())
        if run.result.exists():
            progress.say(f"{run.root} is finished already; --fresh runs it again")
            return Finished(read_result(run), run.root)

        started = time.monotonic()
        table = stages.table(job, network, progress)
        run.keep_table(table.path)
        cost = stages.cost(job, network, table, run, progress)
        reference = training.reference(job, network, run, progress)
        slimmed = choose(job, network, cost, reference, run, progress)
        artifact = results.artifact(job, network, slimmed, cost, run)
        exported = stages.export(job, network, reference.model, slimmed, run, progress)
        measured = stages.measure(job, network, cost, exported, run, progress)
        result = results.result(job, network, cost, reference, slimmed, artifact, measured, run, started)
        results.report(result, job, network, cost, slimmed, run)
    return Finished(result, run.root)
