"""Run a network once and record every operation that it really executes.

The record is made below autograd and below every composite function, where all of a
network's freedom (functional calls, raw parameters, control flow, containers) has
become a plain list of tensor operations. Shadows, which have shapes but no data, make
that cheap; a network that looks at the data is run on the real ones.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from halp_iee.errors import GraphError
from halp_iee.graph.calls import Capture
from halp_iee.graph.copies import skeleton
from halp_iee.graph.recorder import Functions, ModuleStack, Recorder
from halp_iee.graph.sandbox import (
    eager,
    first_line,
    map_tensors,
    named_tensors,
    plain_attention,
    steady_randomness,
    tensors_in,
    training_flags,
)
from halp_iee.graph.shadow import Shadows, shadow_of
from halp_iee.slim.attention import loosen


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The network's parameters and buffers by name for one run, whose writes to buffers stay out of the network."""
    aliases: dict[int, Tensor] = {}
    named = named_tensors(model)
    for tensor in named.values():
        if id(tensor) not in aliases:
            is_parameter = isinstance(tensor, nn.Parameter)
            aliases[id(tensor)] = shadow_of(tensor) if is_parameter else tensor.detach().clone()
    return {name: aliases[id(tensor)] for name, tensor in named.items()}


def run(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    shadows: bool,
    training: bool = False,
    first: int = 0,
    recorder: Callable[[Capture, ModuleStack, Shadows | None], Recorder] = Recorder,
) -> Capture:
    """Run `model` once with `tensors` as its parameters and buffers, and record it.

    Args:
        model: run as it stands; see `skeleton` to protect its attributes.
        args, kwargs: the inputs.
        tensors: every parameter and buffer by qualified name.
        shadows: whether to run on shapes alone; then nothing is written to the inputs' or the parameters' memory.
        training: whether to run in train mode.
        recorder: how to record.
    """
    modules = ModuleStack(model)
    capture = Capture(fake=shadows, first=first)
    given = [*tensors.values(), *tensors_in((args, kwargs))]
    watcher = recorder(capture, modules, Shadows(given) if shadows else None)
    names: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    for name, tensor in tensors.items():
        if names[id(tensor)][0] == name:
            everyone = tuple(names[id(tensor)])
            capture.tensors[watcher.add(tensor, active=False, sources=everyone[:1])] = everyone
    watcher.inputs = frozenset(watcher.add(tensor, active=True) for tensor in tensors_in((args, kwargs)))
    with (
        training_flags(model, training),
        steady_randomness(model),
        plain_attention(),
        eager(),
        modules.watching(),
        torch.no_grad(),
        watcher,
        Functions(watcher),
    ):
        result = functional_call(model, dict(tensors), args, dict(kwargs), tie_weights=False)
    found = (watcher.value_of(tensor) for tensor in tensors_in(result))
    capture.outputs = tuple(value for value in found if value is not None)
    return capture


def capture_model(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    training: bool = False,
    first: int = 0,
    data: bool = True,
) -> Capture:
    """Record one forward pass: on shadows where the network allows it, else on real data.

    Args:
        data: whether real data are allowed.

    Raises:
        GraphError: the network does not run on these inputs.
    """
    named = named_tensors(model)
    for name, tensor in named.items():
        if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
            raise GraphError(
                "The network cannot be traced",
                f"{name} has no shape yet (a lazy module)",
                "Run the network once first",
            )
    own = own_tensors(model)
    try:
        inputs, named_inputs = map_tensors((args, dict(kwargs)), shadow_of)
        return run(_protected(model), inputs, named_inputs, own, shadows=True, training=training, first=first)
    except Exception as error:  # anything may go wrong without data; the run with data decides
        if not data:
            raise _failed(error) from error
    own, copied = own_tensors(model), _protected(model)
    try:
        return run(copied, *copy.deepcopy((args, dict(kwargs))), own, shadows=False, training=training, first=first)
    except Exception as error:
        raise _failed(error) from error


def _failed(error: Exception) -> GraphError:
    return GraphError(
        "The network cannot be traced",
        f"its forward pass failed with {type(error).__name__}: {first_line(error)}",
        "Pass example inputs with which model(*example_inputs) runs in eval mode",
    )


def _protected(model: nn.Module) -> nn.Module:
    """A copy of the modules that shares the tensors."""
    try:
        return loosen(skeleton(model))
    except Exception:  # whatever a module's own __deepcopy__ raises; tracing can do without
        return model
