"""Zero the units that are not kept, and put them back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from halp_iee.errors import GraphError
from halp_iee.graph.copies import forget, skeleton
from halp_iee.graph.groups import Structure
from halp_iee.graph.live import LiveStatistics, ModuleStack, Site
from halp_iee.graph.sandbox import named_tensors


class LiveNorms(TorchFunctionMode):
    """Normalisations over channels see only the live ones while this is on.

    The masked network must be the slim one. Zeroed channels would still count in the
    mean and variance of a layer norm, an RMS norm or a group norm with one group; here
    those run on the live channels, and the others stay zero. A normalisation is
    recognised by its weight.

    Args:
        live: id of a weight -> the positions that live.
    """

    def __init__(self, live: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.live = live

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        replacement = LIVE.get(func)
        if replacement is not None:
            names = ("input", "shape", "weight", "bias", "eps")[: len(args)]
            given = {**dict(zip(names, args, strict=True)), **kwargs}
            live = self.live.get(id(given.get("weight")))
            if live is not None:
                return replacement(given, live)
        return func(*args, **kwargs)


def _narrow(given: Mapping[str, Any], live: Tensor) -> tuple[Tensor, Tensor | None]:
    bias = given.get("bias")
    return given["weight"].index_select(0, live), None if bias is None else bias.index_select(0, live)


def _layer_norm(given: Mapping[str, Any], live: Tensor) -> Tensor:
    x, (weight, bias) = given["input"], _narrow(given, live)
    y = F.layer_norm(x.index_select(-1, live), (len(live),), weight, bias, given.get("eps", 1e-5))
    return torch.zeros_like(x, dtype=y.dtype).index_copy(-1, live, y)


def _rms_norm(given: Mapping[str, Any], live: Tensor) -> Tensor:
    # Its fourth argument is eps: it has no bias.
    eps = given.get("eps", given.get("bias"))
    x, weight = given["input"], given["weight"].index_select(0, live)
    y = F.rms_norm(x.index_select(-1, live), (len(live),), weight, eps)
    return torch.zeros_like(x, dtype=y.dtype).index_copy(-1, live, y)


def _group_norm(given: Mapping[str, Any], live: Tensor) -> Tensor:
    x, (weight, bias) = given["input"], _narrow(given, live)
    groups = given.get("num_groups", given.get("shape"))
    # With several groups whole groups are removed, so the ratio stays; one stays one.
    groups = max(1, groups * len(live) // x.shape[1])
    y = F.group_norm(x.index_select(1, live), groups, weight, bias, given.get("eps", 1e-5))
    return torch.zeros_like(x, dtype=y.dtype).index_copy(1, live, y)


LIVE: dict[Any, Callable[[Mapping[str, Any], Tensor], Tensor]] = {
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
}
"""Function -> how it runs on live channels only."""


@contextlib.contextmanager
def _statistics(model: nn.Module, live: Mapping[Site, tuple[tuple[int, np.ndarray], ...]]) -> Iterator[None]:
    """The statistics of these places see only the positions that live."""
    if not live:
        yield
        return
    modules = ModuleStack(model)
    found = {site: tuple((axis, torch.as_tensor(stays)) for axis, stays in axes) for site, axes in live.items()}
    with modules.watching(), LiveStatistics(modules, found):
        yield


def _removals(
    model: nn.Module,
    structure: Structure,
    positions: Mapping[str, tuple[np.ndarray | None, ...]],
    full_shapes: Mapping[str, tuple[int, ...]],
) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
    """Every parameter with something to zero, once, and where: a mask that broadcasts.

    Raises:
        GraphError: the model's parameters are not of the traced sizes.
    """
    parameters = named_tensors(model)
    removed: dict[tuple[int, torch.device], Tensor] = {}
    done: set[int] = set()
    for name, kept in positions.items():
        parameter = parameters.get(name)
        if not isinstance(parameter, nn.Parameter) or id(parameter) in done:
            continue
        done.add(id(parameter))
        if tuple(parameter.shape) != full_shapes[name]:
            raise GraphError(
                "The network cannot be masked",
                f"{name} has shape {tuple(parameter.shape)}, traced as {full_shapes[name]}",
                "Pass a network of the traced sizes",
            )
        gone: Tensor | None = None
        for axis, live in enumerate(kept):
            if live is None or (name, axis) in structure.spared:
                continue
            key = (id(live), parameter.device)
            if key not in removed:
                mask = np.ones(parameter.shape[axis], dtype=bool)
                mask[live] = False
                removed[key] = torch.as_tensor(mask, device=parameter.device)
            along = removed[key].view([-1 if one == axis else 1 for one in range(parameter.ndim)])
            gone = along if gone is None else gone | along
        if gone is not None:
            yield name, parameter, gone


def _live(
    structure: Structure,
    positions: Mapping[str, tuple[np.ndarray | None, ...]],
    weights: Mapping[str, Tensor],
) -> contextlib.AbstractContextManager[Any]:
    """Normalisations over channels with these weights see only the live ones."""
    live = {
        id(weights[name]): torch.as_tensor(positions[name][0], device=weights[name].device)
        for name in structure.normalising
        if name in weights and positions[name][0] is not None
    }
    return LiveNorms(live) if live else contextlib.nullcontext()


@contextlib.contextmanager
def zeroed(
    model: nn.Module,
    structure: Structure,
    positions: Mapping[str, tuple[np.ndarray | None, ...]],
    full_shapes: Mapping[str, tuple[int, ...]],
    sites: Mapping[Site, tuple[tuple[int, np.ndarray], ...]],
) -> Iterator[nn.Module]:
    """Zero every parameter entry at a removed position, on whichever axis; restore on leaving.

    The entries that were zeroed come back bit for bit, also after an error; the others
    are not touched, so what training changed of them stays.

    Args:
        sites: places of statistics over channels -> the positions that they are to see.

    Raises:
        GraphError: the model's parameters are not of the traced sizes.
    """
    undo: list[tuple[Tensor, Tensor, Tensor]] = []
    weights: dict[str, Tensor] = {}
    try:
        with torch.no_grad():
            for name, parameter, gone in _removals(model, structure, positions, full_shapes):
                undo.append((parameter, gone, parameter.detach().clone()))
                parameter.masked_fill_(gone, 0)
                weights[name] = parameter
        forget(model)
        with _live(structure, positions, weights), _statistics(model, sites):
            yield model
    finally:
        with torch.no_grad():
            for changed, gone, saved in reversed(undo):
                changed.copy_(torch.where(gone, saved, changed))
        forget(model)


@contextlib.contextmanager
def zeroed_copy(
    model: nn.Module,
    structure: Structure,
    positions: Mapping[str, tuple[np.ndarray | None, ...]],
    full_shapes: Mapping[str, tuple[int, ...]],
    sites: Mapping[Site, tuple[tuple[int, np.ndarray], ...]],
) -> Iterator[nn.Module]:
    """As `zeroed`, on a copy that shares with the network what is not zeroed; the network itself is not touched."""
    made: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, parameter, gone in _removals(model, structure, positions, full_shapes):
            made[name] = nn.Parameter(torch.where(gone, parameter.new_zeros(()), parameter), parameter.requires_grad)
    copied = skeleton(model, made)
    with _live(structure, positions, made), _statistics(copied, sites):
        yield copied
