"""Residual branches that may go whole: the solver against enumeration, and the surgery against the masked network."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import halp_iee
from halp_iee.errors import ArtifactError, GraphError, UsageError
from halp_iee.graph.branches import Branch
from halp_iee.graph.records import Width
from halp_iee.solve import solve
from halp_iee.solve.branches import WithBranches
from tests.solve.fakes import TableCost, TableLayer, make_table


def residual_cost(rng):
    """Blocks of one or two inner groups beside a stream, each with its addition; and the branches."""
    sizes = {"stream": int(rng.integers(1, 4))}
    layers, branches = [], []

    def axis(name, fixed=0):
        return Width(((name, sizes[name], 1),), fixed)

    def add(name, c_in, c_out):
        kind = ("smooth", "staircase", "ragged")[int(rng.integers(3))]
        layers.append(TableLayer(name, c_in, c_out, make_table(rng, c_in.full, c_out.full, kind)))

    add("stem", Width((), 3), axis("stream"))
    for i in range(int(rng.integers(1, 4))):
        inner = [f"b{i}.{part}" for part in range(int(rng.integers(1, 3)))]
        sizes |= {name: int(rng.integers(1, 4)) for name in inner}
        for part, (left, right) in enumerate(itertools.pairwise(["stream", *inner, "stream"])):
            add(f"block{i}.conv{part}", axis(left), axis(right))
        if rng.random() < 0.7:
            add(f"block{i}", axis("stream"), axis("stream"))
        if rng.random() < 0.8:
            branches.append(Branch(f"block{i}", "", tuple(inner)))
    add("head", axis("stream"), Width((), 2))
    return TableCost(tuple(layers), float(rng.uniform(0.0, 0.5)), sizes), branches


def every_network(cost, branches, importance):
    """(widths, value, latency) of every network, summed without the model under test."""
    of = {name: branch for branch in branches for name in branch.groups}
    names = list(cost.sizes)
    for point in itertools.product(*(range(0 if name in of else 1, cost.sizes[name] + 1) for name in names)):
        widths = dict(zip(names, point, strict=True))
        gone = [branch for branch in branches if not any(widths[name] for name in branch.groups)]
        if any(widths[name] == 0 and of[name] not in gone for name in of):
            continue
        inside = [branch.module for branch in gone]
        latency_ms = cost.fixed_ms + sum(
            float(layer.table[layer.c_in(widths), layer.c_out(widths)])
            for layer in cost.layers
            if not any(layer.name == module or layer.name.startswith(module + ".") for module in inside)
        )
        value = sum(float(np.sort(importance[name])[::-1][:k].sum()) for name, k in widths.items())
        yield widths, value, latency_ms


@pytest.mark.parametrize("solver", ["joint", "cp-sat"])
def test_branches_go_exactly_where_enumeration_lets_them(solver):
    if solver == "cp-sat":
        pytest.importorskip("ortools")
    removed = 0
    for seed in range(60 if solver == "joint" else 12):
        rng = np.random.default_rng(seed)
        base, branches = residual_cost(rng)
        cost = WithBranches(base, branches)
        assert cost.predict({}) == pytest.approx(base.dense_ms)
        importance = {name: rng.gamma(0.5, 1.0, size) for name, size in base.sizes.items()}
        networks = list(every_network(base, branches, importance))
        for widths, _, latency_ms in networks[:: max(1, len(networks) // 50)]:
            assert cost.predict(widths) == pytest.approx(latency_ms)
        fastest = min(latency_ms for _, _, latency_ms in networks)
        budget_ms = fastest + rng.uniform(0.01, 0.8) * max(base.dense_ms - fastest, 0.0)
        best = max(value for _, value, latency_ms in networks if latency_ms <= budget_ms)
        answer = solve(cost, importance, budget_ms, solver, tolerance=0.0)
        assert answer.latency_ms <= budget_ms * (1 + 1e-9)
        assert answer.bound >= best * (1 - 1e-9)
        assert answer.value == pytest.approx(best, rel=1e-6)
        for branch in branches:
            kept = [answer.widths[name] for name in branch.groups]
            assert all(kept) or not any(kept)
            removed += not any(kept)
    assert removed > 3


def test_the_published_solver_says_that_it_cannot():
    base, branches = residual_cost(np.random.default_rng(1))
    importance = {name: np.ones(size) for name, size in base.sizes.items()}
    with pytest.raises(UsageError, match="branches may be removed"):
        solve(WithBranches(base, branches), importance, 0.5 * base.dense_ms, "halp")


@dataclass
class Plan:
    channels: int
    kinds: tuple[str, ...]
    activation: type[nn.Module]


class Block(nn.Module):
    def __init__(self, channels: int, kind: str, activation: type[nn.Module]) -> None:
        super().__init__()
        inner = channels + 2
        if kind == "two":
            self.body = nn.Sequential(
                nn.Conv2d(channels, inner, 1), activation(), nn.Conv2d(inner, inner + 1, 3, padding=1), activation(),
                nn.Conv2d(inner + 1, channels, 1), nn.BatchNorm2d(channels),
            )  # fmt: skip
        elif kind == "depthwise":
            self.body = nn.Sequential(
                nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner), activation(),
                nn.Conv2d(inner, inner, 3, padding=1, groups=inner), nn.Conv2d(inner, channels, 1),
            )  # fmt: skip
        else:
            self.body = nn.Sequential(nn.Conv2d(channels, inner, 3, padding=1), activation(),
                                      nn.Conv2d(inner, channels, 3, padding=1, bias=kind != "in place"))  # fmt: skip
        self.kind = kind
        self.after = activation() if kind != "linear" else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        if self.kind == "in place":
            y += x
        else:
            y = x + y
        return y if self.after is None else self.after(y)


class Residual(nn.Module):
    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, plan.channels, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(plan.channels, kind, plan.activation) for kind in plan.kinds))
        self.down = nn.Conv2d(plan.channels, plan.channels + 3, 3, stride=2)
        self.head = nn.Linear(plan.channels + 3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.down(self.blocks(self.stem(x))).mean((2, 3)))


KINDS = ("one", "two", "depthwise", "linear", "in place")


def random_network(rng):
    torch.manual_seed(int(rng.integers(1 << 30)))
    kinds = tuple(KINDS[int(rng.integers(len(KINDS)))] for _ in range(int(rng.integers(1, 5))))
    activation = (nn.ReLU, nn.SiLU, nn.ReLU6)[int(rng.integers(3))]
    model = Residual(Plan(int(rng.integers(3, 7)), kinds, activation)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return model


def test_a_network_without_branches_is_the_masked_one_and_survives_the_disk(tmp_path):
    for seed in range(12):
        rng = np.random.default_rng(seed)
        model = random_network(rng)
        x = torch.randn(2, 3, 9, 9)
        graph = halp_iee.trace(model, x)
        assert [branch.module for branch in graph.branches] == [f"blocks.{i}" for i in range(len(model.blocks))]
        going = [branch for branch in graph.branches if rng.random() < 0.6] or list(graph.branches[:1])
        keep = {
            group.name: np.sort(rng.permutation(group.size)[: int(rng.integers(1, group.size + 1))])
            for group in graph.groups
            if group.prunable and rng.random() < 0.6
        }
        keep |= {name: np.zeros(0, dtype=np.int64) for branch in going for name in branch.groups}
        before = {name: value.clone() for name, value in model.state_dict().items()}
        small = graph.slim(keep)
        with torch.no_grad(), graph.masked(keep) as masked:
            wanted = masked(x)
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        with torch.no_grad():
            torch.testing.assert_close(small(x), wanted, rtol=2e-4, atol=2e-4)
            # It is not merely masked: nothing of the branch is left.
            names = [name for name, _ in small.named_parameters()]
            assert not [n for n in names for branch in going if n.startswith(branch.module + ".")]
            loaded = halp_iee.load(halp_iee.save(small, tmp_path / "small.safetensors"), model).eval()
            assert torch.equal(loaded(x), small(x))
        assert graph.widths(keep) == {
            group.name: len(keep[group.name]) if group.name in keep else group.size for group in graph.groups
        }
        again = halp_iee.trace(small, x)
        twice = again.slim({g.name: [0] for g in again.groups if g.prunable})
        path = halp_iee.save(twice, tmp_path / "twice.safetensors")
        with torch.no_grad():
            assert torch.equal(halp_iee.load(path, model).eval()(x), twice(x))


def test_the_exported_network_has_lost_the_branch(tmp_path):
    onnx = pytest.importorskip("onnx")
    from halp_iee.export.onnx import export_onnx

    torch.manual_seed(0)
    model = Residual(Plan(6, ("one", "two", "depthwise"), nn.ReLU)).eval()
    x = torch.randn(1, 3, 9, 9)
    graph = halp_iee.trace(model, x)
    small = graph.slim({name: [] for branch in graph.branches for name in branch.groups})
    kinds = [node.op_type for node in onnx.load(export_onnx(small, x, tmp_path / "small.onnx").path).graph.node]
    assert kinds.count("Conv") == 2
    assert "Add" not in kinds


def test_half_a_branch_or_another_group_cannot_be_emptied():
    torch.manual_seed(0)
    graph = halp_iee.trace(Residual(Plan(4, ("two",), nn.ReLU)).eval(), torch.randn(1, 3, 9, 9))
    (branch,) = graph.branches
    assert len(branch.groups) == 2
    for act in (graph.slim, graph.widths, lambda keep: graph.masked(keep).__enter__()):
        with pytest.raises(GraphError, match=r"which removes 'blocks\.0'"):
            act({branch.groups[0]: []})
        with pytest.raises(GraphError, match="keeps nothing of group 'stem'"):
            act({"stem": []})


def test_what_is_more_than_a_branch_is_not_offered():
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.side, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.body(x) + self.side(x)))

    class Watched(Block):
        """Its branch is read once more outside."""

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = self.body(x)
            return x + y, y

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.head = Watched(3, "one", nn.ReLU), nn.Conv2d(3, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            one, two = self.block(x)
            return self.head(one) * self.head(two)

    for model in (nn.Sequential(Projected()), Outer()):
        assert halp_iee.trace(model.eval(), torch.randn(1, 3, 6, 6)).branches == ()


def test_a_file_that_removes_what_is_not_there_is_refused(tmp_path):
    model = Residual(Plan(4, ("one",), nn.ReLU)).eval()
    graph = halp_iee.trace(model, torch.randn(1, 3, 9, 9))
    small = graph.slim({name: [] for branch in graph.branches for name in branch.groups})
    for removed in ({"blocks.7": ""}, {"": ""}, {"blocks.0": "nothing"}, ["blocks.0"], {"blocks.0": 3}, {"stem": "a"}):
        small.__dict__["halp_recipe"]["removed"] = removed
        path = halp_iee.save(small, tmp_path / "broken.safetensors")
        with pytest.raises(ArtifactError):
            halp_iee.load(path, model)
