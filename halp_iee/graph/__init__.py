"""Runs a network once, labels every tensor axis with the channels it carries, and forms groups."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from halp_iee.graph.records import ChannelGroup, Keep, Op, Width

if TYPE_CHECKING:
    from halp_iee.graph.graph import ChannelGraph, trace
    from halp_iee.graph.groups import AxisUnits

__all__ = ["AxisUnits", "ChannelGraph", "ChannelGroup", "Keep", "Op", "Width", "trace"]

_HOME = {"AxisUnits": "groups", "ChannelGraph": "graph", "trace": "graph"}


def __getattr__(name: str) -> Any:
    # Lazily: the trial of a structure uses `halp_iee.slim`, and that uses parts of this package.
    import importlib

    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
