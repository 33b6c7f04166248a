"""The seam between the training loop and a method that changes the network while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn


class Method:
    """What changes a network while it is trained: IEE, HALP, and every sparse-training method.

    A subclass overrides what it needs; everything here does nothing. The loop (`train/loop.py`) calls,
    for every optimizer step and in this order:

        loss.backward()             once for each part of an accumulated batch
        method.before_step()        every gradient is complete: accumulated over the batch, averaged over
                                    the processes, unscaled, not yet clipped. The same on every process.
                                    False: leave this optimizer step out (RigL's mask update takes its place)
        clip, optimizer.step()
        method.step()               put masks back, freeze, count, prune, grow. True: parameters were replaced
        averages                    the running average (EMA) of the weights, if the recipe asks for one

    A method may replace parameters inside the model and inside the optimizer that it was made with, and
    must keep the two together. It then returns True from `step`, and the loop rebuilds what remembers
    parameters (DistributedDataParallel). A method that only masks returns None and need not know of any of it.

    Everything that a method knows must be in `state_dict`, or resuming is not bit for bit.
    """

    def before_step(self) -> bool | None:
        """Gradients are in place; return False to leave the optimizer's step out."""
        return None

    def step(self) -> bool | None:
        """After the optimizer's step; return True if parameters were replaced."""
        return None

    @property
    def phase(self) -> str:
        """One word for what is being done; the loop adds up seconds and steps by it."""
        return "train"

    @property
    def status(self) -> str:
        """A few words for the progress bar."""
        return ""

    def evaluation(self, model: nn.Module) -> AbstractContextManager[object]:
        """Within it `model` (the trained network, or its average) computes what would be deployed."""
        return nullcontext()

    def follow(self, average: nn.Module) -> None:
        """From now on keep `average`, a copy of the model, at the model's size, each value with its own."""

    def expect(self, remaining: int) -> None:
        """So many optimizer steps are left, which may be fewer than was thought; what is not over must end in them."""

    def state_dict(self) -> Mapping[str, Any]:
        """`{"tensors": {name: Tensor}, "meta": what JSON can hold}`."""
        return {"tensors": {}, "meta": {}}

    def load_state_dict(self, state: Mapping[str, Any]) -> object:
        """Bring model, optimizer and average to the size they had; their values are loaded after it."""
        return None
