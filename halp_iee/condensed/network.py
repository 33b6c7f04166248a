"""A whole network with its sparse linear layers in the form that is fastest here."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from halp_iee.condensed.choose import Choice, fastest_here

if TYPE_CHECKING:
    from halp_iee.graph import ChannelGraph


@dataclass(frozen=True)
class Condensed:
    """A network that computes the same, faster.

    Attributes:
        model: in eval mode.
        removed: group -> how many ablated neurons were left out, with what they fed.
        choices: layer -> what was measured for it.
    """

    model: nn.Module
    removed: Mapping[str, int]
    choices: Mapping[str, Choice]


def condense(graph: ChannelGraph, batch: int = 1, *, sparser_than: float = 0.5, seconds: float = 0.2) -> Condensed:
    """Leave out ablated neurons, then put every sparse linear layer into the form that is fastest for the batch.

    A neuron without weights gives a constant, its activated bias. Where one linear layer makes it and one
    reads it, that constant times the reader's weights is added to the reader's bias, and both lose it. So
    the network computes the same, to rounding.

    Args:
        graph: of the network, `halp_iee.trace(model, inputs)`; the network itself is not changed.
        batch: rows that reach the linear layers at a time (samples times tokens).
        sparser_than: layers with fewer zeros stay as they are.
        seconds: of timing for each layer.

    Source: SRigL, section 4.4 and appendix F. Its reference code cuts the neurons out of the layer alone, so
    that the next one no longer fits.
    """
    model = copy.deepcopy(graph.model).eval()
    keep = _fold_constants(replace(graph, model=model))
    removed = {name: graph.group(name).size - len(units) for name, units in keep.items()}
    small = replace(graph, model=model).slim(keep).eval() if keep else model
    choices = {}
    for name, module in list(small.named_modules()):
        if type(module) is not nn.Linear or float((module.weight == 0).float().mean()) <= sparser_than:
            continue
        choices[name] = choice = fastest_here(module, batch, seconds=seconds)
        parent, _, leaf = name.rpartition(".")
        setattr(small.get_submodule(parent), leaf, choice.layer)
    return Condensed(small, removed, choices)


@torch.no_grad()
def _fold_constants(graph: ChannelGraph) -> dict[str, np.ndarray]:
    """Group -> units to keep, after the constants of the others have gone into their reader's bias."""
    from halp_iee.methods.sparse.channels import producers_and_consumers  # with all of training behind it

    model = graph.model
    modules = dict(model.named_modules())
    producers, consumers = producers_and_consumers(graph)
    keep: dict[str, np.ndarray] = {}
    for i, group in enumerate(graph.groups):
        if not group.prunable or len(producers[i]) != 1 or len(consumers[i]) != 1:
            continue
        made_by, read_by = producers[i][0], consumers[i][0]
        source, reader = modules[made_by], modules[read_by]
        if type(source) is not nn.Linear or type(reader) is not nn.Linear or reader.bias is None:
            continue
        into = graph.axes[f"{made_by}.weight"][0]
        onto = graph.axes[f"{read_by}.weight"][1]
        assert into is not None
        assert onto is not None
        if not ((np.asarray(into.group) == i).all() and (np.asarray(onto.group) == i).all()):
            continue
        dead = ~source.weight.any(1).cpu().numpy()
        units = np.unique(np.asarray(into.unit)[dead])
        # A unit goes only if all its neurons are ablated, and never the last one.
        units = units[[bool(dead[np.asarray(into.unit) == unit].all()) for unit in units]]
        if not len(units) or len(units) == group.size:
            continue
        read = _inputs_of(model, read_by, graph.example_inputs)
        columns = np.flatnonzero(np.isin(np.asarray(onto.unit), units))
        constant = read[0, columns]
        if not torch.equal(read[:, columns], constant.expand(len(read), -1)):
            continue  # something between the two mixes them with others
        reader.bias.add_(reader.weight[:, columns] @ constant)
        # Their own bias goes too, or the proof that masked and slim agree would see what is folded twice.
        reader.weight[:, columns] = 0
        keep[group.name] = np.setdiff1d(np.arange(group.size), units)
    return keep


def _inputs_of(model: nn.Module, layer: str, example: tuple[tuple[object, ...], dict[str, object]]) -> Tensor:
    """What a layer reads, [rows, features], for the example and for random inputs of its shape."""
    seen: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].detach().reshape(-1, inputs[0].shape[-1]).clone())

    handle = model.get_submodule(layer).register_forward_pre_hook(note)
    try:
        args, kwargs = example
        for noise in (0.0, 1.0, 3.0):
            model(*(_noisy(value, noise) for value in args), **{name: _noisy(v, noise) for name, v in kwargs.items()})
    finally:
        handle.remove()
    return torch.cat(seen)


def _noisy(value: object, noise: float) -> object:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value + noise * torch.randn_like(value)
    return value
