"""Makes a neural network physically smaller until it runs in the time you asked for.

The public names are loaded when they are first used, so that importing this package is
quick and initialises nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from halp_iee.graph import ChannelGraph, ChannelGroup, trace
    from halp_iee.latency import LatencyModel, LatencyTable
    from halp_iee.methods.config import IEEConfig
    from halp_iee.methods.iee import IEE
    from halp_iee.slim.artifact import load, save
    from halp_iee.solve import Answer, solve

_WHERE = {
    "trace": "halp_iee.graph",
    "ChannelGraph": "halp_iee.graph",
    "ChannelGroup": "halp_iee.graph",
    "LatencyTable": "halp_iee.latency",
    "LatencyModel": "halp_iee.latency",
    "solve": "halp_iee.solve",
    "Answer": "halp_iee.solve",
    "IEE": "halp_iee.methods.iee",
    "IEEConfig": "halp_iee.methods.config",
    "save": "halp_iee.slim.artifact",
    "load": "halp_iee.slim.artifact",
}

__all__ = [
    "IEE", "Answer", "ChannelGraph", "ChannelGroup", "IEEConfig", "LatencyModel", "LatencyTable", "__version__",
    "load", "save", "solve", "trace",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'halp_iee' has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
