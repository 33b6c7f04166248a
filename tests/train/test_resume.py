"""A run that was stopped, however, ends with the same bits as one that never was."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from halp_iee.errors import CheckpointError, TrainingError, UsageError
from halp_iee.train import CHECKPOINT, EventLog, Method, Recipe, fit, make_optimizer
from halp_iee.train.events import read

STEPS = 4 * 4  # epochs x batches of 8 out of 33


def recipe(**changes) -> Recipe:
    return Recipe(**{"epochs": 4, "batch_size": 8, "lr": 0.05, **changes})


class Narrowing(Method):
    """Takes a channel away every third step, by replacing parameters as a real method does."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer, self.steps, self.asleep = model, optimizer, 0, torch.zeros(0)

    def step(self) -> bool:
        self.steps += 1
        if self.steps % 3 == 0 and self.model.conv.out_channels > 2:
            self.asleep = torch.cat([self.asleep, self.model.conv.weight.detach()[-1].flatten()])
            self._resize(self.model.conv.out_channels - 1)
        return self.steps % 3 == 0

    def _resize(self, width: int) -> None:
        model = self.model
        for owner, name, axis in (
            (model.conv, "weight", 0), (model.conv, "bias", 0), (model.bn, "weight", 0), (model.bn, "bias", 0),
            (model.fc, "weight", 1),
        ):  # fmt: skip
            old = getattr(owner, name)
            new = nn.Parameter(old.detach().narrow(axis, 0, width).clone())
            setattr(owner, name, new)
            for group in self.optimizer.param_groups:
                group["params"] = [new if p is old else p for p in group["params"]]
            slots = self.optimizer.state.pop(old, {})
            cut = {k: v.narrow(axis, 0, width).clone() if v.shape == old.shape else v for k, v in slots.items()}
            if cut:
                self.optimizer.state[new] = cut
        for name in ("running_mean", "running_var"):
            setattr(model.bn, name, getattr(model.bn, name)[:width].clone())
        model.conv.out_channels = model.bn.num_features = model.fc.in_features = width

    def state_dict(self) -> dict:
        meta = {"steps": self.steps, "width": self.model.conv.out_channels}
        return {"tensors": {"asleep": self.asleep}, "meta": meta}

    def load_state_dict(self, state) -> None:
        self.asleep, self.steps = state["tensors"]["asleep"], state["meta"]["steps"]
        self._resize(state["meta"]["width"])


def run(net, data, folder, *, rcp=None, with_method=False, log=None, **options):
    model, rcp = net(), rcp or recipe()
    optimizer = make_optimizer(model, rcp)
    method = Narrowing(model, optimizer) if with_method else None
    events = EventLog(log) if log else None
    history = fit(model, data, rcp, method=method, optimizer=optimizer, checkpoint_dir=folder, events=events, **options)
    return model, optimizer, history, method


