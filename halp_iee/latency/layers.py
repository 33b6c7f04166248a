"""From the operations that a network executed to the kernels that a runtime makes of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from halp_iee.graph.records import ChannelGroup, Op, Width
from halp_profiler.errors import HalpError
from halp_profiler.kernel import ACTIVATIONS, Kernel, KernelRange
from halp_profiler.sweep import merged

FREE = frozenset({"view", "reshape", "flatten", "dropout", "identity", "expand"})
"""Kinds that move no data, or whose move the runtime folds into its neighbours."""

_ALIASES = frozenset({
    "clone", "contiguous", "detach", "alias", "lift_fresh", "_to_copy", "to", "positive", "dropout", "native_dropout",
    "feature_dropout", "alpha_dropout", "feature_alpha_dropout",
})  # fmt: skip

_ROOTS = frozenset({"conv", "conv_transpose", "linear"})
_SAME_FUNCTION = {
    "hardtanh": "relu6", "swish": "silu", "hard_swish": "hardswish", "hard_sigmoid": "hardsigmoid",
    "leakyrelu": "leaky_relu", "relu_": "relu", "silu_": "silu", "hardswish_": "hardswish", "hardtanh_": "relu6",
}  # fmt: skip


class Traced(Protocol):
    """The part of a ChannelGraph that is read here."""

    @property
    def ops(self) -> tuple[Op, ...]: ...
    @property
    def groups(self) -> tuple[ChannelGroup, ...]: ...


@dataclass(frozen=True)
class Layer:
    """One kernel that the network runs.

    Attributes:
        name: qualified name of the module that begins it; ``name#2`` where a module runs twice.
        kernel: what runs, with all that is fused behind it.
        c_in, c_out: channels in and out, as functions of the groups' widths; of a kernel with a fixed number of
            groups those of one group.
        ops: indices of the operations that it stands for.
        reads: the tensors that it reads, its own input first.
        makes: the tensor that it makes.
    """

    name: str
    kernel: Kernel
    c_in: Width
    c_out: Width
    ops: tuple[int, ...]
    reads: tuple[int, ...] = ()
    makes: int | None = None

    @property
    def made(self) -> Width:
        """Channels of the tensor that it makes."""
        return self.c_out.times(self.kernel.groups or 1)


@dataclass(frozen=True)
class Unmodelled:
    """An operation for which no kernel is known; calibration absorbs what it costs.

    Attributes:
        op: index of the operation.
        name: what ran, and in which module.
        reason: why there is no kernel, in words.
    """

    op: int
    name: str
    reason: str


def layers_of(graph: Traced) -> tuple[Layer, ...]:
    """The kernels of a network, in execution order.

    A convolution or linear layer takes with it the BatchNorm behind it, then the residual addition, then the
    activation, wherever the tensor in between has no other reader: so do the runtimes. A residual addition
    goes to the last of its producers to run. What moves no data costs nothing.
    """
    return _walk(graph)[0]


def unmodelled_of(graph: Traced) -> tuple[Unmodelled, ...]:
    """The operations that ``layers_of`` has no kernel for."""
    return _walk(graph)[1]


def is_alias(op: Op) -> bool:
    """Whether what an operation makes is its input, once exported: it costs nothing and leaves the layout alone."""
    return op.kind in ("dropout", "identity") or op.name.removeprefix("aten.").split(".")[0] in _ALIASES


def sweep_plan(graph: Traced) -> tuple[KernelRange, ...]:
    """What must be measured so that every width of the network can be predicted: one range a kernel.

    An axis whose groups cannot be pruned is fixed at its full width.
    """
    fixed = {g.name for g in graph.groups if not g.prunable}
    ranges = []
    for layer in layers_of(graph):
        low_in, low_out = _least(layer.c_in, fixed), _least(layer.c_out, fixed)
        ranges.append(KernelRange(layer.kernel, (low_in, layer.c_in.full), (low_out, layer.c_out.full)))
    return merged(ranges)


def _least(width: Width, fixed: set[str]) -> int:
    low = width.fixed + sum(per * (size if name in fixed else 1) for name, size, per in width.terms)
    return max(1, low)


def _walk(graph: Traced) -> tuple[tuple[Layer, ...], tuple[Unmodelled, ...]]:
    ops = graph.ops
    readers: dict[int, list[int]] = defaultdict(list)
    maker: dict[int, int] = {}
    for at, op in enumerate(ops):
        for tensor in set(op.inputs):
            readers[tensor].append(at)
        maker.update(dict.fromkeys(op.outputs, at))
    batch = next((op.in_shape[0] for op in ops if op.in_shape), 1)
    taken: set[int] = set()
    layers: list[Layer] = []
    missing: list[Unmodelled] = []
    names: Counter[str] = Counter()
    for at, op in enumerate(ops):
        if at in taken or op.kind in FREE or is_alias(op):
            continue
        try:
            kernel = _kernel(op, max(1, batch))
        except (_NoKernelError, HalpError) as e:
            missing.append(Unmodelled(op.index, f"{op.name} in {op.module or 'the network'}", str(e)))
            continue
        if kernel is None:
            continue
        if kernel.op in ("conv", "conv_transpose") and op.inputs and _from_outside(op.inputs[0], ops, maker):
            kernel = replace(kernel, plain=True)
        chain = _behind(at, ops, readers, maker, taken)
        taken.update(chain)
        fused = tuple(
            "add" if ops[i].kind == "add" else _function(ops[i]) for i in chain if ops[i].kind != "batch_norm"
        )
        last = ops[chain[-1]] if chain else op
        name = op.module or op.kind
        names[name] += 1
        through = kernel.diagonal and (kernel.group_width is None or kernel.op == "group_norm")
        into = op.c_out if through and op.kind != "split" else op.c_in
        made = op.c_in if op.kind == "split" else op.c_out if through or op.kind in _ROOTS else last.c_out
        if kernel.groups:
            into, made = into.part(kernel.groups), made.part(kernel.groups)
        layers.append(
            Layer(
                name=name if names[name] == 1 else f"{name}#{names[name]}",
                kernel=replace(kernel, fused=kernel.fused + fused),
                c_in=into,
                c_out=made,
                ops=(op.index, *(ops[i].index for i in chain)),
                reads=_reads(op, [ops[i] for i in chain]),
                makes=last.outputs[0] if last.outputs else None,
            )
        )
    return tuple(layers), tuple(missing)


def _reads(first: Op, chain: Sequence[Op]) -> tuple[int, ...]:
    """What a layer reads from outside of itself, in order."""
    own = {tensor for op in (first, *chain) for tensor in op.outputs}
    return tuple(dict.fromkeys(t for op in (first, *chain) for t in op.inputs if t not in own))


def _behind(
    at: int, ops: Sequence[Op], readers: dict[int, list[int]], maker: dict[int, int], taken: set[int]
) -> list[int]:
    """Positions of the operations that run in the same pass as the one at ``at``."""
    kind = ops[at].kind
    allowed = {"batch_norm": {"activation"}, "add": {"activation"}}.get(kind)
    if allowed is None:
        allowed = {"batch_norm", "add", "activation"} if kind in _ROOTS else set()
    chain: list[int] = []
    tensor = ops[at].outputs[0] if ops[at].outputs else None
    while allowed and tensor is not None and len(readers[tensor]) == 1:
        following = readers[tensor][0]
        op = ops[following]
        if following in taken or op.kind not in allowed:
            break
        if op.kind == "add" and not _last_producer(tensor, op, ops, maker):
            break
        if op.kind == "activation" and _function(op) not in ACTIVATIONS:
            break
        chain.append(following)
        allowed = {"batch_norm": {"add", "activation"}, "add": {"activation"}, "activation": set()}[op.kind]
        tensor = op.outputs[0] if op.outputs else None
    return chain


def _last_producer(tensor: int, add: Op, ops: Sequence[Op], maker: dict[int, int]) -> bool:
    others = [t for t in add.inputs if t != tensor]
    if len(others) != 1:
        return False  # a constant is added, or the tensor to itself
    return maker.get(others[0], -1) < maker.get(tensor, -1)


def _from_outside(tensor: int, ops: Sequence[Op], maker: dict[int, int]) -> bool:
    """Whether the tensor is the network's own input, as it is or only looked at differently."""
    while tensor in maker:
        op = ops[maker[tensor]]
        if op.kind not in FREE or not op.inputs:
            return False
        tensor = op.inputs[0]
    return True


