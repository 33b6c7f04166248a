"""The training loop, which can be stopped anywhere and goes on bit for bit.

It knows of no method: what changes the network while it trains (IEE, HALP, RigL, ...) is one object with the
hooks of `train/method.py: Method`, which `fit` calls before and after every optimizer step.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from halp_iee.errors import TrainingError, UsageError
from halp_iee.train import randomness
from halp_iee.train.average import Average
from halp_iee.train.evaluation import evaluate
from halp_iee.train.events import EventLog
from halp_iee.train.fingerprint import fingerprint
from halp_iee.train.forgetting import TwoPhases
from halp_iee.train.interrupt import interrupt_flag
from halp_iee.train.method import Method
from halp_iee.train.objective import Objective
from halp_iee.train.optimizer import make_optimizer
from halp_iee.train.position import EpochRecord, History, Position, Progress
from halp_iee.train.processes import Processes, shared_statistics, wrapped
from halp_iee.train.recipe import Recipe
from halp_iee.train.records import Data, batch_indices
from halp_iee.train.running import Running

CHECKPOINT = "checkpoint.safetensors"
_LEAST_SCALE = 2.0**-10  # of the loss in fp16: gradients that overflow even so are not finite at all


def fit(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    *,
    method: Method | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    teacher: nn.Module | None = None,
    checkpoint_dir: str | Path | None = None,
    checkpoint_every_steps: int | None = None,
    checkpoint_every_s: float = 300.0,
    identity: Mapping[str, str] | None = None,
    events: EventLog | None = None,
    progress: Callable[[Progress], object] | None = None,
    stop_after: int | None = None,
    device: str | torch.device = "cpu",
) -> History:
    """Train `model` in place.

    With a `checkpoint_dir` a checkpoint is written after every epoch (and every
    `checkpoint_every_steps`, and after `checkpoint_every_s` seconds); a call that finds one there goes on
    from it, and ends with the same weights, bit for bit, as a run that was never stopped. On Ctrl-C the
    step is finished, the checkpoint written, and KeyboardInterrupt raised; a second Ctrl-C does not wait.

    Under torchrun every process takes its part of every batch, gradients are averaged over them
    (DistributedDataParallel), BatchNorm normalises with the statistics of the whole batch, and the first
    process alone writes.

    Args:
        model: moved to `device`.
        data: training and test images.
        recipe: how to train.
        method: see `train/method.py`. It may replace parameters inside `model` and `optimizer`; its
            optimizer must then be passed too.
        optimizer: None: `make_optimizer(model, recipe)`.
        teacher: the network that `recipe.distill` learns from.
        checkpoint_dir: None: no checkpoints.
        checkpoint_every_steps: None: by epochs and seconds only.
        checkpoint_every_s: longest time that a crash may cost.
        identity: further facts that make two runs different ones, e.g. the model's name or the
            latency table; a checkpoint that differs in one is refused.
        events: gets one `epoch` event an epoch; its `step` is kept up to date, for the method to log with.
        progress: called after every step.
        stop_after: finish this many steps of the whole run, write the checkpoint and return.
        device: `cpu` or `cuda`.

    Raises:
        TrainingError: the loss is not finite.
        CheckpointError: the checkpoint found is broken or of another run.
        UsageError: the recipe does not fit the run.
        DataError: an image cannot be read.
    """
    processes = Processes.here()
    _check(recipe, data, method, optimizer, teacher, processes)
    model.to(device)
    if teacher is not None:
        teacher.to(device)
    model.train()
    optimizer = optimizer or make_optimizer(model, recipe)
    processes.same_values(model)
    log = events or EventLog(None)
    run = Running(model, data, recipe, method, optimizer, log, torch.device(device), processes)
    if _fast_with_channels_last(model, run.device, recipe):
        run.layout = torch.channels_last
        model.to(memory_format=torch.channels_last)
    run.objective = Objective(recipe, teacher if recipe.distill else None)
    run.identity = fingerprint(model, data, recipe, method, processes, identity or {})
    if recipe.ema_decay is not None:
        run.average = Average(model, recipe.ema_decay)
        if method is not None:
            method.follow(run.average.module)
    if recipe.informative_after is not None:
        run.examples = TwoPhases(recipe, len(data.train), processes)
    if recipe.precision == "fp16":
        run.scaler = torch.amp.GradScaler(run.device.type)
    if checkpoint_dir is not None:
        run.file = Path(checkpoint_dir) / CHECKPOINT
    with ExitStack() as during:
        during.enter_context(randomness.seeded(recipe.seed))
        during.enter_context(shared_statistics(model, processes))
        interrupted = during.enter_context(interrupt_flag())
        resumed_from = run.resume()
        if processes.world > 1 and resumed_from is None:  # the same seed would drop the same units everywhere
            torch.manual_seed(recipe.seed + (processes.rank << 32))
        stopped = _train(run, progress, stop_after, (checkpoint_every_steps, checkpoint_every_s), interrupted)
    if run.average is not None and not stopped:
        run.average.give_to(model)
    if run.layout is not None:
        model.to(memory_format=torch.contiguous_format)
    return History(
        epochs=tuple(EpochRecord(**e) for e in run.at.epochs),
        steps=run.at.step,
        finished=not stopped,
        resumed_from=resumed_from,
        seconds=run.at.seconds,
        phases={name: (int(steps), seconds) for name, (steps, seconds) in run.at.phases.items()},
        method_seconds=run.at.method_seconds,
    )


def _fast_with_channels_last(model: nn.Module, device: torch.device, recipe: Recipe) -> bool:
    """A third less time on CPUs, and what tensor cores want; there is no such layout for volumes."""
    tensors = (*model.parameters(), *model.buffers())
    wanted = device.type == "cpu" or recipe.precision != "fp32"
    return wanted and any(t.dim() == 4 for t in tensors) and all(t.dim() != 5 for t in tensors)


def _check(
    recipe: Recipe, data: Data, method: Method | None, optimizer: torch.optim.Optimizer | None,
    teacher: nn.Module | None, processes: Processes,
) -> None:  # fmt: skip
    if method is not None and optimizer is None:
        raise UsageError(
            "the training cannot begin", "a method came without the optimizer that it works on", "pass optimizer="
        )
    if recipe.distill and teacher is None:
        raise UsageError(
            "the training cannot begin",
            f"the recipe's distill={recipe.distill:g} needs a trained dense network to learn from",
            "train the dense reference too, give --weights, or set distill=0",
        )
    smallest = min(recipe.batch_size, len(data.train))
    if smallest < processes.world * recipe.accumulate:
        raise UsageError(
            "the training cannot begin",
            f"a batch of {smallest} images cannot be divided among {processes.world} processes and "
            f"{recipe.accumulate} parts",
            "take a larger batch_size, fewer processes or a smaller accumulate",
        )


def _train(
    run: Running,
    progress: Callable[[Progress], object] | None,
    stop_after: int | None,
    every: tuple[int | None, float],
    interrupted: threading.Event,
) -> bool:
    """From where the run stands to its end; True if it was stopped before."""
    at, recipe, data = run.at, run.recipe, run.data
    saved_s = time.monotonic()
    while at.epoch < recipe.epochs:
        batches = data.train.batches(
            recipe.batch_size, epoch=at.epoch, seed=recipe.seed, shuffle=True,
            augment=recipe.augment, start_batch=at.batch, part=run.processes.part, only=run.only,
        )  # fmt: skip
        which = batch_indices(
            len(data.train), recipe.batch_size, epoch=at.epoch, seed=recipe.seed, shuffle=True,
            start_batch=at.batch, part=run.processes.part, only=run.only,
        )  # fmt: skip
        since = time.perf_counter()
        for (images, labels), indices in zip(batches, which, strict=True):
            if stop_after is not None and at.step >= stop_after:
                run.save()
                return True
            phase = "train" if run.method is None else run.method.phase
            if run.layout is not None and images.dim() == 4:
                images = images.contiguous(memory_format=run.layout)
            due = time.monotonic() - saved_s > every[1]
            images, labels = images.to(run.device), labels.to(run.device)
            loss, lr, ending, due = _step(run, images, labels, indices, interrupted, due)
            now = time.perf_counter()
            _count_seconds(at, phase, now - since)
            since = now
            last = at.batch == run.steps_now
            if last:
                _end_epoch(run, lr)
                since = time.perf_counter()
            if progress is not None:
                progress(_progress(run, loss, lr))
            ending = ending or (run.processes.world == 1 and interrupted.is_set())
            if last or ending or due or (every[0] and at.step % every[0] == 0):
                run.save()
                saved_s = time.monotonic()
            if ending:
                raise KeyboardInterrupt
    return False


def _count_seconds(at: Position, phase: str, seconds: float) -> None:
    at.epoch_seconds += seconds
    at.seconds += seconds
    steps, before = at.phases.get(phase, (0, 0.0))
    at.phases[phase] = [steps + 1, before + seconds]


def _step(
    run: Running, images: Tensor, labels: Tensor, indices: np.ndarray, interrupted: threading.Event, due: bool
) -> tuple[float, float, bool, bool]:
    """One optimizer step; the loss before it, the learning rate, and whether any process is to end, or to save."""
    at, recipe, optimizer, scaler = run.at, run.recipe, run.optimizer, run.scaler
    lr = recipe.lr_at(run.gone, run.steps_per_epoch)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    loss_sum, right = _gradients(run, images, labels, min(recipe.batch_size, run.size))
    hits = int(right.sum())
    if run.examples is not None:
        run.examples.observe(indices, right)
    sums = run.processes.total(loss_sum, hits, len(labels), interrupted.is_set(), due)
    loss_sum, found, seen, ends, saves = sums
    value = loss_sum / seen
    if not math.isfinite(value):
        raise _not_finite(run, f"the loss became {value}", lr)
    if scaler is not None:
        scaler.unscale_(optimizer)
    method_s = 0.0
    stepping = True
    if run.method is not None:
        since = time.perf_counter()
        stepping = run.method.before_step() is not False
        method_s += time.perf_counter() - since
    if recipe.grad_clip_norm is not None:
        nn.utils.clip_grad_norm_(run.model.parameters(), recipe.grad_clip_norm)
    if scaler is None:
        if stepping:
            optimizer.step()
    else:
        if stepping:
            scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() < _LEAST_SCALE:
            raise _not_finite(run, "the gradients are not finite at any scale of the loss", lr)
    optimizer.zero_grad(set_to_none=True)  # they are spent; a network that is resized would take them along
    at.step, at.batch = at.step + 1, at.batch + 1
    at.loss_sum += loss_sum
    at.hits += int(found)
    at.seen += int(seen)
    run.events.step = at.step
    if run.method is not None:
        since = time.perf_counter()
        if run.method.step():
            run.wrapper = None
        method_s += time.perf_counter() - since
    at.method_seconds += method_s
    if run.average is not None:
        run.average.update(run.model, at.step)
    return value, lr, ends > 0, saves > 0


def _gradients(run: Running, images: Tensor, labels: Tensor, size: int) -> tuple[float, Tensor]:
    """Leave the gradient of the mean loss over the whole batch of `size` in place; this part's loss, and its hits."""
    recipe, world = run.recipe, run.processes.world
    if run.wrapper is None:
        run.wrapper = wrapped(run.model, run.processes, run.unused)
    reduced = torch.bfloat16 if recipe.precision == "bf16" else torch.float16
    loss_sum = 0.0
    right: list[Tensor] = []
    parts = list(zip(images.tensor_split(recipe.accumulate), labels.tensor_split(recipe.accumulate), strict=True))
    for number, (some, their) in enumerate(parts):
        with ExitStack() as during:
            if number + 1 < len(parts) and isinstance(run.wrapper, DistributedDataParallel):
                during.enter_context(run.wrapper.no_sync())
            with torch.autocast(run.device.type, dtype=reduced, enabled=recipe.precision != "fp32"):
                logits = run.wrapper(some)
            loss = run.objective(logits, some, their)
            # The mean over the whole batch; DistributedDataParallel divides by the number of processes.
            mean = loss * (world / size)
            (mean if run.scaler is None else run.scaler.scale(mean)).backward()
        loss_sum += float(loss.detach())
        right.append(logits.detach().argmax(1) == their)
    if world > 1 and run.unused and all(p.grad is not None for p in run.model.parameters() if p.requires_grad):
        run.unused, run.wrapper = False, None
    return loss_sum, torch.cat(right)


