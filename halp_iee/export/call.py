"""The arguments of one call of a network, whichever of the accepted forms they were given in."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from halp_iee.errors import GraphError


@dataclass(frozen=True)
class Call:
    """Arguments of one call of the network."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def tensors(self) -> list[torch.Tensor]:
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, torch.Tensor)]

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Call:
        args, kwargs = pytree.tree_map_only(torch.Tensor, change, (self.args, self.kwargs))
        return Call(args, kwargs)


def as_call(model: nn.Module, given: Any) -> Call:
    """The three accepted forms of inputs as one; keywords in the order of ``forward``, as ONNX has them.

    Raises:
        GraphError: there is no tensor in it.
    """
    if isinstance(given, Mapping):
        args: tuple[Any, ...] = ()
        kwargs = dict(given)
        with contextlib.suppress(TypeError, ValueError):
            order = list(inspect.signature(model.forward).parameters)
            kwargs = {name: kwargs[name] for name in sorted(kwargs, key=lambda n: _position(order, n))}
    else:
        args, kwargs = (tuple(given) if isinstance(given, (tuple, list)) else (given,)), {}
    call = Call(args, kwargs)
    if not call.tensors():
        raise GraphError(
            "Cannot export the network",
            "there is no tensor among the example inputs",
            "Give a tensor, a tuple of arguments or a dict of keyword arguments",
        )
    return call.map(lambda tensor: tensor.detach().cpu())


def _position(order: list[str], name: str) -> int:
    return order.index(name) if name in order else len(order)


def at_least_two(call: Call) -> Call:
    """torch.export takes an axis of size one for a constant, so an open batch needs an example of two."""
    sizes = {tensor.shape[0] for tensor in call.tensors() if tensor.dim()}
    if sizes != {1}:
        return call
    return call.map(lambda t: torch.cat([t, t]) if t.dim() else t)
