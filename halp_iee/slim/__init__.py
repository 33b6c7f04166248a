"""From masks to a small model, and the small model on disk."""

from __future__ import annotations

from halp_iee.slim.artifact import load, read_recipe, save
from halp_iee.slim.surgery import slim_

__all__ = ["load", "read_recipe", "save", "slim_"]
