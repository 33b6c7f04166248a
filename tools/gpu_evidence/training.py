"""Training seconds an epoch of the dense network, of one with masks, and of the slim one; and IEE on the GPU."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gpu_evidence.part import Part
from gpu_evidence.tables import reachable_ms, traced
from halp_iee.graph import ChannelGraph
from halp_iee.importance import score
from halp_iee.latency import LatencyModel, LatencyTable
from halp_iee.methods.structure import prunable_sizes
from halp_iee.solve import solve

IMAGENET_IMAGES = 1_281_167
SHARE = 0.3


def training(part: Part) -> None:
    """Steps of SGD with momentum on images that lie on the device already, in bf16 autocast on a GPU.

    The slim network is the solver's at 0.3 of the dense latency, if a table is there, else every group at 0.45 of
    its width. Masked training is what one does without physical removal: the dense network, its dead weights set back
    to zero after every step.
    """
    graph = traced(part)
    keep, how = _structure(part, graph)
    batch = 8 if part.tiny else 256
    while batch >= 8:
        try:
            variants = {name: _Steps(part, name, graph, keep, batch) for name in ("dense", "masked", "slim")}
            for one in variants.values():
                one.run(1 if part.tiny else 5)
            break
        except torch.cuda.OutOfMemoryError:
            variants = {}
            torch.cuda.empty_cache()
            batch //= 2
    else:
        raise RuntimeError("not even a batch of 8 fits into the memory")
    until = time.monotonic() + min(40.0, part.left_s() / 2)
    rounds = 0
    while rounds < (2 if part.tiny else 60) and (rounds < 2 or time.monotonic() < until):
        for one in variants.values():
            one.seconds.append(one.run(1 if part.tiny else 4))
        rounds += 1
    dense_s = float(np.median(variants["dense"].seconds))
    for name, one in variants.items():
        step_s = float(np.median(one.seconds))
        part.row(
            network=part.network, variant=name, structure=how, batch=batch, precision=one.precision, rounds=rounds,
            step_ms=1000 * step_s, images_a_second=batch / step_s, of_dense=step_s / dense_s,
            epoch_seconds=step_s * -(-IMAGENET_IMAGES // batch),
            epoch_is="seconds a step times the steps of an epoch of ImageNet's 1,281,167 images; without data loading",
            peak_gb=one.peak_gb,
        )  # fmt: skip


def _structure(part: Part, graph: ChannelGraph) -> tuple[dict[str, np.ndarray], str]:
    for batch, precision in ((256, "fp16"), (1, "fp32"), (8, "fp16")):
        path = part.table(batch, precision)
        try:
            cost = LatencyModel(graph, LatencyTable.load(path))
            scores = score("magnitude_l2", graph.model, graph)
            answer = solve(cost, scores, reachable_ms(cost, scores, SHARE))
        except Exception:  # no such table, or one that was cut off: the next one
            continue
        return dict(answer.keep), f"solved for {answer.latency_ms / cost.dense_ms:.2f} of dense by {path.name}"
    keep = {name: np.arange(max(1, round(0.45 * size))) for name, size in prunable_sizes(graph).items()}
    return keep, "0.45 of every width, since no table is there"


class _Steps:
    """One variant, its optimizer and its images."""

    def __init__(self, part: Part, name: str, graph: ChannelGraph, keep: dict[str, Any], batch: int) -> None:
        self.part = part
        self.precision = "bf16 autocast" if part.cuda else "fp32"
        self.seconds: list[float] = []
        self.peak_gb: float | None = None
        model = graph.slim(keep) if name == "slim" else _copy(graph.model)
        self.model: nn.Module = model.train().to(part.where).to(memory_format=torch.channels_last)
        self.masks = _masks(self.model, graph, keep, part.where) if name == "masked" else []
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
        self.images = torch.randn(batch, *part.image).to(part.where).to(memory_format=torch.channels_last)
        self.labels = torch.randint(0, 10, (batch,)).to(part.where)

    def run(self, steps: int) -> float:
        """Seconds a step."""
        if self.part.cuda:
            torch.backends.cudnn.benchmark = True
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        since = time.perf_counter()
        for _ in range(steps):
            self.optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cuda", dtype=torch.bfloat16, enabled=self.part.cuda):
                loss = nn.functional.cross_entropy(self.model(self.images), self.labels)
            loss.backward()
            self.optimizer.step()
            if self.masks:
                with torch.no_grad():
                    torch._foreach_mul_([p for p, _ in self.masks], [mask for _, mask in self.masks])
        if self.part.cuda:
            torch.cuda.synchronize()
            self.peak_gb = torch.cuda.max_memory_allocated() / 2**30
        return (time.perf_counter() - since) / steps


def _copy(model: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(model)


def _masks(model: nn.Module, graph: ChannelGraph, keep: dict[str, Any], where: str) -> list[tuple[Tensor, Tensor]]:
    """(parameter, what it is multiplied with), for those that lose units."""
    found = []
    parameters = dict(model.named_parameters())
    for name, axes in graph.positions(keep).items():
        if name not in parameters or all(kept is None for kept in axes):
            continue
        mask = torch.ones(parameters[name].shape)
        for axis, kept in enumerate(axes):
            if kept is not None:
                lives = torch.zeros(mask.shape[axis])
                lives[torch.as_tensor(np.asarray(kept))] = 1
                mask *= lives.reshape([-1 if i == axis else 1 for i in range(mask.dim())])
        parameter = parameters[name]
        found.append((parameter, torch.empty_like(parameter).copy_(mask.to(where))))
    return found


def iee(part: Part) -> None:
    """IEE and the dense network on real handwritten digits, trained by this package's own loop on the device."""
    from halp_iee import models, trace
    from halp_iee.methods.iee import IEE
    from halp_iee.run.searches import default_stages
    from halp_iee.train import Recipe, fit, load, make_optimizer
    from halp_iee.train.records import steps_per_epoch

    data = load("digits")
    epochs = 1 if part.tiny else 10
    recipe = Recipe(epochs=epochs, batch_size=64, lr=0.1, warmup_epochs=0.5, evaluate_every=epochs, seed=0)
    steps = epochs * steps_per_epoch(len(data.train), recipe.batch_size)
    for name in ("dense", "iee"):
        torch.manual_seed(0)
        model = models.build("resnet20", data.num_classes, data.input_shape[0])
        graph = trace(model, torch.randn(1, *data.input_shape))
        cost = LatencyModel(graph, LatencyTable.load("amd-epyc-ort1.31.1-t1-b1-fp32-resnet20"))
        model.to(part.where)
        optimizer = make_optimizer(model, recipe)
        method = None
        if name == "iee":
            method = IEE(model, graph, cost, target=SHARE, optimizer=optimizer, config=default_stages(steps))
        history = fit(model, data, recipe, method=method, optimizer=optimizer, device=part.where)
        part.row(
            variant=name, network="resnet20", data="digits", epochs=epochs, seconds=history.seconds,
            epoch_seconds=history.seconds / epochs, top1=history.top1,
            predicted_share=None if method is None else cost.predict(method.widths) / cost.dense_ms,
            table="of a CPU: it only says what the widths are", parameters=sum(p.numel() for p in model.parameters()),
        )  # fmt: skip
