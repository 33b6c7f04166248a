"""Many kernels in one ONNX network, each as it runs inside a network: behind what writes its input, with cold weights.

    [source] -> x -> KERNEL (+ z) -> y -> [next]

A *scene* is one such chain. The source writes the kernel's input just before it is read, in the layout in which a
network would hand it over; what follows reads the result in the layout that a convolution wants. Names say
what belongs to which scene (``s3_`` source, ``k3_`` kernel, ``n3_`` next), because a runtime's report keeps them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx

from halp_profiler.backends.base import Request
from halp_profiler.backends.onnx_kernels import Drawing, first_part, fuse, input_shape, operation, output_shape
from halp_profiler.kernel import SPATIAL_OPS, Kernel

_ROWS = 2048  # of the ballast
_DENSE = 16  # channels from which on a dense convolution reads the blocked layout; a depthwise one always does
_ALWAYS_PLAIN = frozenset({"global_pool", "mul", "copy", "transpose", "group_norm"})
"""Kernels that no runtime runs in a blocked layout."""

_READ_TWICE = frozenset({"add", "batch_norm", "activation"})
"""Kernels that would melt into the convolution before them, were it not read elsewhere too."""


def build(requests: Sequence[Request], batch: int, *, touched: int = 0) -> onnx.ModelProto:
    """One network with a scene for every request, in any order that the runtime chooses.

    Where the scenes touch less than so many bytes in a run, a matrix that makes up for it is multiplied beside
    them, so that of their weights no more is left in the caches from one run to the next than of a network's. Huge
    weights are left apart; see ``Drawing.apart``.
    """
    d = Drawing(apart=True)
    own = sum(map(weight_bytes, requests)) + max((activation_bytes(r, batch) for r in requests), default=0)
    columns = (touched - own) // (4 * _ROWS)
    if columns > 0:
        d.prefix = "s9999_"
        d.output(d.node("Gemm", [d.input("s9999_x", (1, _ROWS)), d.weight((_ROWS, columns))]))
    for i, request in enumerate(requests):
        _scene(d, i, request, batch)
    return d.model()


def shapes_of(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Input -> its shape."""
    return {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in model.graph.input}


def weight_bytes(request: Request) -> int:
    """Bytes of the weights of a scene's kernel."""
    k, c_in, c_out = request.kernel, request.c_in, request.c_out
    if k.op in ("conv", "conv_transpose"):
        return 4 * k.of_tensor(c_out) * (k.group_width or c_in) * prod(k.kernel_size)
    return 4 * c_in * c_out if k.op == "linear" else 4 * c_in


def activation_bytes(request: Request, batch: int) -> int:
    """Bytes that a scene's kernel reads and writes, its weights aside."""
    kernel = request.kernel
    tensors = input_shape(kernel, request.c_in, batch), output_shape(kernel, request.c_out, batch)
    return 4 * sum(map(prod, tensors))


def _scene(d: Drawing, i: int, request: Request, batch: int) -> None:
    kernel, c_in, c_out = request.kernel, request.c_in, request.c_out
    source, body, behind = f"s{i}_", f"k{i}_", f"n{i}_"
    d.prefix = source
    if kernel.op == "to_plain":
        x = _blocked(d, source, "x", input_shape(kernel, c_in, batch))
        _mean(d, behind, x)
        return
    if kernel.op == "to_blocked":
        x = _plain(d, source, "x", input_shape(kernel, c_in, batch))
        _convolution(d, behind, x, c_in, 1, apart=c_in < _DENSE)
        return
    after: list[str] = []
    if "add" in kernel.fused and _image(kernel):
        # The residual was made before the input, has been read by others, and may be written over.
        after = [_blocked(d, source, "z", output_shape(kernel, c_out, batch))]
        seen = _convolution(
            d, source, after[0], kernel.of_tensor(c_out), output_shape(kernel, c_out, batch)[2:], channels=1
        )
        x = _input(d, source, kernel, first_part(c_in) if kernel.op == "cat" else c_in, batch, seen)
    else:
        x = _input(d, source, kernel, first_part(c_in) if kernel.op == "cat" else c_in, batch)
        if "add" in kernel.fused:
            after = [_plain(d, source, "z", output_shape(kernel, c_out, batch))]
    others = _others(d, source, kernel, c_in, c_out, batch)
    d.prefix = body
    y = fuse(d, kernel, operation(d, kernel, [x, *others], c_in, c_out, batch), after)
    if kernel.op in _READ_TWICE and _image(kernel) and not kernel.plain:
        for tensor in (x, *others):
            d.output(_convolution(d, behind, tensor, c_in, kernel.spatial))
    _next(d, behind, kernel, y, c_out, batch)


