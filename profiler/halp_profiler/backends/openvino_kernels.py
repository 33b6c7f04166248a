"""Builds kernels as OpenVINO networks: runs of one kernel side by side, each between two small neighbours.

    probe (1 channel) -> [1x1 convolution] -> x -> KERNEL (+ z) -> y -> [1x1 convolution to 1 channel] -> output

The neighbours keep x and y in the layout that the runtime gives them inside a network. What is added (z) comes
from a neighbour of its own in every run, so that it may be overwritten in place, as in a network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import openvino
from openvino import opset13 as ops

from halp_profiler.geometry import geometry, output_spatial
from halp_profiler.kernel import SPATIAL_OPS, Kernel

Weights = Callable[[Sequence[int]], np.ndarray]
"""The weights of a shape, asked for in order: weight before bias."""

_RNG = np.random.default_rng(0)


def noise(shape: Sequence[int]) -> np.ndarray:
    """Fresh noise: equal weights would let the runtime run one kernel for all."""
    return _RNG.standard_normal(tuple(shape), dtype=np.float32) * np.float32(0.05)


def refusal(kernel: Kernel) -> str | None:
    """Why this kernel cannot be built; None when it can."""
    if kernel.op not in _MAKERS:
        return f"operations of kind {kernel.op} are not known to this backend"
    if unknown := [name for name in kernel.fused if name != "add" and name not in _ACTIVATIONS]:
        return f"the activation {unknown[0]} is not known to this backend"
    return kernel.misfit


OTHER_SHAPE = frozenset({"copy", "transpose"})
"""Kernels whose output no convolution could read as it is: nothing stands behind them."""


def images(kernel: Kernel) -> bool:
    """Whether the kernel has neighbours: it works on images, or on signals or volumes."""
    return kernel.op in SPATIAL_OPS and 1 <= len(kernel.spatial) <= 3


def in_network(kernel: Kernel, c_in: int, c_out: int, batch: int, runs: int) -> openvino.Model:
    """``runs`` kernels side by side, with weights of their own, that read one input."""
    drawing = _Drawing()
    shapes = _input_shapes(kernel, c_in, batch)
    behind = made_shape(kernel, c_out, batch)
    alone = not images(kernel)
    x = [drawing.parameter(s) if alone or kernel.plain else drawing.before(s) for s in shapes]
    for _ in range(runs):
        added = [drawing.parameter(behind) if alone else drawing.before(behind) for _ in range(_adds(kernel))]
        y = apply(kernel, c_in, c_out, [*x, *added], noise)
        drawing.outputs.append(y if alone or kernel.op in OTHER_SHAPE else _after(y, behind))
    return drawing.model()


def surroundings(kernel: Kernel, c_out: int, batch: int, runs: int) -> openvino.Model:
    """The same without the kernel: in each run the neighbour behind it, and that from which a residual comes."""
    drawing = _Drawing()
    shape = made_shape(kernel, c_out, batch)
    shared = drawing.before(shape)
    for _ in range(runs):
        drawing.outputs.append(_after(drawing.before(shape) if _adds(kernel) else shared, shape))
    return drawing.model()


def apply(kernel: Kernel, c_in: int, c_out: int, inputs: Sequence[Any], weights: Weights) -> Any:
    """The kernel's output as a node: ``inputs`` are x, its partner where it has one, and what is added."""
    own = len(inputs) - _adds(kernel)
    y = _MAKERS[kernel.op](kernel, c_in, c_out, inputs[:own], weights)
    added = iter(inputs[own:])
    for name in () if kernel.op == "activation" else kernel.fused:
        y = ops.add(y, next(added)) if name == "add" else _ACTIVATIONS[name](y)
    return y


def _adds(kernel: Kernel) -> int:
    return 0 if kernel.op == "activation" else kernel.fused.count("add")


def _input_shapes(kernel: Kernel, c_in: int, batch: int) -> list[tuple[int, ...]]:
    shape = (batch, kernel.of_tensor(c_in), *kernel.spatial) if images(kernel) else (batch, *kernel.spatial, c_in)
    if kernel.op == "cat" and c_in > 1:
        first = c_in // 2 // 16 * 16 or c_in // 2
        return [(batch, first, *kernel.spatial), (batch, c_in - first, *kernel.spatial)]
    return [shape, shape] if kernel.op == "add" else [shape]


