"""A run of `train` with a sparse-training method: no latency is asked for, but a sparsity."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import halp_iee
from halp_iee import models
from halp_iee.errors import UsageError
from halp_iee.graph import trace
from halp_iee.methods.sparse import METHODS, Chase, SparseMethod
from halp_iee.progress import Progress, Silent
from halp_iee.report.text import plain
from halp_iee.run.directory import RunDirectory, read_json, write_json
from halp_iee.run.sparse_page import write_sparse_page
from halp_iee.sparsity.counting import forward_flops, work
from halp_iee.sparsity.layers import sparse_layers
from halp_iee.train import EventLog, fit, make_optimizer
from halp_iee.train.data import load
from halp_iee.train.events import read
from halp_iee.train.processes import Processes, started
from halp_iee.train.recipe import Recipe
from halp_iee.train.records import steps_per_epoch
from halp_iee.train.weights import load_weights
from halp_profiler.files import whole

_TOLD = ("top1", "sparsity", "params", "nonzeros", "flops_dense", "flops", "train_seconds", "wall_seconds")


@dataclass(frozen=True)
class SparseJob:
    """What one sparse training asks for.

    Attributes:
        model, data: as `--model` and `--data`.
        recipe: how it is trained.
        method: one of `halp_iee.methods.sparse.METHODS`.
        settings: of the method, by the names of its configuration.
        seed: of everything that is random.
        weights: safetensors file with trained weights to start from.
        device: `cpu` or `cuda`, where it is trained.
        tensorboard: whether figures are also written for TensorBoard.
    """

    model: str
    data: str
    recipe: Recipe
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    weights: str | None = None
    device: str = "cpu"
    tensorboard: bool = False

    def config(self) -> dict[str, Any]:
        return {
            "model": self.model, "data": self.data, "method": self.method, "settings": dict(self.settings),
            "seed": self.seed, "weights": self.weights, "recipe": self.recipe.model_dump(mode="json"),
        }  # fmt: skip


def train_sparse(
    job: SparseJob, directory: Path, progress: Progress | None = None, fresh: bool = False
) -> dict[str, Any]:
    """Train with the method, and write the weights, the masks' figures and the event log.

    Interrupted, the same job in the same directory goes on bit for bit. A finished run gives its result.

    Returns:
        The result, as in `result.json`: `model data method seed top1 sparsity sparsity_by_layer params
        nonzeros flops_dense flops train_seconds wall_seconds artifact report`; FLOPs are of one forward pass of one
        sample, 2 for each weight that lives and position and 1 for each output.

    Raises:
        HalpError: a bad job, or another run's directory.
    """
    if job.method not in METHODS:
        raise UsageError(f"unknown method {job.method!r}", f"there are {', '.join(METHODS)}", "choose one of them")
    with started() as processes:
        return _train(job, directory, progress or Silent(), fresh, processes)


def _train(job: SparseJob, directory: Path, progress: Progress, fresh: bool, processes: Processes) -> dict[str, Any]:
    since = time.perf_counter()
    data = load(job.data)
    torch.manual_seed(job.seed)
    model = models.build(
        job.model, num_classes=data.num_classes, in_channels=data.input_shape[0], image_size=data.input_shape[-1]
    )
    models.check_fits(model, data.input_shape, data.num_classes)
    if job.weights is not None:
        load_weights(model, job.weights)
    example = torch.zeros(1, *data.input_shape)
    settings = {**job.settings, "seed": job.seed}
    if job.method == "iee" and job.weights is not None:
        settings.setdefault("unused", "initial")  # weights of a trained network have all been used
    extra: dict[str, Any] = {"graph": trace(model, example)} if settings.get("channel_sparsity") else {}
    model.to(job.device)
    optimizer = make_optimizer(model, job.recipe)
    steps = job.recipe.epochs * steps_per_epoch(len(data.train), job.recipe.batch_size)
    started: list[dict[str, Any]] = []
    method = METHODS[job.method](model, optimizer, steps=steps, on_event=started.append, **settings, **extra)

    run = processes.once(lambda: RunDirectory(directory))  # only now: a bad job leaves nothing behind
    with run.locked() if processes.first else nullcontext():
        finished = processes.once(lambda: _finished(job, run, fresh))
        if finished is not None:
            progress.say(f"{run.root} is finished already; --fresh runs it again")
            return finished
        log = _log(job, run) if processes.first else EventLog(None)
        method.on_event = lambda event: log.log(event.pop("kind"), **event)
        for event in started:
            method.on_event(event)
        with log, progress.task(f"{job.method}, {job.recipe.epochs} epochs") as task:
            history = fit(
                model, data, job.recipe, method=method, optimizer=optimizer, checkpoint_dir=run.slim,
                identity={"model": job.model, "settings": json.dumps(settings, sort_keys=True, default=str)},
                events=log, device=job.device,
                progress=lambda at: task.update(at.step, at.steps, f"{method.status}  loss {at.loss:.3f}"),
            )  # fmt: skip
        model.to("cpu")

        def told() -> dict[str, Any]:
            result = {
                **job.config(), "top1": history.top1, "train_seconds": history.seconds,
                **_figures(method, model, example), "artifact": str(_write(method, model, run, job)),
                "wall_seconds": time.perf_counter() - since,
            }  # fmt: skip
            result["report"] = str(run.report)
            write_pages({job.method: (run, result)})
            write_json(run.result, result)
            return result

        return processes.once(told)


def write_pages(runs: Mapping[str, tuple[RunDirectory, dict[str, Any]]], out: Path | None = None) -> Path:
    """The page of one training to a sparsity, or of several beside one another.

    Args:
        runs: name -> directory and result; at most four.
        out: the page's file; else `report.html` of the run, or `comparison.html` here for several.

    Raises:
        UsageError: more than four.
        ArtifactError: the file cannot be written.
    """
    if len(runs) > 4:
        raise UsageError(f"cannot draw {len(runs)} runs on one page", "lines in four colours can be told apart",
                         "give four runs or fewer")  # fmt: skip
    (run, first), *others = runs.values()
    about: list[tuple[str, object]]
    if others:
        about = [
            (name, ", ".join(f"{k.replace('_', ' ')} {plain(of[k])}" for k in _TOLD)) for name, (_, of) in runs.items()
        ]
        title, path = f"{len(runs)} sparse trainings", out or Path("comparison.html")
    else:
        about = [(key.replace("_", " "), first[key]) for key in _TOLD]
        title = f"{first['model']} on {first['data'].split(':')[0]} with {first['method']}"
        path = out or run.report
    events = {name: read(of.slim / "events.jsonl") for name, (of, _) in runs.items()}
    document = first if not others else {name: result for name, (_, result) in runs.items()}
    return write_sparse_page(events, path, document=document, about=about, title=title)


def _finished(job: SparseJob, run: RunDirectory, fresh: bool) -> dict[str, Any] | None:
    """The result, if the run is over."""
    if fresh:
        run.clear()
    run.claim(job.config())
    return dict(read_json(run.result, dict[str, Any])) if run.result.exists() else None


def _log(job: SparseJob, run: RunDirectory) -> EventLog:
    mirror = None
    if job.tensorboard:
        from halp_iee.train.tensorboard import Board

        mirror = Board(run.tensorboard / "slim")
    return EventLog(run.slim / "events.jsonl", mirror)


def _figures(method: SparseMethod, model: torch.nn.Module, example: torch.Tensor) -> dict[str, Any]:
    used = work(model, sparse_layers(model, depthwise=True), example)
    live = method.nonzeros()
    return {
        "sparsity": method.sparsity,
        "sparsity_by_layer": {name: 1 - int(mask.sum()) / mask.numel() for name, mask in method.masks.items()},
        "params": sum(p.numel() for p in model.parameters()),
        "nonzeros": sum(int((p != 0).sum()) for p in model.parameters()),
        "flops_dense": forward_flops(used),
        "flops": forward_flops(used, live),
    }


def _write(method: SparseMethod, model: torch.nn.Module, run: RunDirectory, job: SparseJob) -> Path:
    """The weights: physically small where channels were removed, else with zeros."""
    if isinstance(method, Chase) and method.channels is not None:
        return halp_iee.save(method.slim(), run.artifact, provenance={"method": job.method, "source": "trained"})
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in model.state_dict().items()}
    with whole(run.artifact) as partial:
        save_file(tensors, partial, metadata={"format": "halp-iee sparse weights 1", "method": job.method})
    return run.artifact
