"""The best widths under a latency budget, with a certificate."""

from halp_iee.solve.answer import Answer
from halp_iee.solve.api import SOLVERS, floor_ms, solve
from halp_iee.solve.build import build
from halp_iee.solve.frontier import frontier
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
    "solve",
    "solve_all",
    "solve_latency",
    "verify",
]
