"""What one run asks for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from halp_iee.methods.config import IEEConfig
from halp_iee.run.question import Question
from halp_iee.run.target import Target

if TYPE_CHECKING:
    from halp_iee.train.recipe import Recipe

DEFAULT_TARGET = Target(0.3, "fraction")

METHODS = ("iee", "halp")
"""How `train` finds a structure."""


def short_name(model: str) -> str:
    """What runs and tables of a network are called after: `path/to/file.py:function` is `file-function`."""
    file, found, function = model.partition(".py:")
    return f"{Path(file).stem}-{function}" if found else model


@dataclass(frozen=True)
class DeviceChoice:
    """The device that the network must be fast on, and how it is timed.

    Attributes:
        name: `cpu` is the machine at hand; a GPU's name otherwise.
        source: `measured` refuses a device that is not attached, `modelled` takes the datasheet
            even if it is, `auto` measures where it can.
        threads: CPU threads of the runtime.
        batch: images in one call.
        table: a latency table to use instead of finding or making one.
        time_budget_s: how long the sweep may take; None: a minute for small inputs, three for large.
        max_error: held-out error at which the sweep may stop sooner.
        backend: what runs the kernels; None: the device's own choice.
        precision, layout, l2: how, see `halp_profiler.backends.base.Settings`.
    """

    name: str = "cpu"
    source: Literal["auto", "measured", "modelled"] = "auto"
    threads: int = 1
    batch: int = 1
    table: str | None = None
    time_budget_s: float | None = None
    max_error: float = 0.02
    backend: str | None = None
    precision: str = "fp32"
    layout: str | None = None
    l2: str = "warm"


@dataclass(frozen=True)
class Job:
    """One run, complete: the same job in the same directory goes on where it stopped.

    Attributes:
        model: as `--model`.
        data: as `--data`; None for `prune` without data.
        recipe: how the networks are trained.
        target: the latency asked for.
        method: one of `METHODS` for `train`, `one-shot` for `prune`.
        device: what the latency is for.
        iee: IEE's settings; None chooses the stages to fit the length of the training.
        switches: single settings of the method that replace what was chosen, by name.
        seed: of everything that is random.
        dense: whether the dense reference is trained as well.
        weights: safetensors file with trained weights of the dense network, to start from.
        input_shape: (C, H, W) where no data says it.
        criterion: importance.
        solver: which solver decides.
        finetune_epochs: epochs of training after a one-shot pruning.
        question: limits on the widths and further budgets, for `prune`.
        train_on: `auto`, `cpu` or `cuda`: where the networks are trained, whatever device they are for.
        tensorboard: whether figures are also written for TensorBoard.
    """

    model: str
    data: str | None
    recipe: Recipe
    target: Target = DEFAULT_TARGET
    method: Literal["iee", "halp", "one-shot"] = "iee"
    device: DeviceChoice = field(default_factory=DeviceChoice)
    iee: IEEConfig | None = None
    seed: int = 0
    dense: bool = True
    weights: str | None = None
    input_shape: tuple[int, ...] | None = None
    criterion: str = "taylor_bn"
    solver: str = "joint"
    finetune_epochs: int = 0
    switches: Mapping[str, Any] = field(default_factory=dict)
    question: Question = field(default_factory=Question)
    train_on: Literal["auto", "cpu", "cuda"] = "auto"
    tensorboard: bool = False

    def default_directory(self) -> Path:
        """`runs/MODEL-DATA-TARGET[-DEVICE]`, in characters that any file system takes."""
        parts = [short_name(self.model)]
        parts += [self.data.split(":")[0]] if self.data else []
        parts += [str(self.target)] + ([self.device.name] if self.device.name != "cpu" else [])
        parts += {"iee": [], "one-shot": ["pruned"]}.get(self.method, [self.method])
        return Path("runs") / re.sub(r"[^\w.+-]+", "_", "-".join(parts))

    def config(self) -> dict[str, Any]:
        """The job as JSON, for the run directory; where a run differs, it is another run."""
        return {
            "model": self.model, "data": self.data, "target": str(self.target), "method": self.method,
            "seed": self.seed, "dense": self.dense, "weights": self.weights, "criterion": self.criterion,
            "solver": self.solver, "finetune_epochs": self.finetune_epochs,
            "input_shape": list(self.input_shape) if self.input_shape else None,
            "device": asdict(self.device), "recipe": self.recipe.model_dump(mode="json"),
            "iee": asdict(self.iee) if self.iee else None, "switches": dict(self.switches),
            **({"question": self.question.config()} if self.question != Question() else {}),
        }  # fmt: skip