class _NoKernelError(Exception):
    """Why an operation has no kernel."""


def _function(op: Op) -> str:
    name = str(op.attrs.get("function", "")).lower()
    return _SAME_FUNCTION.get(name, name)


def _kernel(op: Op, batch: int) -> Kernel | None:
    """The kernel of one operation; None where it costs nothing."""
    make = _RULES.get(op.kind)
    if make is None:
        raise _NoKernelError(f"no kernel is known for operations of kind {op.kind!r}")
    return make(op, batch)


def _ints(op: Op, name: str, n: int, default: int) -> tuple[int, ...]:
    value = op.attrs.get(name)
    if value is None or value == ():
        return (default,) * n
    if isinstance(value, str):
        raise _NoKernelError(f"{name} is {value!r}")
    if isinstance(value, Iterable):
        values = tuple(int(v) for v in value)
        return values * n if len(values) == 1 else values
    return (int(value),) * n


def _conv(op: Op, batch: int) -> Kernel:
    n = len(op.in_shape) - 2
    groups = int(op.attrs.get("groups", 1))
    transposed = op.kind == "conv_transpose" or bool(op.attrs.get("transposed"))
    stays = groups > 1 and bool(op.attrs.get("keeps_groups"))
    if stays and not (op.c_in.divisible(groups) and op.c_out.divisible(groups)):
        raise _NoKernelError(f"its {groups} groups do not all have as many channels")
    dilation, extra = _ints(op, "dilation", n, 1), _ints(op, "output_padding", n, 0)
    return Kernel(
        op="conv_transpose" if transposed else "conv",
        spatial=tuple(op.in_shape[2:]),
        kernel_size=_ints(op, "kernel_size", n, 1),
        stride=_ints(op, "stride", n, 1),
        padding=_ints(op, "padding", n, 0),
        dilation=dilation if max(dilation, default=1) > 1 else (),
        output_padding=extra if any(extra) else (),
        group_width=op.c_in.full // groups if groups > 1 and not stays else None,
        group_out=op.c_out.full // groups if groups > 1 and not stays else None,
        groups=groups if stays else None,
    )