def _not_finite(run: Running, why: str, lr: float) -> TrainingError:
    kept = f"; the last checkpoint is in {run.file}" if run.file is not None and run.file.exists() else ""
    place = f"in epoch {run.at.epoch + 1}, step {run.at.step + 1}, at learning rate {lr:.3g}"
    return TrainingError(
        "the training was stopped", f"{why} {place}{kept}", "lower lr, set grad_clip_norm=1, or warm up longer"
    )


def _end_epoch(run: Running, lr: float) -> None:
    at, recipe = run.at, run.recipe
    since = time.perf_counter()
    result = None
    if (at.epoch + 1) % recipe.evaluate_every == 0 or at.epoch + 1 == recipe.epochs:
        shown = run.model if run.average is None else run.average.module
        with ExitStack() as during:
            if run.method is not None:  # one that is exploring shows the network that it would deploy
                during.enter_context(run.method.evaluation(shown))
            result = evaluate(shown, run.data.test, run.device)
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
    if run.examples is not None and run.examples.end_epoch(at.epoch):
        kept, left = run.size, recipe.epochs - at.epoch
        run.events.log("informative", kept=kept, of=len(run.data.train))
        if run.method is not None:
            run.method.expect(left * run.steps_now)
    at.loss_sum, at.hits, at.seen, at.epoch_seconds = 0.0, 0, 0, 0.0
    at.seconds += spent


def _progress(run: Running, loss: float, lr: float) -> Progress:
    at, recipe = run.at, run.recipe
    newest = next((e["test_top1"] for e in reversed(at.epochs) if e["test_top1"] is not None), None)
    steps = at.step + (recipe.epochs - at.epoch) * run.steps_now - at.batch
    epoch = min(at.epoch + (at.batch > 0), recipe.epochs)
    return Progress(epoch, recipe.epochs, at.step, steps, loss, lr, newest)
