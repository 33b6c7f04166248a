"""Static sparse training: the masks of the start are those of the end."""

from __future__ import annotations

from halp_iee.methods.sparse.base import SparseMethod


class Static(SparseMethod):
    """Random masks that never change; what every other method must beat.

    Source: the baseline of SET, RigL and IEE. See docs/methods/static.md.
    """

    def _due(self) -> bool:
        return False

    def _update(self) -> None:
        raise AssertionError("static masks are never due")

    @property
    def done(self) -> bool:
        return True
