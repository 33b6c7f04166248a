"""Precision, accumulation, averages, distillation, TensorBoard: each does what its formula says, and all go on bit for
bit after a kill at any moment."""

from __future__ import annotations

import copy
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from halp_iee.errors import TrainingError, UsageError
from halp_iee.train import EventLog, Recipe, fit, make_optimizer
from halp_iee.train.events import read
from halp_iee.train.objective import Objective

from .test_resume import assert_same, bits, recipe


def without_norm() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 3))


def trained(net, data, rcp, folder=None, **options):
    optimizer = make_optimizer(net, rcp)
    history = fit(net, data, rcp, optimizer=optimizer, checkpoint_dir=folder, **options)
    return bits(net, optimizer), history


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_a_batch_in_parts_gives_the_gradient_of_the_whole(tiny_data, parts):
    whole, _ = trained(without_norm(), tiny_data, recipe())
    divided, _ = trained(without_norm(), tiny_data, recipe(accumulate=parts))
    for name, value in whole.items():
        torch.testing.assert_close(divided[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"ema_decay": 0.95},
        {"accumulate": 3},
        {"precision": "fp16", "ema_decay": 0.9, "accumulate": 2, "grad_clip_norm": 0.5, "label_smoothing": 0.1},
    ],
)
def test_every_feature_goes_on_bit_for_bit(tiny_net, tiny_data, tmp_path, changes):
    rcp = recipe(**changes)
    expected, whole = trained(tiny_net(), tiny_data, rcp)
    for stop in (1, 4, 7, 13):
        trained(tiny_net(), tiny_data, rcp, tmp_path / str(stop), stop_after=stop)
        found, history = trained(tiny_net(), tiny_data, rcp, tmp_path / str(stop))
        assert history.resumed_from == stop
        assert_same(found, expected)
        assert [e.test_top1 for e in history.epochs] == [e.test_top1 for e in whole.epochs]


def test_the_average_is_the_formulas_and_is_what_is_given_back(tiny_net, tiny_data):
    rcp = recipe(ema_decay=0.97)
    model, seen = tiny_net(), []
    fit(
        model,
        tiny_data,
        rcp,
        progress=lambda _: seen.append({n: p.detach().clone() for n, p in model.named_parameters()}),
    )
    expected = {n: p.detach().clone() for n, p in tiny_net().named_parameters()}
    for step, values in enumerate(seen, 1):
        decay = min(0.97, (1 + step) / (10 + step))
        expected = {n: decay * expected[n] + (1 - decay) * value for n, value in values.items()}
    for name, value in model.named_parameters():
        torch.testing.assert_close(value.detach(), expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_distillation_is_hintons_loss(share):
    generator = torch.Generator().manual_seed(0)
    logits, wanted = (torch.randn(6, 3, generator=generator) for _ in range(2))
    labels = torch.arange(6) % 3
    teacher = nn.Identity()
    loss = Objective(Recipe(distill=share, distill_temperature=3.0), teacher)(logits, wanted, labels)
    p, q = (wanted / 3).softmax(1), (logits / 3).softmax(1)
    expected = (1 - share) * F.cross_entropy(logits, labels, reduction="sum") + share * 9 * (p * (p / q).log()).sum()
    torch.testing.assert_close(loss, expected)


def test_the_teacher_is_not_trained_and_is_needed(tiny_net, tiny_data):
    teacher = tiny_net(seed=5)
    before = copy.deepcopy(teacher.state_dict())
    fit(tiny_net(), tiny_data, recipe(distill=0.5, epochs=1), teacher=teacher)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    with pytest.raises(UsageError, match="distill"):
        fit(tiny_net(), tiny_data, recipe(distill=0.5))


def test_a_batch_smaller_than_its_parts_is_refused_before_the_first_step(tiny_net, tiny_data):
    with pytest.raises(UsageError, match="accumulate"):
        Recipe(batch_size=4, accumulate=5)
    with pytest.raises(UsageError, match="33 images"):
        fit(tiny_net(), tiny_data, recipe(batch_size=64, accumulate=40))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_network_that_gives_nothing_finite_is_stopped_with_a_clear_word(tiny_net, tiny_data, precision):
    model = tiny_net()
    model.fc.weight.data.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"loss became nan in epoch 1, step 1.*lower lr"):
        fit(model, tiny_data, recipe(precision=precision))


