"""What `bench_training.py` compares: IEE, HALP, Torch-Pruning and uniform widths, on one network and its clock."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from training_page import DATA

from halp_iee import models
from halp_iee.errors import TargetError
from halp_iee.export.onnx import export_onnx
from halp_iee.graph import ChannelGraph, trace
from halp_iee.latency import LatencyModel, LatencyTable
from halp_iee.latency.profile import profile_network
from halp_iee.measure.latency import measure_onnx
from halp_iee.measure.sessions import time_sessions
from halp_iee.methods.halp import HALP
from halp_iee.methods.iee import IEE
from halp_iee.methods.meet import meet_as_measured
from halp_iee.methods.structure import prunable_sizes
from halp_iee.run.searches import default_descent, default_stages
from halp_iee.solve import solve
from halp_iee.train import Recipe, fit, load, make_optimizer
from halp_iee.train.records import Data, steps_per_epoch

_ALIGN = 4  # channels: the baselines' widths are multiples, for this runtime is slow at others, as a table would tell


@dataclass(frozen=True)
class Bench:
    """One network, its costs and its clock."""

    name: str
    data: Data
    graph: ChannelGraph
    example: Tensor
    cost: LatencyModel
    work: Path
    dense_file: bytes

    def build(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return models.build(self.name, self.data.num_classes, self.data.input_shape[0])

    def time_model(self, model: nn.Module) -> float:
        """Measured latency as a share of the dense network's, both timed in turn, over several sessions."""
        file = self.work / f".timed.{os.getpid()}.onnx"
        model = copy.deepcopy(model).eval()
        export_onnx(model, self.example, file)
        files = {"dense": self.dense_file, "slim": file.read_bytes()}
        file.unlink()
        return time_sessions(files, most=15, error=0.006).ratio("slim", "dense")

    def time_ms(self, model: nn.Module) -> float:
        return self.time_model(model) * self.cost.dense_ms


def bench(name: str, work: Path) -> Bench:
    """Sweep the table and calibrate it, or take what an earlier run left."""
    data = load(DATA)
    torch.manual_seed(0)
    model = models.build(name, data.num_classes, data.input_shape[0])
    example = torch.randn(1, *data.input_shape, generator=torch.Generator().manual_seed(0))
    graph = trace(model, example)
    path = work / f"{name}.table.jsonl"
    done = work / f"{name}.calibration.json"
    if not done.exists():
        profile_network(graph, path=path, model=name, time_budget_s=60)
    cost = LatencyModel(graph, LatencyTable.load(path))
    dense_path = work / f"{name}.onnx"
    if not dense_path.exists():
        export_onnx(copy.deepcopy(model), example, dense_path)
    raw = Bench(name, data, graph, example, cost, work, dense_path.read_bytes())
    if not done.exists():
        dense_ms = measure_onnx({"dense": raw.dense_file}, seconds=2.0)["dense"].median_ms
        points = [(graph.full_widths, dense_ms)]
        rng = np.random.default_rng(0)
        for share in (0.7, 0.5, 0.35, 0.25):
            scores = {n: rng.random(size) for n, size in prunable_sizes(graph).items()}
            answer = solve(cost, scores, cost.dense_ms * share)
            points.append((answer.widths, raw.time_model(graph.slim(answer.keep)) * dense_ms))
        done.write_text(json.dumps(points))
    return Bench(name, data, graph, example, cost.calibrate([(w, ms) for w, ms in json.loads(done.read_text())]), work,
                 raw.dense_file)  # fmt: skip


def recipe(epochs: int, seed: int) -> Recipe:
    return Recipe(epochs=epochs, batch_size=64, lr=0.1, warmup_epochs=0.5, evaluate_every=epochs, seed=seed)


def trained_dense(b: Bench, epochs: int, seed: int) -> nn.Module:
    """The dense network after half the epochs, which HALP and Torch-Pruning start from; made by a run of its own."""
    from safetensors.torch import load_file

    model = b.build(seed)
    model.load_state_dict(load_file(b.work / f"{b.name}.dense{epochs}.{seed}.safetensors"))
    return model


def run_dense(b: Bench, target: float, epochs: int, seed: int) -> dict[str, Any]:
    """Dense for half the epochs (where the baselines start from); with target 1 for all of them (the yardstick)."""
    from safetensors.torch import save_file

    length = epochs if target == 1.0 else epochs // 2
    model = b.build(seed)
    history = fit(model, b.data, recipe(length, seed))
    if target != 1.0:
        save_file(model.state_dict(), b.work / f"{b.name}.dense{epochs}.{seed}.safetensors")
    return {"top1": history.top1, "seconds": history.seconds, "share": 1.0}