def _image(kernel: Kernel) -> bool:
    return kernel.op in SPATIAL_OPS and len(kernel.spatial) == 2 and kernel.op not in _ALWAYS_PLAIN


def _input(d: Drawing, prefix: str, kernel: Kernel, channels: int, batch: int, seen: str | None = None) -> str:
    shape = input_shape(kernel, channels, batch)
    if kernel.plain and kernel.op in ("conv", "conv_transpose"):
        return _given(d, prefix, "x", shape)  # the network's own input
    if kernel.plain or not _image(kernel):
        return _plain(d, prefix, "x", shape)
    return _blocked(d, prefix, "x", shape, seen)


def _others(d: Drawing, prefix: str, kernel: Kernel, c_in: int, c_out: int, batch: int) -> list[str]:
    """The second operand of what has two."""
    if kernel.op == "mul":  # the common one: a gate of one factor a channel, as in squeeze-and-excite
        return [_plain(d, prefix, "g", (batch, c_in, *(1 for _ in kernel.spatial)))]
    if kernel.op == "matmul":
        return [_plain(d, prefix, "g", (batch, *kernel.spatial[:-1], c_in, c_out))]
    if kernel.op == "attention":
        shape = input_shape(kernel, c_in, batch)
        return [_plain(d, prefix, "k", shape), _plain(d, prefix, "v", (*shape[:-1], c_out))]
    if kernel.op in ("add", "cat"):
        channels = c_in if kernel.op == "add" else c_in - first_part(c_in)
        if not channels:
            return []  # one channel: nothing is left to join it with
        shape = input_shape(kernel, channels, batch)
        made = _plain if kernel.plain or not _image(kernel) else _blocked
        return [made(d, prefix, "g", shape)]
    return []


def _given(d: Drawing, prefix: str, name: str, shape: Sequence[int]) -> str:
    return d.input(f"{prefix}{name}", shape)


def _plain(d: Drawing, prefix: str, name: str, shape: Sequence[int]) -> str:
    """A tensor in the framework's layout, just written."""
    d.prefix = prefix
    if len(shape) < 3:
        return d.node("Relu", [_given(d, prefix, name, shape)])
    seed = _given(d, prefix, name, (shape[0], 1, *shape[2:]))
    return d.node("Expand", [seed, d.constant(np.asarray(shape, np.int64))])


def _blocked(d: Drawing, prefix: str, name: str, shape: Sequence[int], seen: str | None = None) -> str:
    """A tensor as a convolution leaves it, just written; ``seen`` is made before it."""
    d.prefix = prefix
    probe = _given(d, prefix, name, (shape[0], 1, *shape[2:]))
    if seen is not None:
        probe = d.node("Add", [probe, seen])
    return d.node("Conv", [probe, d.weight((shape[1], 1, 1, 1))], kernel_shape=[1, 1])


def _convolution(
    d: Drawing, prefix: str, x: str, c_in: int, stride: Sequence[int] | int, channels: int = 16, apart: bool = False
) -> str:
    """A 1x1 convolution, so that ``x`` has a reader of that kind, a depthwise one if ``apart``; a wide stride makes it
    cost nothing."""
    d.prefix = prefix
    steps = [stride, stride] if isinstance(stride, int) else list(stride)
    weight, groups = (d.weight((c_in, 1, 1, 1)), c_in) if apart else (d.weight((channels, c_in, 1, 1)), 1)
    return d.node("Conv", [x, weight], kernel_shape=[1, 1], strides=steps, group=groups)


def _mean(d: Drawing, prefix: str, x: str) -> None:
    d.prefix = prefix
    d.output(d.node("ReduceMean", [x, d.constant(np.asarray([2, 3], np.int64))], keepdims=1))


def _next(d: Drawing, prefix: str, kernel: Kernel, y: str, c_out: int, batch: int) -> None:
    d.prefix = prefix
    shape = output_shape(kernel, c_out, batch)
    if not _image(kernel):
        d.output(d.node("ReduceMean", [y], keepdims=0))
    elif kernel.plain and kernel.op not in ("conv", "conv_transpose"):
        _mean(d, prefix, y)
    else:
        d.output(_convolution(d, prefix, y, kernel.of_tensor(c_out), shape[2:]))
