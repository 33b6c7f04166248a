"""The papers' networks have the sizes that the papers print, and their sparse layers are the papers'."""

from __future__ import annotations

import pytest
import torch

from halp_iee.graph import trace
from halp_iee.models import build
from halp_iee.sparsity.counting import forward_flops, size_bytes, work
from halp_iee.sparsity.distributions import erk, erk_densities
from halp_iee.sparsity.layers import sparse_layers


@pytest.mark.parametrize(
    ("name", "channels", "flops", "tolerance"),
    [
        ("wide_resnet22_2", 3, 3.2e8, 0.03),  # IEE, table 3: 3.2e8
        ("resnet32", 3, 2 * 69e6, 0.02),  # He et al.: 69 MMACs
        ("resnet56", 3, 2 * 125e6, 0.02),
        ("vgg19_cifar", 3, 2 * 398e6, 0.02),
    ],
)
def test_dense_flops(name: str, channels: int, flops: float, tolerance: float) -> None:
    with torch.device("meta"):
        model = build(name, in_channels=channels)
        used = work(model, sparse_layers(model), torch.empty(2, channels, 32, 32))
    assert forward_flops(used) == pytest.approx(flops, rel=tolerance)


def test_erk_on_resnet50_gives_the_published_counts() -> None:
    with torch.device("meta"):
        model = build("resnet50")
        used = work(model, sparse_layers(model), torch.empty(1, 3, 224, 224))
    layers = tuple(w.layer for w in used)
    assert len(layers) == 54
    assert sum(layer.numel for layer in layers) == 25_502_912
    assert sum(w.outputs for w in used) == 11_114_984
    for sparsity, gflops, megabytes, dense in (
        (0.8, 3.395, 23.684, 8), (0.9, 1.989, 13.499, 1), (0.95, 1.006, 8.399, 0), (0.99, 0.210, 4.318, 0)
    ):  # fmt: skip
        counts = erk(layers, sparsity)
        assert forward_flops(used, counts) / 1e9 == pytest.approx(gflops, rel=1e-3)
        assert size_bytes(used, counts, 27_560) / 1e6 == pytest.approx(megabytes, rel=1e-3)
        assert sum(d >= 1 for d in erk_densities(layers, sparsity).values()) == dense


def test_a_vision_transformers_input_projections_are_not_sparse() -> None:
    with torch.device("meta"):
        names = [layer.name for layer in sparse_layers(build("vit_b_16"))]
    assert len(names) == 1 + 12 * 3 + 1, "patches, output projection and two linear layers a block, head"
    assert not any("in_proj" in name for name in names)


def test_the_wide_network_can_be_slimmed() -> None:
    graph = trace(build("wide_resnet22_2"), torch.zeros(1, 1, 32, 32))
    inner = [group for group in graph.groups if group.prunable]
    assert len(inner) >= 9
    small = graph.slim({group.name: range(group.size // 2) for group in inner})
    assert sum(p.numel() for p in small.parameters()) < 0.5 * sum(p.numel() for p in graph.model.parameters())


def test_dense_layers_and_others_are_counted_in_full() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(36, 5))
    used = work(model, sparse_layers(model), torch.zeros(2, 2, 3, 3))
    assert forward_flops(used) == 2 * (72 * 9 + 180) + 36 + 5
    assert forward_flops(used, {"2": 18}) == 2 * (72 * 9 + 18) + 36 + 5
    assert size_bytes(used, {"2": 18}, 9) == 4 * (9 + 72 + 18) + 180 / 8
