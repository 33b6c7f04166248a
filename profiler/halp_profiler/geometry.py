"""Sizes that follow from a kernel's fields."""

from __future__ import annotations

from halp_profiler.kernel import Kernel


def output_spatial(kernel: Kernel) -> tuple[int, ...]:
    """Spatial size of what it makes."""
    if kernel.op == "global_pool":
        return (1,) * len(kernel.spatial)
    if kernel.op == "interpolate":
        return kernel.kernel_size
    if not kernel.kernel_size or kernel.op == "attention":
        return kernel.spatial
    n = len(kernel.spatial)
    stride, padding, dilation = geometry(kernel)
    if kernel.op == "conv_transpose":
        extra = kernel.output_padding or (0,) * n
        return tuple(
            (kernel.spatial[i] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (kernel.kernel_size[i] - 1)
            + extra[i] + 1 for i in range(n)
        )  # fmt: skip
    return tuple(
        (kernel.spatial[i] + 2 * padding[i] - dilation[i] * (kernel.kernel_size[i] - 1) - 1) // stride[i] + 1
        for i in range(n)
    )


def geometry(kernel: Kernel) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Stride, padding and dilation with their defaults filled in."""
    n = len(kernel.kernel_size)
    return kernel.stride or (1,) * n, kernel.padding or (0,) * n, kernel.dilation or (1,) * n
