"""RigL: SET with one function replaced. Weights come back where the dense gradient is largest."""

from __future__ import annotations

from halp_iee.methods.sparse.base import Gradient
from halp_iee.methods.sparse.exchange import Masks
from halp_iee.methods.sparse.set import SET


class RigL(SET):
    """As SET, but what grows are the weights of largest |g| of the dense gradient.

    K = int(live * alpha / 2 (1 + cos(pi t / T_end))) of each layer, alpha = 0.3, Delta T = 100, T_end = 3/4
    of the training. A weight that was dropped may be grown in the same update, and then keeps its value
    and its optimizer state. Over several processes the gradients are summed before the absolute value is
    taken. With `distribution="global"` one ranking over all layers decides (Chase's global exploration).

    Source: Evci et al. 2020, section 3 and algorithm 1. See docs/methods/rigl.md.
    """

    def _wanted_gradient(self) -> Gradient:
        return "all" if self._due() else "live"

    def _growth_scores(self) -> Masks:
        return self.gradients()
