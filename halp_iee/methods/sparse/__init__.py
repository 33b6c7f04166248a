"""The sparse-training methods, by the name that a person writes."""

from __future__ import annotations

from halp_iee.methods.sparse.base import SparseConfig, SparseMethod
from halp_iee.methods.sparse.chase import Chase, ChaseConfig
from halp_iee.methods.sparse.gmp import GMP, GMPConfig
from halp_iee.methods.sparse.iee import IEEWeights, IEEWeightsConfig
from halp_iee.methods.sparse.mest import MEST, MESTConfig
from halp_iee.methods.sparse.rigl import RigL
from halp_iee.methods.sparse.set import SET, DropGrowConfig
from halp_iee.methods.sparse.snip import SNIP, SNIPConfig
from halp_iee.methods.sparse.srigl import SRigL, SRigLConfig
from halp_iee.methods.sparse.static import Static
from halp_iee.train.forgetting import ForgettingEvents

METHODS: dict[str, type[SparseMethod]] = {
    "static": Static,
    "snip": SNIP,
    "gmp": GMP,
    "set": SET,
    "rigl": RigL,
    "iee": IEEWeights,
    "srigl": SRigL,
    "mest": MEST,
    "chase": Chase,
}

__all__ = [
    "GMP",
    "MEST",
    "METHODS",
    "SET",
    "SNIP",
    "Chase",
    "ChaseConfig",
    "DropGrowConfig",
    "ForgettingEvents",
    "GMPConfig",
    "IEEWeights",
    "IEEWeightsConfig",
    "MESTConfig",
    "RigL",
    "SNIPConfig",
    "SRigL",
    "SRigLConfig",
    "SparseConfig",
    "SparseMethod",
    "Static",
]  # fmt: skip
