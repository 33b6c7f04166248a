"""A network that changes its physical size in training, and loses nothing by it.

The model that the caller trains holds only the units that are awake. All others lie in a
store of full-size tensors outside the model, each with the values it last had. Waking and
sleeping moves values between the two; nothing is masked, so a small structure costs small
time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from halp_iee.errors import UsageError
from halp_iee.methods.structure import Units
from halp_iee.slim.surgery import slim_

if TYPE_CHECKING:
    from halp_iee.graph import ChannelGraph

Positions = Mapping[str, tuple[np.ndarray | None, ...]]


def _index(positions: tuple[np.ndarray | None, ...], shape: torch.Size) -> tuple[Tensor, ...]:
    """Open mesh that selects `positions` of a full-size tensor: `full[_index(...)]` is the slim one."""
    axes = [torch.arange(n) if p is None else torch.from_numpy(p) for p, n in zip(positions, shape, strict=True)]
    return tuple(a.reshape([-1 if i == j else 1 for j in range(len(axes))]) for i, a in enumerate(axes))


class ElasticNetwork:
    """Resizes a model in place, its optimizer along with it.

    Parameter objects are replaced, in the model's modules and in the optimizer's parameter
    groups, because autograd remembers the shape of a tensor it has seen. The optimizer's
    per-parameter state of the shape of the parameter (momentum, second moments) is cut and
    restored by the same positions; other state (step counts) is carried over.

    Args:
        model: the dense network, of the structure that `graph` was traced from.
        graph: its channel graph.
        optimizer: the optimizer over the model's parameters.

    Raises:
        UsageError: the optimizer holds a parameter that is not the model's.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.graph, self.optimizer = model, graph, optimizer
        self.keep: Units = {}
        self.store = {name: tensor.detach().clone() for name, tensor in self._tensors().items()}
        self.slots: dict[tuple[str, str], Tensor] = {}
        mine = {id(p) for p in model.parameters()}
        if any(id(p) not in mine for group in optimizer.param_groups for p in group["params"]):
            raise UsageError(
                "the optimizer does not fit the model",
                "it holds parameters that are not the model's",
                "build the optimizer from model.parameters() after the model is on its device",
            )

    def _tensors(self) -> dict[str, Tensor]:
        return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}

    def positions(self, keep: Units) -> Positions:
        """Where the values that `keep` keeps lie in every stored tensor; whole for tensors of no group."""
        known = self.graph.positions(keep)
        return {name: known.get(name, (None,) * full.ndim) for name, full in self.store.items()}

    def save_awake(self, except_: Positions | None = None) -> None:
        """Copy the model's values into the store; positions in `except_` keep the store's own.

        The exception is how the active structure stays frozen bit for bit while everything
        else has been trained.
        """
        positions = self.positions(self.keep)
        tensors = self._tensors()
        for name in self.store:
            self._write(
                self.store[name], tensors[name].detach(), positions[name], None if except_ is None else except_[name]
            )
        for (name, slot), full in self.slots.items():
            live = self.optimizer.state.get(tensors[name], {}).get(slot)
            if live is not None:
                self._write(full, live, positions[name], None if except_ is None else except_[name])

    @staticmethod
    def _write(
        full: Tensor,
        live: Tensor,
        positions: tuple[np.ndarray | None, ...],
        except_: tuple[np.ndarray | None, ...] | None,
    ) -> None:
        frozen = None if except_ is None else _index(except_, full.shape)
        kept = full if frozen is None else full[frozen].clone()
        full[_index(positions, full.shape)] = live
        if frozen is not None:
            full[frozen] = kept

    def restore(self, positions: Positions) -> None:
        """Put the store's values at `positions` (of the full size) back into a fully awake model."""
        tensors = self._tensors()
        with torch.no_grad():
            for name, full in self.store.items():
                index = _index(positions[name], full.shape)
                tensors[name][index] = full[index]
            for (name, slot), full in self.slots.items():
                live = self.optimizer.state.get(tensors[name], {}).get(slot)
                if live is not None:
                    index = _index(positions[name], full.shape)
                    live[index] = full[index]

    def resize(self, keep: Units) -> None:
        """Make exactly the units of `keep` awake, with the values that the store holds.

        Call `save_awake` first, or what the model has learned since is lost.
        """
        before = dict(self.model.named_parameters())
        slim_(self.model, self.graph, keep, tensors=self.store)
        self.keep = {name: np.asarray(units) for name, units in keep.items()}
        after = dict(self.model.named_parameters())
        self._reconnect(before, after)

    def _reconnect(self, before: dict[str, nn.Parameter], after: dict[str, nn.Parameter]) -> None:
        replaced = {id(before[name]): (name, after[name]) for name in before if before[name] is not after[name]}
        for group in self.optimizer.param_groups:
            group["params"] = [replaced[id(p)][1] if id(p) in replaced else p for p in group["params"]]
        positions = self.positions(self.keep)
        for name, parameter in after.items():
            old = before[name]
            if old is parameter:
                continue
            state = self.optimizer.state.pop(old, None)
            if state:
                self.optimizer.state[parameter] = self._resized_state(name, parameter, state, positions)

    def _resized_state(
        self, name: str, parameter: nn.Parameter, state: dict[str, Any], positions: Positions
    ) -> dict[str, Any]:
        result = dict(state)
        for slot in state:
            full = self.slots.get((name, slot))
            if full is not None:
                result[slot] = full[_index(positions[name], full.shape)].contiguous()
        return result

    def adopt_slots(self) -> None:
        """Make room in the store for optimizer state that has come into being since the last call."""
        tensors = self._tensors()
        positions = self.positions(self.keep)
        for name, full in self.store.items():
            parameter = tensors[name]
            if not isinstance(parameter, nn.Parameter):
                continue
            for slot, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor) and value.shape == parameter.shape and (name, slot) not in self.slots:
                    room = torch.zeros_like(full, dtype=value.dtype)
                    room[_index(positions[name], full.shape)] = value
                    self.slots[name, slot] = room

    def reset_slots(self, except_: Positions) -> None:
        """Zero the stored optimizer state everywhere but at `except_`: the woken start without momentum."""
        for (name, _), full in self.slots.items():
            index = _index(except_[name], full.shape)
            kept = full[index].clone()
            full.zero_()
            full[index] = kept

    def zero_values(self, except_: Positions) -> None:
        """Zero the stored parameters everywhere but at `except_` (the paper's ablation of MRU values)."""
        parameters = dict(self.model.named_parameters())
        for name, full in self.store.items():
            if name in parameters:
                index = _index(except_[name], full.shape)
                kept = full[index].clone()
                full.zero_()
                full[index] = kept

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything that is not in the model or the optimizer, for a checkpoint."""
        return {
            **{f"store/{name}": value for name, value in self.store.items()},
            **{f"slot/{name}/{slot}": value for (name, slot), value in self.slots.items()},
        }

    def load_state(self, tensors: Mapping[str, Tensor], keep: Units) -> None:
        """Inverse of `state_tensors`; leaves the model at the size of `keep` (values come from the caller)."""
        for name, full in self.store.items():
            full.copy_(tensors[f"store/{name}"])
        self.slots = {}
        for key, value in tensors.items():
            if key.startswith("slot/"):
                name, slot = key.removeprefix("slot/").rsplit("/", 1)
                self.slots[name, slot] = value.clone().to(self.store[name].device)
        self.resize(keep)