class Overflowing(nn.Module):
    """A finite loss whose gradient never is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 3))

    def forward(self, x):
        return x.flatten(1).mean(1, keepdim=True).abs() * 0 + torch.sqrt(self.weight.abs()) @ torch.eye(3)


def test_fp16_that_overflows_at_every_scale_is_stopped(tiny_data):
    with pytest.raises(TrainingError, match="not finite at any scale"):
        fit(Overflowing(), tiny_data, recipe(precision="fp16", epochs=40, evaluate_every=40))


def test_figures_go_to_tensorboard_and_only_once_after_a_stop(tiny_net, tiny_data, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from halp_iee.train.tensorboard import Board

    for stop in (7, None):
        with EventLog(tmp_path / "log", Board(tmp_path / "board")) as log:
            trained(tiny_net(), tiny_data, recipe(), tmp_path, events=log, stop_after=stop)
    shown = EventAccumulator(str(tmp_path / "board"))
    shown.Reload()
    assert [p.step for p in shown.Scalars("epoch/test_top1")] == [4, 8, 12, 16]
    losses = [event["loss"] for event in read(tmp_path / "log")]
    assert [p.value for p in shown.Scalars("epoch/loss")] == pytest.approx(losses)


KILLED = """
import os, signal, sys, threading, time
sys.path.insert(0, {root!r})
from tests.train.test_recipe_features import small_run
import random
spread = random.Random({seed})
after = spread.uniform(0.02, 0.6)
def die():
    time.sleep(after)
    os.kill(os.getpid(), signal.SIGKILL)
def begin(at):
    if at.step == 1 and {kill}:
        threading.Thread(target=die, daemon=True).start()
small_run({folder!r}, begin)
"""


def small_run(folder, progress=None):
    """IEE with everything switched on; a checkpoint after every step."""
    from halp_iee import IEE, IEEConfig
    from halp_iee.graph import trace
    from halp_iee.train.records import Data
    from halp_iee.train.tensors import TensorSplit
    from tests.methods.conftest import FakeCost, Tiny

    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(80) % 3
    images = torch.randn(80, 2, 8, 8, generator=generator) + 0.5 * labels[:, None, None, None]
    data = Data(
        "tiny", ("a", "b", "c"), (2, 8, 8), TensorSplit(images[:64], labels[:64], augmentation="crop-flip"),
        TensorSplit(images[64:], labels[64:]),
    )  # fmt: skip
    torch.manual_seed(0)
    model = Tiny()
    graph = trace(model, images[:1])
    rcp = Recipe(epochs=8, batch_size=8, lr=0.05, ema_decay=0.9, accumulate=2, precision="fp16", grad_clip_norm=1.0)
    optimizer = make_optimizer(model, rcp)
    config = IEEConfig(H=3, J=3, Q=3, T=5)
    with EventLog(None if folder is None else Path(folder) / "log") as log:
        iee = IEE(model, graph, FakeCost(graph), target=0.5, optimizer=optimizer, config=config,
                  on_event=lambda event: log.log(event.pop("kind"), **event))  # fmt: skip
        fit(model, data, rcp, method=iee, optimizer=optimizer, checkpoint_dir=folder, checkpoint_every_steps=1,
            events=log, progress=progress)  # fmt: skip
    return model, iee, bits(model, optimizer)


def test_killed_at_random_moments_again_and_again_it_ends_with_the_same_bits(tmp_path):
    _model, iee, expected = small_run(None)
    assert iee.done
    root = str(Path(__file__).parents[2])
    seed = random.Random().randrange(10**6)
    for attempt in range(4):
        code = KILLED.format(root=root, seed=seed + attempt, folder=str(tmp_path), kill=True)
        environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, env=environment)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()
    _again, iee_again, found = small_run(tmp_path)
    assert {n: u.tolist() for n, u in iee_again.keep.items()} == {n: u.tolist() for n, u in iee.keep.items()}, seed
    assert_same(found, expected)
    kinds = [event["event"] for event in read(tmp_path / "log")]
    assert kinds.count("prune") == kinds.count("grow") == 5
    assert kinds.count("epoch") == 8
