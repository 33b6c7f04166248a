"""Grouped convolutions: a unit is a whole convolution group, or one position inside each group."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from halp_iee.errors import ArtifactError
from halp_iee.graph import ChannelGraph, trace
from halp_iee.importance import magnitude
from halp_iee.methods.sparse.channels import LiveChannels
from halp_iee.slim import load, read_recipe, save
from halp_iee.slim.build import disagreement, outputs
from tests.graph.base import stir
from tests.graph.selections import halves, random_keep, single

DIMS: dict[int, tuple[Any, Any, Any, Any, Any]] = {
    1: (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, F.conv1d, F.conv_transpose1d),
    2: (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, F.conv2d, F.conv_transpose2d),
    3: (nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d, F.conv3d, F.conv_transpose3d),
}


class Literal(nn.Module):
    """A grouped convolution by a function, its number of groups written down."""

    def __init__(self, i: int, o: int, groups: int, dims: int, transposed: bool) -> None:
        super().__init__()
        shape = (i, o // groups) if transposed else (o, i // groups)
        self.groups_of = {2: (2,), 3: (3,), 4: (4,)}[groups]  # no number that could be bound to a size
        self.kernel, self.shift = nn.Parameter(torch.randn(*shape, *(3,) * dims) * 0.3), nn.Parameter(torch.randn(o))
        self.run: Callable[..., Tensor] = DIMS[dims][4 if transposed else 3]

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x, self.kernel, self.shift, padding=1, groups=self.groups_of[0])


class Shuffle(nn.Module):
    """A channel shuffle whose number of groups is the convolutions' before it."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        b, c, *rest = x.shape
        return x.view(b, self.groups, c // self.groups, *rest).transpose(1, 2).reshape(b, c, *rest)


class Grouped(nn.Module):
    """A random network in which grouped convolutions stand among everything else."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = self.draw = random.Random(seed)
        self.dims, self.groups = draw.choice([1, 2, 2, 2, 3]), draw.choice([2, 3, 4])
        conv, _, norm, _, _ = DIMS[self.dims]
        g = self.groups
        first = draw.choice([1, 1, g])  # also one that reads the network's input
        self.image = 2 * g
        self.width = 4 * g * draw.randint(1, 3)
        self.stem = conv(self.image, self.width, 3, padding=1, groups=first)
        self.parts = nn.ModuleList(self._part(norm) for _ in range(draw.randint(2, 4)))
        self.head = nn.Linear(self.width, 3)

    def _part(self, norm: Any) -> nn.Module:
        draw, dims, g = self.draw, self.dims, self.groups
        conv, transposed = DIMS[dims][:2]
        i = self.width
        kind = draw.choice(["plain", "grouped", "grouped", "literal", "transposed", "shuffle", "uneven", "add", "norm"])
        if kind == "add":
            inner = conv(i, i, 3, padding=1, groups=g)
            return Add(nn.Sequential(inner, nn.ReLU()))
        if kind == "uneven":
            cut = draw.randint(1, i - 1)
            return Uneven(conv(i, cut, 1), conv(i, i - cut, 3, padding=1), Literal(i, i, g, dims, False))
        if kind == "shuffle":
            return nn.Sequential(conv(i, i, 1, groups=g), norm(i), Shuffle(g), conv(i, i, 3, padding=1, groups=i))
        self.width = o = 4 * g * draw.randint(1, 3)
        if kind == "norm":
            return nn.Sequential(Literal(i, o, g, dims, False), nn.GroupNorm(draw.choice([1, g]), o), nn.ReLU())
        made: nn.Module
        if kind == "plain":
            made = conv(i, o, 1)
        elif kind == "transposed":
            made = transposed(i, o, 2, stride=2, groups=g)
        elif kind == "literal":
            made = Literal(i, o, g, dims, draw.random() < 0.4)
        else:
            made = conv(i, o, 3, padding=1, groups=g, bias=draw.random() < 0.5)
        return nn.Sequential(made, norm(o), draw.choice([nn.ReLU(), nn.SiLU(), nn.Sigmoid()]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for part in self.parts:
            x = part(x)
        return self.head(x.flatten(2).mean(2))


class Add(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.inner(x))


class Uneven(nn.Module):
    """A grouped convolution behind two parts that do not end where its groups do."""

    def __init__(self, one: nn.Module, two: nn.Module, both: nn.Module) -> None:
        super().__init__()
        self.one, self.two, self.both = one, two, both

    def forward(self, x: Tensor) -> Tensor:
        return self.both(torch.cat([F.relu(self.one(x)), F.silu(self.two(x))], 1))


def build(seed: int) -> tuple[Grouped, Tensor]:
    torch.manual_seed(seed)
    model = Grouped(seed)
    stir(model)
    return model.eval(), torch.randn(2, model.image, *((9,), (6, 6), (4, 4, 4))[model.dims - 1])


def held(graph: ChannelGraph, model: nn.Module, x: Tensor, keep: Any) -> nn.Module:
    small = graph.slim(keep)  # proves itself, or raises
    with graph.masked(keep):
        wanted = outputs(model, (x,), {})
    assert disagreement(wanted, outputs(small, (x,), {})) <= 1
    return small


@pytest.mark.parametrize("seed", range(20))
def test_random_networks_of_grouped_convolutions_are_cut_exactly_and_again(seed: int, tmp_path: Path) -> None:
    model, x = build(seed)
    graph = trace(model, x)
    assert not graph.unknown
    for keep in (halves(graph), single(graph), random_keep(graph, seed)):
        small = held(graph, model, x, keep)
    small = held(graph, model, x, halves(graph))
    again = trace(small, x)
    twice = held(again, small, x, random_keep(again, seed))
    for one in (small, twice):
        back = load(save(one, tmp_path / "small.safetensors"), model)
        assert disagreement(outputs(one, (x,), {}), outputs(back, (x,), {})) <= 1
    copy.deepcopy(twice).train()(torch.cat([x, x])).sum().backward()


def test_most_of_what_those_networks_hold_can_be_removed() -> None:
    free = whole = 0
    for seed in range(40):
        for group in trace(*build(seed)).groups:
            free += group.size > 1 and group.prunable
            whole += group.reason is not None and "network output" not in group.reason
    assert free > 5 * whole, (free, whole)


class Chain(nn.Module):
    """One grouped convolution between two plain ones."""

    def __init__(self, i: int, o: int, groups: int) -> None:
        super().__init__()
        self.a, self.g, self.b = nn.Conv2d(3, i, 1), nn.Conv2d(i, o, 3, groups=groups), nn.Conv2d(o, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.g(F.relu(self.a(x)))))


@pytest.mark.parametrize(
    ("i", "o", "groups", "sizes"),
    [
        (96, 256, 2, {"a": 48, "g": 128}),  # two groups of 48 channels are too coarse
        (32, 32, 2, {"a": 2}),  # and of 16 are not
        (64, 64, 4, {"a": 4}),
        (16, 16, 16, {"a": 16}),
        (8, 24, 8, {"a": 8}),
    ],
)
def test_which_units_a_grouped_convolution_has_at_first(i: int, o: int, groups: int, sizes: dict[str, int]) -> None:
    graph = trace(Chain(i, o, groups).eval(), torch.randn(1, 3, 6, 6))
    assert {g.name: g.size for g in graph.groups if g.prunable} == sizes
    keeps = groups == 2 and i == 96
    assert graph.structure.kept_groups == ({"g": 2} if keeps else {})
    assert [bool(op.attrs.get("keeps_groups")) for op in graph.ops if op.kind == "conv"] == [False, keeps, False]


def test_a_multiplier_may_go_where_the_input_may_not() -> None:
    model = nn.Sequential(nn.Conv2d(3, 12, 3, groups=3), nn.ReLU(), nn.Conv2d(12, 2, 1)).eval()
    x = torch.randn(2, 3, 6, 6)
    graph = trace(model, x)
    assert graph.group("0").size == 4
    small = held(graph, model, x, {"0": [1, 2]})
    assert (small[0].groups, small[0].in_channels, small[0].out_channels) == (3, 3, 6)  # type: ignore[index]


def test_calls_with_one_weight_choose_together() -> None:
    class Twice(Chain):
        def forward(self, x: Tensor) -> Tensor:
            y = self.g(self.a(x))
            return self.b(F.relu(self.g(F.relu(y)) if y.shape[-1] > 2 else y))

    model, x = Twice(64, 64, 2).eval(), torch.randn(2, 3, 8, 8)
    held(graph := trace(model, x), model, x, halves(graph))


@pytest.mark.parametrize("groups", [0, -1, 5, 3, "2", True, None, 2.0, [2], 10**30])
def test_an_impossible_number_of_groups_in_a_file_is_refused(tmp_path: Path, groups: Any) -> None:
    torch.manual_seed(0)
    model, x = Chain(96, 64, 2).eval(), torch.randn(1, 3, 6, 6)
    graph = trace(model, x)
    path = save(graph.slim({name: range(5) for name in ("a", "g")}), tmp_path / "small.safetensors")
    assert read_recipe(path)["convolutions"] == {"g": 2}
    for convolutions in ({"g": groups}, {"nowhere": 2}, {"": 2}, [2], 2, {"a": 2}):
        with pytest.raises(ArtifactError, match=r"convolutions|groups"):
            load(_rewritten(path, convolutions), model)
    assert load(_rewritten(path, {"g": 2}), model)(x).shape == (1, 2, 4, 4)


def _rewritten(path: Path, convolutions: Any) -> Path:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        recipe = json.loads(file.metadata()["halp_recipe"])
    save_file(tensors, path, metadata={"halp_recipe": json.dumps({**recipe, "convolutions": convolutions})})
    return path


def test_files_without_such_convolutions_are_written_as_before(tmp_path: Path) -> None:
    model, x = Chain(16, 16, 4).eval(), torch.randn(1, 3, 6, 6)
    graph = trace(model, x)
    recipe = read_recipe(save(graph.slim({"a": np.arange(2)}), tmp_path / "small.safetensors"))
    assert recipe["version"] == 1
    assert "convolutions" not in recipe


def test_a_units_score_is_that_of_its_positions_in_all_groups() -> None:
    torch.manual_seed(0)
    model = Chain(96, 64, 2).eval()
    graph = trace(model, torch.randn(1, 3, 6, 6))
    with torch.no_grad():
        scores = magnitude(graph, dict(model.named_parameters()), p=1)
        made = model.g.weight.abs().sum((1, 2, 3)).reshape(2, -1).sum(0)
        torch.testing.assert_close(scores["g"], made.double(), rtol=1e-5, atol=0)
        live = LiveChannels(graph, model, most=0.5, beta=0.1, criterion="ws", skip=True)
        live.remove_until(0.5, {})
        assert live.sparsity == pytest.approx(0.5, abs=0.02)
        assert set(live.keep()) == {"a", "g"}
        live.hold()
        x = torch.randn(2, 3, 6, 6)
        torch.testing.assert_close(graph.slim(live.keep())(x), model(x), rtol=1e-4, atol=1e-5)
