"""Scores are the derivatives and norms that they claim to be, on whole and on slim networks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halp_iee import models
from halp_iee.errors import UsageError
from halp_iee.graph import trace
from halp_iee.graph.records import ChannelGroup
from halp_iee.importance import CRITERIA, NEEDS_GRADIENTS, score


class Units(NamedTuple):
    group: np.ndarray
    unit: np.ndarray


@dataclass
class HandMadeGraph:
    """A channel graph whose labels were written down by hand."""

    model: nn.Module
    groups: tuple[ChannelGroup, ...]
    axes: dict = field(default_factory=dict)

    def label(self, name: str, *axes: tuple[int, int] | None) -> None:
        """For each axis (group, channels a unit), or None. Channels of a unit lie side by side."""
        shape = dict(self.model.named_parameters())[name].shape
        labels: list[Units | None] = [None] * len(shape)
        for i, axis in enumerate(axes):
            if axis is not None:
                group, per = axis
                labels[i] = Units(np.full(shape[i], group), np.arange(shape[i]) // per)
        self.axes[name] = tuple(labels)


class Net(nn.Module):
    """Three prunable groups and gates on all of them.

    0: a residual stream that two convolutions with BatchNorm write. 1: the inside of a block, without
    a norm, with a bias. 2: a linear layer with units of two features and a LayerNorm. 3: the outputs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.up, self.down, self.bn1 = nn.Conv2d(4, 5, 1), nn.Conv2d(5, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.mlp, self.norm, self.out = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: Tensor, gates: dict[str, Tensor] | None = None) -> Tensor:
        def gated(name: str, y: Tensor) -> Tensor:
            if gates is None:
                return y
            return y * gates[name].reshape(1, -1, *[1] * (y.dim() - 2))

        y = gated("bn0", self.bn0(self.stem(x)))
        y = y + gated("bn1", self.bn1(self.down(F.relu(gated("up", self.up(y))))))
        return self.out(F.relu(gated("norm", self.norm(self.mlp(y.mean((2, 3)))))))


@pytest.fixture
def case():
    torch.manual_seed(0)
    model = Net()
    for parameter in model.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    names = ("stem", "up", "mlp")
    groups = tuple(ChannelGroup(n, s, (n,), True) for n, s in zip(names, (4, 5, 3), strict=True))
    graph = HandMadeGraph(model, (*groups, ChannelGroup("out", 3, ("out",), False, "the network's output")))
    for name in ("bn0.weight", "bn0.bias", "bn1.weight", "bn1.bias"):
        graph.label(name, (0, 1))
    graph.label("stem.weight", (0, 1))
    graph.label("up.weight", (1, 1), (0, 1))
    graph.label("up.bias", (1, 1))
    graph.label("down.weight", (0, 1), (1, 1))
    graph.label("mlp.weight", (2, 2), (0, 1))
    graph.label("mlp.bias", (2, 2))
    graph.label("norm.weight", (2, 2))
    graph.label("norm.bias", (2, 2))
    graph.label("out.weight", (3, 1), (2, 2))
    return model, graph


def images_and_labels() -> tuple[Tensor, Tensor]:
    return torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(3)), torch.arange(8) % 3


def backward(model: nn.Module) -> None:
    images, labels = images_and_labels()
    model.zero_grad()
    F.cross_entropy(model(images), labels).backward()


def test_taylor_is_the_derivative_of_the_loss_by_a_gate_on_each_channel(case):
    model, graph = case
    backward(model)
    gates = {"bn0": torch.ones(4), "bn1": torch.ones(4), "up": torch.ones(5), "norm": torch.ones(6)}
    for gate in gates.values():
        gate.requires_grad_()
    images, labels = images_and_labels()
    found = torch.autograd.grad(F.cross_entropy(model(images, gates), labels), list(gates.values()))
    by = dict(zip(gates, found, strict=True))
    expected = {
        "stem": by["bn0"].abs() + by["bn1"].abs(),
        "up": by["up"].abs(),  # no norm: the gate stands on the convolution
        "mlp": by["norm"].abs().reshape(3, 2).sum(1),
    }
    scores = score("taylor_bn", model, graph)
    assert scores.keys() == expected.keys()  # frozen groups are not judged
    for name, values in expected.items():
        torch.testing.assert_close(scores[name], values.double(), rtol=1e-4, atol=1e-7)


def test_taylor_bn_is_the_formula_of_the_appendix(case):
    model, graph = case
    backward(model)
    expected = sum((bn.weight.grad * bn.weight + bn.bias.grad * bn.bias).abs() for bn in (model.bn0, model.bn1))
    torch.testing.assert_close(score("taylor_bn", model, graph)["stem"], expected.detach().double())


def test_taylor_weight_sums_with_sign_within_a_layer_and_without_between_layers(case):
    model, graph = case
    backward(model)
    scores = score("taylor_weight", model, graph)

    def slices(weight: Tensor) -> Tensor:
        return (weight * weight.grad).detach().double().flatten(1).sum(1)

    up = (slices(model.up.weight) + (model.up.bias * model.up.bias.grad).detach().double()).abs()
    torch.testing.assert_close(scores["up"], up)
    stem = slices(model.stem.weight).abs() + slices(model.down.weight).abs()
    torch.testing.assert_close(scores["stem"], stem)
    mlp = slices(model.mlp.weight) + (model.mlp.bias * model.mlp.bias.grad).detach().double()
    torch.testing.assert_close(scores["mlp"], mlp.reshape(3, 2).sum(1).abs())


