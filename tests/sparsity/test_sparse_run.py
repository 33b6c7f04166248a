"""A training to a sparsity, from the job to the files, stopped and gone on with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import halp_iee
from halp_iee.errors import HalpError, UsageError
from halp_iee.methods.sparse import METHODS, IEEWeights
from halp_iee.models import build
from halp_iee.run.sparse import SparseJob, train_sparse
from halp_iee.train.events import read
from halp_iee.train.recipe import Recipe

SMALL = """
from torch import nn
def net(num_classes, in_channels):
    return nn.Sequential(nn.Conv2d(in_channels, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, 2),
        nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, num_classes))
"""


def job(folder: Path, method: str = "rigl", **settings: Any) -> SparseJob:
    file = folder / "net.py"
    file.write_text(SMALL)
    recipe = Recipe(epochs=1, batch_size=64)
    return SparseJob(f"{file}:net", "digits", recipe, method, {"sparsity": 0.8, "every": 3, **settings})


def test_writes_sparse_weights_figures_and_events(tmp_path: Path) -> None:
    result = train_sparse(job(tmp_path), tmp_path / "run")
    assert json.loads((tmp_path / "run/result.json").read_text())["top1"] == result["top1"]
    weights = load_file(result["artifact"])
    assert (
        sum(int((w != 0).sum()) for n, w in weights.items() if "running" not in n and "num" not in n)
        == result["nonzeros"]
    )
    assert result["flops"] < result["flops_dense"]
    page = Path(result["report"]).read_text()
    assert all(words in page for words in ("Exploration rate", "Survival", "IoU", "Sparsity by layer"))
    assert page.count("<polyline") >= 3
    kinds = [event["event"] for event in read(tmp_path / "run/slim/events.jsonl")]
    assert kinds[0] == "start"
    assert {"update", "epoch"} <= set(kinds)
    assert train_sparse(job(tmp_path), tmp_path / "run") == json.loads((tmp_path / "run/result.json").read_text())
    with pytest.raises(UsageError, match="holds another run"):
        train_sparse(job(tmp_path, sparsity=0.5), tmp_path / "run")


def test_chase_writes_a_physically_small_network(tmp_path: Path) -> None:
    asked = job(tmp_path, "chase", channel_sparsity=0.3, sparsity=0.7)
    result = train_sparse(asked, tmp_path / "run")
    dense = build(asked.model, num_classes=10, in_channels=1)
    small = halp_iee.load(result["artifact"], dense)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in dense.parameters())
    assert small(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [("rigl", {"sparsity": 2.0}, r"\[0, 1\)"), ("best", {}, "unknown method"), ("rigl", {"gamma": 1.0}, "gamma")],
)
def test_a_bad_job_leaves_nothing_behind(method: str, settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(HalpError, match=message):
        train_sparse(job(tmp_path, method, **settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("trained", [False, True])
def test_iee_wakes_the_weights_of_a_trained_network_with_their_values(
    trained: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[IEEWeights] = []
    monkeypatch.setitem(METHODS, "iee", lambda *a, **k: made.append(IEEWeights(*a, **k)) or made[0])  # type: ignore[arg-type]
    asked = job(tmp_path, "iee", H=1)
    if trained:
        torch.manual_seed(7)
        network = build(asked.model, num_classes=10, in_channels=1)
        save_file(network.state_dict(), tmp_path / "trained.safetensors")
        asked = replace(asked, weights=str(tmp_path / "trained.safetensors"))
    monkeypatch.setattr("halp_iee.run.sparse.fit", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_sparse(asked, tmp_path / "run")
    for name, value in made[0].store.items():
        wanted = network.get_parameter(f"{name}.weight") if trained else torch.zeros_like(value)
        assert torch.equal(value, wanted)


def stopped(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt
