"""The update engine that all methods share: masks, gradients, optimizer state, processes, checkpoints, events."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from halp_iee.errors import UsageError
from halp_iee.methods.sparse.exchange import Masks
from halp_iee.methods.sparse.plan import SparseConfig, check_optimizer, plan
from halp_iee.methods.sparse.slots import reset_slots
from halp_iee.sparsity import criteria, metrics
from halp_iee.sparsity.layers import SparseLayer
from halp_iee.sparsity.patterns import pattern
from halp_iee.train.method import Method
from halp_iee.train.processes import Processes

Event = dict[str, Any]
Gradient = Literal["live", "all", "dead"]


class SparseMethod(Method, ABC):
    """Trains a network with some of its weights held at zero. Drops into anyone's loop, around any optimizer:

        rigl = RigL(model, optimizer, steps=len(loader) * epochs, sparsity=0.9)
        for x, y in loader:
            optimizer.zero_grad(); loss(model(x), y).backward(); optimizer.step()
            rigl.step()

    The weights themselves are zero where the mask is; the model's code and modules are untouched, and its
    gradients there are held at zero from the backward pass on, so that gradient clipping sees only what
    lives. Updates happen in `before_step`, where values and gradients are both at hand; a loop that does
    not call it (as above) gets them inside `optimizer.step()`.
    Several processes (an initialised `torch.distributed`) rank by the sum of their gradients, and all take
    the masks of the first.

    Args:
        model: changed in place. Without its DDP wrapper or with it.
        optimizer: over the model's parameters.
        steps: optimizer steps of the whole training; schedules refer to them.
        config: settings; or give them by name instead.
        on_event: called with a record of the start and of every update.

    Raises:
        UsageError: settings that cannot be met; names the layer.
    """

    Config: ClassVar[type[SparseConfig]] = SparseConfig
    starts_dense: ClassVar[bool] = False
    """Whether the first masks are full, whatever the sparsity."""
    replaces_step: ClassVar[bool] = False
    """Whether an update takes the place of the gradient step, as in RigL."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        steps: int,
        config: SparseConfig | None = None,
        on_event: Callable[[Event], None] | None = None,
        **settings: Any,
    ) -> None:
        if config is not None and settings:
            raise UsageError("the settings are given twice", "config= and single settings", "give one of them")
        if steps < 1:
            raise UsageError(f"a training of {steps} steps is none", "steps must be at least 1", "count the batches")
        known = [field.name for field in fields(self.Config)]
        unknown = [name for name in settings if name not in known]
        if unknown:
            raise UsageError(
                f"{type(self).__name__} cannot be set up", f"it has no setting {unknown[0]!r}",
                f"it has {', '.join(known)}",
            )  # fmt: skip
        self.config = self.Config(**settings) if config is None else config
        self.model, self.optimizer, self.steps, self.on_event = model, optimizer, steps, on_event
        self.pattern = pattern(self.config.pattern)
        self.taken = 0
        self.updates = 0
        self._set_up_budget()
        self._parameters = dict(model.named_parameters())
        check_optimizer(optimizer, {layer.name: self.weight(layer.name) for layer in self.layers})
        self.masks: Masks = self._first_masks()
        self.explored: Masks = {name: mask.clone() for name, mask in self.masks.items()}
        self._grown: Masks | None = None
        self._gradient: Gradient = "live"
        self._average: dict[str, nn.Parameter] = {}
        self._prepared = False
        self._hold_weights()
        self._handles = [
            self.weight(layer.name).register_hook(self._gradient_hook(layer.name)) for layer in self.layers
        ]
        self._handles.append(optimizer.register_step_pre_hook(self._before_optimizer_step))
        self._gradient = self._wanted_gradient()
        self._emit("start", self.masks, None)

    # What a method says of itself

    def _due(self) -> bool:
        """Whether the masks are to be updated in the coming optimizer step."""
        return self.taken > 0 and self.taken % self.config.every == 0 and self.taken <= self.last_update

    @abstractmethod
    def _update(self) -> None:
        """Find new masks and `_install` them. Values and gradients are those of the coming step."""

    def _wanted_gradient(self) -> Gradient:
        """For which weights the coming backward pass is to leave a gradient."""
        return "live"

    def _after_step(self) -> None:
        """What is due after each optimizer step."""

    def expected(self) -> dict[str, int] | int:
        """Atoms that must live at this moment: of each layer, or of all layers together."""
        if self.is_global:
            return self.total
        return {layer.name: self.pattern.used(layer, self.budget[layer.name]) for layer in self.layers}

    # What the caller may look at

    @property
    def layers(self) -> tuple[SparseLayer, ...]:
        """The layers that are sparse; those that the distribution keeps dense are not among them."""
        return self._layers

    @property
    def is_global(self) -> bool:
        return self.config.distribution == "global"

    @property
    def last_update(self) -> int:
        """T_end: no update comes after so many steps."""
        return int(self.config.stop * self.steps)

    @property
    def done(self) -> bool:
        """Whether the masks are final."""
        return self.taken > self.last_update

    @property
    def sparsity(self) -> float:
        """Of the sparse layers together, at this moment."""
        return metrics.sparsity(self.masks)

    def weight(self, layer: str) -> nn.Parameter:
        return self._parameters[f"{layer}.weight" if layer else "weight"]

    def nonzeros(self) -> dict[str, int]:
        """Weights that may live, by layer; those that stay dense count in full."""
        return {**self._dense, **{name: int(mask.sum()) for name, mask in self.masks.items()}}

    @property
    def status(self) -> str:
        return f"sparsity {100 * self.sparsity:.1f}%"

    def evaluation(self, model: nn.Module) -> AbstractContextManager[object]:
        """Within it `model` computes what it would compute if training ended now."""
        return nullcontext()

    def expect(self, remaining: int) -> None:
        """Schedules are fitted to so many further steps; what is due at the last update still comes."""
        if not self.done:
            least = int((self.taken + 1) / self.config.stop) + 1
            self.steps = min(self.steps, max(self.taken + remaining, least))

    def follow(self, average: nn.Module) -> None:
        """Keep the running average of the weights at zero where the masks are."""
        self._average = dict(average.named_parameters())

    def close(self) -> None:
        """Take the hooks off model and optimizer; from the next step on nothing keeps the dead weights at zero."""
        for handle in self._handles:
            handle.remove()

    # The step

    @torch.no_grad()
    def before_step(self) -> bool | None:
        """Update the masks if it is time; False if that takes the place of the optimizer's step."""
        self._prepared = True
        skip = False
        if self._due():
            self._update()
            self.updates += 1
            self._hold_gradients()
            skip = self.replaces_step
        self._before_step()
        return False if skip else None

    def step(self) -> None:
        """Count one optimizer step. Call it after `optimizer.step()`."""
        self._prepared = False
        self.taken += 1
        self._after_step()
        self._hold_weights()
        self._gradient = self._wanted_gradient()

    def _before_optimizer_step(self, *_: object) -> None:
        """What a loop that knows only `step` leaves undone."""
        if not self._prepared and self.before_step() is False:
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None

    def _before_step(self) -> None:
        """What else is due before each optimizer step."""

    def _gradient_hook(self, name: str) -> Callable[[Tensor], Tensor]:
        def hold(grad: Tensor) -> Tensor:
            if self._gradient == "all":
                return grad
            if self.masks[name].device != grad.device:  # the model was moved after this was set up
                self.load_state_dict(self.state_dict())
            mask = self.masks[name]
            return grad * (mask if self._gradient == "live" else ~mask)

        return hold

    @torch.no_grad()
    def _hold_weights(self) -> None:
        for name, mask in self.masks.items():
            self.weight(name).mul_(mask)
            averaged = self._average.get(f"{name}.weight" if name else "weight")
            if averaged is not None:
                averaged.mul_(mask)

    def _hold_gradients(self) -> None:
        for name, mask in self.masks.items():
            grad = self.weight(name).grad
            if grad is not None:
                grad.mul_(mask)

    # For the methods

    def gradient(self, layer: str) -> Tensor:
        """The gradient of a layer's weight, summed over all processes; 0 where it is not finite.

        In half precision single steps overflow, and are left out by the scaler of the loss.

        Raises:
            UsageError: it has none.
        """
        grad = self.weight(layer).grad
        if grad is None:
            raise UsageError(
                f"{type(self).__name__} cannot judge layer {layer!r}", "its weight has no gradient",
                "exclude the layer, or let it take part in the loss",
            )  # fmt: skip
        return summed(grad)

    def magnitudes(self) -> Masks:
        return {layer.name: criteria.magnitude(self.weight(layer.name)) for layer in self.layers}

    def gradients(self) -> Masks:
        return {layer.name: criteria.gradient(self.gradient(layer.name)) for layer in self.layers}

    def random_scores(self, salt: int) -> Masks:
        """The same for the same seed, salt and number of updates, in every process and after every resumption."""
        scores = {}
        for i, layer in enumerate(self.layers):
            seed = np.random.SeedSequence([self.config.seed, salt, self.updates, i]).generate_state(1, np.uint64)[0]
            generator = torch.Generator().manual_seed(int(seed) >> 1)
            scores[layer.name] = criteria.random(layer.shape, generator).to(self.weight(layer.name).device)
        return scores

    def fraction(self, share: float) -> dict[str, int] | int:
        """`int(share * atoms)` of each layer, or of all together when one ranking decides."""
        if self.is_global:
            return int(share * self.total)
        return {name: int(share * atoms) for name, atoms in self.budget.items()}

    @torch.no_grad()
    def _install(self, masks: Masks, *, pruned: Masks | None = None, kind: str = "update", **more: Any) -> None:
        """Make `masks` the present ones.

        Weights that were dead and live now start at the value that they have, which is zero unless the
        method has put another there; all optimizer slots of theirs, and of the dead, become zero.

        Args:
            masks: the new ones.
            pruned: as they were after the drop and before the growth; None: nothing was dropped.
            kind: of the event.
        """
        before = self.masks
        masks = self._of_first_process(masks)
        grown = {name: mask & ~before[name] for name, mask in masks.items()}
        self.masks = masks
        for name, mask in masks.items():
            weight = self.weight(name)
            weight.mul_(mask)
            reset_slots(self.optimizer, weight, grown[name] | ~mask)
            self.explored[name] |= mask
        survived = None if pruned is None or self._grown is None else metrics.survival(self._grown, pruned)
        if metrics.live(grown) or pruned is not None:
            self._grown = grown
        self._emit(kind, before, grown, survival=survived, **more)

    def _of_first_process(self, masks: Masks) -> Masks:
        if Processes.here().world > 1:
            for name, mask in masks.items():
                sent = mask.to(torch.uint8)
                dist.broadcast(sent, src=0)
                masks[name] = sent.bool()
        return masks

    def _emit(self, kind: str, before: Masks, grown: Masks | None, **more: Any) -> None:
        if self.on_event is None:
            return
        self.on_event({
            "kind": kind, "step_of_method": self.taken, "sparsity": self.sparsity,
            "live": metrics.live(self.masks),
            "sparsity_by_layer": metrics.sparsity_by_layer(self.masks),
            "iou": metrics.iou(before, self.masks),
            "grown": 0 if grown is None else metrics.live(grown),
            "exploration_rate": metrics.exploration_rate(self.explored), **more,
        })  # fmt: skip

    # Setting up

    def _set_up_budget(self) -> None:
        planned = plan(self.model, self.config, self.pattern, type(self).__name__)
        self._layers, self._dense, self.budget = planned.layers, planned.dense, planned.budget
        self.target, self.distribution = planned.sparsity, planned.distribution
        self.total = sum(self.budget.values())

    def _first_masks(self) -> Masks:
        full = {
            layer.name: torch.ones(layer.shape, dtype=torch.bool, device=self.weight(layer.name).device)
            for layer in self.layers
        }
        if self.starts_dense:
            return full
        scores = self.random_scores(salt=0)
        masks = {
            name: self.pattern.grow(torch.zeros_like(mask), scores[name], self.budget[name])
            for name, mask in full.items()
        }
        return self._of_first_process(masks)

    # Checkpoints

    def _tensor_groups(self) -> dict[str, dict[str, Tensor]]:
        """Everything that a checkpoint needs, besides the counts."""
        groups = {"mask": dict(self.masks), "explored": dict(self.explored)}
        if self._grown is not None:
            groups["grown"] = dict(self._grown)
        return groups

    def _meta(self) -> dict[str, Any]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain data from which `load_state_dict` goes on bit for bit."""
        tensors = {
            f"{group}/{name}": tensor.clone()
            for group, of in self._tensor_groups().items()
            for name, tensor in of.items()
        }
        counts = {"taken": self.taken, "updates": self.updates, "steps": self.steps}
        return {"tensors": tensors, "meta": {**counts, **self._meta()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`; the values of model and optimizer are the caller's to load."""
        groups: dict[str, dict[str, Tensor]] = {}
        for key, tensor in state["tensors"].items():
            group, name = key.split("/", 1)
            groups.setdefault(group, {})[name] = tensor
        for layer in self.layers:
            found = groups.get("mask", {}).get(layer.name)
            if found is None or tuple(found.shape) != layer.shape:
                raise ValueError(f"there is no mask for layer {layer.name!r}")
        meta = state["meta"]
        self.taken, self.updates, self.steps = int(meta["taken"]), int(meta["updates"]), int(meta["steps"])
        self._load(groups, meta)
        self._gradient = self._wanted_gradient()

    def _load(self, groups: Mapping[str, Mapping[str, Tensor]], meta: Mapping[str, Any]) -> None:
        self.masks = self._there(groups["mask"])
        self.explored = self._there(groups["explored"])
        self._grown = self._there(groups["grown"]) if "grown" in groups else None

    def _there(self, tensors: Mapping[str, Tensor]) -> Masks:
        return {layer.name: tensors[layer.name].clone().to(self.weight(layer.name).device) for layer in self.layers}


def summed(gradient: Tensor) -> Tensor:
    """A gradient summed over all processes; 0 where it is not finite."""
    gradient = torch.nan_to_num(gradient.detach(), nan=0.0, posinf=0.0, neginf=0.0)
    if Processes.here().world > 1:
        dist.all_reduce(gradient)
    return gradient
