"""A finished run of a small network, made in seconds: slim, trained a little, exported, with its result."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from halp_iee import models, trace
from halp_iee.export.onnx import export_onnx
from halp_iee.measure.accuracy import top1_onnx
from halp_iee.run.directory import RunDirectory, write_json
from halp_iee.run.reload import RESULT_KEYS
from halp_iee.slim.artifact import save
from halp_iee.train.data import load

NETWORK = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(in_channels, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.b = nn.Sequential(
            nn.Conv2d(24, 24, 3, 1, 1, groups=24), nn.Conv2d(24, 32, 1), nn.BatchNorm2d(32), nn.SiLU()
        )
        self.c = nn.Conv2d(56, 48, 3, 2, 1)
        self.head = nn.Linear(48, num_classes)

    def forward(self, x):
        x = self.a(x)
        x = torch.relu(self.c(torch.cat([x, self.b(x)], 1)))
        return self.head(x.mean((2, 3)))


def build(num_classes=10, in_channels=1):
    return Net(num_classes, in_channels)
"""


def listing(root: Path) -> set[str]:
    """Everything under a folder."""
    return {str(path.relative_to(root)) for path in root.rglob("*")}


@dataclass(frozen=True)
class Run:
    """A run's directory and its result."""

    root: Path
    result: dict[str, Any]


def make_run(root: Path, spec: str, data_name: str | None, shape: tuple[int, ...], batch: int = 1) -> Run:
    """What a run leaves behind: half of every group is kept; with data it is trained for a few epochs."""
    torch.manual_seed(0)
    data = load(data_name) if data_name else None
    options = {"num_classes": data.num_classes, "in_channels": shape[0], "image_size": shape[-1]} if data else {}
    dense = models.build(spec, **options)
    graph = trace(dense, torch.randn(batch, *shape))
    small = graph.slim({g.name: list(range(0, g.size, 2)) for g in graph.groups if g.prunable})
    if data is not None:
        optimizer = torch.optim.Adam(small.parameters(), 0.01)
        small.train()
        for epoch in range(8):
            for images, labels in data.train.batches(64, epoch=epoch, shuffle=True):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(small(images), labels).backward()
                optimizer.step()
    small.eval()
    run = RunDirectory(root)
    save(small, run.artifact, provenance={"model": spec})
    export_onnx(small, torch.randn(batch, *shape), run.onnx)
    export_onnx(dense, torch.randn(batch, *shape), run.dense_onnx)
    top1 = top1_onnx(run.onnx, data.test.batches(250)).top1 if data else None
    result = dict.fromkeys(RESULT_KEYS) | {
        "model": spec, "data": data_name, "method": "iee", "seed": 0, "batch": batch, "threads": 1, "device": "a CPU",
        "target": "0.5", "target_ms": 0.2, "dense_ms": 0.4, "dense_measured_ms": 0.4, "measured_ms": 0.19,
        "predicted_ms": 0.18, "dense_predicted_ms": 0.39, "source": "measured", "unstable": False, "fps_dense": 2500.0,
        "fps": 5263.0, "top1": top1, "top1_dense": 0.97 if data else None, "params": 5000, "params_dense": 15000,
        "macs": 300_000, "macs_dense": 1_000_000, "input_shape": list(shape), "version": "0.1.0",
        "num_classes": data.num_classes if data else None, "runtime": "ONNX Runtime 1.31.1", "solver": "joint",
        "gap": 0.001, "artifact": str(run.artifact), "onnx": str(run.onnx), "report": str(run.report),
        "wall_seconds": 12.0, "train_seconds": 5.0, "train_seconds_dense": 6.0, "train_flops_ratio": 0.4,
    }  # fmt: skip
    write_json(run.config, {"model": spec, "data": data_name, "recipe": {"epochs": 2}})
    write_json(run.evidence, {"layers": [], "reproduce": f"halp-iee train --model {spec}"})
    write_json(run.result, json.loads(json.dumps(result)))
    return Run(root, result)


@pytest.fixture(scope="session")
def the_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Made once; tests that write into it take ``a_run``."""
    folder = tmp_path_factory.mktemp("network")
    (folder / "stranger.py").write_text(NETWORK)
    return make_run(folder / "run", f"{folder / 'stranger.py'}:build", "digits", (1, 32, 32))


@pytest.fixture
def a_run(the_run: Run, tmp_path: Path) -> Run:
    """A copy of its own."""
    shutil.copytree(the_run.root, tmp_path / "run")
    return Run(tmp_path / "run", dict(the_run.result))