def run_iee(b: Bench, target: float, epochs: int, seed: int, **changes: Any) -> dict[str, Any]:
    model = b.build(seed)
    plan = recipe(epochs, seed)
    optimizer = make_optimizer(model, plan)
    steps = epochs * steps_per_epoch(len(b.data.train), plan.batch_size)
    config = replace(default_stages(steps), seed=seed, **changes)
    method = IEE(model, b.graph, b.cost, target_ms=target * b.cost.dense_ms, optimizer=optimizer, config=config,
                 measure=lambda keep: b.time_ms(b.graph.slim(keep)))  # fmt: skip
    history = fit(model, b.data, plan, method=method, optimizer=optimizer)
    return _searched(b, method, history)


def run_iee_dense(b: Bench, target: float, epochs: int, seed: int) -> dict[str, Any]:
    """As HALP is run: half the epochs dense, then IEE from there."""
    model = trained_dense(b, epochs, seed)
    plan = recipe(epochs - epochs // 2, seed + 1000)
    optimizer = make_optimizer(model, plan)
    steps = plan.epochs * steps_per_epoch(len(b.data.train), plan.batch_size)
    config = replace(default_stages(steps, trained=True), seed=seed)
    method = IEE(model, b.graph, b.cost, target_ms=target * b.cost.dense_ms, optimizer=optimizer, config=config,
                 measure=lambda keep: b.time_ms(b.graph.slim(keep)))  # fmt: skip
    return _searched(b, method, fit(model, b.data, plan, method=method, optimizer=optimizer))


def run_halp(b: Bench, target: float, epochs: int, seed: int) -> dict[str, Any]:
    model = trained_dense(b, epochs, seed)
    plan = recipe(epochs - epochs // 2, seed + 1000)
    optimizer = make_optimizer(model, plan)
    steps = plan.epochs * steps_per_epoch(len(b.data.train), plan.batch_size)
    method = HALP(model, b.graph, b.cost, target_ms=target * b.cost.dense_ms, optimizer=optimizer,
                  config=default_descent(steps), measure=lambda keep: b.time_ms(b.graph.slim(keep)))  # fmt: skip
    history = fit(model, b.data, plan, method=method, optimizer=optimizer)
    return _searched(b, method, history)


def _searched(b: Bench, method: Any, history: Any) -> dict[str, Any]:
    return {
        "top1": history.top1, "seconds": history.seconds, "share": b.time_model(b.graph.slim(method.keep)),
        "predicted": b.cost.predict(method.widths) / b.cost.dense_ms, "overhead": method.overhead_seconds,
        "phases": history.phases, "keep": {n: u.tolist() for n, u in method.keep.items()},
        "widths": method.widths,
    }  # fmt: skip


@dataclass(frozen=True)
class _Candidate:
    latency_ms: float
    model: nn.Module
    widths: dict[str, int]


@dataclass(frozen=True)
class _Family:
    """Networks by one knob in (0, 1]. Neither their widths nor their latencies need grow with it."""

    members: tuple[_Candidate, ...]

    @classmethod
    def of(cls, b: Bench, make: Callable[[float], tuple[nn.Module, dict[str, int]]]) -> _Family:
        made = (make(float(knob)) for knob in np.linspace(0.04, 1.0, 49))
        return cls(tuple(_Candidate(b.cost.predict(widths), model, widths) for model, widths in made))

    def at(self, budget_ms: float) -> _Candidate:
        """The largest that is predicted within the budget, or the fastest where none is."""
        within = [one for one in self.members if one.latency_ms <= budget_ms]
        if not within:
            return min(self.members, key=lambda one: one.latency_ms)
        return max(within, key=lambda one: sum(one.widths.values()))

    def met(self, time_ms: Callable[[_Candidate], float], target_ms: float) -> _Candidate:
        """The one that meets the target as measured; the fastest where none does, which the page then shows."""
        try:
            met: Any = meet_as_measured(self.at, time_ms, target_ms)[0].answer
        except TargetError:
            met = min(self.members, key=lambda one: one.latency_ms)
        return met

    def wider(self, than: _Candidate) -> _Candidate:
        """The next wider one that is predicted slower."""
        more = [m for m in self.members if sum(m.widths.values()) > sum(than.widths.values())]
        return min((m for m in more if m.latency_ms > than.latency_ms), key=lambda one: sum(one.widths.values()))


def run_uniform(b: Bench, target: float, epochs: int, seed: int, wider: bool = False) -> dict[str, Any]:
    """A network whose layers are all narrower alike: the widest that meets the target, or the next wider one."""
    dense = b.build(seed)
    graph = trace(dense, b.example)

    def make(knob: float) -> tuple[nn.Module, dict[str, int]]:
        keep = {n: np.arange(min(size, max(_ALIGN, round(knob * size / _ALIGN) * _ALIGN)))
                for n, size in prunable_sizes(graph).items()}  # fmt: skip
        return dense, {n: len(u) for n, u in keep.items()}

    family = _Family.of(b, make)

    def built(candidate: _Candidate) -> nn.Module:
        return graph.slim({n: np.arange(w) for n, w in candidate.widths.items()})

    best = family.met(lambda c: b.time_ms(built(c)), target * b.cost.dense_ms)
    if wider:
        best = family.wider(best)
    # A network of this width from the start, with an initialisation of its own and not a cut of the dense one's.
    torch.manual_seed(seed)
    model = _initialised(built(best))
    history = fit(model, b.data, recipe(epochs, seed))
    widths = dict(best.widths)
    return {"top1": history.top1, "seconds": history.seconds, "share": b.time_model(model),
            "keep": {n: list(range(w)) for n, w in widths.items()}, "widths": widths}  # fmt: skip


def _initialised(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, (nn.Linear, nn.BatchNorm2d)):
            module.reset_parameters()
    return model


def run_torch_pruning(b: Bench, target: float, epochs: int, seed: int, criterion: str = "taylor") -> dict[str, Any]:
    """Global pruning by Torch-Pruning's group importance, at the ratio whose network is as fast as asked for."""
    import torch_pruning as tp

    dense = trained_dense(b, epochs, seed).eval()
    if criterion == "taylor":
        batches = b.data.train.batches(64, epoch=0, seed=seed, shuffle=True)
        for _, (images, labels) in zip(range(50), batches, strict=False):
            nn.functional.cross_entropy(dense(images), labels).backward()
        importance: Any = tp.importance.GroupTaylorImportance()
    else:
        importance = tp.importance.GroupMagnitudeImportance(p=2)
    head = [m for m in dense.modules() if isinstance(m, nn.Linear)][-1]
    place = next(n for n, m in dense.named_modules() if m is head)

    def make(knob: float) -> tuple[nn.Module, dict[str, int]]:
        model = copy.deepcopy(dense)
        for ours, theirs in zip(model.parameters(), dense.parameters(), strict=True):
            ours.grad = None if theirs.grad is None else theirs.grad.clone()
        pruner = tp.pruner.BasePruner(
            model, b.example, importance=importance, global_pruning=True, pruning_ratio=1.0 - knob,
            max_pruning_ratio=0.98, ignored_layers=[model.get_submodule(place)], round_to=_ALIGN,
        )  # fmt: skip
        pruner.step()
        return model, widths_of(b.graph, model)

    best = _Family.of(b, make).met(lambda c: b.time_ms(c.model), target * b.cost.dense_ms)
    model = best.model
    model.zero_grad(set_to_none=True)
    history = fit(model, b.data, recipe(epochs - epochs // 2, seed + 1000))
    widths = dict(best.widths)
    return {"top1": history.top1, "seconds": history.seconds, "share": b.time_model(model), "criterion": criterion,
            "keep": {n: list(range(w)) for n, w in widths.items()}, "widths": widths}  # fmt: skip


def widths_of(graph: ChannelGraph, model: nn.Module) -> dict[str, int]:
    """The widths of every group in a network that something else made smaller, from the shapes of its parameters."""
    shapes = {name: p.shape for name, p in model.named_parameters()}
    widths: dict[str, int] = {}
    for name, axes in graph.axes.items():
        for axis, units in enumerate(axes):
            if units is None or name not in shapes:
                continue
            groups = np.unique(units.group)
            if len(groups) == 1 and groups[0] >= 0:
                group = graph.groups[int(groups[0])]
                widths[group.name] = round(shapes[name][axis] * group.size / len(units.group))
    return {g.name: widths[g.name] for g in graph.groups if g.prunable}


RUN: Mapping[str, Callable[..., dict[str, Any]]] = {
    "iee": run_iee, "iee-random": partial(run_iee, start="random"), "iee-dense": run_iee_dense,
    "halp": run_halp, "torch-pruning": run_torch_pruning,
    "torch-pruning-l2": partial(run_torch_pruning, criterion="magnitude"), "uniform": run_uniform,
    "uniform-next": partial(run_uniform, wider=True), "dense": run_dense,
}  # fmt: skip
