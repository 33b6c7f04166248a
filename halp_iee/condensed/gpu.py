"""The condensed product on a GPU, in Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _kernel(
    xt, start, index, values, bias, y, rows, samples,
    HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, SAMPLES: tl.constexpr,
):  # fmt: skip  # type: ignore[no-untyped-def]
    """y[b, r] = bias[r] + sum over the nonzeros i of row r of values[i] xt[index[i], b]."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    sample = tl.program_id(1) * SAMPLES + tl.arange(0, SAMPLES)
    live = row < rows
    first = tl.load(start + row, mask=live, other=0)
    last = tl.load(start + row + 1, mask=live, other=0)
    most = tl.max(last - first, axis=0)
    total = tl.zeros((ROWS, SAMPLES), dtype=tl.float32)
    for k in range(most):
        here = live & (first + k < last)
        column = tl.load(index + first + k, mask=here, other=0).to(tl.int64)
        value = tl.load(values + first + k, mask=here, other=0.0)
        # Samples lie side by side, so that neighbouring threads read neighbouring inputs.
        x = tl.load(
            xt + column[:, None] * samples + sample[None, :],
            mask=here[:, None] & (sample[None, :] < samples), other=0.0,
        )  # fmt: skip
        total += value[:, None] * x
    if HAS_BIAS:
        total += tl.load(bias + row, mask=live, other=0.0)[:, None]
    tl.store(y + sample[None, :] * rows + row[:, None], total, mask=live[:, None] & (sample[None, :] < samples))


def multiply(x: Tensor, start: Tensor, index: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """[N, in] float32 -> [N, out]; the nonzeros row by row as in `CondensedLinear`."""
    samples, rows = len(x), len(start) - 1
    y = torch.empty(samples, rows, device=x.device, dtype=torch.float32)
    if not samples:
        return y
    ROWS, SAMPLES = (16, 16) if samples < 64 else (8, 64)
    grid = (triton.cdiv(rows, ROWS), triton.cdiv(samples, SAMPLES))
    _kernel[grid](
        x.T.contiguous(), start, index.int(), values, values if bias is None else bias, y, rows, samples,
        bias is not None, ROWS, SAMPLES,
    )  # fmt: skip
    return y
