"""A network that changes its physical size in training, and loses nothing by it.

The model that the caller trains holds only the units that are awake. All others lie in a
store of full-size tensors outside the model, each with the values it last had. Waking and
sleeping moves values between the two; nothing is masked, so a small structure costs small
time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from halp_iee.errors import UsageError
from halp_iee.methods.structure import Units
from halp_iee.slim.surgery import narrow, slim_

if TYPE_CHECKING:
    from halp_iee.graph import ChannelGraph

Positions = Mapping[str, tuple[np.ndarray | None, ...]]


def _index(positions: tuple[np.ndarray | None, ...], full: Tensor) -> tuple[Tensor, ...]:
    """Open mesh that selects `positions` of a full-size tensor: `full[_index(...)]` is the slim one."""
    axes = [
        torch.arange(n, device=full.device) if p is None else torch.from_numpy(p).to(full.device)
        for p, n in zip(positions, full.shape, strict=True)
    ]
    return tuple(a.reshape([-1 if i == j else 1 for j in range(len(axes))]) for i, a in enumerate(axes))


def is_channels_last(module: nn.Module) -> bool:
    """Whether the convolutions' weights lie with their channels last, which is how a CPU trains them fastest."""
    return any(
        p.dim() == 4 and p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous()
        for p in module.parameters()
    )


def _named_tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def plain_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside the wrappers of Accelerate, Lightning and the like."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    return optimizer


