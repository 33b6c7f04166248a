"""The patterns, by the names that a person writes."""

from __future__ import annotations

import re

from halp_iee.errors import UsageError
from halp_iee.sparsity.patterns.base import IndependentPattern, Pattern
from halp_iee.sparsity.patterns.kernel import KernelPattern, kernel_sparsity
from halp_iee.sparsity.patterns.rows import FanIn, NofM
from halp_iee.sparsity.patterns.simple import Block, Channel, Unstructured

PATTERNS: dict[str, Pattern] = {p.name: p for p in (Unstructured(), Channel(), KernelPattern(), FanIn())}
"""Those without a size in their name; besides them N:M and RxC."""


def pattern(text: str | Pattern) -> Pattern:
    """`unstructured`, `channel`, `kernel`, `fan-in`, `2:4` (any N:M), `4x1` (any block).

    Raises:
        UsageError: no such pattern.
    """
    if isinstance(text, Pattern):
        return text
    if text in PATTERNS:
        return PATTERNS[text]
    if found := re.fullmatch(r"(\d{1,6}):(\d{1,6})", text):
        return NofM(int(found[1]), int(found[2]))
    if found := re.fullmatch(r"(\d{1,6})x(\d{1,6})", text):
        return Block(int(found[1]), int(found[2]))
    raise UsageError(
        f"unknown pattern {text!r}",
        f"there are {', '.join(PATTERNS)}, N:M such as 2:4, and blocks such as 4x1",
        "choose one of them",
    )


__all__ = [
    "PATTERNS", "Block", "Channel", "FanIn", "IndependentPattern", "KernelPattern", "NofM", "Pattern",
    "Unstructured", "kernel_sparsity", "pattern",
]  # fmt: skip
