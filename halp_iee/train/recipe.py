"""How to train: a frozen record, checked when it is made."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from halp_iee.errors import UsageError


class Recipe(BaseModel):
    """Everything that shapes the training but the network and the data.

    The learning rate rises linearly over `warmup_epochs`, then falls as a half cosine (or stays,
    for `constant`), step by step. The defaults train a ResNet-20 on `digits`.

    Attributes:
        epochs: passes over the training set.
        batch_size: images a step. The last, incomplete batch of an epoch is left out.
        optimizer: `sgd` or `adamw`.
        lr: the largest learning rate.
        momentum: of `sgd`.
        nesterov: of `sgd`.
        weight_decay: on weights of two dimensions or more; never on norms and biases.
        warmup_epochs: may be a fraction.
        schedule: after the warm-up.
        label_smoothing: share of the target spread over all classes.
        grad_clip_norm: largest L2 norm of the whole gradient; None: no limit.
        precision: of forward and backward passes; weights and optimizer are `fp32` always. `fp16` scales
            the loss and leaves out steps whose gradients overflow.
        accumulate: parts in which a batch is gone through, one after the other, for less memory. BatchNorm
            sees one part at a time.
        ema_decay: d of the running average of the weights (`train/average.py`), which is then what is
            evaluated and given back; None: no average.
        distill: share of the loss that is the difference to the dense network's answers; 0: none.
        distill_temperature: at which the answers are compared.
        augment: random changes of the training images, of the kind that suits the data set.
        informative_after: epochs after which training goes on with the informative examples alone: those that were
            forgotten (right, then wrong) more than `informative_above` times, or never learned; None: with all of
            them to the end. MEST's data efficiency (`train/forgetting.py`), with any method.
        informative_above: as many events an example may have and still be left out.
        evaluate_every: epochs between evaluations on the test set; the last epoch is always evaluated.
        seed: of the order of the images, their augmentation, and all that draws in the network.

    Raises:
        UsageError: an option is unknown or out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(15, ge=1)
    batch_size: int = Field(32, ge=1)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(0.1, gt=0, allow_inf_nan=False)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(5e-4, ge=0, allow_inf_nan=False)
    warmup_epochs: float = Field(1.0, ge=0, allow_inf_nan=False)
    schedule: Literal["cosine", "constant"] = "cosine"
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    grad_clip_norm: float | None = Field(None, gt=0)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulate: int = Field(1, ge=1)
    ema_decay: float | None = Field(None, gt=0, lt=1)
    distill: float = Field(0.0, ge=0, le=1)
    distill_temperature: float = Field(4.0, gt=0, allow_inf_nan=False)
    augment: bool = True
    informative_after: int | None = Field(None, ge=1)
    informative_above: int = Field(0, ge=0)
    evaluate_every: int = Field(1, ge=1)
    seed: int = Field(0, ge=0, lt=2**32)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _in_one_line(error) from None
        if self.warmup_epochs >= self.epochs and self.epochs > 1:
            raise UsageError(
                "the recipe cannot be used",
                f"warmup_epochs={self.warmup_epochs:g} leaves nothing of epochs={self.epochs}",
                "warm up for fewer epochs",
            )
        if self.accumulate > self.batch_size:
            raise UsageError(
                "the recipe cannot be used",
                f"accumulate={self.accumulate} parts of batch_size={self.batch_size} images would be empty",
                "take fewer parts",
            )
        if self.informative_after is not None and self.informative_after >= self.epochs:
            raise UsageError(
                "the recipe cannot be used",
                f"informative_after={self.informative_after} leaves no second phase of epochs={self.epochs}",
                "count for fewer epochs, or leave it out",
            )
        if self.nesterov and self.optimizer == "sgd" and self.momentum == 0:
            raise UsageError("the recipe cannot be used", "nesterov needs momentum", "set nesterov=False")

    def replace(self, **changes: Any) -> Recipe:
        """A copy with some options changed, checked as if new."""
        return Recipe(**{**self.model_dump(), **changes})

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Recipe:
        """From a mapping read out of a file."""
        if any(not isinstance(key, str) for key in options):
            raise UsageError("the recipe cannot be used", "an option's name is not text", "write option = value")
        return cls(**options)

    def lr_at(self, step: float, steps_per_epoch: int) -> float:
        """Learning rate of the step that follows `step` finished ones (a fraction where an epoch has fewer steps).

        Source: warm-up of Goyal et al. 2017; cosine of Loshchilov and Hutter 2017, without restarts.
        """
        warmup = round(min(self.warmup_epochs, self.epochs / 2) * steps_per_epoch)
        total = self.epochs * steps_per_epoch
        if step < warmup:
            return self.lr * (step + 1) / warmup
        if self.schedule == "constant":
            return self.lr
        progress = (step - warmup) / max(1, total - warmup)
        return 0.5 * self.lr * (1.0 + math.cos(math.pi * min(1.0, progress)))


def _in_one_line(error: ValidationError) -> UsageError:
    first, *rest = error.errors()
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, Recipe.model_fields, n=1)
        why = f"there is no option {name!r}" + (f"; did you mean {near[0]!r}" if near else "")
        remedy = f"the options are {', '.join(Recipe.model_fields)}"
    else:
        why, remedy = f"{name}={first['input']!r}: {first['msg']}", "correct the value"
    if rest:
        why += f" (and {len(rest)} more)"
    return UsageError("the recipe cannot be used", why, remedy)
