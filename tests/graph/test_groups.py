"""What is found in a network, and what is said about it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from halp_iee.errors import GraphError
from halp_iee.graph import trace
from tests.graph import networks
from tests.graph.networks import NETWORKS, build

every_network = pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)


def free(kind: type[nn.Module]) -> dict[str, int]:
    return {group.name: group.size for group in trace(*build(kind)).groups if group.prunable}


def reasons(kind: type[nn.Module]) -> dict[str, str]:
    return {group.name: group.reason or "" for group in trace(*build(kind)).groups if not group.prunable}


@every_network
def test_groups_are_named_once_and_the_frozen_say_why(kind: type[nn.Module]) -> None:
    graph = trace(*build(kind))
    names = [group.name for group in graph.groups]
    assert len(set(names)) == len(names)
    assert graph.groups, "every network here has channels"
    for group in graph.groups:
        assert group.layers
        assert group.prunable == (group.reason is None)
        assert graph.group(group.name) is group


@every_network
def test_every_axis_is_a_union_of_whole_groups(kind: type[nn.Module]) -> None:
    graph = trace(*build(kind))
    for axes in graph.axes.values():
        for units in axes:
            if units is None:
                continue
            for number in np.unique(units.group[units.group >= 0]):
                _, counts = np.unique(units.unit[units.group == number], return_counts=True)
                assert len(counts) == graph.groups[number].size
                assert len(set(counts.tolist())) == 1


@every_network
def test_tracing_twice_finds_the_same(kind: type[nn.Module]) -> None:
    model, inputs = build(kind)
    assert trace(model, inputs).groups == trace(model, inputs).groups


@every_network
def test_operations_refer_to_values_made_before(kind: type[nn.Module]) -> None:
    graph = trace(*build(kind))
    made: set[int] = set()
    first_inputs = set()
    for op in graph.ops:
        first_inputs |= set(op.inputs) - made
        made |= set(op.outputs)
        assert op.c_out.full >= 1
    # Only the network's own inputs are read without having been made, and no value is made twice.
    assert sum(len(op.outputs) for op in graph.ops) == len(made)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (networks.Residual, {"stem.0": 8, "a.0": 6, "short": 12}),
        (networks.Concatenated, {"stem.0": 8, "a.0": 6, "b.0": 4}),
        (networks.DenseAndAdded, {"stem.0": 8, "a.0": 4, "b.0": 4, "d.0": 4}),
        (networks.Depthwise, {"stem.0": 8, "point.0": 6}),
        (networks.Grouped, {"stem.0": 4, "point.0": 8}),
        (networks.SqueezeExcite, {"stem.0": 8, "down": 4}),
        (networks.HalfBySlice, {"stem.0": 6, "one.0": 6}),
        (networks.FirstChannels, {"stem.0#2": 7, "one.0": 6}),
        (networks.Flattened, {"stem.0": 8, "a.0": 6}),
        (networks.Functional, {"stem.0": 8, "kernel": 6}),
        (networks.OneOutput, {"stem.0": 8, "a.0": 8}),
        (networks.WrittenAttention, {"embed": 16, "q": 6, "v": 4}),
        (networks.FixedHeadSize, {"embed": 16, "qkv": 4}),
        (networks.LayerNormed, {"embed": 16, "up": 32}),
        (networks.GroupNormed, {"stem.0": 12, "a": 4}),
        (networks.Transposed, {"stem.0": 8, "up": 4}),
        (networks.WeightNormed, {"stem.0": 8, "a": 8, "b": 8}),
        (networks.Shifted, {"stem.0": 8, "a.0": 8, "b.0": 8}),
        (networks.CrossStage, {"stem.0": 8, "first.0": 6, "steps.0.0": 6, "steps.1.0": 6, "last.0": 8}),
        (networks.GroupedQuery, {"embed": 16, "q": 2, "gate": 24}),
        (networks.Tokens, {"table": 12, "up": 20}),
        (networks.DataDependent, {"stem.0": 8, "a.0": 8}),
        (networks.NumbersOfItsOwn, {"embed": 16, "qkv": 4, "up": 12, "up#2": 8}),
        (networks.CrossAttention, {"a": 16, "attention.in_proj_weight": 4}),
        (networks.Recurrent, {"a": 16, "b": 8, "rnn": 8}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_what_a_person_would_prune_is_found(kind: type[nn.Module], expected: dict[str, int]) -> None:
    assert free(kind) == expected


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        (networks.Residual, "head", "network output"),
        (networks.HardCodedView, "a.0", "hard-coded"),
        (networks.SplitGates, "gates", "hard-coded"),
        (networks.UnequalSplit, "stem.0", "hard-coded"),
        (networks.ScaledByWidth, "a.0", "depends on a size"),
        (networks.NumberAsTensor, "a.0", "depends on a size"),
        (networks.UnknownOperation, "b.0", "linalg_qr"),
        (networks.ChannelAttention, "stem.0", "slides over"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_what_stays_says_why(kind: type[nn.Module], name: str, words: str) -> None:
    assert words in reasons(kind)[name]


def test_an_operation_without_a_rule_is_named_and_freezes_only_what_it_reads() -> None:
    graph = trace(*build(networks.UnknownOperation))
    assert list(graph.unknown) == ["aten::linalg_qr"]
    assert graph.group("stem.0").prunable
    assert graph.group("a.0").prunable


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        ({"a0": [0]}, "Did you mean a.0"),
        ({"a.0": [6]}, "0 to 5, not 6"),
        ({"a.0": [-1]}, "not -1"),
        ({"a.0": [1, 1]}, "more than once"),
        ({"a.0": []}, "keeps nothing"),
        ({"a.0": [True] * 6}, "integer"),
        ({"a.0": [[0, 1]]}, "one-dimensional"),
        ({"head": [0]}, "network output"),
        ([0], "list"),
    ],
)
def test_a_selection_that_cannot_be_used_is_refused(keep: object, words: str) -> None:
    model, inputs = build(networks.Residual)
    graph = trace(model, inputs)
    for act in (graph.widths, graph.positions, graph.slim):
        with pytest.raises(GraphError, match=words):
            act(keep)  # type: ignore[operator]
    with pytest.raises(GraphError, match=words), graph.masked(keep):  # type: ignore[arg-type]
        pass


def test_a_frozen_group_may_be_named_whole() -> None:
    graph = trace(*build(networks.Residual))
    assert graph.widths({"head": range(5), "a.0": torch.tensor([3, 1])})["a.0"] == 2


@pytest.mark.parametrize(
    "inputs",
    [torch.randn(2, 5, 8, 8), torch.randn(2), (), {"y": torch.randn(2, 3, 8, 8)}, "x", torch.randn(0, 3, 8, 8)],
)
def test_inputs_that_do_not_fit_are_a_clear_error_and_change_nothing(inputs: object) -> None:
    model, _ = build(networks.Residual)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    with pytest.raises(GraphError, match="cannot be traced"):
        trace(model, inputs)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_network_in_train_mode_is_traced_with_a_single_example() -> None:
    model, inputs = build(networks.Residual)
    assert trace(model.train(), inputs[:1]).groups == trace(model.eval(), inputs).groups


def test_a_network_that_fails_says_its_own_error() -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("the moon is in the wrong house")

    with pytest.raises(GraphError, match="wrong house"):
        trace(Broken(), torch.randn(1))


def test_what_a_forward_pass_stores_in_the_module_stays_out_of_the_original() -> None:
    class Caching(networks.Residual):
        def body(self, x: torch.Tensor) -> torch.Tensor:
            self.last = super().body(x)
            return self.last

    model, inputs = build(Caching)
    trace(model, inputs)
    assert not hasattr(model, "last")