class ElasticNetwork:
    """Resizes a model in place, its optimizer and its running averages along with it.

    Parameter objects are replaced, in the model's modules and in the optimizer's parameter
    groups, because autograd remembers the shape of a tensor it has seen. The optimizer's
    per-parameter state of the shape of the parameter (momentum, second moments) is cut and
    restored by the same positions; other state (step counts) is carried over. So is a gradient that
    is being accumulated; units that wake begin with none.

    Args:
        model: the dense network, of the structure that `graph` was traced from.
        graph: its channel graph.
        optimizer: the optimizer over the model's parameters.

    Raises:
        UsageError: the optimizer holds a parameter that is not the model's.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.graph, self.optimizer = model, graph, plain_optimizer(optimizer)
        self.keep: Units = {}
        self.store = {name: tensor.detach().clone() for name, tensor in _named_tensors(model).items()}
        self.now: Positions = self.positions({})
        self.slots: dict[tuple[str, str], Tensor] = {}
        self.averages: list[tuple[nn.Module, dict[str, Tensor]]] = []
        self._frozen: dict[str, Tensor | None] = {}
        mine = {id(p) for p in model.parameters()}
        if any(id(p) not in mine for group in self.optimizer.param_groups for p in group["params"]):
            raise UsageError(
                "the optimizer does not fit the model",
                "it holds parameters that are not the model's",
                "build the optimizer from model.parameters() after the model is on its device",
            )

    def positions(self, keep: Units) -> Positions:
        """Where the values that `keep` keeps lie in every stored tensor; whole for tensors of no group."""
        known = self.graph.positions(keep)
        return {name: known.get(name, (None,) * full.ndim) for name, full in self.store.items()}

    def follow(self, average: nn.Module) -> None:
        """Resize `average`, a copy of the model at its present size, whenever the model is resized.

        Raises:
            UsageError: it is not of the model's structure and size.
        """
        live = _named_tensors(average)
        mine = _named_tensors(self.model)
        if live.keys() != mine.keys() or any(live[name].shape != mine[name].shape for name in mine):
            raise UsageError(
                "the average does not fit the model", "its tensors are not those of the model at its present size",
                "make it with copy.deepcopy(model) after IEE or HALP was made",
            )  # fmt: skip
        store = {name: full.clone() for name, full in self.store.items()}
        for name, full in store.items():
            full[_index(self.now[name], full)] = live[name].detach()
        self.averages.append((average, store))

    # Falling asleep and waking

    def save_awake(self, except_: Positions | None = None) -> None:
        """Copy the model's values into the store; positions in `except_` keep the store's own.

        The exception is how the active structure stays frozen bit for bit while everything
        else has been trained. Averages follow what was trained and have no exception.
        """
        tensors = _named_tensors(self.model)
        for name, full in self.store.items():
            self._write(full, tensors[name].detach(), self.now[name], None if except_ is None else except_[name])
        for (name, slot), full in self.slots.items():
            live = self.optimizer.state.get(tensors[name], {}).get(slot)
            if live is not None:
                self._write(full, live, self.now[name], None if except_ is None else except_[name])
        for average, store in self.averages:
            tensors = _named_tensors(average)
            for name, full in store.items():
                self._write(full, tensors[name].detach(), self.now[name], None)

    @staticmethod
    def _write(
        full: Tensor,
        live: Tensor,
        positions: tuple[np.ndarray | None, ...],
        except_: tuple[np.ndarray | None, ...] | None,
    ) -> None:
        frozen = None if except_ is None else _index(except_, full)
        kept = full if frozen is None else full[frozen].clone()
        if live.shape == full.shape:
            full.copy_(live)
        else:
            full[_index(positions, full)] = live
        if frozen is not None:
            full[frozen] = kept

    def resize(self, keep: Units) -> None:
        """Make exactly the units of `keep` awake, with the values that the store holds.

        Call `save_awake` first, or what the model has learned since is lost.
        """
        before, was = dict(self.model.named_parameters()), self.now
        channels_last = is_channels_last(self.model)
        slim_(self.model, self.graph, keep, tensors=self.store)
        for average, store in self.averages:
            slim_(average, self.graph, keep, tensors=store)
        if channels_last:  # what was cut is in the order of its axes again
            for module in (self.model, *(average for average, _ in self.averages)):
                for tensor in module.parameters():
                    if tensor.dim() == 4:
                        tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
        self.keep = {name: np.asarray(units) for name, units in keep.items()}
        self.now = self.positions(self.keep)
        self._reconnect(before, dict(self.model.named_parameters()), was)

    def _reconnect(self, before: dict[str, nn.Parameter], after: dict[str, nn.Parameter], was: Positions) -> None:
        replaced = {id(before[name]): (name, after[name]) for name in before if before[name] is not after[name]}
        for group in self.optimizer.param_groups:
            group["params"] = [replaced[id(p)][1] if id(p) in replaced else p for p in group["params"]]
        for name, parameter in after.items():
            old = before[name]
            if old is parameter:
                continue
            if old.grad is not None:
                room = torch.zeros_like(self.store[name], dtype=old.grad.dtype)
                room[_index(was[name], room)] = old.grad
                parameter.grad = narrow(room, self.now[name])
            state = self.optimizer.state.pop(old, None)
            if state:
                self.optimizer.state[parameter] = self._resized_state(name, parameter, state)

    def _resized_state(self, name: str, parameter: Tensor, state: dict[str, Any]) -> dict[str, Any]:
        result = dict(state)
        for slot in state:
            full = self.slots.get((name, slot))
            if full is not None:
                # In the parameter's own layout, or every step of the optimizer would pay for the difference.
                here = narrow(full, self.now[name])
                result[slot] = torch.empty_like(parameter, dtype=full.dtype).copy_(here)
        return result

    def adopt_slots(self) -> None:
        """Make room in the store for optimizer state that has come into being since the last call."""
        parameters = dict(self.model.named_parameters())
        for name, full in self.store.items():
            parameter = parameters.get(name)
            if parameter is None:
                continue
            for slot, value in self.optimizer.state.get(parameter, {}).items():
                if (name, slot) not in self.slots and isinstance(value, Tensor) and value.shape == parameter.shape:
                    room = torch.zeros_like(full, dtype=value.dtype)
                    room[_index(self.now[name], room)] = value
                    self.slots[name, slot] = room

    def reset_slots(self, except_: Positions) -> None:
        """Zero the stored optimizer state everywhere but at `except_`: the woken start without momentum."""
        for (name, _), full in self.slots.items():
            self._zero(full, except_[name])

    def zero_values(self, except_: Positions) -> None:
        """Zero the stored parameters everywhere but at `except_` (the paper's ablation of MRU values)."""
        parameters = dict(self.model.named_parameters())
        for name, full in self.store.items():
            if name in parameters:
                self._zero(full, except_[name])

    @staticmethod
    def _zero(full: Tensor, except_: tuple[np.ndarray | None, ...]) -> None:
        index = _index(except_, full)
        kept = full[index].clone()
        full.zero_()
        full[index] = kept

    # Freezing a part of a network that is wholly awake

    def freeze(self, active: Units) -> None:
        """From now on `put_back` restores the values of `active`, bit for bit, as the store has them."""
        self._frozen = {}
        for name, positions in self.positions(active).items():
            if all(p is None for p in positions):
                self._frozen[name] = None
            else:
                mask = torch.zeros_like(self.store[name], dtype=torch.bool)
                mask[_index(positions, mask)] = True
                self._frozen[name] = mask

    def thaw(self) -> None:
        """Forget what is frozen."""
        self._frozen = {}

    @torch.no_grad()
    def put_back(self) -> None:
        """Undo what an optimizer step and a forward pass did to the frozen part: values, statistics, momentum."""
        tensors = _named_tensors(self.model)
        for name, live, full in self._with_stores(tensors):
            mask = self._frozen[name]
            if mask is None:
                live.copy_(full)
            else:
                torch.where(mask, full, live, out=live)

    def _with_stores(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
        for name in self._frozen:
            yield name, tensors[name], self.store[name]
        for (name, slot), full in self.slots.items():
            live = self.optimizer.state.get(tensors[name], {}).get(slot)
            if live is not None:
                yield name, live, full

    # Checkpoints

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything that is not in the model, the optimizer or the averages, for a checkpoint."""
        return {
            **{f"store/{name}": value for name, value in self.store.items()},
            **{f"slot/{name}/{slot}": value for (name, slot), value in self.slots.items()},
            **{f"mean{i}/{name}": value for i, (_, s) in enumerate(self.averages) for name, value in s.items()},
        }

    def load_state(self, tensors: Mapping[str, Tensor], keep: Units) -> None:
        """Inverse of `state_tensors`; leaves the model at the size of `keep` (values come from the caller)."""
        for name, full in self.store.items():
            full.copy_(tensors[f"store/{name}"])
        for i, (_, store) in enumerate(self.averages):
            for name, full in store.items():
                full.copy_(tensors[f"mean{i}/{name}"])
        self.slots = {}
        for key, value in tensors.items():
            if key.startswith("slot/"):
                name, slot = key.removeprefix("slot/").rsplit("/", 1)
                self.slots[name, slot] = value.clone().to(self.store[name].device)
        self.resize(keep)
