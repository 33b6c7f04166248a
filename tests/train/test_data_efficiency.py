"""MEST's data efficiency in the project's own loop: events are counted, easy examples left out, with any method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from halp_iee.errors import UsageError
from halp_iee.graph import trace
from halp_iee.methods.config import IEEConfig
from halp_iee.methods.halp import HALP, HALPConfig
from halp_iee.methods.iee import IEE
from halp_iee.methods.sparse import METHODS
from halp_iee.train import EventLog, Recipe, fit, make_optimizer
from halp_iee.train.events import read
from halp_iee.train.records import Data
from halp_iee.train.tensors import TensorSplit
from tests.methods.conftest import FakeCost, Tiny

EPOCHS, BATCH, EXAMPLES = 8, 10, 60
CASES: dict[str, dict[str, Any]] = {
    "none": {},
    "rigl": {"every": 4},
    "set": {"every": 4},
    "mest": {"sparsity": 0.8, "every": 4, "kinds": ("conv", "linear"), "distribution": "erk"},
    "chase": {"every": 4},
    "gmp": {"every": 4},
    "iee": {"H": 2, "J": 2, "Q": 2},
    "iee channels": {},
    "halp": {},
}


class Watched(TensorSplit):
    """Remembers which examples every epoch has shown; the first number of an image is its index."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        super().__init__(images, labels)
        self.shown: dict[int, list[int]] = {}

    def batches(self, *args: Any, epoch: int = 0, **options: Any) -> Any:
        for images, labels in super().batches(*args, epoch=epoch, **options):
            self.shown.setdefault(epoch, []).extend(round(v) for v in images[:, 0, 0, 0].tolist())
            yield images, labels


class Network(nn.Module):
    """Does not look at the index, and remembers what it answered in training."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Tiny()
        self.answers: list[tuple[list[int], list[int]]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        indices = [round(v) for v in x[:, 0, 0, 0].tolist()]
        x = x.clone()
        x[:, 0, 0, 0] = 0
        logits: torch.Tensor = self.inner(x)
        if self.training and torch.is_grad_enabled():
            self.answers.append((indices, logits.argmax(1).tolist()))
        return logits


def toy() -> tuple[Data, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(EXAMPLES + 10) % 3
    images = torch.randn(EXAMPLES + 10, 2, 8, 8, generator=generator) + 0.4 * labels[:, None, None, None]
    noisy = labels.clone()
    noisy[::7] = (noisy[::7] + 1) % 3  # some examples are learned late or never
    images[:EXAMPLES, 0, 0, 0] = torch.arange(EXAMPLES)
    train = Watched(images[:EXAMPLES], noisy[:EXAMPLES])
    return Data("toy", ("a", "b", "c"), (2, 8, 8), train, TensorSplit(images[EXAMPLES:], labels[EXAMPLES:])), noisy


def prepared(case: str) -> tuple[nn.Module, Any, Any]:
    torch.manual_seed(0)
    model = Network()
    recipe = Recipe(epochs=EPOCHS, batch_size=BATCH, lr=0.05, informative_after=3, augment=False)
    optimizer = make_optimizer(model, recipe)
    steps = EPOCHS * (EXAMPLES // BATCH)
    if case == "none":
        return model, None, (recipe, optimizer)
    if case in ("iee channels", "halp"):
        graph = trace(model, torch.zeros(1, 2, 8, 8))
        if case == "halp":
            return model, HALP(model, graph, FakeCost(graph), target=0.5, optimizer=optimizer,
                               config=HALPConfig(steps=10, interval=3)), (recipe, optimizer)  # fmt: skip
        config = IEEConfig(H=3, J=3, Q=3, T=5)
        return model, IEE(model, graph, FakeCost(graph), target=0.5, optimizer=optimizer, config=config), (
            recipe, optimizer,
        )  # fmt: skip
    method = METHODS[case](model, optimizer, steps=steps, **{"sparsity": 0.7, **CASES[case]})
    return model, method, (recipe, optimizer)


@pytest.mark.parametrize("case", list(CASES))
def test_the_second_phase_has_the_informative_examples_alone_and_the_method_still_ends(case: str) -> None:
    data, labels = toy()
    model, method, (recipe, optimizer) = prepared(case)
    events = EventLog(None)
    history = fit(model, data, recipe, method=method, optimizer=optimizer, events=events)
    # The events by hand, from what the network answered in the first three epochs.
    right, forgotten, learned = np.zeros(EXAMPLES, bool), np.zeros(EXAMPLES, int), np.zeros(EXAMPLES, bool)
    for indices, answers in model.answers[: 3 * EXAMPLES // BATCH]:
        for i, answer in zip(indices, answers, strict=True):
            now = answer == int(labels[i])
            forgotten[i] += right[i] and not now
            learned[i] |= now
            right[i] = now
    wanted = set(np.flatnonzero((forgotten > 0) | ~learned).tolist())
    assert 0 < len(wanted) < EXAMPLES
    shown = data.train.shown
    assert all(set(shown[epoch]) == set(range(EXAMPLES)) for epoch in range(3))
    per_epoch = max(1, len(wanted) // BATCH)
    for epoch in range(3, EPOCHS):
        assert set(shown[epoch]) <= wanted
        assert len(shown[epoch]) == min(len(wanted), per_epoch * BATCH)
    assert history.steps == 3 * EXAMPLES // BATCH + 5 * per_epoch
    if method is not None:
        assert method.done
    if case in METHODS:
        assert sum(int(mask.sum()) for mask in method.masks.values()) == sum(method.budget.values())
        assert all(not method.weight(n)[~mask].any() for n, mask in method.masks.items())
    if case in ("iee channels", "halp"):
        assert method.cost.predict(method.widths) <= 0.5 * method.cost.dense_ms


@pytest.mark.parametrize("case", ["none", "rigl", "iee", "mest", "iee channels", "halp"])
def test_stopped_anywhere_it_goes_on_with_the_same_examples_and_bits(case: str, tmp_path: Path) -> None:
    def run(folder: str, stops: tuple[int | None, ...]) -> tuple[dict[str, torch.Tensor], list[Any]]:
        for stop in stops:
            data, _ = toy()
            model, method, (recipe, optimizer) = prepared(case)
            with EventLog(tmp_path / f"{folder}.jsonl") as log:
                fit(model, data, recipe, method=method, optimizer=optimizer, checkpoint_dir=tmp_path / folder,
                    stop_after=stop, events=log)  # fmt: skip
        told = [e for e in read(tmp_path / f"{folder}.jsonl") if e["event"] == "informative"]
        return model.state_dict(), told

    straight, told = run("straight", (None,))
    stopped, again = run("stopped", (5, 16, 19, None))
    assert straight.keys() == stopped.keys()
    assert all(torch.equal(value, stopped[name]) for name, value in straight.items())
    assert len(told) == len(again) == 1
    assert told[0]["kept"] == again[0]["kept"] < told[0]["of"] == EXAMPLES


def test_a_threshold_that_leaves_nothing_and_a_phase_that_never_begins_are_refused() -> None:
    with pytest.raises(UsageError, match="leaves no second phase"):
        Recipe(epochs=3, informative_after=3)
    data, _ = toy()
    torch.manual_seed(0)
    recipe = Recipe(epochs=40, batch_size=BATCH, lr=0.05, informative_after=30, informative_above=25, augment=False)
    with pytest.raises(UsageError, match="no example is left"):
        fit(Tiny(), data, recipe)
