"""The methods in a training: averages, resuming, forgetting, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from halp_iee.errors import UsageError
from halp_iee.methods.sparse import METHODS, ForgettingEvents, RigL, Static
from halp_iee.train import fit
from halp_iee.train.recipe import Recipe
from halp_iee.train.records import Data
from halp_iee.train.tensors import TensorSplit
from tests.methods_sparse.worlds import STEPS, Net, batch, optimizer_of, start, train_step


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
    "too many batches": ("rigl", {"sparsity": 0.8, "every": 5, "gradient_batches": 6}, "of 6 batches"),
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


@pytest.mark.parametrize("batches", [1, 2, 3])
def test_a_layer_without_a_gradient_is_named_however_many_batches_are_summed(batches: int) -> None:
    model = Net()
    method = METHODS["rigl"](
        model, optimizer_of("sgd", model), steps=STEPS, sparsity=0.8, every=3, gradient_batches=batches
    )  # fmt: skip

    def train() -> None:
        for _ in range(8):
            model.zero_grad()
            model.conv2(torch.relu(model.conv1(model.stem(torch.randn(4, 3, 5, 5))))).square().mean().backward()
            method.before_step()
            method.step()

    with pytest.raises(UsageError, match="layer 'fc1'"):
        train()
