"""The parts of a training that is under way: where it stands, and how that is written down and found again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from halp_iee.errors import CheckpointError
from halp_iee.train import checkpoint as checkpoints
from halp_iee.train import randomness
from halp_iee.train.average import Average
from halp_iee.train.events import EventLog
from halp_iee.train.forgetting import TwoPhases
from halp_iee.train.method import Method
from halp_iee.train.objective import Objective
from halp_iee.train.position import Position
from halp_iee.train.processes import Processes
from halp_iee.train.recipe import Recipe
from halp_iee.train.records import Data, steps_per_epoch


@dataclass
class Running:
    """The parts of a run and where it stands. Parameters are never kept: a method may replace them."""

    model: nn.Module
    data: Data
    recipe: Recipe
    method: Method | None
    optimizer: torch.optim.Optimizer
    events: EventLog
    device: torch.device
    processes: Processes
    objective: Objective = field(init=False)
    identity: Mapping[str, str] = field(default_factory=dict)
    file: Path | None = None
    at: Position = field(default_factory=Position)
    average: Average | None = None
    scaler: torch.amp.GradScaler | None = None
    examples: TwoPhases | None = None
    wrapper: nn.Module | None = None
    layout: torch.memory_format | None = None  # of images and weights, where it is not the usual one
    unused: bool = True  # whether some parameters may get no gradient; known after the first step

    @property
    def averaged(self) -> nn.Module | None:
        return None if self.average is None else self.average.module

    @property
    def only(self) -> np.ndarray | None:
        """Which examples take part; None: all of them."""
        return None if self.examples is None else self.examples.only

    @property
    def size(self) -> int:
        """How many examples take part."""
        return len(self.data.train) if self.only is None else len(self.only)

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(len(self.data.train), self.recipe.batch_size)

    @property
    def steps_now(self) -> int:
        """Steps of the present epoch: fewer where not all examples take part."""
        return steps_per_epoch(self.size, self.recipe.batch_size)

    @property
    def gone(self) -> float:
        """Steps of the schedule that are over, in which every epoch is as long as the first."""
        return self.at.epoch * self.steps_per_epoch + self.at.batch * self.steps_per_epoch / self.steps_now

    def resume(self) -> int | None:
        """Go to where the checkpoint says, if there is one; the step, or None."""
        if self.file is None or not self.processes.share(self.file.exists()):
            self.events.rewind(None)
            return None
        saved = checkpoints.read(self.file)
        checkpoints.check_same_run(saved, self.identity)
        checkpoints.restore(saved, self.model, self.optimizer, self.method, self.averaged)
        try:
            position = dict(saved.position)
            scale = position.pop("scale", None)
            self.at = Position(**position)
            self.at.check()
            if self.scaler is not None:
                self.scaler.load_state_dict(scale or {})
            if self.examples is not None:
                self.examples.load_state_dict(saved.examples)
            randomness.restore(*saved.rng[self.processes.rank])
        except (TypeError, ValueError, KeyError, RuntimeError, IndexError) as error:
            raise CheckpointError(
                f"the checkpoint {self.file} cannot be read", str(error), "delete it to start anew"
            ) from error
        self.events.rewind(self.at.step)
        return self.at.step

    def save(self) -> None:
        if self.file is None:
            return
        generators = self.processes.gather(randomness.state())
        examples = None if self.examples is None else self.examples.state_dict()
        if self.processes.first:
            position = asdict(self.at)
            if self.scaler is not None:
                position["scale"] = self.scaler.state_dict()
            checkpoints.write(
                self.file, self.model, self.optimizer, self.method, average=self.averaged,
                position=position, fingerprint=self.identity, rng=generators, examples=examples,
            )  # fmt: skip
