"""From masks to a small model, and the small model on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from halp_iee.slim.artifact import load, read_recipe, save
    from halp_iee.slim.carry import carry_averages, carry_optimizer
    from halp_iee.slim.surgery import slim_

__all__ = ["carry_averages", "carry_optimizer", "load", "read_recipe", "save", "slim_"]

_HOME = {
    "load": "artifact", "read_recipe": "artifact", "save": "artifact", "slim_": "surgery",
    "carry_averages": "carry", "carry_optimizer": "carry",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    # Lazily: the graph uses parts of this package, and this package the graph.
    import importlib

    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
