"""Find the sizes that a network has hard-coded, by running it slim without data.

Labels say what every tensor's shape will be once units are gone. Running the slim
network shows where its own Python disagrees: a view with a written-down size, an
assertion, a scale computed from a width. Each run goes on past what failed, with the
shape it should have had, so one run finds all such places.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from halp_iee.graph.attributes import put_number
from halp_iee.graph.calls import Call, Capture, Ref, refs_in
from halp_iee.graph.capture import own_tensors, run
from halp_iee.graph.copies import skeleton
from halp_iee.graph.groups import Structure
from halp_iee.graph.labels import Labels
from halp_iee.graph.recorder import ModuleStack, Recorder, name_of
from halp_iee.graph.sandbox import first_line, map_tensors, tensors_in
from halp_iee.graph.shadow import LooksAtDataError, Shadows, shadow_of
from halp_iee.slim.attention import loosen
from halp_iee.slim.surgery import narrow, resize_attributes

SHAPE_ARGUMENTS = frozenset({"size", "shape", "repeats", "split_size", "split_sizes", "start", "end", "step"})


@dataclass
class Failure:
    """A place where the slim network does not do what the labels say.

    Attributes:
        call: the recorded call that differs.
        axes: (value id, axis) of the outputs that came out in another size; empty when the call failed.
        error: what happened, in one line.
        module: where, when no call can be blamed.
        sizes: the number that the full network has here and the one that the slim one has, where known.
        fatal: whether the run ended here, so that what comes after was not seen.
        given: the sizes that the call was told to make, where it was told.
        made: the value that was to have them; None for the call's first output.
    """

    call: Call | None
    axes: tuple[tuple[int, int], ...]
    error: str
    module: str = ""
    sizes: tuple[int, int] | None = None
    fatal: bool = False
    given: tuple[int, ...] = ()
    made: int | None = None


class DivergedError(Exception):
    """The slim network executed other operations than the full one."""


def expected_shapes(structure: Structure, labels: Labels, keep: Mapping[str, np.ndarray]) -> dict[int, tuple[int, ...]]:
    """The shape of every value once only `keep` is left."""
    alive = structure.alive(keep)
    starts = np.cumsum([0, *(len(mask) for mask in alive)])
    flat = np.concatenate([*alive, [True]])
    count: dict[int, int] = {}
    shapes: dict[int, tuple[int, ...]] = {}
    kept_class = np.ones(len(structure.group_of) + 1, dtype=bool)
    grouped = structure.group_of >= 0
    kept_class[:-1][grouped] = flat[starts[structure.group_of[grouped]] + structure.unit_of[grouped]]
    for value, shape in enumerate(labels.capture.shapes):
        label = labels.of[value]
        if label is None:
            shapes[value] = shape
            continue
        sizes = list(shape)
        for position, axis in enumerate(label):
            if axis is not None:
                if id(axis.atoms) not in count:
                    known = np.where(axis.atoms >= 0, structure.classes[axis.atoms], -1)
                    count[id(axis.atoms)] = int(kept_class[known].sum())
                sizes[position] = count[id(axis.atoms)]
        shapes[value] = tuple(sizes)
    return shapes


class Replayer(Recorder):
    """Records the slim network beside the full one's record, mending what goes wrong."""

    def __init__(
        self,
        capture: Capture,
        modules: ModuleStack,
        shadows: Shadows | None,
        full: Capture,
        shapes: Mapping[int, tuple[int, ...]],
    ) -> None:
        super().__init__(capture, modules, shadows)
        self.full, self.shapes = full, shapes
        self.failures: list[Failure] = []
        self._ahead = 0
        # An auxiliary output that nothing reads (saved statistics) may have any size.
        live = full.live()
        self._read = {ref.id for index in live for ref in full.calls[index].refs} | set(full.outputs)

    @property
    def position(self) -> int:
        return len(self.capture.calls) + self._ahead

    def execute(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], bound: dict[str, Any]) -> Any:
        if self.position >= len(self.full.calls):
            raise DivergedError
        call = self.full.calls[self.position]
        if call.overload != str(func):
            raise DivergedError
        scalars = differing_scalars(call, bound) if self.full.fake else None
        error, result = None, None
        try:
            result = super().execute(func, args, kwargs, bound)
        except LooksAtDataError:
            raise
        except Exception as caught:  # whatever an operation says about sizes that do not fit
            error = first_line(caught)
        if error is None and scalars is None:
            wrong = self.wrong_axes(call, result)
            if not wrong:
                return result
            self.failures.append(Failure(call, wrong, "another size than its channels say", given=self.given(bound)))
        else:
            self.failures.append(Failure(call, (), error or scalars or "", given=self.given(bound)))
            if error is None and not self.wrong_axes(call, result):
                return result
        made = [None if value is None else self.made(value) for value in call.outputs]
        if len(made) == 1 and not isinstance(result, (list, tuple)):
            return made[0]
        return tuple(made) if isinstance(result, tuple) else made

    def given(self, bound: Mapping[str, Any]) -> tuple[int, ...]:
        """The shape that a call is told to make; -1 where it was left to the operation."""
        told, sizes = _told(self.told), _sizes(bound.get("size", bound.get("shape")))
        return told if len(told) == len(sizes) else sizes

    def literal(self, value: Any) -> None:
        before = len(self.capture.literals)
        super().literal(value)
        if not self.full.fake or before >= len(self.full.literals):
            return
        wanted = self.full.literals[before]
        if wanted != value and not (wanted != wanted and value != value):
            call = self.full.calls[self.position] if self.position < len(self.full.calls) else None
            sizes = (wanted, value) if type(wanted) is int and type(value) is int else None
            text = f"computes with the number {wanted}, which depends on a size"
            self.failures.append(Failure(call, (), text, sizes=sizes))

    def rescue(self, begin: int, error: Exception, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """A function that failed before it reached its operations returns what it should have.

        One that took other operations, because smaller tensors lie otherwise in memory, is run again as a whole.
        """
        known = self.full.functions.get((begin, name_of(func)))
        if known is None or self.position >= known[0]:
            raise error
        end, result = known
        call = self.full.calls[self.position]
        if isinstance(error, DivergedError):
            if not self.full.fake:
                raise error
            return self.again(call, end, result, func, args, kwargs)
        given = _told(args) if isinstance(result, Ref) else ()
        made = result.id if given else None
        self.failures.append(Failure(call, (), first_line(error), given=given, made=made))
        return self.instead(end, result)

    def instead(self, end: int, result: Any) -> Any:
        """Tensors of the shapes that the labels say, in place of a function's whole result."""
        self._ahead += end - self.position
        self.paused, before = True, self.paused
        try:
            return _with_tensors(result, self.made)
        finally:
            self.paused = before

    def again(
        self, call: Call, end: int, result: Any, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Run a function without holding its operations against the record; only its results count."""
        self.paused, before = True, self.paused
        try:
            made = func(*args, **kwargs)
        except Exception as error:  # whatever an operation says about sizes that do not fit
            self.failures.append(Failure(call, (), first_line(error)))
            made = None
        finally:
            self.paused = before
        refs, tensors = list(refs_in(result)), list(tensors_in(made))
        wrong = [
            (ref.id, axis)
            for ref, tensor in zip(refs, tensors, strict=False)
            for axis in range(min(tensor.ndim, len(self.shapes[ref.id])))
            if tensor.shape[axis] != self.shapes[ref.id][axis]
        ]
        if wrong:
            self.failures.append(Failure(call, tuple(wrong), "another size than its channels say"))
        if wrong or len(refs) != len(tensors):
            return self.instead(end, result)
        self._ahead += end - self.position
        return made

    def made(self, value: int) -> Tensor:
        """A tensor of the shape that the labels say, lying in memory as the full one does."""
        dtype, device = self.full.kinds[value]
        shape = self.shapes[value]
        strides = like_strides(shape, self.full.shapes[value], self.full.strides[value])
        made = torch.empty_strided(shape, strides, dtype=dtype, device=device)
        if self.shadows is None:
            return made.zero_()
        self.shadows.cast(made)
        return made

    def ignored(self, value: int, axis: int) -> bool:
        """Whether an axis may follow the data (how many boxes were found), which slim data change."""
        return not self.full.fake and self.shapes[value][axis] == self.full.shapes[value][axis]

    def wrong_axes(self, call: Call, result: Any) -> tuple[tuple[int, int], ...]:
        returned = list(result) if isinstance(result, (list, tuple)) else [result]
        wrong: list[tuple[int, int]] = []
        if len(returned) != len(call.outputs):
            return tuple((value, axis) for value in call.outputs if value is not None
                         for axis in range(len(self.full.shapes[value])))  # fmt: skip
        for value, item in zip(call.outputs, returned, strict=True):
            if value in self._read and isinstance(item, Tensor):
                want = self.shapes[value]
                if len(want) != item.ndim:
                    wrong += [(value, axis) for axis in range(len(want))]
                else:
                    unlike = [a for a in range(item.ndim) if item.shape[a] != want[a]]
                    wrong += [(value, a) for a in unlike if not self.ignored(value, a)]
        return tuple(wrong)


def like_strides(shape: Sequence[int], full: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """Strides that order and space the axes of a smaller tensor as those of the full one."""
    found, reach, dense = [0] * len(shape), 1, 1
    for axis in sorted(range(len(shape)), key=lambda one: (strides[one], -one) if len(strides) == len(shape) else -one):
        if len(strides) == len(shape) and strides[axis] == 0:
            continue
        if len(strides) == len(shape) and strides[axis] > dense:
            reach *= 2  # a part of something larger
        found[axis] = reach
        reach *= max(shape[axis], 1)
        dense = (strides[axis] if len(strides) == len(shape) else dense) * max(full[axis], 1)
    return tuple(found)


def _sizes(value: Any) -> tuple[int, ...]:
    whole = isinstance(value, (list, tuple)) and all(type(size) is int for size in value)
    return tuple(value) if whole else ()


def _told(args: tuple[Any, ...]) -> tuple[int, ...]:
    """The shape in a function's arguments: x.view(2, 3) or x.view((2, 3))."""
    return _sizes(args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:])


def _with_tensors(value: Any, make: Callable[[int], Tensor]) -> Any:
    if isinstance(value, Ref):
        return make(value.id)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_with_tensors(item, make) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(_with_tensors(item, make) for item in value)
    return value


def differing_scalars(call: Call, bound: Mapping[str, Any]) -> str | None:
    """A number that the network computed from a width and used as a value."""
    for name, value in call.args.items():
        if name in SHAPE_ARGUMENTS:
            continue
        other = bound.get(name)
        floats = isinstance(value, float) and isinstance(other, (int, float))
        ints = isinstance(value, int) and isinstance(other, int) and name in ("other", "self", "exponent", "value")
        if (floats or ints) and value != other and not (value != value and other != other):
            return f"computes with the number {value}, which depends on a size"
    return None


def sample_keep(structure: Structure, seed: int) -> dict[str, np.ndarray]:
    """Random units of every prunable group, in numbers that differ from group to group."""
    random = np.random.default_rng(seed)
    keep = {}
    for group in structure.groups:
        if group.prunable:
            # Not one unit where there are more: an axis of size one makes tensors lie otherwise in memory.
            low = max(2 if group.size > 2 else 1, group.size // 4)
            count = int(random.integers(low, max(low, (3 * group.size) // 4) + 1))
            keep[group.name] = np.sort(random.choice(group.size, size=count, replace=False))
    return keep


def unlike_outputs(full: Capture, slim: Capture, structure: Structure, keep: Mapping[str, np.ndarray]) -> list[Failure]:
    """Outputs whose size turned out to be the number of units left of some group.

    Where a network's path follows its data, the labels may lose sight of a size on its way to the output.
    """
    cut = {(group.size, len(keep[group.name])) for group in structure.groups if group.name in keep}
    pairs = set()
    if len(full.outputs) == len(slim.outputs):
        for one, two in zip(full.outputs, slim.outputs, strict=True):
            if len(full.shapes[one]) == len(slim.shapes[two]):
                pairs |= set(zip(full.shapes[one][1:], slim.shapes[two][1:], strict=True))
    return [Failure(None, (), "it is the size of an output", sizes=pair) for pair in sorted(pairs & cut)]


def _cut(source: Tensor, positions: tuple[np.ndarray | None, ...], bare: bool) -> Tensor:
    """A tensor at its slim size; its entries are those that stay, or nobody's where only shapes are asked for."""
    if all(kept is None for kept in positions):
        return source
    if not bare or not source.is_floating_point():
        # How a product is taken apart hangs on whether a gradient is wanted.
        return narrow(source.detach(), positions).requires_grad_(source.requires_grad)
    size = [whole if kept is None else len(kept) for whole, kept in zip(source.shape, positions, strict=True)]
    made = torch.empty(size, dtype=source.dtype, device=source.device)
    return nn.Parameter(made, source.requires_grad) if isinstance(source, nn.Parameter) else made


def attempt(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    structure: Structure,
    labels: Labels,
    seed: int,
    shapes_out: dict[int, tuple[int, ...]] | None = None,
) -> list[Failure]:
    """Run the slim network once and list where it differs from what the labels say."""
    keep = sample_keep(structure, seed)
    if not keep:
        return []
    full = labels.capture
    positions = structure.positions(keep)
    shapes = expected_shapes(structure, labels, keep)
    if shapes_out is not None:
        shapes_out.update(shapes)
    copied = loosen(skeleton(model))
    tensors: dict[str, Tensor] = {}
    by_source: dict[int, Tensor] = {}
    for name, source in own_tensors(copied).items():
        if id(source) not in by_source:
            by_source[id(source)] = _cut(source, positions.get(name, ()), full.fake)
        tensors[name] = by_source[id(source)]
    resize_attributes(copied, model, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    alive = structure.alive(keep)
    for attribute in structure.attributes:
        put_number(copied.get_submodule(attribute.module), attribute.name, attribute.item, attribute.at(alive))
    inputs = map_tensors((args, dict(kwargs)), shadow_of if full.fake else torch.clone)
    watchers: list[Replayer] = []

    def recorder(capture: Capture, modules: ModuleStack, shadows: Shadows | None) -> Replayer:
        watchers.append(Replayer(capture, modules, shadows, full, shapes))
        return watchers[-1]

    try:
        ran = run(copied, inputs[0], inputs[1], tensors, shadows=full.fake, recorder=recorder)
        if not full.fake and not watchers[0].failures:
            return unlike_outputs(full, ran, structure, keep)
    except Exception as error:  # the network's own code may raise anything
        diverged = isinstance(error, DivergedError)
        watcher = watchers[0]
        if diverged and not full.fake:
            # Control flow follows the data, and slim data are other data: only the outputs can be compared.
            if watcher.failures:
                return watcher.failures
            inputs = map_tensors((args, dict(kwargs)), torch.clone)
            with contextlib.suppress(Exception):
                return unlike_outputs(full, run(copied, inputs[0], inputs[1], tensors, shadows=False), structure, keep)
            return []
        call = full.calls[watcher.position] if watcher.position < len(full.calls) else None
        text = "the network takes another path" if diverged else first_line(error)
        watcher.failures.append(Failure(call, (), text, watcher.modules.current, fatal=True))
    return watchers[0].failures