def bits(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    found = dict(model.state_dict())
    for name, parameter in model.named_parameters():
        for slot, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                found[f"{name}/{slot}"] = value
    return found


def assert_same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


@pytest.mark.parametrize("with_method", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_stopping_after_any_step_changes_no_bit(tiny_net, tiny_data, tmp_path, optimizer, with_method):
    rcp = recipe(optimizer=optimizer, grad_clip_norm=1.0, label_smoothing=0.1)
    options = {"rcp": rcp, "with_method": with_method}
    model, opt, history, method = run(tiny_net, tiny_data, None, **options)
    for stop in range(1, STEPS, 2 if with_method else 3):
        folder = tmp_path / str(stop)
        *_, first, _ = run(tiny_net, tiny_data, folder, stop_after=stop, **options)
        assert (first.steps, first.finished) == (stop, False)
        torch.manual_seed(stop), np.random.seed(stop), random.seed(stop)  # another process has others
        again, opt_again, second, method_again = run(tiny_net, tiny_data, folder, **options)
        assert second.resumed_from == stop
        assert second.finished
        assert_same(bits(model, opt), bits(again, opt_again))
        for mine, theirs in zip(history.epochs, second.epochs, strict=True):
            assert (mine.loss, mine.train_top1, mine.test_top1) == (
                theirs.loss,
                theirs.train_top1,
                theirs.test_top1,
            )
        if with_method:
            assert torch.equal(method.asleep, method_again.asleep)


def test_a_run_stopped_many_times_logs_what_one_that_never_was_logs(tiny_net, tiny_data, tmp_path):
    run(tiny_net, tiny_data, tmp_path / "a", log=tmp_path / "a.jsonl")
    for stop in (3, 4, 9, None):
        run(tiny_net, tiny_data, tmp_path / "b", log=tmp_path / "b.jsonl", stop_after=stop)
    logs = [
        [{k: v for k, v in event.items() if k != "seconds"} for event in read(tmp_path / name)]
        for name in ("a.jsonl", "b.jsonl")
    ]
    assert logs[0] == logs[1]
    assert [event["step"] for event in logs[0]] == [4, 8, 12, 16]


def test_a_finished_run_is_not_trained_again(tiny_net, tiny_data, tmp_path):
    model, opt, first, _ = run(tiny_net, tiny_data, tmp_path)
    again, opt_again, second, _ = run(tiny_net, tiny_data, tmp_path, progress=lambda _: pytest.fail("trained"))
    assert_same(bits(model, opt), bits(again, opt_again))
    assert second.epochs == first.epochs


@pytest.fixture
def handler():
    """The handler of a program at a terminal; a suite that runs in the background is born with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)


def test_ctrl_c_finishes_the_step_writes_the_checkpoint_and_raises(tiny_net, tiny_data, tmp_path, handler):
    model, opt, *_ = run(tiny_net, tiny_data, None)

    def interrupt(at):
        if at.step == 6:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tiny_net, tiny_data, tmp_path, progress=interrupt)
    assert signal.getsignal(signal.SIGINT) is handler
    again, opt_again, history, _ = run(tiny_net, tiny_data, tmp_path)
    assert history.resumed_from == 6
    assert_same(bits(model, opt), bits(again, opt_again))


KILLED = """
import os, signal, sys
sys.path.insert(0, {here!r})
import torch
from conftest import TinyNet
from halp_iee.train import Recipe, fit
from halp_iee.train.records import Data
from halp_iee.train.tensors import TensorSplit
g = torch.Generator().manual_seed(1)
labels = torch.arange(44) % 3
images = torch.randn(44, 1, 8, 8, generator=g) + labels[:, None, None, None]
data = Data("tiny", ("a", "b", "c"), (1, 8, 8), TensorSplit(images[:33], labels[:33], augmentation="crop-flip"),
            TensorSplit(images[33:], labels[33:]))
torch.manual_seed(0)
def die(at):
    if at.step == 7:
        os.kill(os.getpid(), signal.SIGKILL)
fit(TinyNet(), data, Recipe(epochs=4, batch_size=8, lr=0.05), checkpoint_dir={folder!r}, checkpoint_every_steps=1,
    progress=die)
"""


def test_kill_9_loses_no_more_than_what_follows_the_last_checkpoint(tiny_net, tiny_data, tmp_path):
    code = KILLED.format(here=str(Path(__file__).parent), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    model, opt, *_ = run(tiny_net, tiny_data, None)
    again, opt_again, history, _ = run(tiny_net, tiny_data, tmp_path)
    assert history.resumed_from == 6
    assert_same(bits(model, opt), bits(again, opt_again))


def test_training_leaves_the_callers_random_generators_alone(tiny_net, tiny_data):
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    expected = (torch.rand(1).item(), np.random.rand(), random.random())
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    run(tiny_net, tiny_data, None, rcp=recipe(epochs=1))
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected


@pytest.mark.parametrize("where", [0, 7, 100, 0.3, 0.9, -1])
def test_a_checkpoint_that_was_cut_off_is_refused(tiny_net, tiny_data, tmp_path, where):
    run(tiny_net, tiny_data, tmp_path, stop_after=2)
    file = tmp_path / CHECKPOINT
    raw = file.read_bytes()
    file.write_bytes(raw[: where if isinstance(where, int) else int(where * len(raw))])
    with pytest.raises(CheckpointError, match="cannot be read"):
        run(tiny_net, tiny_data, tmp_path)


def test_a_checkpoint_with_any_changed_byte_in_its_header_never_ends_in_another_error(tiny_net, tiny_data, tmp_path):
    run(tiny_net, tiny_data, tmp_path, stop_after=2)
    file = tmp_path / CHECKPOINT
    raw = file.read_bytes()
    header = 8 + int.from_bytes(raw[:8], "little")
    rng = random.Random(0)
    for _ in range(60):
        changed = bytearray(raw)
        changed[rng.randrange(header)] = rng.randrange(256)
        file.write_bytes(changed)
        with contextlib.suppress(CheckpointError):  # a byte may be changed without harm
            run(tiny_net, tiny_data, tmp_path, stop_after=3)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"rcp": recipe(lr=0.01)}, "lr=0.05, and here it is lr=0.01"),
        ({"rcp": recipe(epochs=5)}, "epochs=4"),
        ({"identity": {"model": "other"}}, "model is nothing, and here it is other"),
        ({"with_method": True}, "method is none"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_and_the_difference_named(tiny_net, tiny_data, tmp_path, change, word):
    run(tiny_net, tiny_data, tmp_path, stop_after=2)
    with pytest.raises(CheckpointError, match=word):
        run(tiny_net, tiny_data, tmp_path, **change)


def test_a_checkpoint_of_another_network_is_refused(tiny_net, tiny_data, tmp_path):
    run(tiny_net, tiny_data, tmp_path, stop_after=2)
    with pytest.raises(CheckpointError, match=r"'conv.weight' is \(6, 1, 3, 3\)"):
        fit(tiny_net(width=5), tiny_data, recipe(), checkpoint_dir=tmp_path)
    with pytest.raises(CheckpointError, match="network"):
        fit(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), tiny_data, recipe(), checkpoint_dir=tmp_path)


def test_a_file_that_is_no_checkpoint_is_refused(tiny_net, tiny_data, tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / CHECKPOINT, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="'pt'"):
        run(tiny_net, tiny_data, tmp_path)


def test_nothing_but_the_checkpoint_is_left_behind(tiny_net, tiny_data, tmp_path):
    run(tiny_net, tiny_data, tmp_path, checkpoint_every_steps=1)
    assert [file.name for file in tmp_path.iterdir()] == [CHECKPOINT]


def test_a_loss_that_is_not_finite_stops_the_training_before_the_weights_change(tiny_net, tiny_data, tmp_path):
    model = tiny_net()
    events = EventLog(tmp_path / "log")
    with pytest.raises(TrainingError, match=r"epoch \d, step \d+, at learning rate [\d.]+e\+.*grad_clip_norm"):
        fit(model, tiny_data, recipe(lr=1e30, warmup_epochs=0), events=events)
    assert read(tmp_path / "log") == []


def test_a_method_without_its_optimizer_is_refused(tiny_net, tiny_data):
    model = tiny_net()
    with pytest.raises(UsageError, match="optimizer"):
        fit(model, tiny_data, recipe(), method=Narrowing(model, make_optimizer(model, recipe())))


def test_norms_and_biases_are_not_decayed(tiny_net):
    model = tiny_net()
    decayed, plain = make_optimizer(model, recipe(weight_decay=0.1)).param_groups
    assert {id(p) for p in decayed["params"]} == {id(model.conv.weight), id(model.fc.weight)}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
