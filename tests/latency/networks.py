"""Networks written down by hand, as a trace would give them."""

from __future__ import annotations

from dataclasses import dataclass

from halp_iee.graph.records import ChannelGroup, Op, Width


@dataclass(frozen=True)
class HandMade:
    ops: tuple[Op, ...]
    groups: tuple[ChannelGroup, ...]


class Drawing:
    """Writes operations one behind the other."""

    def __init__(self, size: int = 16, channels: int = 3) -> None:
        self.ops: list[Op] = []
        self.groups: dict[str, ChannelGroup] = {}
        self.shape = {0: (1, channels, size, size)}
        self.width = {0: Width(fixed=channels)}
        self.next = 1

    def group(self, name: str, size: int, prunable: bool = True) -> Width:
        self.groups[name] = ChannelGroup(name, size, (name,), prunable, None if prunable else "for a test")
        return Width(((name, size, 1),))

    def op(self, kind, *inputs, shape=None, width=None, module=None, name=None, **attrs) -> int:
        out = self.next
        self.next += 1
        first = inputs[0]
        self.shape[out] = tuple(shape or self.shape[first])
        self.width[out] = width or self.width[first]
        self.ops.append(
            Op(len(self.ops), kind, name or f"aten.{kind}", f"{kind}{out}" if module is None else module, inputs,
               (out,), self.shape[first], self.shape[out], self.width[first], self.width[out], attrs=attrs)
        )  # fmt: skip
        return out

    def conv(self, x, width: Width, k=3, stride=1, groups=1, module=None, **more) -> int:
        n, _, h, w = self.shape[x]
        shape = (n, width.full, -(-h // stride), -(-w // stride))
        return self.op(
            "conv", x, shape=shape, width=width, module=module, kernel_size=(k, k), stride=(stride, stride),
            padding=(k // 2, k // 2), dilation=(1, 1), output_padding=(0, 0), groups=groups, transposed=False,
            bias=False, **more,
        )  # fmt: skip

    def relu(self, x) -> int:
        return self.op("activation", x, function="relu")

    def done(self) -> HandMade:
        return HandMade(tuple(self.ops), tuple(self.groups.values()))


def residual_network(blocks: int = 2, channels: int = 32) -> HandMade:
    """A stem, residual blocks with a projection each, global pooling, a classifier."""
    d = Drawing()
    stream = d.group("stem", channels)
    x = d.relu(d.op("batch_norm", d.conv(0, stream, module="stem")))
    for i in range(blocks):
        inner, outer = d.group(f"b{i}.conv1", channels), d.group(f"b{i}.conv2", channels)
        y = d.relu(d.op("batch_norm", d.conv(x, inner, module=f"b{i}.conv1")))
        y = d.op("batch_norm", d.conv(y, outer, module=f"b{i}.conv2"))
        short = d.op("batch_norm", d.conv(x, outer, k=1, module=f"b{i}.short"))
        x = d.relu(d.op("add", y, short, width=outer))
    x = d.op("global_pool", x, shape=(1, channels, 1, 1), module="pool")
    x = d.op("view", x, shape=(1, channels))
    d.op("linear", x, shape=(1, 10), width=Width(fixed=10), module="fc")
    return d.done()
