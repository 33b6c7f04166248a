"""Carry what training has gathered about the full network over to the slim one: optimizer state, averages."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from halp_iee.errors import GraphError
from halp_iee.graph.records import Keep
from halp_iee.graph.sandbox import named_tensors
from halp_iee.slim.build import RECIPE
from halp_iee.slim.surgery import narrow

if TYPE_CHECKING:
    from halp_iee.graph.graph import ChannelGraph

AnyOptimizer = TypeVar("AnyOptimizer", bound=torch.optim.Optimizer)

Positions = tuple["np.ndarray | None", ...]


def _positions(graph: ChannelGraph, small: nn.Module, keep: Keep | None) -> dict[str, Positions]:
    if keep is None:
        recipe = small.__dict__.get(RECIPE)
        if recipe is None:
            raise GraphError(
                "The state cannot be carried over",
                "it is not known which units the slim network keeps",
                "Pass what graph.slim returned, or pass keep",
            )
        keep = {name: np.asarray(units, dtype=np.int64) for name, units in recipe["keep"].items()}
    return graph.positions(keep)


def _cut(value: Tensor, full: tuple[int, ...], positions: Positions, name: str) -> Tensor:
    """The part of a state that belongs to the kept entries; of axes of size one (factored moments) all of it."""
    if value.ndim == 0 or value.numel() == 1:
        return value.detach().clone()
    fits = value.ndim == len(full) and all(a in (1, b) for a, b in zip(value.shape, full, strict=True))
    if not fits:
        raise GraphError(
            "The state cannot be carried over",
            f"{name} has shape {tuple(value.shape)}, its parameter {full}",
            "Start the optimizer anew for the slim network",
        )
    of_axes = tuple(None if size == 1 else p for size, p in zip(value.shape, positions, strict=True))
    return narrow(value.detach(), of_axes).clone()


def carry_optimizer(
    optimizer: AnyOptimizer, graph: ChannelGraph, small: nn.Module, keep: Keep | None = None
) -> AnyOptimizer:
    """An optimizer for the slim network that goes on where the full network's stands.

    Parameter groups and their settings stay; state of a parameter's shape (momentum, second moments), or
    of its shape with axes of size one (factored moments), is cut as the parameter was; counts are copied.
    A learning-rate scheduler is bound to its optimizer: make a new one, and give it the old one's state.

    Args:
        optimizer: over parameters of ``graph.model``; not changed.
        graph: the full network's.
        small: from ``graph.slim``.
        keep: the selection; default what ``graph.slim`` noted in `small`.

    Raises:
        GraphError: the optimizer holds a parameter that is not the network's, or state that cannot be cut.
    """
    positions = _positions(graph, small, keep)
    names = {id(tensor): name for name, tensor in reversed(list(named_tensors(graph.model).items()))}
    own = named_tensors(small)

    def partner(parameter: Tensor) -> Tensor:
        name = names.get(id(parameter))
        if name is None:
            raise GraphError(
                "The state cannot be carried over",
                "the optimizer holds a parameter that the traced network does not have",
                "Pass the optimizer of graph.model",
            )
        return own[name]

    carried = copy.copy(optimizer)
    carried.param_groups = [
        {**{key: copy.copy(value) for key, value in group.items() if key != "params"},
         "params": [partner(parameter) for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]  # fmt: skip
    carried.defaults = dict(optimizer.defaults)
    carried.state = defaultdict(dict)
    for parameter, state in optimizer.state.items():
        name = names[id(parameter)]
        full = tuple(parameter.shape)
        of_axes = positions.get(name, (None,) * len(full))
        kept: dict[str, Any] = {}
        for slot, value in state.items():
            kept[slot] = _cut(value, full, of_axes, f"{slot} of {name}") if isinstance(value, Tensor) else value
        carried.state[partner(parameter)] = kept
    return carried


def carry_averages(
    averages: Mapping[str, Tensor], graph: ChannelGraph, small: nn.Module, keep: Keep | None = None
) -> dict[str, Tensor]:
    """The running averages (EMA) of the full network's tensors, cut for the slim one.

    Args:
        averages: qualified name -> full-size tensor, such as a `state_dict`; names may begin with ``module.``,
            as those of `torch.optim.swa_utils.AveragedModel` do. What is no tensor of the network is copied.
        graph, small, keep: as for `carry_optimizer`.

    Returns:
        The same names with slim tensors.

    Raises:
        GraphError: a tensor does not have its full size.
    """
    positions = _positions(graph, small, keep)
    result = {}
    for name, value in averages.items():
        plain = name if name in graph.full_shapes else name.removeprefix("module.")
        full = graph.full_shapes.get(plain)
        if full is None:
            result[name] = value.detach().clone()
            continue
        if tuple(value.shape) != full:
            raise GraphError(
                "The averages cannot be carried over",
                f"{name} has shape {tuple(value.shape)}, the full network's is {full}",
                "Pass averages of the full network",
            )
        result[name] = narrow(value.detach(), positions.get(plain, (None,) * len(full))).clone()
    return result
