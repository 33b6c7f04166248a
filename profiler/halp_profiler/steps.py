"""Where a device's latency staircase has its edges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Steps:
    """The shape of one kernel's staircase, known from how the runtime stores channels.

    Input channels fall into two classes: *aligned* ones (multiples of ``align``, or fewer than
    ``free_below``), which take the runtime's fast path, and the others. Within an aligned block of
    ``block_in`` (``block_out``) channels the cost is the same wherever no measurement says otherwise.

    Attributes:
        align: input channels that are multiples of this take the fast path; 1: all do.
        block_in, block_out: width of a step on either axis; 1: no steps.
        free_below: fewer input channels than this are neither aligned nor blocked.
        align_out: where above 1, only what is a multiple of this on the output's side, too, takes the fast path. The
            widths on it and all others are then interpolated apart, without blocks.
    """

    align: int = 1
    block_in: int = 1
    block_out: int = 1
    free_below: int = 0
    align_out: int = 1

    @classmethod
    def of_tensor_cores(cls, precision: str, family: str) -> Steps:
        """Tensor cores want multiples of 8 half-precision (of 4 tf32) channels; other edges the sweep finds itself."""
        align = {"fp16": 8, "bf16": 8, "tf32": 4}.get(precision, 1)
        return cls(align=align) if family in ("conv", "conv_transpose", "rows") else cls()

    def aligned(self, c_in: int) -> bool:
        return self.align <= 1 or c_in < self.free_below or c_in % self.align == 0

    def to_json(self) -> dict[str, int]:
        out = {"align": self.align, "block_in": self.block_in, "block_out": self.block_out,
               "free_below": self.free_below}  # fmt: skip
        return {**out, "align_out": self.align_out} if self.align_out > 1 else out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Steps:
        """The steps of ``to_json``'s output; whatever is no sensible number counts as no steps."""
        known = {k: v for k, v in data.items() if k in cls.__dataclass_fields__ and isinstance(v, int)}
        return cls(**{k: max(0 if k == "free_below" else 1, min(4096, v)) for k, v in known.items()})
