"""Sparse linear layers that are fast: condensed, and whichever other form is fastest where it runs."""

from halp_iee.condensed.choose import Choice, fastest_here
from halp_iee.condensed.linear import CondensedLinear
from halp_iee.condensed.network import Condensed, condense

__all__ = ["Choice", "Condensed", "CondensedLinear", "condense", "fastest_here"]
