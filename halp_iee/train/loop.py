"""The training loop, which can be stopped anywhere and goes on bit for bit."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import halp_iee
from halp_iee.errors import CheckpointError, TrainingError, UsageError
from halp_iee.train import checkpoint as checkpoints
from halp_iee.train import randomness
from halp_iee.train.evaluation import evaluate
from halp_iee.train.events import EventLog
from halp_iee.train.recipe import Recipe
from halp_iee.train.records import Data, steps_per_epoch

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class EpochRecord:
    """One finished epoch: mean training loss and share of hits while training, test figures if evaluated."""

    epoch: int
    loss: float
    train_top1: float
    lr: float
    test_top1: float | None
    test_loss: float | None
    seconds: float


@dataclass(frozen=True)
class History:
    """What a run has done.

    Attributes:
        epochs: the finished ones, in order.
        steps: optimizer steps taken.
        finished: False when `stop_after` ended it early.
        resumed_from: the step that it went on from; None when it began here.
        seconds: in training, over all sessions of the run, evaluation included.
    """

    epochs: tuple[EpochRecord, ...]
    steps: int
    finished: bool
    resumed_from: int | None
    seconds: float

    @property
    def top1(self) -> float:
        """Share of hits on the test set after the last epoch that was evaluated."""
        return next((e.test_top1 for e in reversed(self.epochs) if e.test_top1 is not None), math.nan)


@dataclass(frozen=True)
class Progress:
    """Where the run stands after a step; `test_top1` is the newest one, None before the first."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    lr: float
    test_top1: float | None


