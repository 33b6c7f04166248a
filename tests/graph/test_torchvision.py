"""Real architectures, at small inputs: slim halves and random units equal their masked selves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from halp_iee.graph import trace
from tests.graph.base import stir
from tests.graph.selections import halves, random_keep

QUICK = (
    "resnet18", "mobilenet_v2", "densenet121", "shufflenet_v2_x0_5", "googlenet", "efficientnet_b0",
    "regnet_x_400mf", "convnext_tiny", "vit_b_16",
)  # fmt: skip
SLOW = (
    "alexnet", "vgg11_bn", "vgg16", "squeezenet1_1", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "densenet169",
    "mobilenet_v3_small", "mobilenet_v3_large", "mnasnet0_5", "regnet_y_400mf", "efficientnet_v2_s", "inception_v3",
    "swin_t", "swin_v2_t", "maxvit_t", "convnext_base", "shufflenet_v2_x1_0", "vit_b_32",
)  # fmt: skip
FROZEN_BESIDES_THE_HEAD = {"swin_v2_t"}


def build(name: str) -> tuple[torch.nn.Module, Any]:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    size = {"inception_v3": 96, "maxvit_t": 64}.get(name, 64)
    more: dict[str, Any] = {"image_size": size} if name.startswith("vit") else {}
    if name == "maxvit_t":
        more = {"input_size": (64, 64), "partition_size": 2}
        model = models.maxvit.MaxVit(
            stem_channels=16, block_channels=[16, 32], block_layers=[1, 1], head_dim=8,
            stochastic_depth_prob=0.0, num_classes=10, **more,
        )  # fmt: skip
    else:
        model = getattr(models, name)(weights=None, num_classes=10, **more)
    stir(model)
    return model, torch.randn(1, 3, size, size)


def check(name: str) -> None:
    graph = trace(*build(name))
    small = graph.slim(halves(graph))
    graph.slim(random_keep(graph, 0))
    frozen = [g for g in graph.groups if not g.prunable and g.reason != "network output" and g.size > 1]
    assert bool(frozen) == (name in FROZEN_BESIDES_THE_HEAD), frozen
    assert any(g.prunable for g in graph.groups)
    small.train()
    assert not graph.unknown


@pytest.mark.parametrize("name", QUICK)
def test_slim_equals_masked(name: str) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_slim_equals_masked_on_more_architectures(name: str) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fasterrcnn_mobilenet_v3_large_320_fpn", "ssdlite320_mobilenet_v3_large"])
def test_a_detector_whose_path_follows_the_data_is_slimmed(name: str) -> None:
    detection = pytest.importorskip("torchvision.models.detection")
    torch.manual_seed(0)
    model = getattr(detection, name)(weights=None, weights_backbone=None)
    graph = trace(model, ([torch.rand(3, 96, 96)],))
    graph.slim(halves(graph))
    backbone = [group for group in graph.groups if group.name.startswith("backbone")]
    assert sum(group.prunable for group in backbone) > 0.9 * len(backbone)
