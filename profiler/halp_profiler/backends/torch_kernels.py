"""Builds a kernel as a torch function: the operation and what runs behind it, BatchNorm folded away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from halp_profiler.geometry import geometry, output_spatial
from halp_profiler.kernel import SPATIAL_OPS, Kernel

Weights = Callable[[Sequence[int]], np.ndarray]
"""The weights of a shape, asked for in order: weight before bias."""

Tensors = tuple[torch.Tensor, ...]

_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_NOISE = np.random.default_rng(0).standard_normal(1 << 18).astype(np.float32) * np.float32(0.05)


@dataclass(frozen=True)
class Built:
    """A kernel as a function of its activation tensors and its weights.

    Attributes:
        function: (inputs, weights) -> output; writes to neither.
        inputs: x, and what is added, multiplied or concatenated, in this order.
        weights: of the operation.
    """

    function: Callable[[Tensors, Tensors], torch.Tensor]
    inputs: Tensors
    weights: Tensors

    def __call__(self) -> torch.Tensor:
        return self.function(self.inputs, self.weights)


def noise(shape: Sequence[int]) -> np.ndarray:
    """Values of a kind that a trained network holds: none of them denormal, which would be slow."""
    return np.resize(_NOISE, tuple(shape))


def refusal(kernel: Kernel) -> str | None:
    """Why this kernel cannot be built; None when it can."""
    if kernel.op not in _MAKERS:
        return f"operations of kind {kernel.op} are not known to this backend"
    if unknown := [name for name in kernel.fused if name != "add" and name not in _ACTIVATIONS]:
        return f"the activation {unknown[0]} is not known to this backend"
    return kernel.misfit


def build(
    kernel: Kernel, c_in: int, c_out: int, batch: int, *, place: Callable[[np.ndarray], torch.Tensor],
    weights: Weights = noise,
) -> Built:  # fmt: skip
    """The kernel with ``c_in`` channels in and ``c_out`` out.

    Args:
        kernel: one that ``refusal`` does not refuse.
        c_in, c_out: its channels.
        batch: images per call.
        place: puts an array where the kernel runs: device, element type, layout.
        weights: what the weights are.
    """
    images = kernel.op in SPATIAL_OPS
    shape = (batch, kernel.of_tensor(c_in), *kernel.spatial) if images else (batch, *kernel.spatial, c_in)
    inputs: list[np.ndarray]
    if kernel.op == "cat":
        first = _first_part(c_in)
        inputs = [noise((batch, c, *kernel.spatial)) for c in (first, c_in - first) if c]
    else:
        inputs = [noise(shape)]
    if kernel.op == "matmul":
        inputs.append(noise((batch, *kernel.spatial[:-1], c_in, c_out)))
    elif kernel.op == "attention":
        lead = (batch, kernel.spatial[0], kernel.kernel_size[0])
        inputs += [noise((*lead, c_in)), noise((*lead, c_out))]
    elif kernel.op == "mul":
        inputs.append(noise((batch, c_in, *(1 for _ in kernel.spatial))))
    elif kernel.op == "add":
        inputs.append(noise(shape))
    made = (batch, kernel.of_tensor(c_out), *output_spatial(kernel)) if images else (batch, *kernel.spatial, c_out)
    behind = () if kernel.op == "activation" else kernel.fused
    own = len(inputs)
    inputs += [noise(made) for name in behind if name == "add"]
    arrays, operation = _MAKERS[kernel.op](kernel, c_in, c_out, weights)

    def function(x: Tensors, w: Tensors) -> torch.Tensor:
        y = operation(x[:own], w)
        added = own
        for name in behind:
            if name == "add":
                y = y.add_(x[added])  # in place: the operation's result is this function's own
                added += 1
            else:
                y = _ACTIVATIONS[name](y, True)
        return y

    return Built(function, tuple(map(place, inputs)), tuple(map(place, arrays)))


def placing(device: str, dtype: torch.dtype, channels_last: bool) -> Callable[[np.ndarray], torch.Tensor]:
    """Puts arrays on ``device`` as ``dtype``; images and windows channels-last if so asked."""

    def place(values: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(values)).to(device=device, dtype=dtype)
        if channels_last and tensor.dim() in _LAST:
            tensor = tensor.contiguous(memory_format=_LAST[tensor.dim()])
        return tensor

    return place


_Operation = Callable[[Tensors, Tensors], torch.Tensor]
_Made = tuple[list[np.ndarray], _Operation]


def _conv(k: Kernel, c_in: int, c_out: int, weights: Weights) -> _Made:
    stride, padding, dilation = geometry(k)
    groups, n = k.groups or (c_in // k.group_width if k.group_width else 1), len(k.kernel_size)
    c_in, c_out = k.of_tensor(c_in), k.of_tensor(c_out)
    if k.op == "conv":
        conv = (F.conv1d, F.conv2d, F.conv3d)[n - 1]
        arrays = [weights((c_out, c_in // groups, *k.kernel_size)), weights((c_out,))]
        return arrays, lambda x, w: conv(x[0], w[0], w[1], stride, padding, dilation, groups)
    transposed: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[n - 1]
    arrays = [weights((c_in, c_out // groups, *k.kernel_size)), weights((c_out,))]
    extra = k.output_padding or (0,) * n
    return arrays, lambda x, w: transposed(x[0], w[0], w[1], stride, padding, extra, groups, dilation)


def _linear(k: Kernel, c_in: int, c_out: int, weights: Weights) -> _Made:
    return [weights((c_out, c_in)), weights((c_out,))], lambda x, w: F.linear(x[0], w[0], w[1])


def _pool(k: Kernel, c_in: int, c_out: int, weights: Weights) -> _Made:
    stride, padding, _ = geometry(k)
    n = len(k.spatial) - 1
    if k.op == "max_pool":
        largest = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[n]
        return [], lambda x, w: largest(x[0], k.kernel_size, stride, padding)
    mean: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[n]
    return [], lambda x, w: mean(x[0], k.kernel_size, stride, padding)


def _global_pool(k: Kernel, c_in: int, c_out: int, weights: Weights) -> _Made:
    over = tuple(range(2, 2 + len(k.spatial)))
    return [], lambda x, w: x[0].mean(over, keepdim=True)


def _batch_norm(k: Kernel, c_in: int, c_out: int, weights: Weights) -> _Made:
    arrays = [np.abs(weights((c_in,))) + np.float32(0.1) for _ in range(4)]
    return arrays, lambda x, w: F.batch_norm(x[0], w[2], w[3], w[0], w[1])


def _layer_norm(k: Kernel, c_in: int, c_out: int, weights: Weights) -> _Made:
    return [weights((c_in,)), weights((c_in,))], lambda x, w: F.layer_norm(x[0], (c_in,), w[0], w[1])


def _group_norm(k: Kernel, c_in: int, c_out: int, weights: Weights) -> _Made:
    groups = c_in // (k.group_width or c_in)
    return [weights((c_in,)), weights((c_in,))], lambda x, w: F.group_norm(x[0], groups, w[0], w[1])


def _copy(k: Kernel, c_in: int, c_out: int, weights: Weights) -> _Made:
    beside = (0, 0) * len(k.spatial)  # one channel more, so that it cannot be a view
    return [], lambda x, w: F.pad(x[0], (*beside, 0, 1))


def _transpose(k: Kernel, c_in: int, c_out: int, weights: Weights) -> _Made:
    n = 2 + len(k.spatial)
    order = (0, n - 1, *range(1, n - 1))
    return [], lambda x, w: x[0].permute(order).reshape(-1)


def _activation(k: Kernel, c_in: int, c_out: int, weights: Weights) -> _Made:
    function = _ACTIVATIONS[k.fused[0]]
    return [], lambda x, w: function(x[0], False)


def _first_part(channels: int) -> int:
    """About half, in whole blocks where that is possible: a copy costs what it moves, however it is divided."""
    return channels // 2 // 16 * 16 or max(1, channels // 2)


_MAKERS: dict[str, Callable[[Kernel, int, int, Weights], _Made]] = {
    "conv": _conv,
    "conv_transpose": _conv,
    "linear": _linear,
    "matmul": lambda k, i, o, weights: ([], lambda x, w: torch.matmul(x[0], x[1])),
    "attention": lambda k, i, o, weights: (
        [],
        lambda x, w: F.scaled_dot_product_attention(x[0], x[1], x[2]),
    ),
    "group_norm": _group_norm,
    "copy": _copy,
    "transpose": _transpose,
    "max_pool": _pool,
    "avg_pool": _pool,
    "global_pool": _global_pool,
    "add": lambda k, i, o, weights: ([], lambda x, w: torch.add(x[0], x[1])),
    "mul": lambda k, i, o, weights: ([], lambda x, w: torch.mul(x[0], x[1])),
    "activation": _activation,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "softmax": lambda k, i, o, weights: ([], lambda x, w: torch.softmax(x[0], -1)),
    "cat": lambda k, i, o, weights: ([], lambda x, w: torch.cat(x, 1)),
    "interpolate": lambda k, i, o, weights: ([], lambda x, w: F.interpolate(x[0], k.kernel_size, mode="nearest")),
}

_ACTIVATIONS: dict[str, Callable[[torch.Tensor, bool], torch.Tensor]] = {
    "relu": lambda y, own: F.relu(y, inplace=own),
    "relu6": lambda y, own: F.relu6(y, inplace=own),
    "silu": lambda y, own: F.silu(y, inplace=own),
    "hardswish": lambda y, own: F.hardswish(y, inplace=own),
    "hardsigmoid": lambda y, own: F.hardsigmoid(y, inplace=own),
    "sigmoid": lambda y, own: torch.sigmoid(y),
    "tanh": lambda y, own: torch.tanh(y),
    "gelu": lambda y, own: F.gelu(y),
    "leaky_relu": lambda y, own: F.leaky_relu(y, inplace=own),
    "elu": lambda y, own: F.elu(y, inplace=own),
    "mish": lambda y, own: F.mish(y, inplace=own),
}
"""Activation -> (tensor, whether it may be overwritten) -> its value; in place where torch's networks do so."""