def made_shape(kernel: Kernel, c_out: int, batch: int) -> tuple[int, ...]:
    """Shape of the kernel's output."""
    return (
        (batch, kernel.of_tensor(c_out), *output_spatial(kernel)) if images(kernel) else (batch, *kernel.spatial, c_out)
    )


class _Drawing:
    """An OpenVINO network in the making; all images of one size come from one probe."""

    def __init__(self) -> None:
        self._parameters: list[Any] = []
        self._probes: dict[tuple[int, ...], Any] = {}
        self.outputs: list[Any] = []

    def parameter(self, shape: tuple[int, ...]) -> Any:
        self._parameters.append(ops.parameter(list(shape), np.float32))
        return self._parameters[-1]

    def before(self, shape: tuple[int, ...]) -> Any:
        """An image as a layer before this one would have left it."""
        size = (shape[0], 1, *shape[2:])
        if size not in self._probes:
            self._probes[size] = self.parameter(size)
        return _pointwise(self._probes[size], shape[1], 1, len(shape) - 2)

    def model(self) -> openvino.Model:
        return openvino.Model([ops.result(y) for y in self.outputs], self._parameters, "kernel")


def _after(y: Any, shape: tuple[int, ...]) -> Any:
    return _pointwise(y, 1, shape[1], len(shape) - 2)


def _pointwise(x: Any, c_out: int, c_in: int, n: int) -> Any:
    return ops.convolution(x, ops.constant(noise((c_out, c_in, *(1,) * n))), [1] * n, [0] * n, [0] * n, [1] * n)