@dataclass
class _Position:
    """Where the run stands, all of it in the checkpoint."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    hits: int = 0
    seen: int = 0
    epoch_seconds: float = 0.0
    seconds: float = 0.0
    epochs: list[dict[str, Any]] = field(default_factory=list)

    def check(self) -> None:
        """Raise ValueError or TypeError if a file has put in what cannot be."""
        counts = (self.epoch, self.batch, self.step, self.hits, self.seen)
        if not all(type(n) is int and n >= 0 for n in counts):
            raise ValueError(f"its position {counts} is not one")
        if not all(isinstance(x, (int, float)) for x in (self.loss_sum, self.epoch_seconds, self.seconds)):
            raise ValueError("its position holds sums that are no numbers")
        for record in self.epochs:
            EpochRecord(**record)


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD or AdamW over the model's parameters; no weight decay on norms and biases.

    Decay on a norm's scale would make units look unimportant that are not, and its effect on
    weights before a norm is one of step size only (van Laarhoven 2017).
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise UsageError("the network cannot be trained", "no parameter requires a gradient", "unfreeze some")
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov)


def fit(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    *,
    method: checkpoints.Method | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    checkpoint_dir: str | Path | None = None,
    checkpoint_every_steps: int | None = None,
    identity: Mapping[str, str] | None = None,
    events: EventLog | None = None,
    progress: Callable[[Progress], object] | None = None,
    stop_after: int | None = None,
    device: str | torch.device = "cpu",
) -> History:
    """Train `model` in place.

    With a `checkpoint_dir` a checkpoint is written after every epoch (and every
    `checkpoint_every_steps`); a call that finds one there goes on from it, and ends with the same
    weights, bit for bit, as a run that was never stopped. On Ctrl-C the step is finished, the
    checkpoint written, and KeyboardInterrupt raised; a second Ctrl-C does not wait.

    Args:
        model: moved to `device`.
        data: training and test images.
        recipe: how to train.
        method: its `step()` is called after every optimizer step. It may replace parameters inside
            `model` and `optimizer`; its optimizer must then be passed too.
        optimizer: None: `make_optimizer(model, recipe)`.
        checkpoint_dir: None: no checkpoints.
        checkpoint_every_steps: None: after each epoch only.
        identity: further facts that make two runs different ones, e.g. the model's name or the
            latency table; a checkpoint that differs in one is refused.
        events: gets one `epoch` event an epoch; its `step` is kept up to date, for the method to log with.
        progress: called after every step.
        stop_after: finish this many steps of the whole run, write the checkpoint and return.
        device: `cpu` or `cuda`.

    Raises:
        TrainingError: the loss is not finite.
        CheckpointError: the checkpoint found is broken or of another run.
        DataError: an image cannot be read.
    """
    if method is not None and optimizer is None:
        raise UsageError(
            "the training cannot begin",
            "a method came without the optimizer that it works on",
            "pass optimizer=",
        )
    model.to(device)
    model.train()
    optimizer = optimizer or make_optimizer(model, recipe)
    log = events or EventLog(None)
    run = _Run(model, data, recipe, method, optimizer, log, torch.device(device))
    run.identity = _fingerprint(model, data, recipe, method, identity or {})
    if checkpoint_dir is not None:
        run.file = Path(checkpoint_dir) / CHECKPOINT
    with randomness.seeded(recipe.seed), _interrupt_flag() as interrupted:
        resumed_from = run.resume()
        stopped = _train(run, progress, stop_after, checkpoint_every_steps, interrupted)
    return History(
        epochs=tuple(EpochRecord(**e) for e in run.at.epochs),
        steps=run.at.step,
        finished=not stopped,
        resumed_from=resumed_from,
        seconds=run.at.seconds,
    )


@dataclass
class _Run:
    """The parts of a run and where it stands. Parameters are never kept: a method may replace them."""

    model: nn.Module
    data: Data
    recipe: Recipe
    method: checkpoints.Method | None
    optimizer: torch.optim.Optimizer
    events: EventLog
    device: torch.device
    identity: Mapping[str, str] = field(default_factory=dict)
    file: Path | None = None
    at: _Position = field(default_factory=_Position)

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(len(self.data.train), self.recipe.batch_size)

    def resume(self) -> int | None:
        """Go to where the checkpoint says, if there is one; the step, or None."""
        if self.file is None or not self.file.exists():
            self.events.rewind(None)
            return None
        saved = checkpoints.read(self.file)
        checkpoints.check_same_run(saved, self.identity)
        checkpoints.restore(saved, self.model, self.optimizer, self.method)
        try:
            self.at = _Position(**saved.position)
            self.at.check()
            randomness.restore(*saved.rng)
        except (TypeError, ValueError, KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"the checkpoint {self.file} cannot be read", str(error), "delete it to start anew"
            ) from error
        self.events.rewind(self.at.step)
        return self.at.step

    def save(self) -> None:
        if self.file is not None:
            checkpoints.write(
                self.file, self.model, self.optimizer, self.method,
                position=asdict(self.at), fingerprint=self.identity, rng=randomness.state(),
            )  # fmt: skip


def _train(
    run: _Run,
    progress: Callable[[Progress], object] | None,
    stop_after: int | None,
    every: int | None,
    interrupted: threading.Event,
) -> bool:
    """From where the run stands to its end; True if it was stopped before."""
    at, recipe, data = run.at, run.recipe, run.data
    while at.epoch < recipe.epochs:
        batches = data.train.batches(
            recipe.batch_size, epoch=at.epoch, seed=recipe.seed, shuffle=True,
            augment=recipe.augment, start_batch=at.batch,
        )  # fmt: skip
        since = time.perf_counter()
        for images, labels in batches:
            if stop_after is not None and at.step >= stop_after:
                run.save()
                return True
            loss, lr = _step(run, images.to(run.device), labels.to(run.device))
            now = time.perf_counter()
            at.epoch_seconds, at.seconds, since = (
                at.epoch_seconds + now - since,
                at.seconds + now - since,
                now,
            )
            last = at.batch == run.steps_per_epoch
            if last:
                _end_epoch(run, lr)
                since = time.perf_counter()
            if progress is not None:
                progress(_progress(run, loss, lr))
            if last or interrupted.is_set() or (every and at.step % every == 0):
                run.save()
            if interrupted.is_set():
                raise KeyboardInterrupt
    return False


def _step(run: _Run, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """One optimizer step; the loss before it and the learning rate."""
    at, recipe, optimizer = run.at, run.recipe, run.optimizer
    lr = recipe.lr_at(at.step, run.steps_per_epoch)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    logits = run.model(images)
    loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
    value = float(loss.detach())
    if not math.isfinite(value):
        kept = f"; the last checkpoint is in {run.file}" if run.file is not None and run.file.exists() else ""
        raise TrainingError(
            "the training was stopped",
            f"the loss became {value} in epoch {at.epoch + 1}, step {at.step + 1}, at learning rate {lr:.3g}{kept}",
            "lower lr, set grad_clip_norm=1, or warm up longer",
        )
    loss.backward()
    if recipe.grad_clip_norm is not None:
        nn.utils.clip_grad_norm_(run.model.parameters(), recipe.grad_clip_norm)
    optimizer.step()
    at.step, at.batch = at.step + 1, at.batch + 1
    at.loss_sum += value * len(labels)
    at.hits += int((logits.detach().argmax(1) == labels).sum())
    at.seen += len(labels)
    run.events.step = at.step
    if run.method is not None:
        run.method.step()
    return value, lr


def _end_epoch(run: _Run, lr: float) -> None:
    at, recipe = run.at, run.recipe
    since = time.perf_counter()
    result = None
    if (at.epoch + 1) % recipe.evaluate_every == 0 or at.epoch + 1 == recipe.epochs:
        # A method that is exploring shows the network that it would deploy.
        with getattr(run.method, "evaluation", nullcontext)():
            result = evaluate(run.model, run.data.test, run.device)
    spent = time.perf_counter() - since
    record = EpochRecord(
        epoch=at.epoch + 1,
        loss=at.loss_sum / at.seen,
        train_top1=at.hits / at.seen,
        lr=lr,
        test_top1=None if result is None else result.top1,
        test_loss=None if result is None else result.loss,
        seconds=at.epoch_seconds + spent,
    )
    at.epochs.append(asdict(record))
    run.events.log("epoch", **asdict(record))
    at.epoch, at.batch = at.epoch + 1, 0
    at.loss_sum, at.hits, at.seen, at.epoch_seconds = 0.0, 0, 0, 0.0
    at.seconds += spent


def _progress(run: _Run, loss: float, lr: float) -> Progress:
    at, recipe = run.at, run.recipe
    newest = next((e["test_top1"] for e in reversed(at.epochs) if e["test_top1"] is not None), None)
    epoch = (at.step - 1) // run.steps_per_epoch + 1
    return Progress(epoch, recipe.epochs, at.step, recipe.epochs * run.steps_per_epoch, loss, lr, newest)


def _fingerprint(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    method: checkpoints.Method | None,
    identity: Mapping[str, str],
) -> dict[str, str]:
    # Names of parameters, not shapes: those change while a method is at work, and are compared when
    # the tensors are loaded.
    return {
        **identity,
        "network": f"{type(model).__name__} of {sum(1 for _ in model.named_parameters())} parameters",
        "data set": data.fingerprint,
        "recipe": json.dumps(recipe.model_dump(), sort_keys=True),
        "method": "none" if method is None else type(method).__name__,
        "version of halp-iee": halp_iee.__version__,
    }


@contextmanager
def _interrupt_flag() -> Iterator[threading.Event]:
    """A flag that the first Ctrl-C sets; the second raises KeyboardInterrupt at once.

    Only the main thread may handle signals; elsewhere the flag is never set.
    """
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: Any) -> None:
        flag.set()
        signal.signal(signal.SIGINT, before)

    if not callable(before):
        yield flag
        return
    signal.signal(signal.SIGINT, handle)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, before)
