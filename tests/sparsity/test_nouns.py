"""Patterns, distributions, criteria and schedules, over random shapes and choices."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from halp_iee.errors import TrainingError, UsageError
from halp_iee.sparsity import criteria, metrics, schedules
from halp_iee.sparsity.distributions import distribute, erk, erk_densities, nonzeros, uniform
from halp_iee.sparsity.distributions import given as given_counts
from halp_iee.sparsity.layers import SparseLayer, sparse_layers
from halp_iee.sparsity.patterns import (
    PATTERNS,
    FanIn,
    IndependentPattern,
    KernelPattern,
    NofM,
    kernel_sparsity,
    pattern,
)
from halp_iee.sparsity.topk import largest, largest_in_rows, smallest

NAMES = ("unstructured", "channel", "4x1", "2x3", "kernel", "2:4", "1:4", "3:8", "fan-in")


def layer_for(name: str, rows: int, columns: int) -> SparseLayer:
    """A layer that can carry the pattern, of about the size asked for."""
    if name == "kernel":
        return SparseLayer("l", "conv", (rows, columns, 3, 3))
    if ":" in name:
        return SparseLayer("l", "conv", (rows, columns * int(name.split(":")[1]), 3, 1))
    if name == "4x1":
        return SparseLayer("l", "linear", (4 * rows, columns))
    if name == "2x3":
        return SparseLayer("l", "conv", (2 * rows, columns, 3, 3))
    return SparseLayer("l", "conv", (rows, columns, 2, 2))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(NAMES), st.integers(1, 6), st.integers(1, 6), st.floats(0.01, 0.99), st.integers(0, 999), st.data()
)
def test_patterns_keep_their_promises(
    name: str, rows: int, columns: int, sparsity: float, seed: int, data: Any
) -> None:
    found, layer = pattern(name), layer_for(name, rows, columns)
    found.check(layer)
    wanted = round(layer.numel * found.density) if found.density else nonzeros(layer.numel, sparsity)
    try:
        budget = found.atoms(layer, wanted)
    except UsageError as error:
        assert "'l'" in str(error)
        return
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.rand(layer.shape, generator=generator) for _ in range(3)]
    empty = torch.zeros(layer.shape, dtype=torch.bool)
    mask = found.grow(empty, scores[0], budget)
    assert found.holds(mask)
    assert found.count(mask) == found.used(layer, budget)
    assert int(mask.sum()) == found.used(layer, budget) * found.weights_an_atom(layer)
    n = data.draw(st.integers(0, found.count(mask)))
    dropped = found.drop(mask, scores[1], n)
    assert not (dropped & ~mask).any()
    assert found.count(dropped) == found.count(mask) - n
    again = found.grow(dropped, scores[2], n)
    assert not (dropped & ~again).any()
    assert found.count(again) == found.count(mask)
    assert found.holds(again)
    if isinstance(found, IndependentPattern) and n:
        pool = found.pool(scores[1])
        gone = found.alive(mask) & ~found.alive(dropped)
        if found.alive(dropped).any():
            assert pool[gone].max() <= pool[found.alive(dropped)].min()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(("unstructured", "channel", "4x1", "kernel", "2:4", "fan-in")), st.integers(0, 99))
def test_nothing_grows_where_it_is_not_allowed(name: str, seed: int) -> None:
    found, layer = pattern(name), layer_for(name, 4, 4)
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.rand(layer.shape, generator=generator) < 0.5
    mask = found.grow(
        torch.zeros(layer.shape, dtype=torch.bool), torch.rand(layer.shape, generator=generator), 20, allowed
    )
    assert not (mask & ~allowed).any()


@given(st.integers(1, 40), st.integers(0, 45), st.integers(0, 99))
def test_ties_go_to_the_lower_index(size: int, n: int, seed: int) -> None:
    scores = torch.randint(0, 3, (size,), generator=torch.Generator().manual_seed(seed)).float()
    everything = torch.ones(size, dtype=torch.bool)
    by_hand = sorted(range(size), key=lambda i: (-float(scores[i]), i))[:n]
    assert torch.nonzero(largest(scores, n, everything)).flatten().tolist() == sorted(by_hand)
    by_hand = sorted(range(size), key=lambda i: (float(scores[i]), i))[:n]
    assert torch.nonzero(smallest(scores, n, everything)).flatten().tolist() == sorted(by_hand)


def test_each_row_gets_its_own_count() -> None:
    scores = torch.tensor([[3.0, 1, 2, 9], [5, 5, 5, 5], [1, 2, 3, 4]])
    among = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1]]).bool()
    chosen = largest_in_rows(scores, torch.tensor([2, 3, 0]), among)
    assert chosen.tolist() == [[True, False, True, False], [True, True, True, False], [False] * 4]


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(TrainingError, match="not a number"):
        largest(torch.tensor([1.0, math.nan]), 1, torch.ones(2, dtype=torch.bool))


def test_two_of_four_runs_along_the_input_channels() -> None:
    mask = NofM(2, 4).grow(torch.zeros(1, 4, 1, 2, dtype=torch.bool), torch.arange(8.0).reshape(1, 4, 1, 2), 4)
    assert mask[0, :, 0, :].T.tolist() == [[False, False, True, True]] * 2


def test_kernels_take_the_best_of_eight_shapes_around_the_centre() -> None:
    from halp_iee.sparsity.patterns.kernel import SHAPES

    assert len({tuple(shape.tolist()) for shape in SHAPES}) == 8
    assert (SHAPES.sum(1) == 4).all()
    assert SHAPES[:, 4].all()
    scores = torch.tensor([0, 9, 0, 9, 9, 9, 0, 0, 0.0]).reshape(1, 1, 3, 3)
    assert KernelPattern().grow(scores > 99, scores, 1).flatten().tolist() == (scores.flatten() > 0).tolist()


def test_fan_in_fills_only_the_neurons_asked_for() -> None:
    mask = FanIn().fill(
        torch.zeros(3, 5, dtype=torch.bool), torch.rand(3, 5), 2, neurons=torch.tensor([True, False, True])
    )
    assert mask.sum(1).tolist() == [2, 0, 2]


shapes = st.lists(
    st.tuples(st.integers(1, 64), st.integers(1, 64), st.sampled_from([1, 3, 7])), min_size=1, max_size=12
)


def layers_of(sizes: list[tuple[int, int, int]]) -> tuple[SparseLayer, ...]:
    return tuple(SparseLayer(str(i), "conv", (o, c, k, k), first=i == 0) for i, (o, c, k) in enumerate(sizes))


@settings(max_examples=200, deadline=None)
@given(shapes, st.floats(0.0, 0.999))
def test_erk_meets_the_sparsity_and_no_layer_exceeds_itself(sizes: list[tuple[int, int, int]], sparsity: float) -> None:
    layers = layers_of(sizes)
    densities = erk_densities(layers, sparsity)
    assert all(0 < d <= 1 for d in densities.values())
    counts = erk(layers, sparsity)
    assert all(1 <= counts[la.name] <= la.numel for la in layers)
    total = sum(la.numel for la in layers)
    if any(d < 1 for d in densities.values()):  # rounding costs at most one weight a layer and its share
        assert abs(sum(counts.values()) - nonzeros(total, sparsity)) <= 2 * len(layers)
    sparse = [la for la in layers if densities[la.name] < 1]
    raw = {la.name: sum(la.shape) / la.numel for la in layers}
    for a, b in itertools.pairwise(sparse):
        assert densities[a.name] * raw[b.name] == pytest.approx(densities[b.name] * raw[a.name])


@given(shapes, st.floats(0.0, 0.999))
def test_uniform_keeps_the_first_convolution(sizes: list[tuple[int, int, int]], sparsity: float) -> None:
    layers = layers_of(sizes)
    counts = uniform(layers, sparsity)
    assert counts["0"] == layers[0].numel
    assert all(counts[la.name] == la.numel - math.floor(sparsity * la.numel + 1e-9 * la.numel) for la in layers[1:])


@pytest.mark.parametrize("name", ["constant", "cosine", "cubic"])
@given(st.floats(0, 1), st.floats(0, 1), st.floats(-1, 2))
def test_schedules_begin_end_and_stay_between(name: str, start: float, end: float, a: float) -> None:
    schedule = schedules.SCHEDULES[name]
    assert schedule(start, end, 0.0) == pytest.approx(start)
    assert name == "constant" or schedule(start, end, 1.0) == pytest.approx(end)
    assert min(start, end) - 1e-9 <= schedule(start, end, a) <= max(start, end) + 1e-9


def test_milestones_are_a_staircase() -> None:
    values = [schedules.milestones((5, 2, 0), (0.5, 0.75), a) for a in (0, 0.49, 0.5, 0.74, 0.75, 1)]
    assert values == [5, 5, 2, 2, 0, 0]
    with pytest.raises(UsageError, match="one value more"):
        schedules.milestones((1, 2), (0.5, 0.6), 0)


@given(st.integers(1, 5), st.integers(1, 20), st.integers(0, 99))
def test_channel_criteria_are_what_chase_writes(rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    mask = torch.rand(rows, columns, generator=generator) < 0.5
    live = mask.sum(1)
    masked = weight * mask
    assert torch.allclose(criteria.umm(weight, mask), masked.abs().sum(1) / columns)
    assert torch.allclose(criteria.ws(weight, mask), 1 - live / columns)
    some = live > 0
    assert torch.allclose(criteria.mmm(weight, mask)[some], (masked.abs().sum(1) / live)[some])
    assert torch.allclose(
        criteria.umm(weight, mask), criteria.mmm(weight, mask) * (1 - criteria.ws(weight, mask)), atol=1e-6
    )


def test_amenable_channels_are_those_that_moved_by_more_than_v() -> None:
    assert criteria.amenable(torch.tensor([1.0, 1.0]), torch.tensor([0.7, 0.9]), 0.2).tolist() == [True, False]
    assert criteria.amenable(torch.tensor([0.5, 0.5]), torch.tensor([0.7, 0.55]), 0.2, falling=False).tolist() == [
        True,
        False,
    ]


def test_weight_criteria() -> None:
    w, g = torch.tensor([1.0, -2.0]), torch.tensor([-3.0, 0.5])
    assert criteria.magnitude(w).tolist() == [1, 2]
    assert criteria.gradient(g).tolist() == [3, 0.5]
    assert criteria.magnitude_and_gradient(w, g, 2.0).tolist() == [7, 3]
    assert criteria.taylor(w, g).tolist() == [3, 1]


@given(st.integers(0, 99))
def test_metrics_agree_with_sets(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b, grown = (
        {"x": torch.rand(6, 5, generator=generator) < p, "y": torch.rand(7, generator=generator) < p}
        for p in (0.5, 0.4, 0.2)
    )
    sets = [
        {(n, i) for n, m in masks.items() for i in torch.nonzero(m.flatten()).flatten().tolist()}
        for masks in (a, b, grown)
    ]
    assert metrics.iou(a, b) == pytest.approx(len(sets[0] & sets[1]) / max(1, len(sets[0] | sets[1])))
    assert metrics.live(a) == len(sets[0])
    assert metrics.sparsity(a) == pytest.approx(1 - len(sets[0]) / 37)
    assume(sets[2])
    assert metrics.survival(grown, b) == pytest.approx(len(sets[2] & sets[1]) / len(sets[2]))


# Bad input


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 6, 1), nn.Flatten(), nn.Linear(6, 4)
    )


def test_depthwise_layers_and_attention_inputs_stay_dense() -> None:
    assert [la.name for la in sparse_layers(net())] == ["0", "2", "4"]
    assert [la.name for la in sparse_layers(net(), depthwise=True)] == ["0", "1", "2", "4"]
    attention = nn.MultiheadAttention(8, 2)
    assert [la.name for la in sparse_layers(attention)] == ["out_proj"]


def test_what_cannot_be_is_refused_by_the_layers_name() -> None:
    layers = sparse_layers(net())
    for sparsity in (-0.1, 1.0, 1.5, math.nan, True, "0.5"):
        with pytest.raises(UsageError, match=r"\[0, 1\)"):
            distribute(layers, sparsity, "erk")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"layer '0' .*multiple of 4"):
        pattern("2:4").check(layers[0])
    with pytest.raises(UsageError, match=r"layer '2' .*1x1 kernels"):
        pattern("kernel").check(layers[1])
    with pytest.raises(UsageError, match=r"layer '2' .*6 x 8"):
        pattern("4x1").check(layers[1])
    with pytest.raises(UsageError, match=r"layer '4' .*less than one each"):
        pattern("fan-in").atoms(layers[2], 3)
    with pytest.raises(UsageError, match="names a layer 'nine'"):
        given_counts(layers, {"nine": 0.5})
    with pytest.raises(UsageError, match=r"layer '2'"):
        given_counts(layers, {"2": 1.0})
    with pytest.raises(UsageError, match="unknown distribution"):
        distribute(layers, 0.5, "fair")
    with pytest.raises(UsageError, match="'nothing\\*' cannot be excluded"):
        sparse_layers(net(), exclude=("nothing*",))
    with pytest.raises(UsageError, match="no conv or linear layer is left"):
        sparse_layers(net(), exclude=("*",))
    for wrong in ("4:4", "0:4", "banana", "0x3", "2:"):
        with pytest.raises(UsageError):
            pattern(wrong)
    with pytest.raises(UsageError, match=r"0\.556"):
        kernel_sparsity(0.5)
    assert set(PATTERNS) == {"unstructured", "channel", "kernel", "fan-in"}


def test_a_transposed_convolution_carries_only_what_does_not_need_rows() -> None:
    (layer,) = sparse_layers(nn.Sequential(nn.ConvTranspose2d(4, 8, 3)))
    pattern("unstructured").check(layer)
    for name in ("channel", "4x1", "2:4", "fan-in"):
        with pytest.raises(UsageError, match="transposed"):
            pattern(name).check(layer)
