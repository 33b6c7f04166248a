"""Builds a kernel as a tiny ONNX network: the kernel between two others, so that a runtime treats it as inside one.

    probe -> [1x1 convolution] -> x -> KERNEL (+ z) -> y -> [1x1 convolution]

The neighbours are there to be cut away again once the runtime has chosen its
kernels and layouts; the one in front is also an output of the network, so that nothing fuses with it.
Without an activation tensor in image layout (linear layers, attention) there are no neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from halp_profiler.geometry import geometry, output_spatial
from halp_profiler.kernel import SPATIAL_OPS, Kernel

OPSET = 18
_NOISE = np.random.default_rng(0).standard_normal(1 << 18).astype(np.float32) * np.float32(0.05)


@dataclass
class Drawing:
    """An ONNX graph in the making."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)

    def node(self, op: str, inputs: Sequence[str], **attrs: Any) -> str:
        out = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], name=out, **attrs))
        return out

    def weight(self, shape: Sequence[int], positive: bool = False) -> str:
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


def build(kernel: Kernel, c_in: int, c_out: int, batch: int) -> onnx.ModelProto:
    """The network that holds one kernel; its inputs are ``probe_x`` (or ``x``) and, for two-sided ones, ``probe_z``."""
    d = Drawing()
    first = _first_part(c_in) if kernel.op == "cat" else c_in
    x = _source(d, "x", kernel, input_shape(kernel, first, batch))
    y = _BUILDERS[kernel.op](d, kernel, x, c_in, c_out, batch)
    for name in () if kernel.op == "activation" else kernel.fused:
        if name == "add":
            y = d.node("Add", [y, _source(d, "z", kernel, output_shape(kernel, c_out, batch))])
        else:
            y = activation(d, name, y)
    if has_next(kernel):
        y = d.node("Conv", [y, d.weight((16, c_out, 1, 1))], kernel_shape=[1, 1])
    d.output(y)
    return d.model()


def has_next(kernel: Kernel) -> bool:
    """Whether a convolution follows in the network that ``build`` makes."""
    return kernel.op in SPATIAL_OPS and len(kernel.spatial) == 2 and kernel.op != "global_pool"


def _source(d: Drawing, name: str, kernel: Kernel, shape: tuple[int, ...]) -> str:
    """An activation tensor as a layer before this one would have left it."""
    if kernel.op not in SPATIAL_OPS or len(shape) != 4 or (kernel.plain and name == "x"):
        return d.input(name, shape)
    probe = d.input(f"probe_{name}", (shape[0], 1, *shape[2:]))
    out = d.node("Conv", [probe, d.weight((shape[1], 1, 1, 1))], kernel_shape=[1, 1])
    d.output(out)
    return out


def input_shape(kernel: Kernel, c_in: int, batch: int) -> tuple[int, ...]:
    """Shape of the activation tensor that the kernel reads."""
    if kernel.op in SPATIAL_OPS:
        return (batch, c_in, *kernel.spatial)
    return (batch, *kernel.spatial, c_in)


def output_shape(kernel: Kernel, c_out: int, batch: int) -> tuple[int, ...]:
    """Shape of what it makes."""
    if kernel.op not in SPATIAL_OPS:
        return (batch, *kernel.spatial, c_out)
    return (batch, c_out, *output_spatial(kernel))


def activation(d: Drawing, name: str, x: str) -> str:
    """The activation as torch's exporter writes it."""

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
            return d.node("HardSwish", [x])
        case "hardsigmoid":
            return d.node("HardSigmoid", [x], alpha=1 / 6, beta=0.5)
        case "mish":
            return d.node("Mish", [x])
        case "gelu":
            erf = d.node("Erf", [d.node("Div", [x, scalar(2**0.5)])])
            return d.node("Mul", [d.node("Mul", [x, d.node("Add", [erf, scalar(1)])]), scalar(0.5)])
        case _:
            return d.node({"sigmoid": "Sigmoid", "tanh": "Tanh", "leaky_relu": "LeakyRelu", "elu": "Elu"}[name], [x])


