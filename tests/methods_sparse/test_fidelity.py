"""Each method does what its paper says: the rules recomputed by hand, on small layers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from halp_iee import trace
from halp_iee.errors import UsageError
from halp_iee.methods.sparse import GMP, MEST, METHODS, SNIP, Chase, ForgettingEvents, IEEWeights, RigL, SRigL, Static
from halp_iee.methods.sparse.srigl import update_layer
from halp_iee.models import build
from halp_iee.train import fit
from halp_iee.train.recipe import Recipe
from halp_iee.train.records import Data
from halp_iee.train.tensors import TensorSplit
from tests.methods_sparse.worlds import STEPS, Net, batch, optimizer_of, start, train_step


def linear(rows: int = 6, columns: int = 10) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(columns, rows))
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def backward(model: nn.Module, seed: int = 0) -> None:
    torch.manual_seed(seed)
    model.zero_grad()
    model(torch.randn(8, 10)).square().mean().backward()


def test_rigl_drops_the_smallest_and_grows_the_steepest() -> None:
    model, optimizer = linear()
    method = RigL(model, optimizer, steps=100, sparsity=0.7, distribution="uniform", every=10, alpha=0.5)
    for step in range(10):
        backward(model, step)
        optimizer.step()
        method.step()
    backward(model, 10)
    weight, mask = model[0].weight.detach().clone(), method.masks["0"].clone()
    grad = model[0].weight.grad.clone()
    assert grad[~mask].any(), "the gradient of the update is dense"
    live = int(mask.sum())
    assert live == 18
    K = int(live * 0.5 / 2 * (1 + math.cos(math.pi * 10 / 75)))
    order = sorted((abs(float(weight[r, c])), r * 10 + c) for r, c in torch.nonzero(mask).tolist())
    kept = mask.flatten().clone()
    kept[[i for _, i in order[:K]]] = False
    steepest = sorted((-abs(float(grad.flatten()[i])), i) for i in range(60) if not kept[i])[:K]
    expected = kept.clone()
    expected[[i for _, i in steepest]] = True
    optimizer.step()
    assert torch.equal(method.masks["0"].flatten(), expected)
    assert torch.equal(model[0].weight.flatten()[kept], weight.flatten()[kept]), "the update replaces the step"


def test_a_weight_that_dies_and_comes_back_at_once_keeps_its_value_and_its_past() -> None:
    model, optimizer = linear()
    method = RigL(model, optimizer, steps=100, sparsity=0.7, distribution="uniform", every=3, alpha=0.9)
    for step in range(3):
        backward(model, step)
        optimizer.step()
        method.step()
    backward(model)
    weight = model[0].weight
    weak = torch.where(method.masks["0"], weight.detach().abs(), torch.inf).argmin()
    weight.grad.flatten()[weak] = 1e6
    value, past = float(weight.flatten()[weak]), float(optimizer.state[weight]["momentum_buffer"].flatten()[weak])
    optimizer.step()
    assert method.masks["0"].flatten()[weak]
    assert float(weight.flatten()[weak]) == value
    assert float(optimizer.state[weight]["momentum_buffer"].flatten()[weak]) == past != 0


@settings(max_examples=120, deadline=None)
@given(st.integers(2, 8), st.integers(2, 12), st.floats(0.0, 1.0), st.integers(0, 9999), st.data())
def test_srigl_updates_a_layer_by_the_papers_seven_steps(
    rows: int, columns: int, gamma: float, seed: int, data: Any
) -> None:
    generator = torch.Generator().manual_seed(seed)
    budget = data.draw(st.integers(rows, rows * columns - 1))
    k0 = budget // rows
    active = torch.rand(rows, generator=generator) < 0.8
    active[0] = True
    k = min(columns, budget // int(active.sum()))
    mask = torch.rand(rows, columns, generator=generator).argsort(1).argsort(1) < k
    mask &= active[:, None]
    w, g = torch.rand(rows, columns, generator=generator), torch.rand(rows, columns, generator=generator)
    K = data.draw(st.integers(0, int(mask.sum())))
    pruned, new = update_layer(mask, w, g, exchanged=K, budget=budget, k0=k0, gamma=gamma)
    # by hand
    live = sorted(torch.nonzero(mask).tolist(), key=lambda rc: float(w[tuple(rc)]))
    dead = sorted(torch.nonzero(~mask).tolist(), key=lambda rc: -float(g[tuple(rc)]))
    salient = [0] * rows
    for r, _ in live[K:] + dead[:K]:
        salient[r] += 1
    threshold = max(1, int(gamma * k0))
    stay = [s >= threshold or gamma == 0 for s in salient]
    fewest = math.ceil(budget / columns)
    if sum(stay) < fewest:
        best = sorted(range(rows), key=lambda r: -salient[r])[:fewest]
        stay = [s or r in best for r, s in enumerate(stay)]
    fan_in = min(columns, budget // sum(stay))
    for r in range(rows):
        kept = {c for row, c in live[K:] if row == r} if stay[r] else set()
        if len(kept) > fan_in:
            kept = set(sorted(kept, key=lambda c: -float(w[r, c]))[:fan_in])
        assert set(torch.nonzero(pruned[r]).flatten().tolist()) == kept
        if stay[r]:
            others = sorted(set(range(columns)) - kept, key=lambda c: -float(g[r, c]))
            kept |= set(others[: fan_in - len(kept)])
        assert set(torch.nonzero(new[r]).flatten().tolist()) == kept


def test_srigl_ablates_and_an_ablated_neuron_can_come_back() -> None:
    mask = torch.zeros(4, 8, dtype=torch.bool)
    mask[:3, :4] = True  # neuron 3 is ablated
    w, g = torch.rand(4, 8), torch.rand(4, 8) * 0.1
    w[0], g[3] = 1e-3, 5.0  # neuron 0 has only weak weights, neuron 3 would learn fast
    _, new = update_layer(mask, w, g, exchanged=4, budget=12, k0=3, gamma=1.0)
    assert new.sum(1).tolist() == [0, 4, 4, 4]


@pytest.mark.parametrize("remaining", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("taken", range(12))
def test_iee_ends_whole_however_few_steps_a_training_turns_out_to_have(taken: int, remaining: int) -> None:
    model, optimizer, method = start("iee erk", "sgd")
    assert isinstance(method, IEEWeights)
    for step in range(taken):
        train_step(model, optimizer, method, step)
    method.expect(remaining)
    for step in range(taken, taken + remaining):
        train_step(model, optimizer, method, step)
    assert method.done
    assert {name: int(mask.sum()) for name, mask in method.masks.items()} == method.budget
    assert all(not method.weight(name)[~mask].any() for name, mask in method.masks.items())


def test_iee_freezes_what_is_active_bit_for_bit_while_it_explores() -> None:
    model, optimizer, method = start("iee erk", "adam")
    assert isinstance(method, IEEWeights)
    seen = 0
    frozen: dict[str, Tensor] = {}
    for step in range(STEPS):
        before = method.stage
        train_step(model, optimizer, method, step)
        if method.stage == "explore" and before != "explore":
            frozen = {n: p.detach().clone() for n, p in model.named_parameters()}
            statistics = {n: b.clone() for n, b in model.named_buffers()}
        elif before == "explore":
            seen += 1
            masks = {f"{n}.weight": mask for n, mask in method.masks.items()}
            for name, value in model.named_parameters():
                old = frozen[name]
                if name not in masks:
                    assert torch.equal(value, old), name
                elif method.stage == "explore":
                    assert torch.equal(value[masks[name]], old[masks[name]])
                    assert not torch.equal(value[~masks[name]], old[~masks[name]])
            if method.stage != "explore":
                assert all(torch.equal(b, statistics[n]) for n, b in model.named_buffers())
    assert seen > 4


@pytest.mark.parametrize("unused", ["zero", "initial"])
def test_iee_wakes_weights_with_their_most_recent_values(unused: str) -> None:
    torch.manual_seed(0)
    initial = {n: p.detach().clone() for n, p in Net().named_parameters()}
    model, optimizer, method = start("iee erk", unused=unused)
    assert isinstance(method, IEEWeights)
    before: dict[str, Tensor] = {}
    first: dict[str, Tensor] = {}
    while method.stage != "explore":
        before = {n: method.weight(n).detach().clone() for n in method.masks}
        if method.stage == "importance":
            first = {n: mask.clone() for n, mask in method.masks.items()}
        train_step(model, optimizer, method, method.taken)
    for name, mask in method.masks.items():
        never, value = ~first[name], method.weight(name)
        wanted = initial[f"{name}.weight"] if unused == "initial" else torch.zeros_like(value)
        assert torch.equal(value[never], wanted[never]), "never alive"
        dropped = first[name] & ~mask
        assert value[dropped].all()
        assert not before[name][dropped].any()


def test_what_iee_grows_does_not_depend_on_values_that_were_never_used() -> None:
    grown = []
    for factor in (1.0, 100.0):
        torch.manual_seed(0)
        model = Net()
        Static(model, optimizer_of("sgd", model), steps=1, sparsity=0.8).close()
        live = {n: p.detach() != 0 for n, p in model.named_parameters()}
        torch.manual_seed(0)
        model = Net()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1:
                    parameter.copy_(torch.where(live[name], parameter, factor * parameter))
        optimizer = optimizer_of("sgd", model)
        method = IEEWeights(model, optimizer, steps=STEPS, sparsity=0.8, H=2, J=1, Q=2)
        assert all(torch.equal(mask, live[f"{n}.weight"]) for n, mask in method.masks.items()), "the same structure"
        for step in range(STEPS):
            train_step(model, optimizer, method, step)
        grown.append(method.masks)
    assert all(torch.equal(mask, grown[1][n]) for n, mask in grown[0].items())


@pytest.mark.parametrize(("steps", "stages"), [(60_000, (150, 150, 150)), (2000, (50, 50, 5)), (20, (1, 1, 1))])
def test_iee_explores_for_less_of_a_short_training(steps: int, stages: tuple[int, int, int]) -> None:
    model, optimizer = linear()
    method = IEEWeights(model, optimizer, steps=steps, sparsity=0.7)
    assert stages == (method.H, method.J, method.Q)
    assert method.cycles == steps * 3 // 4 // sum(stages)


def test_evaluation_while_exploring_shows_the_active_structure() -> None:
    model, optimizer, method = start("iee erk")
    while not (method.stage == "explore" and method._left == 1):  # type: ignore[attr-defined]
        train_step(model, optimizer, method, method.taken)
    values = {n: v.clone() for n, v in model.state_dict().items()}
    with method.evaluation(model):
        assert all(not method.weight(n)[~mask].any() for n, mask in method.masks.items())
        assert not torch.equal(model.bn.running_mean, values["bn.running_mean"])
    assert all(torch.equal(v, values[n]) for n, v in model.state_dict().items())


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


def test_gradual_pruning_follows_the_cubic() -> None:
    model, optimizer = linear(20, 10)
    method = GMP(model, optimizer, steps=100, sparsity=0.9, every=10, stop=0.8)
    found = []
    for step in range(100):
        backward(model, step)
        optimizer.step()
        method.step()
        found.append(method.sparsity)
    for t in range(0, 81, 10):
        expected = 0.9 - 0.9 * (1 - t / 80) ** 3
        assert found[t] == pytest.approx(expected, abs=1 / 200)
    assert found[-1] == pytest.approx(0.9)
    assert found == sorted(found)


def test_gradual_pruning_goes_gradually_to_a_given_distribution() -> None:
    model, optimizer = linear(20, 10)
    method = GMP(model, optimizer, steps=100, distribution={"0": 0.8}, every=10, stop=0.8)
    found = []
    for step in range(100):
        backward(model, step)
        optimizer.step()
        method.step()
        found.append(method.sparsity)
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


def test_the_running_average_of_the_weights_stays_sparse() -> None:
    import copy

    model, optimizer, method = start("rigl")
    average = copy.deepcopy(model)
    method.follow(average)
    for step in range(STEPS):
        train_step(model, optimizer, method, step)
        for a, b in zip(average.parameters(), model.parameters(), strict=True):
            a.data.lerp_(b.data, 0.1)
    parameters = dict(average.named_parameters())
    assert all(not parameters[f"{n}.weight"][~mask].any() for n, mask in method.masks.items())


@pytest.mark.parametrize("name", ["rigl", "iee", "chase", "mest"])
def test_it_trains_and_resumes_in_the_projects_own_loop(name: str, tmp_path: Path) -> None:
    x, y = zip(*(batch(i) for i in range(8)), strict=True)
    split = TensorSplit(torch.cat(x), torch.cat(y))
    data = Data("toy", ("a", "b", "c", "d"), (3, 5, 5), split, split)
    recipe = Recipe(epochs=4, batch_size=8, grad_clip_norm=1.0, ema_decay=0.9)

    def run(folder: str, stops: tuple[int | None, ...]) -> tuple[nn.Module, Any]:
        for stop in stops:
            torch.manual_seed(0)
            model = Net()
            optimizer = optimizer_of("sgd", model)
            method = METHODS[name](model, optimizer, steps=32, sparsity=0.8, every=3)
            fit(model, data, recipe, method=method, optimizer=optimizer, checkpoint_dir=tmp_path / folder,
                stop_after=stop)  # fmt: skip
        return model, method

    straight, method = run("straight", (None,))
    resumed, again = run("resumed", (7, 20, None))
    assert method.taken == again.taken == 32
    assert method.done
    assert all(torch.equal(mask, again.masks[n]) for n, mask in method.masks.items())
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))
    assert all(not method.weight(n)[~mask].any() for n, mask in method.masks.items())


def test_forgetting_counts_right_then_wrong() -> None:
    events = ForgettingEvents(4)
    everyone = torch.arange(4)
    for right in ([1, 0, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]):
        events.observe(everyone, torch.tensor(right))
    assert events.events.tolist() == [0, 1, 2, 0]
    assert events.informative(0).tolist() == [1, 2, 3], "3 was never learned"
    assert events.informative(1).tolist() == [2, 3]
    assert events.informative(0, as_published=True).tolist() == [0, 3]
    again = ForgettingEvents(4)
    again.load_state_dict(events.state_dict())
    again.observe(everyone, torch.tensor([0, 0, 0, 1]))
    assert again.events.tolist() == [1, 1, 2, 0]
    with pytest.raises(UsageError, match="4 examples"):
        events.observe(torch.tensor([4]), torch.tensor([1]))


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "no sparsity": ("rigl", {}, "needs a sparsity"),
    "sparsity of one": ("set", {"sparsity": 1.0}, r"\[0, 1\)"),
    "the pattern's sparsity": ("rigl", {"sparsity": 0.9, "pattern": "2:4"}, "2:4 cannot have a sparsity of 0.9"),
    "erk with 2:4": ("rigl", {"pattern": "2:4", "distribution": "erk"}, "layer '.*' cannot have the pattern 2:4"),
    "global with 2:4": ("iee", {"pattern": "2:4", "distribution": "global"}, "cannot have a global distribution"),
    "3:7": ("static", {"pattern": "3:7"}, "layer 'conv1' .*no multiple of 7"),
    "kernels in linear layers": ("set", {"pattern": "kernel", "sparsity": 0.8}, "'fc1' .*3x3"),
    "kernels too dense": (
        "set", {"pattern": "kernel", "sparsity": 0.3, "kinds": ("conv",), "distribution": "uniform"},
        "'conv1' .*at most",
    ),
    "soft bound with 2:4": ("mest", {"pattern": "2:4"}, "soft memory bound"),
    "no room": ("mest", {"sparsity": 0.1}, "'conv1' has no room"),
    "gradual 2:4": ("gmp", {"pattern": "2:4"}, "on the way down"),
    "iee unused": ("iee", {"sparsity": 0.5, "unused": "random"}, "unused = 'random'"),
    "iee fan-in": ("iee", {"pattern": "fan-in", "sparsity": 0.5}, "constant fan-in"),
    "srigl 2:4": ("srigl", {"pattern": "2:4"}, "constant fan-in"),
    "fan-in below one": ("srigl", {"sparsity": 0.99}, "layer '.*' .*less than one each"),
    "as published elsewhere": ("rigl", {"sparsity": 0.9, "as_published": True}, "changes nothing"),
    "no graph": ("chase", {"sparsity": 0.8, "channel_sparsity": 0.5}, "channel graph"),
    "unknown option": ("rigl", {"sparsity": 0.8, "gamma": 1}, "has no setting 'gamma'"),
    "told twice": ("rigl", {"sparsity": 0.8, "distribution": {"fc1": 0.5}}, "told twice"),
    "fewer weights than layers": ("set", {"sparsity": 0.9999}, "cannot be met: .* layer 'fc2' could have none"),
    "unknown layer": ("rigl", {"distribution": {"fc9": 0.5}}, "'fc9'"),
    "alpha": ("rigl", {"sparsity": 0.8, "alpha": 1.5}, "alpha must lie"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BAD))
def test_what_cannot_be_met_is_said_in_one_line(name: str) -> None:
    method, settings, message = BAD[name]
    model = Net()
    with pytest.raises(UsageError, match=message) as caught:
        METHODS[method](model, optimizer_of("sgd", model), steps=STEPS, **settings)
    assert "\n" not in str(caught.value)


def test_an_optimizer_that_forgets_nothing_singly_is_refused() -> None:
    model = Net()
    optimizer = torch.optim.Adafactor(model.parameters(), lr=0.01)
    method = RigL(model, optimizer, steps=STEPS, sparsity=0.8, every=2)
    train_step(model, optimizer, method, 0)
    train_step(model, optimizer, method, 1)
    with pytest.raises(UsageError, match="Adafactor"):
        train_step(model, optimizer, method, 2)


def test_an_optimizer_of_other_parameters_is_refused() -> None:
    with pytest.raises(UsageError, match="does not hold the weight of layer 'conv1'"):
        Static(Net(), optimizer_of("sgd", Net()), steps=STEPS, sparsity=0.5)


def test_srigl_is_named_by_its_neurons() -> None:
    model, optimizer, method = start("srigl ablating")
    assert isinstance(method, SRigL)
    for step in range(STEPS):
        train_step(model, optimizer, method, step)
    active = method.active_neurons()
    assert any(not neurons.all() for neurons in active.values()), "gamma = 0.95 ablates"
