"""How much each unit matters: pure scores, one file a paper."""

from halp_iee.importance.bn_scale import bn_scale
from halp_iee.importance.chance import random
from halp_iee.importance.criteria import CRITERIA, NEEDS_GRADIENTS, score
from halp_iee.importance.magnitude import magnitude
from halp_iee.importance.taylor import taylor_bn, taylor_weight

__all__ = [
    "CRITERIA", "NEEDS_GRADIENTS", "bn_scale", "magnitude", "random", "score", "taylor_bn", "taylor_weight",
]  # fmt: skip
