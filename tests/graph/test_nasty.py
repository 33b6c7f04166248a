"""Networks that nobody wrote with pruning in mind: every cut is exact, and what stays says why."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from halp_iee.graph import trace
from halp_iee.graph.sandbox import tensors_in
from halp_iee.slim import load, save
from halp_iee.slim.build import disagreement, outputs
from tests.graph import generator, nasty, nasty_field, nasty_more, nasty_sequences
from tests.graph.nasty import NASTY, build
from tests.graph.nasty_field import FIELD
from tests.graph.nasty_more import MORE
from tests.graph.selections import halves, random_keep, single

NETWORKS = [*NASTY, *MORE, *FIELD]

every_network = pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)

STAYS: dict[type[nn.Module], dict[str, str]] = {
    nasty_sequences.EinsumAttention: {"talk": "fixed size"},  # the number of heads; each head's size is free
    nasty_sequences.TextReader: {"out": "mixed over"},
    nasty_sequences.Routed: {"route": "mixed over"},
    nasty.Deformable: {"offset": "taps of a deformable", "mask": "taps of a deformable"},
    nasty.SuperResolution: {"up.2": "fixed size"},  # added to the picture itself
    nasty.Conditional: {"stem.0": "a grouped convolution of fixed size", "kernels": "taps of a convolution's kernel"},
    nasty.Modulated: {"one": "merged with another axis"},
    nasty_more.TiedAutoencoder: {"kernel#2": "fixed size"},  # the picture's own channels
    nasty_more.SlicedParameters: {"packed": "positions written down", "packed#2": "positions written down"},
    nasty_more.InterleavedGate: {"down": "fixed size"},
    nasty_more.CrossStageSplits: {
        "stem.0": "hard-coded in forward",
        "stem.0#2": "hard-coded in forward",
        "two.0": "positions written down",
    },
    nasty_more.NormedWeights: {"a": "divide by zero", "d": "divide by zero"},
    nasty_more.EfficientAttention: {"a.0": "slides over it"},
    nasty_more.Rolled: {"a.0": "rolled by a number of channels"},
    nasty_more.HeadParameters: {"o": "fixed size"},
    nasty_more.WidthArithmetic: {"o": "fixed size"},
    nasty_field.SharedHeads: {"box": "mixed over"},  # the bins of a distribution
    nasty_field.RotaryLanguage: {"table#2": "rows of an embedding"},
}
"""What is frozen besides outputs, and a part of the reason that a person would accept."""


def call(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, dict):
        return (), inputs
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def train(model: nn.Module, inputs: Any) -> None:
    args, kwargs = call(inputs)
    made = model.train()(*args, **kwargs)
    loss = sum(t.float().square().mean() for t in tensors_in(made) if t.requires_grad)
    loss.backward()  # type: ignore[union-attr]
    found = [p.grad for p in model.parameters() if p.grad is not None]
    assert found
    assert all(math.isfinite(float(g.abs().sum())) for g in found)


@every_network
def test_only_what_a_person_would_accept_is_frozen(kind: type[nn.Module]) -> None:
    graph = trace(*build(kind))
    accepted = ("network output", "its channels can only be removed all together")
    frozen = {g.name: g.reason for g in graph.groups if g.reason is not None and not g.reason.startswith(accepted)}
    assert frozen.keys() == STAYS.get(kind, {}).keys()
    for name, words in STAYS.get(kind, {}).items():
        assert words in frozen[name]
    assert not graph.unknown


@every_network
def test_any_units_give_the_masked_network_and_it_trains(kind: type[nn.Module], tmp_path: Path) -> None:
    model, inputs = build(kind)
    graph = trace(model, inputs)
    for keep in [halves(graph), single(graph), *(random_keep(graph, seed) for seed in range(3))]:
        small = graph.slim(keep)  # proves itself, or raises
        args, kwargs = call(inputs)
        with graph.masked(keep):
            wanted = outputs(model, args, kwargs)
        assert disagreement(wanted, outputs(small, args, kwargs)) <= 1
    reloaded = load(save(small, tmp_path / "small.safetensors"), model)
    assert disagreement(outputs(small, *call(inputs)), outputs(reloaded, *call(inputs))) <= 1
    train(copy.deepcopy(small), inputs)


@every_network
def test_a_slim_network_is_slimmed_again(kind: type[nn.Module]) -> None:
    model, inputs = build(kind)
    graph = trace(model, inputs)
    small = graph.slim({g.name: range((g.size + 1) // 2) for g in graph.groups if g.prunable})
    again = trace(small, inputs)
    train(again.slim(random_keep(again, 1)), inputs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [nasty.AttentionGates, nasty.WeightedPyramid, nasty.BareExcite, nasty.LayerScaled, nasty.SuperResolution,
     nasty_sequences.EinsumAttention, nasty_sequences.WidthsOfItsOwn, nasty_more.ShuffledGroups,
     nasty_more.InterleavedGate, nasty_more.ListsOfMaps, nasty_more.WidthArithmetic],
    ids=lambda kind: kind.__name__,
)  # fmt: skip
def test_a_slim_network_is_exported_with_equal_results(kind: type[nn.Module], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from halp_iee.export.onnx import export_onnx

    model, inputs = build(kind)
    graph = trace(model, inputs)
    export_onnx(graph.slim(halves(graph)).eval(), inputs, tmp_path / "small.onnx", metadata={})


@pytest.mark.parametrize("seed", range(generator.SEEDS))
def test_random_programs_are_cut_exactly(seed: int) -> None:
    model, inputs = generator.build(seed)
    graph = trace(model, inputs)
    assert not graph.unknown
    for number in range(2):
        small = graph.slim(random_keep(graph, number))
    again = trace(small, inputs)
    train(again.slim(random_keep(again, seed)), inputs)


def test_only_what_a_program_writes_down_is_frozen() -> None:
    free = total = 0
    for seed in range(generator.SEEDS):
        graph = trace(*generator.build(seed))
        inside = [g for g in graph.groups if g.reason != "network output" and g.size > 1]
        assert all("hard-coded" in g.reason or "written down" in g.reason for g in inside if g.reason is not None)
        free, total = free + sum(g.prunable for g in inside), total + len(inside)
    assert free > 0.9 * total


def test_the_model_is_as_before_after_everything_fails() -> None:
    model, inputs = build(nasty.BareExcite)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = trace(model, inputs)

    def broken(*_: Any) -> Any:
        raise FloatingPointError("out of range")

    model.stem[0].forward = broken
    from halp_iee.errors import GraphError

    with pytest.raises(GraphError, match="out of range"):
        graph.slim(halves(graph))
    with pytest.raises(GraphError, match="out of range"):
        trace(model, inputs)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
