"""In which layout every tensor of a network is, and what it costs to bring it into another.

ONNX Runtime on a CPU keeps images in blocks of 8 or 16 channels wherever it can: a convolution runs blocked if its
input channels are a multiple of 4 or fewer than a block (it then reads the plain layout and writes blocks), a
depthwise one if its channels are a multiple of 4, a grouped one if its groups are whole blocks (where their width
varies and not their number: at the widths at which they are), a pooling window if its channels are whole blocks.
Addition, activation, BatchNorm and concatenation stay in the layout in which they find their input, concatenation only
where its channels are whole blocks. Everything else wants the plain layout. A tensor that is made in one layout and
read in the other is reordered, once for all of its readers. Whether that happens depends on two widths at most: the
input channels of the convolution that made the tensor, and its own.

Source: MLAS's NCHWc transformer in ONNX Runtime (``nchwc_transformer.cc``), and the networks that it made of some
hundred pruned ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from halp_iee.graph.records import Width
from halp_profiler.kernel import Kernel
from halp_profiler.steps import Steps
from halp_profiler.surface import Surface

_NO_STEPS = Steps()
_FOLLOW = frozenset({"add", "activation", "batch_norm", "cat"})
_POOLS = frozenset({"max_pool", "avg_pool"})


@dataclass(frozen=True)
class Made:
    """Under which widths a tensor is made in the blocked layout.

    Attributes:
        width: the channels on which it depends: the input of the convolution that made it, or what was pooled or
            concatenated; None: never blocked.
        steps: of that convolution.
        align: what the tensor's own channels must be a multiple of.
    """

    width: Width | None = None
    steps: Steps = _NO_STEPS
    align: int = 1

    def blocked(self, c_maker: np.ndarray, c: np.ndarray) -> np.ndarray:
        """Whether it is blocked, for channels of the maker's input and of the tensor, which broadcast."""
        if self.width is None:
            return np.zeros(np.broadcast_shapes(np.shape(c_maker), np.shape(c)), bool)
        fits = ((c_maker < self.steps.free_below) | (c_maker % self.steps.align == 0)) & (c % self.align == 0)
        return np.broadcast_to(fits, np.broadcast_shapes(np.shape(fits), np.shape(c)))


@dataclass(frozen=True)
class Reader:
    """Which layout a reader of a tensor wants, by the tensor's channels.

    Attributes:
        align: the blocked layout where they are a multiple of this; 0: never.
        free_below: the plain one under this many channels.
        content: where they are a multiple of ``align``, whether it takes the tensor as it comes.
    """

    align: int = 0
    free_below: int = 0
    content: bool = False

    def wants(self, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(wants blocks, wants the plain layout) at ``c`` channels."""
        fits = (c >= self.free_below) & (c % self.align == 0) if self.align else np.zeros(np.shape(c), bool)
        return fits & (not self.content), ~fits


@dataclass(frozen=True)
class Reordering:
    """What it costs to reorder one tensor, in ms, over the channels of its maker's input and its own."""

    made: Made
    readers: tuple[Reader, ...]
    to_blocked: Surface
    to_plain: Surface

    def __call__(self, c_in: np.ndarray | int, c_out: np.ndarray | int) -> np.ndarray:
        maker, c = np.asarray(c_in), np.asarray(c_out)
        return np.where(self.made.blocked(maker, c), self._of_blocked(c), self._of_plain(c))

    @cached_property
    def _of_blocked(self) -> _Tabulated:
        return _Tabulated(lambda c: np.where(self._wanted(c, 1), _along(self.to_plain, c), 0.0))

    @cached_property
    def _of_plain(self) -> _Tabulated:
        return _Tabulated(lambda c: np.where(self._wanted(c, 0), _along(self.to_blocked, c), 0.0))

    def _wanted(self, c: np.ndarray, side: int) -> np.ndarray:
        """Whether any reader wants blocks (0) or the plain layout (1)."""
        return np.any([reader.wants(c)[side] for reader in self.readers], axis=0)


@dataclass(frozen=True)
class Following:
    """A kernel that runs in the layout in which it finds its input, in ms, over its maker's channels and its own."""

    made: Made
    blocked: Surface
    plain: Surface

    def __call__(self, c_in: np.ndarray | int, c_out: np.ndarray | int) -> np.ndarray:
        maker, c = np.asarray(c_in), np.asarray(c_out)
        return np.where(self.made.blocked(maker, c), self._in_blocks(c), self._in_plain(c))

    @cached_property
    def _in_blocks(self) -> _Tabulated:
        return _Tabulated(lambda c: _along(self.blocked, c))

    @cached_property
    def _in_plain(self) -> _Tabulated:
        return _Tabulated(lambda c: _along(self.plain, c))


class _Tabulated:
    """A latency over a tensor's own channels, worked out once: solves and predictions ask for the same few."""

    def __init__(self, latency: Callable[[np.ndarray], np.ndarray]) -> None:
        self._latency = latency
        self._ms = np.empty(0)

    def __call__(self, c: np.ndarray) -> np.ndarray:
        most = int(c.max(initial=0))
        if most >= len(self._ms):
            self._ms = self._latency(np.arange(2 * most + 1))
        return self._ms[c]


def _along(surface: Surface, c: np.ndarray) -> np.ndarray:
    """A diagonal surface at ``c`` channels; where it covers fewer or more, at the end of what it covers."""
    inside = np.clip(c, surface.lines_in[0], surface.lines_in[-1])
    return surface(inside, inside)


def follows(kernel: Kernel) -> bool:
    """Whether the kernel stays in the layout of its input."""
    return kernel.op in _FOLLOW and len(kernel.spatial) == 2


def made_by(kernel: Kernel, steps: Steps, block: int, c_in: Width, c_out: Width, before: Made) -> Made:
    """How the output of a kernel is made; ``before`` is how its input was."""
    if len(kernel.spatial) != 2:
        return Made()
    if kernel.op == "conv":
        if kernel.groups:  # the kernel's channels are those of one group
            return Made(c_in, Steps(align=block), align=kernel.groups * block)
        if kernel.group_width is None or kernel.group_width == 1 == kernel.group_out:
            return Made(c_in, steps)
        whole = kernel.group_width % block == 0 and (kernel.group_out or 0) % block == 0
        return Made(c_in) if whole else Made()
    if kernel.op == "cat" or kernel.op in _POOLS:
        return Made(c_out, Steps(align=block))
    return before if kernel.op in _FOLLOW else Made()


def read_by(kernel: Kernel, steps: Steps, block: int, c_out: Width) -> Reader:
    """What a kernel wants of its input's layout.

    A convolution with a fixed number of groups reads blocks where what each makes is whole blocks, too. If that is not
    the same at all widths, it is taken to be where it is so of what each reads: a tensor's readers are told its own
    channels only.
    """
    if len(kernel.spatial) != 2:
        return Reader()
    if kernel.op == "conv":
        if kernel.groups:
            never = not c_out.terms and c_out.fixed % block
            return Reader() if never else Reader(kernel.groups * block)
        if kernel.group_width is None:
            return Reader(steps.align, steps.free_below)
        if kernel.group_width == 1 == kernel.group_out:
            return Reader(steps.align)
        whole = kernel.group_width % block == 0 and (kernel.group_out or 0) % block == 0
        return Reader(1) if whole else Reader()
    if kernel.op in _POOLS:
        return Reader(block)
    if kernel.op in _FOLLOW:
        return Reader(block if kernel.op == "cat" else 1, content=True)
    return Reader()
