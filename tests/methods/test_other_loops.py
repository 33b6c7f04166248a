"""IEE in loops that are not ours: Accelerate, Lightning, and a script in the manner of timm's."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from halp_iee import IEE, IEEConfig

from .conftest import World

CONFIG = IEEConfig(H=3, J=2, Q=3, T=2)


def plain(world: World, loader: DataLoader[Any], epochs: int) -> tuple[nn.Module, IEE]:
    """The reference: the loop of the README."""
    model = copy.deepcopy(world.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    iee = IEE(model, world.graph, world.cost, target=0.5, optimizer=optimizer, config=CONFIG)
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            iee.step()
    return model, iee


@pytest.fixture
def loader(world: World) -> DataLoader[Any]:
    return DataLoader(TensorDataset(world.images, world.labels), batch_size=16, shuffle=False)


def assert_same_end(one: nn.Module, two: nn.Module, tolerance: float = 0.0) -> None:
    theirs = two.state_dict()
    for name, value in one.state_dict().items():
        torch.testing.assert_close(theirs[name], value, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_accelerate(world: World, loader: DataLoader[Any], accumulate: int) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    model = copy.deepcopy(world.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model, optimizer, batches = accelerator.prepare(model, optimizer, loader)
    iee = IEE(
        accelerator.unwrap_model(model), world.graph, world.cost, target=0.5, optimizer=optimizer, config=CONFIG
    )  # fmt: skip
    for _ in range(5 * accumulate):
        for images, labels in batches:
            with accelerator.accumulate(model):
                accelerator.backward(nn.functional.cross_entropy(model(images), labels))
                optimizer.step()
                if accelerator.sync_gradients and iee.step():  # channels changed: wrap the new parameters
                    model = accelerator.prepare_model(accelerator.unwrap_model(model))
                optimizer.zero_grad()
    assert iee.done
    small = iee.slim().eval()
    torch.testing.assert_close(small(world.images), accelerator.unwrap_model(model).eval()(world.images))
    if accumulate == 1:
        reference, theirs = plain(world, loader, 5)
        assert {n: u.tolist() for n, u in iee.keep.items()} == {n: u.tolist() for n, u in theirs.keep.items()}
        assert_same_end(reference, accelerator.unwrap_model(model))


def test_lightning(world: World, loader: DataLoader[Any], tmp_path: Any) -> None:
    lightning = pytest.importorskip("lightning")

    class Classifier(lightning.LightningModule):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def training_step(self, batch: list[Tensor], number: int) -> Tensor:
            images, labels = batch
            return nn.functional.cross_entropy(self.network(images), labels)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.network.parameters(), lr=0.05, momentum=0.9)

    class Search(lightning.Callback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            self.iee = IEE(
                module.network, world.graph, world.cost, target=0.5, optimizer=trainer.optimizers[0], config=CONFIG
            )

        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            self.iee.step()

    network, search = copy.deepcopy(world.model), Search()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_epochs=5, accelerator="cpu", callbacks=[search], logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(Classifier(network), loader)
    assert search.iee.done
    reference, theirs = plain(world, loader, 5)
    assert {n: u.tolist() for n, u in search.iee.keep.items()} == {n: u.tolist() for n, u in theirs.keep.items()}
    assert_same_end(reference, network)


def test_a_script_in_the_manner_of_timms(world: World, loader: DataLoader[Any]) -> None:
    """AMP with a scaler, clipping, a scheduler, an EMA copy of the model, evaluation of both."""
    model = copy.deepcopy(world.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=5)
    scaler = torch.amp.GradScaler("cpu")
    iee = IEE(model, world.graph, world.cost, target=0.5, optimizer=optimizer, config=CONFIG)
    ema = copy.deepcopy(model)
    iee.follow(ema)

    def update_ema() -> None:
        with torch.no_grad():
            for mine, theirs in zip(_all(ema), _all(model), strict=True):
                mine.lerp_(theirs, 0.2) if mine.is_floating_point() else mine.copy_(theirs)

    rates = []
    for _ in range(5):
        model.train()
        for images, labels in loader:
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = nn.functional.cross_entropy(model(images).float(), labels)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            iee.step()
            update_ema()
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.step()
        for network in (model, ema):
            with iee.evaluation(network), torch.no_grad():
                assert torch.isfinite(network.eval()(world.images)).all()
    assert iee.done
    assert rates == sorted(rates, reverse=True)
    assert [p.shape for p in _all(ema)] == [p.shape for p in _all(model)]
    small = sum(p.numel() for p in model.parameters())
    assert small < 0.7 * sum(p.numel() for p in world.model.parameters())


def _all(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
