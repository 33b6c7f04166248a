"""What moves with a network that is resized: averages, gradients being accumulated, layout; and that it is the masked
run made small."""

from __future__ import annotations

import copy
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from halp_iee import IEE, IEEConfig
from halp_iee.errors import UsageError
from halp_iee.methods.elastic import ElasticNetwork, _index, is_channels_last
from halp_iee.methods.structure import Units
from halp_iee.train.average import Average

from .conftest import World
from .test_iee import make_optimizer, train_step


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in (*model.named_parameters(), *model.named_buffers())}


def chosen(world: World, rng: np.random.Generator) -> Units:
    return {
        g.name: np.sort(rng.choice(g.size, rng.integers(1, g.size + 1), replace=False))
        for g in world.graph.groups
        if g.prunable
    }


@pytest.mark.parametrize("seed", range(4))
def test_an_average_is_the_average_of_every_value_over_the_steps_in_which_it_was_awake(world: World, seed: int) -> None:
    """Against full-size tensors of its own, updated at the awake positions only."""
    rng = np.random.default_rng(seed)
    model = copy.deepcopy(world.model)
    optimizer = make_optimizer("sgd", model)
    elastic = ElasticNetwork(model, world.graph, optimizer)
    average = Average(model, 0.9)
    elastic.follow(average.module)
    expected = tensors(model)
    for step in range(1, 25):
        train_step(world, model, optimizer, step)
        elastic.adopt_slots()
        if step % 4 == 0:
            elastic.save_awake()
            elastic.resize({} if step % 8 == 0 else chosen(world, rng))
        average.update(model, step)
        rate = 1 - min(0.9, (1 + step) / (10 + step))
        for name, live in tensors(model).items():
            at = _index(elastic.now[name], expected[name])
            old = expected[name][at]
            expected[name][at] = torch.lerp(old, live, rate) if live.is_floating_point() else live
        for name, value in tensors(average.module).items():
            assert torch.equal(value, expected[name][_index(elastic.now[name], expected[name])]), (step, name)
    average.module.eval()(world.images)  # its sizes agree, so it runs


def test_a_gradient_that_is_being_accumulated_survives_a_resize_exactly(world: World) -> None:
    rng = np.random.default_rng(0)
    model = copy.deepcopy(world.model)
    elastic = ElasticNetwork(model, world.graph, make_optimizer("sgd", model))
    for _ in range(10):
        model.zero_grad()
        nn.functional.cross_entropy(model(world.images), world.labels).backward()
        was, before = elastic.now, {n: p.grad.clone() for n, p in model.named_parameters()}
        elastic.save_awake()
        elastic.resize(chosen(world, rng))
        for name, parameter in model.named_parameters():
            full = torch.zeros_like(elastic.store[name])
            full[_index(was[name], full)] = before[name]  # what was asleep has gathered nothing
            assert torch.equal(parameter.grad, full[_index(elastic.now[name], full)]), name


def test_weights_keep_their_layout_through_every_resize(world: World) -> None:
    rng = np.random.default_rng(0)
    model = copy.deepcopy(world.model).to(memory_format=torch.channels_last)
    optimizer = make_optimizer("sgd", model)
    elastic = ElasticNetwork(model, world.graph, optimizer)
    for i in range(6):
        train_step(world, model, optimizer, i)
        elastic.adopt_slots()
        elastic.save_awake()
        elastic.resize({n: u for n, u in chosen(world, rng).items() if len(u) > 1} if i % 2 else {})
        assert is_channels_last(model)
        for p in model.parameters():
            assert optimizer.state[p]["momentum_buffer"].stride() == p.stride()


def test_an_average_of_another_size_is_refused(world: World) -> None:
    model = copy.deepcopy(world.model)
    elastic = ElasticNetwork(model, world.graph, make_optimizer("sgd", model))
    elastic.resize({g.name: np.arange(1) for g in world.graph.groups if g.prunable})
    with pytest.raises(UsageError, match="average"):
        elastic.follow(copy.deepcopy(world.model))


@pytest.mark.parametrize("optimizer_name", ["sgd", "adamw"])
def test_the_small_network_goes_the_way_of_the_masked_one(world: World, optimizer_name: str) -> None:
    """The paper's masked training, done beside the physical one: the same trajectory within float tolerance.

    The masked run trains a network of full size whose dormant values are zeroed and put back unchanged; its structure
    follows the physical run's, and everything else is its own.
    """
    config = IEEConfig(H=3, J=3, Q=3, T=3)
    model, twin = copy.deepcopy(world.model).double(), copy.deepcopy(world.model).double()
    images = world.images.double()
    optimizers = [make_optimizer(optimizer_name, net) for net in (model, twin)]
    iee = IEE(model, world.graph, world.cost, target=0.5, optimizer=optimizers[0], config=config)
    world = World(world.model, world.graph, world.cost, images, world.labels)

    def awake() -> dict[str, Tensor]:
        masks = {}
        for name, value in tensors(twin).items():
            masks[name] = torch.zeros_like(value, dtype=torch.bool)
            masks[name][_index(iee.elastic.now[name], value)] = True
        return masks

    def state() -> dict[tuple[str, str], Tensor]:
        found = {(n, ""): t for n, t in (*twin.named_parameters(), *twin.named_buffers())}
        for n, p in twin.named_parameters():
            found |= {(n, k): v for k, v in optimizers[1].state[p].items() if v.shape == p.shape}
        return found

    for i in range(config.steps):
        exploring = iee.stage == "explore"
        train_step(world, model, optimizers[0], i)
        masks = awake()
        frozen = iee.elastic._frozen if exploring else {}
        before = {key: value.detach().clone() for key, value in state().items()}
        with ExitStack() as during:
            if not exploring:
                during.enter_context(world.graph.masked(iee.keep, model=twin))
            train_step(world, twin, optimizers[1], i)
        with torch.no_grad():  # asleep or frozen: as it was
            for key, value in state().items():
                rest = ~masks[key[0]]
                if exploring:
                    mask = frozen[key[0]]
                    rest = torch.ones_like(rest) if mask is None else mask
                old = before.get(key, torch.zeros_like(value))
                value.copy_(torch.where(rest, old, value))
        cycle_ends = iee._left == 1
        waking = iee.stage == "accuracy" and cycle_ends
        active = iee.keep
        iee.step()
        if waking:  # the woken begin without momentum
            here = iee.elastic.positions(active)
            with torch.no_grad():
                for (name, slot), value in state().items():
                    if slot:
                        kept = value[_index(here[name], value)].clone()
                        value.zero_()
                        value[_index(here[name], value)] = kept
        for name, value in tensors(model).items():
            theirs = tensors(twin)[name][_index(iee.elastic.now[name], tensors(twin)[name])]
            torch.testing.assert_close(value, theirs, rtol=1e-6, atol=1e-9, msg=f"{name} after step {i}")
    assert iee.done


@pytest.mark.gpu
def test_on_a_gpu_it_finds_prunes_and_freezes_as_on_the_cpu(world: World) -> None:
    model = copy.deepcopy(world.model).cuda()
    optimizer = make_optimizer("sgd", model)
    config = IEEConfig(H=3, J=3, Q=3, T=2)
    iee = IEE(model, world.graph, world.cost, target=0.5, optimizer=optimizer, config=config)
    there = World(world.model, world.graph, world.cost, world.images.cuda(), world.labels.cuda())
    for i in range(config.steps):
        train_step(there, model, optimizer, i)
        iee.step()
    assert iee.done
    torch.testing.assert_close(iee.slim().eval()(world.images), model.eval()(there.images).cpu(), rtol=1e-3, atol=1e-4)