def _conv(k: Kernel, c_in: int, c_out: int, x: Sequence[Any], weights: Weights) -> Any:
    stride, padding, dilation = map(list, geometry(k))
    groups = k.groups or (c_in // k.group_width if k.group_width else 1)
    c_in, c_out = k.of_tensor(c_in), k.of_tensor(c_out)
    if k.op == "conv":
        w = weights((c_out, c_in // groups, *k.kernel_size))
        if groups == 1:
            y = ops.convolution(x[0], ops.constant(w), stride, padding, padding, dilation)
        else:
            grouped = w.reshape(groups, c_out // groups, c_in // groups, *k.kernel_size)
            y = ops.group_convolution(x[0], ops.constant(grouped), stride, padding, padding, dilation)
    else:
        w = weights((c_in, c_out // groups, *k.kernel_size))
        make: Any = ops.convolution_backprop_data
        if groups > 1:
            w, make = w.reshape(groups, c_in // groups, *w.shape[1:]), ops.group_convolution_backprop_data
        y = make(
            x[0], ops.constant(w), stride, pads_begin=padding, pads_end=padding, dilations=dilation,
            output_padding=list(k.output_padding or (0,) * len(k.kernel_size)),
        )  # fmt: skip
    bias = weights((c_out,)).reshape(1, c_out, *(1,) * len(k.kernel_size))
    return ops.add(y, ops.constant(bias))


def _linear(k: Kernel, c_in: int, c_out: int, x: Sequence[Any], weights: Weights) -> Any:
    y = ops.matmul(x[0], ops.constant(weights((c_out, c_in))), False, True)
    return ops.add(y, ops.constant(weights((c_out,))))


def _matmul(k: Kernel, c_in: int, c_out: int, x: Sequence[Any], weights: Weights) -> Any:
    batch = x[0].get_output_shape(0)[0]
    return ops.matmul(x[0], ops.constant(weights((batch, *k.spatial[:-1], c_in, c_out))), False, False)


def _attention(k: Kernel, c_in: int, c_out: int, x: Sequence[Any], weights: Weights) -> Any:
    lead = (x[0].get_output_shape(0)[0], k.spatial[0], k.kernel_size[0])
    keys, values = (ops.constant(weights((*lead, c))) for c in (c_in, c_out))
    scores = ops.matmul(ops.multiply(x[0], ops.constant(np.float32(c_in**-0.5))), keys, False, True)
    return ops.matmul(ops.softmax(scores, -1), values, False, False)


def _group_norm(k: Kernel, c_in: int, c_out: int, x: Sequence[Any], weights: Weights) -> Any:
    scale, shift = (ops.constant(weights((c_in,))) for _ in range(2))
    return ops.group_normalization(x[0], scale, shift, c_in // (k.group_width or c_in), 1e-5)


def _copy(k: Kernel, c_in: int, c_out: int, x: Sequence[Any], weights: Weights) -> Any:
    before = [0] * (2 + len(k.spatial))
    behind = [0, 1, *before[2:]]  # one channel more, so that it cannot be a view
    return ops.pad(x[0], ops.constant(np.array(before)), ops.constant(np.array(behind)), "constant")


def _transpose(k: Kernel, c_in: int, c_out: int, x: Sequence[Any], weights: Weights) -> Any:
    n = 2 + len(k.spatial)
    moved = ops.transpose(x[0], ops.constant(np.array([0, n - 1, *range(1, n - 1)])))
    return ops.reshape(moved, ops.constant(np.array([-1])), False)


def _pool(k: Kernel, c_in: int, c_out: int, x: Sequence[Any], weights: Weights) -> Any:
    stride, padding, _ = map(list, geometry(k))
    window = list(k.kernel_size)
    if k.op == "max_pool":
        return ops.max_pool(x[0], stride, [1] * len(window), padding, padding, window).output(0)
    return ops.avg_pool(x[0], stride, padding, padding, window, False)


def _global_pool(k: Kernel, c_in: int, c_out: int, x: Sequence[Any], weights: Weights) -> Any:
    axes = np.arange(2, 2 + len(k.spatial))
    return ops.reduce_mean(x[0], ops.constant(axes), True)


def _mul(k: Kernel, c_in: int, c_out: int, x: Sequence[Any], weights: Weights) -> Any:
    batch = x[0].get_output_shape(0)[0]
    return ops.multiply(x[0], ops.constant(weights((batch, c_in, *(1 for _ in k.spatial)))))


def _batch_norm(k: Kernel, c_in: int, c_out: int, x: Sequence[Any], weights: Weights) -> Any:
    values = [ops.constant(np.abs(weights((c_in,))) + np.float32(0.1)) for _ in range(4)]
    return ops.batch_norm_inference(x[0], *values, 1e-5)


def _layer_norm(k: Kernel, c_in: int, c_out: int, x: Sequence[Any], weights: Weights) -> Any:
    y = ops.mvn(x[0], ops.constant(np.array([-1])), True, 1e-5, "inside_sqrt")
    return ops.add(ops.multiply(y, ops.constant(weights((c_in,)))), ops.constant(weights((c_in,))))


def _interpolate(k: Kernel, c_in: int, c_out: int, x: Sequence[Any], weights: Weights) -> Any:
    sizes, axes = (ops.constant(np.array(v)) for v in (k.kernel_size, range(2, 2 + len(k.spatial))))
    return ops.interpolate(
        x[0], sizes, "nearest", "sizes", coordinate_transformation_mode="asymmetric", nearest_mode="floor", axes=axes
    )


_MAKERS: dict[str, Callable[[Kernel, int, int, Sequence[Any], Weights], Any]] = {
    "conv": _conv,
    "conv_transpose": _conv,
    "linear": _linear,
    "matmul": _matmul,
    "attention": _attention,
    "group_norm": _group_norm,
    "copy": _copy,
    "transpose": _transpose,
    "max_pool": _pool,
    "avg_pool": _pool,
    "global_pool": _global_pool,
    "add": lambda k, i, o, x, weights: ops.add(x[0], x[1]),
    "mul": _mul,
    "activation": lambda k, i, o, x, weights: _ACTIVATIONS[k.fused[0]](x[0]),
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "softmax": lambda k, i, o, x, weights: ops.softmax(x[0], -1),
    "cat": lambda k, i, o, x, weights: ops.concat(list(x), 1),
    "interpolate": _interpolate,
}

_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": ops.relu,
    "relu6": lambda y: ops.clamp(y, 0.0, 6.0),
    "silu": ops.swish,
    "hardswish": ops.hswish,
    "hardsigmoid": ops.hsigmoid,
    "sigmoid": ops.sigmoid,
    "tanh": ops.tanh,
    "gelu": lambda y: ops.gelu(y, "erf"),
    "leaky_relu": lambda y: ops.prelu(y, ops.constant(np.array([0.01], np.float32))),
    "elu": lambda y: ops.elu(y, 1.0),
    "mish": ops.mish,
}
