"""A kernel's operations as ONNX nodes, written as torch's exporter writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from halp_profiler.geometry import geometry, output_spatial
from halp_profiler.kernel import SPATIAL_OPS, Kernel

OPSET = 18
_NOISE = np.random.default_rng(0).standard_normal(1 << 18).astype(np.float32) * np.float32(0.05)
_HUGE = 16 << 20  # bytes
APART = "given"
"""Where a weight lies that is not in the model."""


@dataclass
class Drawing:
    """An ONNX graph in the making."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    prefix: str = ""
    """Goes before every name, so that a runtime's report says which part a node belongs to."""
    apart: bool = False
    """Leave huge weights out of the model. Whoever makes a session of it hands over zeros, which cost no memory."""

    def node(self, op: str, inputs: Sequence[str], **attrs: Any) -> str:
        out = f"{self.prefix}t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], name=out, **attrs))
        return out

    def weight(self, shape: Sequence[int], positive: bool = False) -> str:
        if self.apart and 4 * prod(shape) > _HUGE:
            stub = TensorProto(name=f"w{len(self.weights)}", data_type=TensorProto.FLOAT, dims=shape)
            stub.data_location = TensorProto.EXTERNAL
            stub.external_data.add(key="location", value=APART)
            self.weights.append(stub)
            return str(stub.name)
        values = np.resize(_NOISE, tuple(shape))
        return self.constant(np.abs(values) + np.float32(0.1) if positive else values)

    def constant(self, values: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def input(self, name: str, shape: Sequence[int]) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))
        return name

    def output(self, name: str) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "kernel", self.inputs, self.outputs, self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)


def operation(d: Drawing, kernel: Kernel, operands: Sequence[str], c_in: int, c_out: int, batch: int) -> str:
    """The kernel's own operation on ``operands``, the input first; without what is fused behind it."""
    return _BUILDERS[kernel.op](d, kernel, operands, c_in, c_out, batch)


def fuse(d: Drawing, kernel: Kernel, y: str, residual: Sequence[str]) -> str:
    """What is fused behind the operation; ``residual`` holds what is added, if anything."""
    for name in () if kernel.op == "activation" else kernel.fused:
        y = d.node("Add", [y, residual[0]]) if name == "add" else activation(d, name, y)
    return y


def input_shape(kernel: Kernel, c_in: int, batch: int) -> tuple[int, ...]:
    """Shape of the activation tensor that the kernel reads."""
    c_in = kernel.of_tensor(c_in)
    if kernel.op in SPATIAL_OPS:
        return (batch, c_in, *kernel.spatial)
    return (batch, *kernel.spatial, c_in)


def output_shape(kernel: Kernel, c_out: int, batch: int) -> tuple[int, ...]:
    """Shape of what it makes."""
    c_out = kernel.of_tensor(c_out)
    if kernel.op not in SPATIAL_OPS:
        return (batch, *kernel.spatial, c_out)
    return (batch, c_out, *output_spatial(kernel))


def activation(d: Drawing, name: str, x: str) -> str:
    """The activation as torch's exporter writes it, and ONNX Runtime takes apart what it has no kernel for: the parts
    would have no names in its report."""

    def scalar(value: float) -> str:
        return d.constant(np.asarray(value, np.float32))

    match name:
        case "relu":
            return d.node("Relu", [x])
        case "relu6":
            return d.node("Clip", [x, scalar(0), scalar(6)])
        case "silu":
            return d.node("Mul", [x, d.node("Sigmoid", [x])])
        case "hardswish":
            return d.node("Mul", [x, d.node("HardSigmoid", [x], alpha=1 / 6, beta=0.5)])
        case "hardsigmoid":
            return d.node("HardSigmoid", [x], alpha=1 / 6, beta=0.5)
        case "mish":
            return d.node("Mul", [x, d.node("Tanh", [d.node("Softplus", [x])])])
        case "gelu":
            erf = d.node("Erf", [d.node("Div", [x, scalar(2**0.5)])])
            return d.node("Mul", [d.node("Mul", [x, d.node("Add", [erf, scalar(1)])]), scalar(0.5)])
        case _:
            return d.node({"sigmoid": "Sigmoid", "tanh": "Tanh", "leaky_relu": "LeakyRelu", "elu": "Elu"}[name], [x])


