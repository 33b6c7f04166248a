"""What is timed: one operation as a runtime runs it inside a network, whatever network that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from halp_profiler.errors import TableError

OPS = (
    "conv", "conv_transpose", "linear", "matmul", "attention", "max_pool", "avg_pool", "global_pool", "add", "mul",
    "activation", "batch_norm", "layer_norm", "group_norm", "softmax", "cat", "copy", "transpose", "interpolate",
    "to_blocked", "to_plain",
)  # fmt: skip
SPATIAL_OPS = frozenset(OPS) - {"linear", "matmul", "attention", "layer_norm", "softmax"}
TWO_SIDED = frozenset({"conv", "conv_transpose", "linear", "matmul", "attention"})
"""Operations whose channels in and out may differ freely; the others pass their channels through."""

ACTIVATIONS = (
    "relu", "relu6", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh", "gelu", "leaky_relu", "elu", "mish",
)  # fmt: skip
_FUSABLE = frozenset({*ACTIVATIONS, "add"})
_MAX_CHANNELS = 1 << 20
_MAX_LAYERS = 1 << 20


@dataclass(frozen=True)
class Kernel:
    """One kind of operation; with ``(c_in, c_out)`` it is one measurable point.

    Tables are keyed by kernels and not by layer names, so layers that run the same
    kernel share their points and one table serves every network on its device.

    Attributes:
        op: one of ``OPS``.
        spatial: the input's size behind the channels, ``(H, W)`` for images; the number of rows (tokens)
            for ``linear``, ``layer_norm`` and ``softmax``; ``(products, rows)`` for ``matmul`` and ``attention``.
        kernel_size: of the window; for ``interpolate`` the output's spatial size; for ``attention`` the number of
            keys.
        stride, padding, dilation, output_padding: as torch has them; empty where they mean nothing.
        group_width: input channels of one convolution group; None for a dense convolution, 1 for depthwise; of
            ``group_norm`` the channels of one group.
        group_out: output channels of one convolution group; None for a dense convolution.
        fused: what runs behind it in the same pass, in order, e.g. ``("add", "relu")``. For ``activation``
            itself, the one function.
        plain: whether its input is in the framework's layout and not in the runtime's blocked one: of a
            convolution because it is the network's own input, of others because their producer left it so.
        groups: of a convolution whose number of groups is fixed while their width varies; ``c_in`` and ``c_out`` are
            then the channels of one group. None where there is one group, or where the width of each is fixed.
    """

    op: str
    spatial: tuple[int, ...] = ()
    kernel_size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    group_width: int | None = None
    group_out: int | None = None
    fused: tuple[str, ...] = ()
    plain: bool = False
    groups: int | None = None

    def __post_init__(self) -> None:
        if self.op not in OPS:
            raise _bad(f"the operation {self.op!r} is not known; known are {', '.join(OPS)}")
        for name in ("spatial", "kernel_size", "stride", "padding", "dilation", "output_padding"):
            value = getattr(self, name)
            if not all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v <= 1 << 16 for v in value):
                raise _bad(f"{name} is {value!r}, and must hold whole numbers from 0 to 65536")
        if len(self.spatial) > 3 or len(self.kernel_size) > 3:
            raise _bad(f"spatial {self.spatial} and kernel_size {self.kernel_size} may have three numbers at most")
        if (self.group_width is None) != (self.group_out is None):
            raise _bad("group_width and group_out go together")
        if self.groups is not None:
            if self.op not in ("conv", "conv_transpose"):
                raise _bad(f"an operation of kind {self.op} has no groups of varying width")
            if self.group_width is not None:
                raise _bad("groups of fixed number and of fixed width exclude each other")
            if not isinstance(self.groups, int) or isinstance(self.groups, bool) or not 2 <= self.groups <= 1 << 16:
                raise _bad(f"groups is {self.groups!r}, and must be a whole number from 2 to 65536")
        if unknown := [f for f in self.fused if f not in _FUSABLE]:
            raise _bad(f"{unknown[0]!r} cannot be fused; known are {', '.join(sorted(_FUSABLE))}")

    @property
    def diagonal(self) -> bool:
        """Whether ``c_out`` follows from ``c_in``, so that one axis describes the kernel."""
        return self.op not in TWO_SIDED or self.group_width is not None

    @property
    def family(self) -> str:
        """Kernels of one family have their steps at the same widths."""
        if self.op not in SPATIAL_OPS or len(self.spatial) != 2:
            return "rows"
        if self.plain and self.op not in ("conv", "conv_transpose"):
            return "copy"
        if self.layout_only:
            return "copy"
        if self.op in ("conv", "conv_transpose"):
            if self.groups is not None:
                return "groups"
            return self.op if self.group_width is None else "depthwise" if self.group_width == 1 else "grouped"
        if self.op in ("max_pool", "avg_pool", "global_pool"):
            return "pool"
        return "pointwise" if self.op in ("add", "activation", "batch_norm") else "copy"

    @property
    def misfit(self) -> str | None:
        """Why no runtime could run it; None when one may."""
        if self.op in ("conv", "conv_transpose") and len(self.kernel_size) != len(self.spatial):
            return "its window and its input have different numbers of dimensions"
        return None

    @property
    def layout_only(self) -> bool:
        """Whether it only moves a tensor between the framework's layout and the runtime's."""
        return self.op in ("to_blocked", "to_plain")

    @property
    def quantum(self) -> int:
        """The input channels come in multiples of this."""
        return 4 if self.op == "to_blocked" else self.group_width or 1

    def of_tensor(self, channels: int) -> int:
        """The channels of a whole tensor that it reads or makes, from those of the kernel."""
        return channels * (self.groups or 1)

    def c_out_of(self, c_in: int) -> int:
        """The output channels of a diagonal kernel."""
        if self.group_width and self.group_out:
            return c_in // self.group_width * self.group_out
        return c_in

    @property
    def key(self) -> str:
        """A canonical string that people can read: equal kernels have equal keys."""
        parts = [self.op]
        if self.spatial:
            parts.append("@" + "x".join(map(str, self.spatial)))
        for letter, value in (
            ("k", self.kernel_size), ("s", self.stride), ("p", self.padding), ("d", self.dilation),
            ("o", self.output_padding),
        ):  # fmt: skip
            if value:
                parts.append(letter + "x".join(map(str, value)))
        if self.group_width is not None:
            parts.append(f"g{self.group_width}:{self.group_out}")
        if self.groups is not None:
            parts.append(f"G{self.groups}")
        parts += ["+" + name for name in self.fused]
        return " ".join([*parts, "plain"] if self.plain else parts)

    def to_json(self) -> dict[str, Any]:
        """The fields that are not empty, as JSON values."""
        out: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if value not in ((), None, False):
                out[f.name] = list(value) if isinstance(value, tuple) else value
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Kernel:
        """The kernel of ``to_json``'s output; keys of other records are passed over.

        Raises:
            TableError: a field has the wrong type or an impossible value.
        """
        values: dict[str, Any] = {}
        for f in fields(cls):
            if f.name not in data or data[f.name] is None:
                continue
            value = data[f.name]
            if isinstance(value, list):
                if len(value) > 8:
                    raise _bad(f"{f.name} holds {len(value)} values")
                value = tuple(value)
            if not _fits(f.name, value):
                raise _bad(f"{f.name} is {str(value)[:60]!r}")
            values[f.name] = value
        if "op" not in values:
            raise _bad("the operation is missing")
        return cls(**values)


@dataclass(frozen=True)
class KernelRange:
    """The widths at which a network may need one kernel, both ends included.

    An axis whose ends are equal is fixed: only that width is measured.

    Attributes:
        kernel: what runs.
        c_in, c_out: least and most channels.
        layers: how many layers run it, so that a backend can tell how much memory the network touches.
    """

    kernel: Kernel
    c_in: tuple[int, int]
    c_out: tuple[int, int]
    layers: int = 1

    def __post_init__(self) -> None:
        for name in ("c_in", "c_out"):
            low, high = getattr(self, name)
            if not 1 <= low <= high <= _MAX_CHANNELS:
                raise _bad(f"{name} of {self.kernel.key!r} is {low} to {high}")
        if not 1 <= self.layers <= _MAX_LAYERS:
            raise _bad(f"{self.kernel.key!r} is in {self.layers} layers")

    def to_json(self) -> dict[str, Any]:
        ends = {"c_in": list(self.c_in), "c_out": list(self.c_out)}
        return {"kernel": self.kernel.to_json(), **ends, "layers": self.layers}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> KernelRange:
        """Raises TableError where ``data`` is not what ``to_json`` writes."""
        try:
            (a, b), (c, d) = data["c_in"], data["c_out"]
            layers = data.get("layers", 1)
            if not all(isinstance(v, int) and not isinstance(v, bool) for v in (a, b, c, d, layers)):
                raise TypeError
            kernel = data["kernel"]
            if not isinstance(kernel, Mapping):
                raise TypeError
        except (KeyError, TypeError, ValueError) as e:
            raise _bad("an entry needs `kernel`, `c_in` and `c_out`, the last two as [low, high]") from e
        return cls(Kernel.from_json(kernel), (a, b), (c, d), layers)


def _fits(name: str, value: Any) -> bool:
    if name == "op":
        return isinstance(value, str)
    if name == "plain":
        return isinstance(value, bool)
    if name in ("group_width", "group_out", "groups"):
        return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 65537
    return isinstance(value, tuple) and (name != "fused" or all(isinstance(v, str) for v in value))


def _bad(why: str) -> TableError:
    return TableError("A kernel cannot be understood", why, "Emit the sweep or measure the table again")