def _conv(d: Drawing, k: Kernel, x: str, c_in: int, c_out: int, batch: int) -> str:
    stride, padding, dilation = geometry(k)
    groups = c_in // k.group_width if k.group_width else 1
    attrs: dict[str, Any] = {
        "kernel_shape": k.kernel_size, "strides": stride, "pads": (*padding, *padding), "dilations": dilation,
        "group": groups,
    }  # fmt: skip
    if k.op == "conv":
        w = d.weight((c_out, c_in // groups, *k.kernel_size))
        return d.node("Conv", [x, w, d.weight((c_out,))], **attrs)
    w = d.weight((c_in, c_out // groups, *k.kernel_size))
    attrs["output_padding"] = k.output_padding or (0,) * len(k.kernel_size)
    return d.node("ConvTranspose", [x, w, d.weight((c_out,))], **attrs)


def _linear(d: Drawing, k: Kernel, x: str, c_in: int, c_out: int, batch: int) -> str:
    if not k.spatial:
        return d.node("Gemm", [x, d.weight((c_out, c_in)), d.weight((c_out,))], transB=1)
    return d.node("Add", [d.node("MatMul", [x, d.weight((c_in, c_out))]), d.weight((c_out,))])


def _matmul(d: Drawing, k: Kernel, x: str, c_in: int, c_out: int, batch: int) -> str:
    return d.node("MatMul", [x, d.input("z", (batch, *k.spatial[:-1], c_in, c_out))])


def _pool(d: Drawing, k: Kernel, x: str, c_in: int, c_out: int, batch: int) -> str:
    stride, padding, _ = geometry(k)
    op = {"max_pool": "MaxPool", "avg_pool": "AveragePool"}[k.op]
    extra = {} if k.op == "max_pool" else {"count_include_pad": 1}
    return d.node(op, [x], kernel_shape=k.kernel_size, strides=stride, pads=(*padding, *padding), **extra)


def _batch_norm(d: Drawing, k: Kernel, x: str, c_in: int, c_out: int, batch: int) -> str:
    return d.node("BatchNormalization", [x, *(d.weight((c_in,), positive=True) for _ in range(4))])


def _layer_norm(d: Drawing, k: Kernel, x: str, c_in: int, c_out: int, batch: int) -> str:
    return d.node("LayerNormalization", [x, d.weight((c_in,)), d.weight((c_in,))], axis=-1)


def _mul(d: Drawing, k: Kernel, x: str, c_in: int, c_out: int, batch: int) -> str:
    # The common multiplication is a gate: one factor a channel, as in squeeze-and-excite.
    return d.node("Mul", [x, d.input("z", (batch, c_in, *(1 for _ in k.spatial)))])


def _add(d: Drawing, k: Kernel, x: str, c_in: int, c_out: int, batch: int) -> str:
    return d.node("Add", [x, _source(d, "z", k, input_shape(k, c_in, batch))])


def _cat(d: Drawing, k: Kernel, x: str, c_in: int, c_out: int, batch: int) -> str:
    rest = _source(d, "z", k, (batch, c_in - _first_part(c_in), *k.spatial))
    return d.node("Concat", [x, rest], axis=1)


def _first_part(channels: int) -> int:
    """About half, in whole blocks where that is possible: a copy costs what it moves, however it is divided."""
    return channels // 2 // 16 * 16 or max(1, channels // 2)


def _interpolate(d: Drawing, k: Kernel, x: str, c_in: int, c_out: int, batch: int) -> str:
    scales = [1.0, 1.0, *(o / i for o, i in zip(k.kernel_size, k.spatial, strict=True))]
    return d.node("Resize", [x, "", d.constant(np.asarray(scales, np.float32))], mode="nearest")


_BUILDERS = {
    "conv": _conv,
    "conv_transpose": _conv,
    "linear": _linear,
    "matmul": _matmul,
    "max_pool": _pool,
    "avg_pool": _pool,
    "global_pool": lambda d, k, x, i, o, b: d.node("GlobalAveragePool", [x]),
    "add": _add,
    "mul": _mul,
    "activation": lambda d, k, x, i, o, b: activation(d, k.fused[0], x),
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "softmax": lambda d, k, x, i, o, b: d.node("Softmax", [x], axis=-1),
    "cat": _cat,
    "interpolate": _interpolate,
}