def _conv(d: Drawing, k: Kernel, xs: Sequence[str], c_in: int, c_out: int, batch: int) -> str:
    stride, padding, dilation = geometry(k)
    groups = k.groups or (c_in // k.group_width if k.group_width else 1)
    c_in, c_out = k.of_tensor(c_in), k.of_tensor(c_out)
    attrs: dict[str, Any] = {
        "kernel_shape": k.kernel_size, "strides": stride, "pads": (*padding, *padding), "dilations": dilation,
        "group": groups,
    }  # fmt: skip
    if k.op == "conv":
        w = d.weight((c_out, c_in // groups, *k.kernel_size))
        return d.node("Conv", [xs[0], w, d.weight((c_out,))], **attrs)
    w = d.weight((c_in, c_out // groups, *k.kernel_size))
    attrs["output_padding"] = k.output_padding or (0,) * len(k.kernel_size)
    return d.node("ConvTranspose", [xs[0], w, d.weight((c_out,))], **attrs)


def _linear(d: Drawing, k: Kernel, xs: Sequence[str], c_in: int, c_out: int, batch: int) -> str:
    if not k.spatial:
        return d.node("Gemm", [xs[0], d.weight((c_out, c_in)), d.weight((c_out,))], transB=1)
    return d.node("Add", [d.node("MatMul", [xs[0], d.weight((c_in, c_out))]), d.weight((c_out,))])


def _attention(d: Drawing, k: Kernel, xs: Sequence[str], c_in: int, c_out: int, batch: int) -> str:
    """Scaled dot-product attention as torch's exporter writes it."""
    scale = d.constant(np.asarray(c_in**-0.25, np.float32))
    q = d.node("Mul", [xs[0], scale])
    keys = d.node("Mul", [d.node("Transpose", [xs[1]], perm=[0, 1, 3, 2]), scale])
    return d.node("MatMul", [d.node("Softmax", [d.node("MatMul", [q, keys])], axis=-1), xs[2]])


def _pool(d: Drawing, k: Kernel, xs: Sequence[str], c_in: int, c_out: int, batch: int) -> str:
    stride, padding, _ = geometry(k)
    op = {"max_pool": "MaxPool", "avg_pool": "AveragePool"}[k.op]
    extra = {} if k.op == "max_pool" else {"count_include_pad": 1}
    return d.node(op, xs[:1], kernel_shape=k.kernel_size, strides=stride, pads=(*padding, *padding), **extra)


def _global_pool(d: Drawing, k: Kernel, xs: Sequence[str], c_in: int, c_out: int, batch: int) -> str:
    """As torch's exporter writes it, which is no pooling operator."""
    axes = d.constant(np.arange(2, 2 + len(k.spatial), dtype=np.int64))
    return d.node("ReduceMean", [xs[0], axes], keepdims=1)


def _batch_norm(d: Drawing, k: Kernel, xs: Sequence[str], c_in: int, c_out: int, batch: int) -> str:
    return d.node("BatchNormalization", [xs[0], *(d.weight((c_in,), positive=True) for _ in range(4))])


def _layer_norm(d: Drawing, k: Kernel, xs: Sequence[str], c_in: int, c_out: int, batch: int) -> str:
    return d.node("LayerNormalization", [xs[0], d.weight((c_in,)), d.weight((c_in,))], axis=-1)


def _group_norm(d: Drawing, k: Kernel, xs: Sequence[str], c_in: int, c_out: int, batch: int) -> str:
    """As torch's exporter writes it: an instance normalisation of the groups, then a scale and a shift a channel."""
    groups = c_in // (k.group_width or c_in)
    flat = d.node("Reshape", [xs[0], d.constant(np.asarray([batch, groups, -1], np.int64))])
    one, zero = (d.constant(np.full(groups, v, np.float32)) for v in (1, 0))
    back = d.constant(np.asarray([batch, c_in, *k.spatial], np.int64))
    y = d.node("Reshape", [d.node("InstanceNormalization", [flat, one, zero]), back])
    shape = (c_in, *(1 for _ in k.spatial))
    return d.node("Add", [d.node("Mul", [y, d.weight(shape)]), d.weight(shape)])


def _copy(d: Drawing, k: Kernel, xs: Sequence[str], c_in: int, c_out: int, batch: int) -> str:
    """Moves every value once, as a slice, a split, a padding or a roll does."""
    edge = [0] * (2 + len(k.spatial))
    pads = d.constant(np.asarray([*edge, 0, 1, *edge[2:]], np.int64))
    return d.node("Pad", [xs[0], pads])


def _transpose(d: Drawing, k: Kernel, xs: Sequence[str], c_in: int, c_out: int, batch: int) -> str:
    """Brings the last axis before the others, as a permutation or a channel shuffle does."""
    n = 2 + len(k.spatial)
    moved = d.node("Transpose", xs[:1], perm=[0, n - 1, *range(1, n - 1)])
    return d.node("Reshape", [moved, d.constant(np.asarray([-1], np.int64))])  # else a runtime moves it elsewhere


def first_part(channels: int) -> int:
    """About half, in whole blocks where that is possible: a copy costs what it moves, however it is divided."""
    return channels // 2 // 16 * 16 or max(1, channels // 2)


def _interpolate(d: Drawing, k: Kernel, xs: Sequence[str], c_in: int, c_out: int, batch: int) -> str:
    scales = [1.0, 1.0, *(o / i for o, i in zip(k.kernel_size, k.spatial, strict=True))]
    return d.node("Resize", [xs[0], "", d.constant(np.asarray(scales, np.float32))], mode="nearest")


_BUILDERS = {
    "conv": _conv,
    "conv_transpose": _conv,
    "linear": _linear,
    "matmul": lambda d, k, xs, i, o, b: d.node("MatMul", xs),
    "attention": _attention,
    "max_pool": _pool,
    "avg_pool": _pool,
    "global_pool": _global_pool,
    "add": lambda d, k, xs, i, o, b: d.node("Add", xs),
    "mul": lambda d, k, xs, i, o, b: d.node("Mul", xs),
    "activation": lambda d, k, xs, i, o, b: activation(d, k.fused[0], xs[0]),
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "softmax": lambda d, k, xs, i, o, b: d.node("Softmax", xs[:1], axis=-1),
    "cat": lambda d, k, xs, i, o, b: d.node("Concat", xs, axis=1),
    "copy": _copy,
    "transpose": _transpose,
    "interpolate": _interpolate,
}
