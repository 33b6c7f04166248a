"""The structure search is part of what a checkpoint holds: stopped in any stage, it goes on bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch

from halp_iee.graph import trace
from halp_iee.methods.iee import IEE, IEEConfig
from halp_iee.train import EventLog, Recipe, fit, make_optimizer
from halp_iee.train.events import read
from halp_iee.train.records import Data
from halp_iee.train.tensors import TensorSplit
from tests.methods.conftest import FakeCost, Tiny


@pytest.fixture(scope="module")
def train():
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(80) % 3
    images = torch.randn(80, 2, 8, 8, generator=generator) + 0.5 * labels[:, None, None, None]
    data = Data(
        "tiny", ("a", "b", "c"), (2, 8, 8),
        TensorSplit(images[:64], labels[:64], augmentation="crop-flip"), TensorSplit(images[64:], labels[64:]),
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dense = Tiny()
    graph = trace(dense, images[:1])
    cost = FakeCost(graph)

    def run(folder, optimizer_name, stop_after=None):
        model = copy.deepcopy(dense)
        recipe = Recipe(epochs=6, batch_size=8, lr=0.05, optimizer=optimizer_name)
        optimizer = make_optimizer(model, recipe)
        with EventLog(folder / "log") as log:
            iee = IEE(
                model, graph, cost, target=0.5, optimizer=optimizer, config=IEEConfig(H=3, J=3, Q=3, T=4),
                on_event=lambda event: log.log(event.pop("kind"), **event),
            )  # fmt: skip
            fit(
                model, data, recipe, method=iee, optimizer=optimizer, checkpoint_dir=folder, events=log,
                stop_after=stop_after,
            )  # fmt: skip
        events = [{k: v for k, v in event.items() if k != "seconds"} for event in read(folder / "log")]
        return model, optimizer, iee, events

    return run


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_iee_stopped_in_any_stage_ends_with_the_same_structure_weights_momenta_and_log(train, tmp_path, name):
    (tmp_path / "whole").mkdir()
    model, optimizer, iee, events = train(tmp_path / "whole", name)
    assert iee.done
    parameters = dict(model.named_parameters())
    for stop in (
        1,
        3,
        5,
        8,
        9,
        14,
        24,
        35,
        36,
        40,
    ):  # within and at the ends of stages H, J and Q, and after the last
        folder = tmp_path / str(stop)
        folder.mkdir()
        train(folder, name, stop_after=stop)
        again, optimizer_again, iee_again, events_again = train(folder, name)
        assert events_again == events
        for group, units in iee.keep.items():
            assert units.tolist() == iee_again.keep[group].tolist()
        for key, value in model.state_dict().items():
            assert torch.equal(value, again.state_dict()[key]), key
        for key, parameter in again.named_parameters():
            for slot, value in optimizer_again.state[parameter].items():
                expected = optimizer.state[parameters[key]][slot]
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(expected)), (key, slot)
