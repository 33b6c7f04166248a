"""Whole architectures in small: nothing that a person would prune is frozen, and every cut is exact."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from halp_iee.graph import trace
from halp_iee.graph.sandbox import named_tensors, tensors_in
from halp_iee.slim import load, save
from halp_iee.slim.build import disagreement, outputs
from tests.graph import architectures as a
from tests.graph.architectures import ARCHITECTURES, build
from tests.graph.selections import halves, random_keep, single

every_architecture = pytest.mark.parametrize("kind", ARCHITECTURES, ids=lambda kind: kind.__name__)

STAYS: dict[type[nn.Module], dict[str, str]] = {
    a.OneStageDetector: {"boxes.0.1": "mixed over all its channels together"},
    a.Decoder: {"table#2": "rows of an embedding"},
    a.LanguageModel: {"wte#2": "rows of an embedding"},
    a.Experts: {"embed": "hard-coded in forward", "gate": "mixed over"},
    a.Unfolded: {"weights": "mixed over"},
    a.Sampled: {"theta": "positions", "offset": "taps of a deformable convolution"},
    a.ChannelConvolution: {"b.0": "a convolution slides over it"},
    a.Quantised: {"codes": "all its channels together"},
}
"""What is frozen besides outputs, and a part of the reason that a person would accept."""

FREE: dict[type[nn.Module], dict[str, int]] = {
    a.Decoder: {"table": 32, "blocks.0.q": 2, "blocks.0.gate": 24, "blocks.1.q": 2, "blocks.1.gate": 24},
    a.LanguageModel: {"wte": 4, "h.0.mlp.0": 40, "h.1.mlp.0": 40},
    a.StateSpace: {"embed": 12, "into": 16, "x_proj": 3, "x_proj#2": 4},
    a.SeparatedSources: {
        "encoder": 16, "into": 12, "blocks.0.0.0": 20, "blocks.0.3": 12, "blocks.1.0.0": 20, "blocks.2.0.0": 20,
    },
    a.GlobalResponse: {"stem": 8, "up": 24},
    a.Standardised: {"a": 4, "b": 12},
    a.SpectrallyNormed: {"a": 8, "b": 8, "c": 6},
    a.RecurrentText: {"table": 10, "rnn": 12, "gru": 8},
    a.Windows: {"stem": 3, "reduce": 10},
    a.Spectral: {"stem.0": 8, "mix.0": 8},
}  # fmt: skip


def arguments(inputs: Any) -> tuple[Any, ...]:
    return inputs if isinstance(inputs, tuple) else (inputs,)


@every_architecture
def test_only_what_a_person_would_accept_is_frozen(kind: type[nn.Module]) -> None:
    graph = trace(*build(kind))
    accepted = ("network output", "its channels can only be removed all together")
    frozen = {g.name: g.reason for g in graph.groups if g.reason is not None and not g.reason.startswith(accepted)}
    assert frozen.keys() == STAYS.get(kind, {}).keys()
    for name, words in STAYS.get(kind, {}).items():
        assert words in frozen[name]
    assert not graph.unknown


@pytest.mark.parametrize("kind", FREE, ids=lambda kind: kind.__name__)
def test_units_are_as_fine_as_the_forward_pass_allows(kind: type[nn.Module]) -> None:
    assert {g.name: g.size for g in trace(*build(kind)).groups if g.prunable} == FREE[kind]


@every_architecture
def test_masked_slim_and_reloaded_agree_for_any_units(kind: type[nn.Module], tmp_path: Path) -> None:
    model, inputs = build(kind)
    graph = trace(model, inputs)
    for keep in [halves(graph), single(graph), *(random_keep(graph, seed) for seed in range(3))]:
        small = graph.slim(keep)
        with graph.masked(keep):
            wanted = outputs(model, arguments(inputs), {})
        assert disagreement(wanted, outputs(small, arguments(inputs), {})) <= 1
        reloaded = load(save(small, tmp_path / "small.safetensors"), model)
        one, two = named_tensors(small), named_tensors(reloaded)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)
        assert disagreement(outputs(small, arguments(inputs), {}), outputs(reloaded, arguments(inputs), {})) <= 1


@every_architecture
def test_a_slim_network_is_slimmed_again_and_trains(kind: type[nn.Module]) -> None:
    model, inputs = build(kind)
    graph = trace(model, inputs)
    small = graph.slim({g.name: range((g.size + 1) // 2) for g in graph.groups if g.prunable})
    again = trace(small, inputs)
    smaller = again.slim(random_keep(again, 1)).train()
    made = smaller(*arguments(inputs))
    sum(t.float().square().mean() for t in tensors_in(made) if t.requires_grad).backward()  # type: ignore[union-attr]
    found = [p.grad for p in smaller.parameters() if p.grad is not None]
    assert found
    assert all(math.isfinite(float(g.abs().sum())) for g in found)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [a.OneStageDetector, a.Decoder, a.LanguageModel, a.SeparatedSources, a.StateSpace, a.UNet, a.GlobalResponse,
     a.Standardised, a.RecurrentText, a.Windows, a.Unfolded],
    ids=lambda kind: kind.__name__,
)  # fmt: skip
def test_a_slim_network_is_exported_with_equal_results(kind: type[nn.Module], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from halp_iee.export.onnx import export_onnx

    model, inputs = build(kind)
    graph = trace(model, inputs)
    export_onnx(graph.slim(halves(graph)).eval(), arguments(inputs), tmp_path / "small.onnx", metadata={})


def test_what_a_network_keeps_between_calls_is_not_carried_into_the_slim_one() -> None:
    model, inputs = build(a.CachedTable)
    with torch.no_grad():
        before = model(inputs)
    graph = trace(model, inputs)
    assert {g.name: g.size for g in graph.groups if g.prunable} == {"into": 4}
    for seed in range(3):
        graph.slim(random_keep(graph, seed))
    with torch.no_grad():
        assert torch.equal(model(inputs), before)


def test_a_masked_network_with_statistics_of_its_own_trains_as_the_slim_one() -> None:
    model, inputs = build(a.GlobalResponse)
    graph = trace(model, inputs)
    keep = {"up": [0, 3, 5], "stem": [1, 2, 6]}
    small = graph.slim(keep)
    small(inputs).square().sum().backward()
    with graph.masked(keep):
        model(inputs).square().sum().backward()
    assert model.down.weight.grad is not None
    assert small.down.weight.grad is not None
    assert torch.allclose(model.down.weight.grad[[1, 2, 6]][:, [0, 3, 5]], small.down.weight.grad, rtol=1e-3, atol=1e-4)