def _rows(shape: tuple[int, ...], batch: int) -> tuple[int, ...]:
    """Rows of an operation on the last axis, per image; () for one row an image."""
    if len(shape) <= 2 and shape[0] == batch:
        return ()
    return (max(1, int(np.prod(shape[:-1])) // batch),)


def _row_kernel(name: str) -> Callable[[Op, int], Kernel]:
    return lambda op, batch: Kernel(name, spatial=_rows(op.in_shape, batch))


def _matmul(op: Op, batch: int) -> Kernel:
    if len(op.inputs) != 2 or len(op.in_shape) < 3:
        raise _NoKernelError("it multiplies something else than two activation tensors")
    products = max(1, int(np.prod(op.in_shape[:-2])) // batch)
    return Kernel("matmul", spatial=(products, op.in_shape[-2]))


def _pool(op: Op, batch: int) -> Kernel | None:
    spatial, out = tuple(op.in_shape[2:]), tuple(op.out_shape[2:])
    n = len(spatial)
    if not op.attrs.get("kernel_size"):  # adaptive: the window follows from the sizes
        if spatial == out:
            return None
        window = tuple(-(-i // o) for i, o in zip(spatial, out, strict=True))
        stride = tuple(i // o for i, o in zip(spatial, out, strict=True))
        return Kernel(op.kind, spatial=spatial, kernel_size=window, stride=stride, padding=(0,) * n)
    window = _ints(op, "kernel_size", n, 1)
    stride = _ints(op, "stride", n, 1) if op.attrs.get("stride") else window
    return Kernel(op.kind, spatial=spatial, kernel_size=window, stride=stride, padding=_ints(op, "padding", n, 0))


def _elementwise(op: Op, batch: int) -> Kernel:
    # The output's shape: the first input may be a gate of one value a channel.
    if op.kind in ("add", "mul", "div") and len(op.inputs) < 2:
        raise _NoKernelError("it has one activation tensor and a constant, which runtimes fold away")
    shape = op.out_shape
    spatial = tuple(shape[2:]) if len(shape) in (3, 4, 5) else _rows(shape, batch)
    return Kernel("mul" if op.kind == "div" else op.kind, spatial=spatial)


def _activation(op: Op, batch: int) -> Kernel:
    function = _function(op)
    if function not in ACTIVATIONS:
        raise _NoKernelError(f"the activation {function or op.name!r} is not known")
    return replace(_elementwise(op, batch), fused=(function,))


def _attention(op: Op, batch: int) -> Kernel:
    if len(op.in_shape) != 4:
        raise _NoKernelError("its heads are not apart")
    heads, rows = op.in_shape[0] * op.in_shape[1] // batch, op.in_shape[2]
    return Kernel("attention", spatial=(heads, rows), kernel_size=(rows,))


def _group_norm(op: Op, batch: int) -> Kernel:
    groups = op.attrs.get("group") or op.attrs.get("num_groups")
    if not isinstance(groups, int) or len(op.in_shape) not in (3, 4, 5):
        raise _NoKernelError("the number of its groups is not known")
    width = op.c_out.full // groups
    return Kernel("group_norm", spatial=tuple(op.in_shape[2:]), group_width=width, group_out=width)


def _moved(op: Op, batch: int) -> Kernel:
    """What copies a tensor, or a part of one."""
    shape, width = (op.in_shape, op.c_in) if op.kind == "split" else (op.out_shape, op.c_out)
    return Kernel("copy", spatial=_beside(shape, width.full, batch))


def _permute(op: Op, batch: int) -> Kernel | None:
    order = op.attrs.get("dims")
    n = len(op.in_shape)
    if not isinstance(order, tuple):
        swap = [op.attrs.get(name) for name in ("dim0", "dim1")]
        if not all(isinstance(d, int) for d in swap):
            raise _NoKernelError("the order of its axes is not known")
        axes = list(range(n))
        a, b = (int(d) % n for d in swap if isinstance(d, int))
        axes[a], axes[b] = axes[b], axes[a]
        order = tuple(axes)
    moved = [d % n for d in order if op.in_shape[d] > 1]
    if moved == sorted(moved):
        return None  # only axes of length one change places
    return Kernel("transpose", spatial=_beside(op.out_shape, op.c_out.full, batch))


def _beside(shape: tuple[int, ...], channels: int, batch: int) -> tuple[int, ...]:
    """How many values of every channel there are, an image: as a size where it is one, else as a number."""
    if len(shape) == 4 and shape[1] == channels:
        return tuple(shape[2:])
    return (max(1, int(np.prod(shape)) // max(1, channels * batch)),)


def _interpolate(op: Op, batch: int) -> Kernel:
    return Kernel("interpolate", spatial=tuple(op.in_shape[2:]), kernel_size=tuple(op.out_shape[2:]))


_RULES: dict[str, Callable[[Op, int], Kernel | None]] = {
    "conv": _conv,
    "conv_transpose": _conv,
    "linear": _row_kernel("linear"),
    "layer_norm": _row_kernel("layer_norm"),
    "softmax": _row_kernel("softmax"),
    "matmul": _matmul,
    "max_pool": _pool,
    "avg_pool": _pool,
    "global_pool": lambda op, batch: Kernel("global_pool", spatial=tuple(op.in_shape[2:])),
    "batch_norm": _elementwise,
    "add": _elementwise,
    "mul": _elementwise,
    "cat": _elementwise,
    "activation": _activation,
    "interpolate": _interpolate,
    "attention": _attention,
    "group_norm": _group_norm,
    "div": _elementwise,
    "split": _moved,
    "slice": _moved,
    "pad": _moved,
    "roll": _moved,
    "stack": _moved,
    "pixel_shuffle": _moved,
    "permute": _permute,
}
