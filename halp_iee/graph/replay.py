"""Run the slim network against the record of the full one, and mend what goes wrong on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from halp_iee.graph.calls import Call, Capture, Ref, refs_in
from halp_iee.graph.origins import SHAPES, Origin, origin_of, traced_shape
from halp_iee.graph.recorder import Identities, ModuleStack, Recorder, name_of
from halp_iee.graph.sandbox import first_line, tensors_in
from halp_iee.graph.shadow import LooksAtDataError, Shadows

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
        origins: of all numbers that the call was told.
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
    origins: tuple[Origin, ...] = ()


class DivergedError(Exception):
    """The slim network executed other operations than the full one."""


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
        self._twins = Identities()  # the value of the full network's run
        # An auxiliary output that nothing reads (saved statistics) may have any size. A view in a branch that leads
        # nowhere may not: at some other size it would fail.
        live = full.live()
        self._read = {ref.id for index in live for ref in full.calls[index].refs} | set(full.outputs)
        told = [call for call in full.calls if not SHAPE_ARGUMENTS.isdisjoint(call.args)]
        made = {value for call in told for value in call.outputs if value is not None}
        self._read |= {value for value in made if shapes[value] != full.shapes[value]}

    @property
    def position(self) -> int:
        return len(self.capture.calls) + self._ahead

    def add(self, tensor: Tensor, *, active: bool, sources: tuple[str, ...] = ()) -> int:
        value = super().add(tensor, active=active, sources=sources)
        if self.position == 0:  # what the run is given comes in the same order
            self._twins[tensor] = value
        return value

    def shown(self, func: Any, args: tuple[Any, ...], result: Any) -> Any:
        if func not in SHAPES or self.paused:
            return result
        twin = self._twins.get(args[0])
        return result if twin is None else traced_shape(result, twin, args)

    def _twin(self, value: int | None, made: Any) -> None:
        if value is not None and isinstance(made, Tensor):
            self._twins[made] = value

    def execute(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], bound: dict[str, Any]) -> Any:
        result = self._held_against_the_record(func, args, kwargs, bound)
        for value, made in zip(
            self.full.calls[self.position].outputs,
            result if isinstance(result, (list, tuple)) else (result,),
            strict=False,
        ):
            self._twin(value, made)
        return result

    def _held_against_the_record(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], bound: dict[str, Any]
    ) -> Any:
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
            text = "another size than its channels say"
        else:
            wrong, text = (), error or scalars or ""
        self.failures.append(Failure(call, wrong, text, given=self.given(bound), origins=_origins(self.told)))
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
            sizes = (int(wanted), int(value)) if _is_number(wanted) and _is_number(value) else None
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
        told = (*args, *kwargs.values())
        self.failures.append(Failure(call, (), first_line(error), given=given, made=made, origins=_origins(told)))
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
        refs, tensors = refs_in(result), list(tensors_in(made))
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
        for ref, tensor in zip(refs, tensors, strict=True):
            self._twin(ref.id, tensor)
        self._ahead += end - self.position
        return made

    def made(self, value: int) -> Tensor:
        """A tensor of the shape that the labels say, lying in memory as the full one does."""
        dtype, device = self.full.kinds[value]
        shape = self.shapes[value]
        strides = like_strides(shape, self.full.shapes[value], self.full.strides[value])
        made = torch.empty_strided(shape, strides, dtype=dtype, device=device)
        self._twin(value, made)
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
    whole = isinstance(value, (list, tuple)) and all(_is_number(size) for size in value)
    return tuple(value) if whole else ()


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _origins(told: Any) -> tuple[Origin, ...]:
    """Where the numbers in a function's arguments come from, in order."""
    if _is_number(told):
        return (origin_of(told),)
    if isinstance(told, (list, tuple)):
        return tuple(origin for one in told for origin in _origins(one))
    return ()


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
