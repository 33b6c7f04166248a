"""The best widths under a latency budget, with a certificate."""

import sys
from types import ModuleType
from typing import Any

from halp_iee.solve.answer import Answer
from halp_iee.solve.api import SOLVERS, floor_ms, solve
from halp_iee.solve.build import build
from halp_iee.solve.frontier import frontier, frontier_all
from halp_iee.solve.multi import Fastest, solve_all, solve_latency
from halp_iee.solve.problem import Problem
from halp_iee.solve.verify import CertificateError, verify

__all__ = [
    "SOLVERS",
    "Answer",
    "CertificateError",
    "Fastest",
    "Problem",
    "build",
    "floor_ms",
    "frontier",
    "frontier_all",
    "solve",
    "solve_all",
    "solve_latency",
    "verify",
]


class _Callable(ModuleType):
    """``halp_iee.solve`` is the function, until something imports this package and binds it there: then call it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Answer:
        return solve(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
