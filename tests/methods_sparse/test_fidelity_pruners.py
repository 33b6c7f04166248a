"""MEST, SNIP, gradual pruning and Chase do what their papers say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from halp_iee import trace
from halp_iee.methods.sparse import GMP, MEST, SNIP, Chase
from halp_iee.models import build
from tests.methods_sparse.worlds import STEPS, backward, batch, linear, start, train_step


def test_mest_exchanges_the_papers_points_and_stops() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 125, 1), nn.Flatten(), nn.LazyLinear(4))
    model(torch.zeros(1, 3, 3, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for variant, points in (("em", (20, 10, 0)), ("em&s", (50, 25, 0)), ("plain", (20, 20, 0))):
        method = MEST(model, optimizer, steps=160, sparsity=0.9, every=5, variant=variant)
        assert list(method.masks) == ["2"], "the first convolution and the linear layer stay dense"
        found = []
        for epoch in (5, 90, 120):
            method.taken = epoch
            found.append(method.mutation()["2"])  # type: ignore[index]
        assert tuple(found) == points
        method.close()


def test_mest_as_published_converts_a_sparsity_of_kernel_patterns_twice() -> None:
    for as_published, sparsity in ((False, 0.9), (True, 0.775)):
        model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 64, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        method = MEST(model, optimizer, steps=10, sparsity=0.9, pattern="kernel", as_published=as_published)
        assert method.sparsity == pytest.approx(sparsity, abs=4 / 9 / 1024)


def test_mest_with_a_soft_bound_grows_first_and_lets_the_new_compete() -> None:
    model, optimizer, method = start("mest em&s")
    live = []
    for step in range(STEPS):
        train_step(model, optimizer, method, step)
        live.append(sum(int(mask.sum()) for mask in method.masks.values()))
    budget = sum(method.budget.values())
    assert max(live) > budget
    assert live[-1] == budget
    assert live[:3] == [budget] * 3, "nothing grows before the first update"


def test_snip_keeps_the_most_sensitive_weights_of_the_dense_network() -> None:
    model, optimizer = linear()
    method = SNIP(model, optimizer, steps=10, sparsity=0.5)
    assert method.sparsity == 0
    backward(model)
    score = (model[0].weight * model[0].weight.grad).abs().detach()
    weight = model[0].weight.detach().clone()
    optimizer.step()
    mask = method.masks["0"]
    assert int(mask.sum()) == 30
    assert score[mask].min() >= score[~mask].max()
    assert torch.equal(model[0].weight[mask], weight[mask])


def sparsities(method: GMP, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[float]:
    found = []
    for step in range(100):
        backward(model, step)
        optimizer.step()
        method.step()
        found.append(method.sparsity)
    return found


def test_gradual_pruning_follows_the_cubic() -> None:
    model, optimizer = linear(20, 10)
    found = sparsities(GMP(model, optimizer, steps=100, sparsity=0.9, every=10, stop=0.8), model, optimizer)
    for t in range(0, 81, 10):
        expected = 0.9 - 0.9 * (1 - t / 80) ** 3
        assert found[t] == pytest.approx(expected, abs=1 / 200)
    assert found[-1] == pytest.approx(0.9)
    assert found == sorted(found)


def test_gradual_pruning_goes_gradually_to_a_given_distribution() -> None:
    model, optimizer = linear(20, 10)
    method = GMP(model, optimizer, steps=100, distribution={"0": 0.8}, every=10, stop=0.8)
    found = sparsities(method, model, optimizer)
    assert found[10] == pytest.approx(0.8 - 0.8 * (1 - 1 / 8) ** 3, abs=1 / 200)
    assert found[-1] == pytest.approx(0.8)


@given(st.floats(0.5, 0.9), st.sampled_from(("plain", "em", "em&s")))
@settings(max_examples=20, deadline=None)
def test_mest_exchanges_the_same_share_of_the_density_however_that_is_said(sparsity: float, variant: str) -> None:
    shares = []
    for how in ({"sparsity": sparsity, "distribution": "erk"}, {"distribution": {"0": sparsity}}):
        model, optimizer = linear(40, 50)
        method = MEST(model, optimizer, steps=10, variant=variant, kinds=("linear",), **how)
        shares.append(method._points())
    assert shares[0] == pytest.approx(shares[1], rel=1e-2)


@pytest.mark.parametrize("case", ["chase channels", "chase skip"])
def test_chase_ends_physically_small_and_computes_the_same(case: str) -> None:
    model, optimizer, method = start(case)
    assert isinstance(method, Chase)
    for step in range(STEPS):
        train_step(model, optimizer, method, step)
    assert method.channels is not None
    settings = method.config
    gone = sum(int((~units).sum()) for units in method.channels.live.values())
    assert gone == int(settings.channel_sparsity * method.channels.size)
    assert all(units.sum() >= method.channels.least[name] for name, units in method.channels.live.items())
    small = method.slim()
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    x = batch(99)[0]
    model.eval()
    small.eval()
    torch.testing.assert_close(small(x), model(x), rtol=1e-4, atol=1e-5)


def test_chase_removes_only_inner_channels_unless_told() -> None:
    model = build("resnet20")
    graph = trace(model, torch.zeros(1, 1, 32, 32))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = Chase(model, optimizer, steps=10, sparsity=0.9, graph=graph, channel_sparsity=0.5)
    assert method.channels is not None
    assert all(".conv1" in name for name in method.channels.live)
    assert method.channels.size == 3 * (16 + 32 + 64)
    method.close()
    every = Chase(model, optimizer, steps=10, sparsity=0.9, graph=graph, channel_sparsity=0.5, prune_skip=True)
    assert every.channels is not None
    assert every.channels.size == 2 * 3 * (16 + 32 + 64) - 2 * (16 + 32 + 64)