@pytest.mark.parametrize("p", [1, 2])
def test_magnitude_is_the_norm_of_the_weights_that_make_the_unit(case, p):
    model, graph = case
    scores = score(f"magnitude_l{p}", model, graph)

    def norm(weight: Tensor, units: int) -> Tensor:
        return weight.detach().double().reshape(units, -1).norm(p=p, dim=1)

    torch.testing.assert_close(scores["stem"], norm(model.stem.weight, 4) + norm(model.down.weight, 4))
    torch.testing.assert_close(scores["up"], norm(model.up.weight, 5))
    torch.testing.assert_close(scores["mlp"], norm(model.mlp.weight, 3))


def test_bn_scale_is_gamma_and_ranks_a_group_without_a_norm_by_its_weights(case):
    model, graph = case
    scores = score("bn_scale", model, graph)
    stem = (model.bn0.weight.abs() + model.bn1.weight.abs()).detach().double()
    torch.testing.assert_close(scores["stem"], stem)
    assert torch.equal(scores["up"].argsort(), score("magnitude_l2", model, graph)["up"].argsort())
    mean = (scores["stem"].mean() + scores["mlp"].mean()) / 2
    torch.testing.assert_close(scores["up"].mean(), mean)


def test_random_scores_depend_on_the_seed_alone(case):
    model, graph = case
    one, two, other = (score("random", model, graph, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["up"], other["up"])


@pytest.mark.parametrize("criterion", [c for c in CRITERIA if c != "random"])
def test_a_slim_network_scores_as_the_same_tensors_do_in_place_and_the_absent_score_zero(case, criterion):
    """Positions only say where values belong: cutting parameters and gradients cuts the scores."""
    model, graph = case
    backward(model)
    keep = {0: np.array([0, 2, 3]), 1: np.array([1, 4]), 2: np.array([2])}
    positions = {}
    full = dict(model.named_parameters())
    for name, labels in graph.axes.items():
        positions[name] = tuple(
            None if u is None else np.flatnonzero([g not in keep or i in keep[g] for g, i in zip(*u, strict=True)])
            for u in labels
        )
    zeroed, cut = Net(), Net()
    for net in (zeroed, cut):
        for name, parameter in full.items():
            value, grad = parameter.detach().clone(), parameter.grad.clone()
            for axis, held in enumerate(positions.get(name, ())):
                if held is not None:
                    gone = np.setdiff1d(np.arange(value.shape[axis]), held)
                    if net is cut:
                        value, grad = (
                            value.index_select(axis, torch.tensor(held)),
                            grad.index_select(axis, torch.tensor(held)),
                        )
                    else:
                        (
                            value.index_fill_(axis, torch.tensor(gone), 0),
                            grad.index_fill_(axis, torch.tensor(gone), 0),
                        )
            owner, leaf = name.rsplit(".", 1)
            new = nn.Parameter(value)
            new.grad = grad
            setattr(net.get_submodule(owner), leaf, new)
    there, here = score(criterion, zeroed, graph), score(criterion, cut, graph, positions)
    for number, group in enumerate(graph.groups[:3]):
        torch.testing.assert_close(here[group.name], there[group.name])
        gone = np.setdiff1d(np.arange(group.size), keep[number])
        assert (here[group.name][gone] == 0).all()
        assert (here[group.name][keep[number]] > 0).all()


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v1_cifar"])
def test_on_a_traced_network_only_what_is_awake_scores(name):
    model, images = models.build(name), torch.randn(6, 1, 32, 32)
    graph = trace(model, images[:1])
    sizes = {group.name: group.size for group in graph.groups if group.prunable}
    rng = np.random.default_rng(0)
    for share in (1.0, 0.5, 0.1):
        keep = {n: np.sort(rng.permutation(s)[: max(1, int(share * s))]) for n, s in sizes.items()}
        small = graph.slim(keep)
        F.cross_entropy(small(images), torch.arange(6)).backward()
        for criterion in set(CRITERIA) - {"random"}:
            scores = score(criterion, small, graph, graph.positions(keep))
            assert {n: len(v) for n, v in scores.items()} == sizes
            for n, values in scores.items():
                assert set(values.nonzero().flatten().tolist()) <= set(keep[n].tolist())
                assert values.any()


def test_scores_are_finite_doubles_of_the_groups_size_and_leave_the_network_alone(case):
    model, graph = case
    backward(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for criterion in CRITERIA:
        for group in graph.groups:
            values = score(criterion, model, graph).get(group.name)
            assert (values is not None) == group.prunable
            if values is not None:
                assert values.dtype == torch.float64
                assert values.shape == (group.size,)
                assert torch.isfinite(values).all()
                assert not values.requires_grad
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_what_cannot_be_judged_is_said(case):
    model, graph = case
    for criterion in NEEDS_GRADIENTS:
        with pytest.raises(UsageError, match="backward"):
            score(criterion, model, graph)
    with pytest.raises(UsageError, match="taylor_bn"):
        score("tailor", model, graph)
