"""Handle a network without leaving a trace in it: its tensors, its flags, its random state."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn


def tensors_in(value: Any, _depth: int = 0) -> Iterator[Tensor]:
    """The tensors inside any nest of containers, dataclasses and plain objects, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item, _depth + 1)
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            yield from tensors_in(item, _depth + 1)
    elif is_dataclass(value) and not isinstance(value, type):
        for entry in fields(value):
            yield from tensors_in(getattr(value, entry.name), _depth + 1)
    elif hasattr(value, "__dict__") and _depth < 4 and not isinstance(value, (type, nn.Module)):
        yield from tensors_in(vars(value), _depth + 1)


def map_tensors(value: Any, fn: Callable[[Tensor], Any]) -> Any:
    """The same nest of lists, tuples and dicts with `fn` applied to its tensors."""
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, dict):
        return {key: map_tensors(item, fn) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(item, fn) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(item, fn) for item in value)
    return value


def walk(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every module under every one of its qualified names, parents first; the library's own walk is many times slower.

    The order and the names are those of ``model.named_modules(remove_duplicate=False)``.
    """
    found: list[tuple[str, nn.Module]] = []

    def visit(module: nn.Module, name: str) -> None:
        found.append((name, module))
        before = f"{name}." if name else ""
        for child, part in module._modules.items():
            if part is not None:
                visit(part, before + child)

    visit(model, "")
    return found


def modules_of(model: nn.Module) -> list[nn.Module]:
    """Every module once, parents first."""
    return list({id(module): module for _, module in walk(model)}.values())


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer under every one of its qualified names."""
    named: dict[str, Tensor] = {}
    modules = [(f"{name}." if name else "", module) for name, module in walk(model)]
    for before, module in modules:
        named.update({before + leaf: one for leaf, one in module._parameters.items() if one is not None})
    for before, module in modules:
        named.update({before + leaf: one for leaf, one in module._buffers.items() if one is not None})
    return named


def parameter_names(model: nn.Module) -> frozenset[str]:
    """Every qualified name of every parameter."""
    return frozenset(
        f"{name}.{leaf}" if name else leaf
        for name, module in walk(model)
        for leaf, parameter in module._parameters.items()
        if parameter is not None
    )


@contextlib.contextmanager
def training_flags(model: nn.Module, training: bool) -> Iterator[None]:
    """Put every submodule in train or eval mode and put each one's own flag back."""
    before = [(module, module.training) for module in modules_of(model)]
    try:
        for module, flag in before:
            if flag != training:
                module.training = training
        yield
    finally:
        for module, flag in before:
            if module.training != flag:
                module.training = flag


@contextlib.contextmanager
def steady_randomness(model: nn.Module) -> Iterator[None]:
    """Leave the random generators as they were."""
    devices: set[torch.device] = set()
    if torch.cuda.is_initialized():
        devices = {tensor.device for tensor in named_tensors(model).values() if tensor.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(device.index or 0 for device in devices)):
        yield


def seed() -> None:
    """Start the random generators in use anew; the library's own function also prepares devices that nobody uses."""
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Without the garbage collector, which would walk all of torch again and again for nothing."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Compiled parts run as they were written."""
    if "torch._dynamo" not in sys.modules:  # then nothing is compiled, and it takes seconds to import
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Without the fused encoder kernels, which hide what they do in one opaque operation."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for a message of one line."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else "no message"
