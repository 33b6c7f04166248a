"""Statistics over channels in the masked network: they see only the live ones.

A mean over channels of which some are zeroed is not the mean over those that stay. Where a network computes such a
statistic itself (a norm written out, a standardised weight, a global response) the masked network leaves the removed
positions out. Such a place is known by the module that runs it and by which of the module's statistics it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.overrides import TorchFunctionMode

from halp_iee.graph.sandbox import walk

Site = tuple[str, int]
"""Qualified name of the running module, and which of its statistics since its forward began."""

_REDUCTIONS = ("mean", "var", "std", "var_mean", "std_mean", "amax", "amin", "logsumexp")
STATISTICS = frozenset(
    {
        *(getattr(torch, name) for name in _REDUCTIONS),
        *(getattr(Tensor, name) for name in _REDUCTIONS if hasattr(Tensor, name)),
        F.batch_norm,
        torch.batch_norm,
        F.scaled_dot_product_attention,
    }
)
"""Functions that are told which positions live."""


class ModuleStack:
    """The qualified names of the modules whose forward is running, outermost first."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(module): name for name, module in reversed(walk(model))}
        self._stack: list[tuple[nn.Module, str]] = []
        self._counts: list[int] = []

    @property
    def current(self) -> str:
        return self._stack[-1][1] if self._stack else ""

    @property
    def of_library(self) -> bool:
        """Whether the running module is of a class of the library's own, whose numbers follow its weights."""
        return bool(self._stack) and type(self._stack[-1][0]).__module__.startswith("torch.nn.modules.")

    def next_site(self) -> Site | None:
        """The place of the statistic that runs now; every call counts one."""
        if not self._stack:
            return None
        self._counts[-1] += 1
        return self.current, self._counts[-1]

    def _enter(self, module: nn.Module, _args: Any) -> None:
        name = self._names.get(id(module))
        if name is not None:
            self._stack.append((module, name))
            self._counts.append(0)

    def _leave(self, module: nn.Module, _args: Any, _result: Any) -> None:
        # On an exception this is not called: the stack then tells where it happened.
        # A network that catches the exception itself leaves entries to be dropped here.
        while any(entry is module for entry, _ in reversed(self._stack)):
            self._counts.pop()
            if self._stack.pop()[0] is module:
                return

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        handles = [
            nn_module.register_module_forward_pre_hook(self._enter),
            nn_module.register_module_forward_hook(self._leave),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class LiveStatistics(TorchFunctionMode):
    """Runs the statistics of some places on the live positions only.

    Args:
        modules: the names of the running modules, being watched.
        live: place -> (axis counted from the end, positions that live) of each axis with removed channels.
    """

    def __init__(self, modules: ModuleStack, live: Mapping[Site, tuple[tuple[int, Tensor], ...]]) -> None:
        super().__init__()
        self.modules = modules
        self.live = live

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func not in STATISTICS:
            return func(*args, **kwargs)
        axes = self.live.get(self.modules.next_site() or ("", 0))
        if axes is None:
            return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return _attention(args, kwargs, axes[0][1])
        name = next((one for one in ("input", "self") if one in kwargs), None)
        whole = args[0] if args else kwargs[name or "input"]
        part = whole
        for axis, live in axes:
            part = part.index_select(axis, live.to(part.device))
        made = func(part, *args[1:], **kwargs) if args else func(**{**kwargs, name or "input": part})
        if func not in (F.batch_norm, torch.batch_norm):
            return made
        for axis, live in reversed(axes):
            shape = list(made.shape)
            shape[axis] = whole.shape[axis]
            made = made.new_zeros(shape).index_copy(axis, live.to(made.device), made)
        return made


def _attention(args: tuple[Any, ...], kwargs: Mapping[str, Any], live: Tensor) -> Tensor:
    """Attention whose scores are scaled by the size of the head that lives."""
    given = {
        **dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, strict=False)),
        **kwargs,
    }
    for name in ("query", "key"):
        given[name] = given[name].index_select(-1, live.to(given[name].device))
    return F.scaled_dot_product_attention(**given)
