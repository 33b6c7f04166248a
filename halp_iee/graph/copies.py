"""Copy a network, with its tensors or without.

`copy.deepcopy` fails on a network that was trained: what a forward pass left in attributes hangs on a graph of
gradients. It is also slow, because most of what it copies are the empty dictionaries of hooks. Here the value of such a
tensor is copied, and a module that is copied in the usual way is taken apart by hand.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from halp_iee.graph.sandbox import modules_of, named_tensors, tensors_in

PLAIN = frozenset(
    {type(None), bool, int, float, complex, str, bytes, type, torch.dtype, torch.device, torch.Size, type(len),
     type(lambda: None), torch.memory_format, torch.layout}
)  # fmt: skip
"""Types whose values are never changed, so that a copy may share them."""

CONTAINERS = frozenset({dict, OrderedDict, set, list, tuple})


def skeleton(model: nn.Module, made: Mapping[str, Tensor] | None = None) -> nn.Module:
    """A copy of the module tree that shares every parameter and buffer with the original.

    What a forward pass leaves behind in module attributes (caches, counters) then
    stays in the copy.

    Args:
        made: tensors by one of their qualified names that the copy is to have in place of the network's own.
    """
    named = named_tensors(model)
    memo: dict[int, Any] = {id(tensor): tensor for tensor in named.values()}
    memo |= {id(named[name]): tensor for name, tensor in (made or {}).items()}
    return forget(_copied(model, memo))


def forget(model: nn.Module) -> nn.Module:
    """Let modules drop what they computed from their tensors before, as they do when moved; returns the network.

    A module that keeps such a result (an indexed table of positions, say) overrides `_apply` to know that its
    tensors have changed.
    """
    if any(type(module)._apply is not nn.Module._apply for module in modules_of(model)):
        model._apply(lambda tensor: tensor)
    return model


def duplicate(model: nn.Module, made: Mapping[str, Tensor] | None = None) -> nn.Module:
    """An independent copy of a network, as `copy.deepcopy` makes it, also after a step of training.

    Args:
        made: tensors by qualified name that the copy is to have in place of copies of the network's own.
    """
    memo: dict[int, Any] = {}
    for name, tensor in named_tensors(model).items():
        if made is not None and name in made:
            memo[id(tensor)] = made[name]
        elif id(tensor) not in memo:
            memo[id(tensor)] = tensor.detach().clone() if not tensor.is_leaf else copy.deepcopy(tensor)
    return _copied(model, memo)


def _copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    modules = modules_of(model)
    usual = [module for module in modules if _is_usual(type(module)) and "__deepcopy__" not in vars(module)]
    for module in usual:
        memo[id(module)] = type(module).__new__(type(module))
    # Children first, so that a class with a copy of its own finds them whole.
    for module in reversed(modules):
        if id(module) not in memo:
            for tensor in _hanging(vars(module)):
                memo.setdefault(id(tensor), tensor.detach().clone())
            copy.deepcopy(module, memo)
            continue
        # A compiled call belongs to the original, as in a pickle.
        state = {
            name: value if type(value) in PLAIN else _value(value, memo)
            for name, value in module.__getstate__().items()
        }
        memo[id(module)].__setstate__(state)
    copied: nn.Module = memo[id(model)]
    return copied


_USUAL: dict[type, bool] = {}
"""What `_is_usual` said before."""


def _is_usual(kind: type[nn.Module]) -> bool:
    """Whether nothing in a module class has a say in how it is copied."""
    if kind not in _USUAL:
        _USUAL[kind] = (
            not hasattr(kind, "__deepcopy__")
            and kind.__reduce_ex__ is object.__reduce_ex__
            and kind.__reduce__ is object.__reduce__
            and kind.__getstate__ is nn.Module.__getstate__
            and not any("__slots__" in vars(base) for base in kind.__mro__)
        )
    return _USUAL[kind]


def _hanging(value: Any) -> Iterator[Tensor]:
    """The tensors inside a value that are results of an operation with a gradient."""
    return (tensor for tensor in tensors_in(value) if not tensor.is_leaf)


def _value(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in CONTAINERS and not value:
        return kind()
    found = memo.get(id(value))
    if found is not None:
        return found
    if kind in CONTAINERS:
        if kind is dict or kind is OrderedDict:
            if all(type(key) in PLAIN for key in value) and _simple(value.values(), memo):
                made = kind((key, _leaf(item, memo)) for key, item in value.items())
                memo[id(value)] = made
                return made
        elif _simple(value, memo):
            made = kind(_leaf(item, memo) for item in value)
            memo[id(value)] = made
            return made
    for tensor in _hanging(value):
        memo.setdefault(id(tensor), tensor.detach().clone())
    if isinstance(value, torch.Generator):
        memo[id(value)] = value.clone_state()
    return copy.deepcopy(value, memo)


def _simple(values: Any, memo: Mapping[int, Any]) -> bool:
    return all(type(item) in PLAIN or id(item) in memo for item in values)


def _leaf(item: Any, memo: Mapping[int, Any]) -> Any:
    return item if type(item) in PLAIN else memo[id(item)]
