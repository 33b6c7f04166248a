"""Which weights live: patterns, distributions over layers, criteria, schedules, and how masks are measured."""

from halp_iee.sparsity.distributions import DISTRIBUTIONS, distribute
from halp_iee.sparsity.layers import SparseLayer, sparse_layers
from halp_iee.sparsity.patterns import PATTERNS, Pattern, pattern

__all__ = ["DISTRIBUTIONS", "PATTERNS", "Pattern", "SparseLayer", "distribute", "pattern", "sparse_layers"]
