"""Find the sizes that a network has hard-coded, by running it slim without data.

Labels say what every tensor's shape will be once units are gone. Running the slim
network shows where its own Python disagrees: a view with a written-down size, an
assertion, a scale computed from a width. Each run goes on past what failed, with the
shape it should have had, so one run finds all such places.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from halp_iee.graph.attributes import put_number
from halp_iee.graph.calls import Call, Capture, Ref
from halp_iee.graph.capture import ModuleStack, Recorder, fake_tensors, run
from halp_iee.graph.groups import Structure
from halp_iee.graph.labels import Labels
from halp_iee.graph.sandbox import first_line, map_tensors, named_tensors, skeleton
from halp_iee.slim.attention import loosen
from halp_iee.slim.surgery import resize_attributes

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
    """

    call: Call | None
    axes: tuple[tuple[int, int], ...]
    error: str
    module: str = ""
    sizes: tuple[int, int] | None = None
    fatal: bool = False


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
        self, capture: Capture, modules: ModuleStack, full: Capture, shapes: Mapping[int, tuple[int, ...]]
    ) -> None:
        super().__init__(capture, modules)
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
            result = func(*args, **kwargs)
        except Exception as caught:  # whatever an operation says about sizes that do not fit
            error = first_line(caught)
        if error is None and scalars is None:
            wrong = self.wrong_axes(call, result)
            if not wrong:
                return result
            self.failures.append(Failure(call, wrong, "another size than its channels say"))
        else:
            self.failures.append(Failure(call, (), error or scalars or ""))
            if error is None and not self.wrong_axes(call, result):
                return result
        made = [None if value is None else self.made(value) for value in call.outputs]
        if len(made) == 1 and not isinstance(result, (list, tuple)):
            return made[0]
        return tuple(made) if isinstance(result, tuple) else made

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

    def rescue(self, begin: int, error: Exception) -> Any:
        """A function that failed before it reached its operations returns what it should have."""
        known = self.full.functions.get(begin)
        if isinstance(error, DivergedError) or known is None or self.position >= known[0]:
            raise error
        end, result = known
        self.failures.append(Failure(self.full.calls[self.position], (), first_line(error)))
        self._ahead += end - self.position
        self.paused = True
        try:
            return _with_tensors(result, self.made)
        finally:
            self.paused = False

    def made(self, value: int) -> Tensor:
        """A tensor of the shape that the labels say."""
        dtype, device = self.full.kinds[value]
        return torch.zeros(self.shapes[value], dtype=dtype, device=device)

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
    named = named_tensors(copied)
    mode = FakeTensorMode(allow_non_fake_inputs=True) if full.fake else None
    sources = fake_tensors(mode, named) if mode is not None else {n: t.detach().clone() for n, t in named.items()}
    tensors: dict[str, Tensor] = {}
    by_source: dict[int, Tensor] = {}
    for name, source in sources.items():
        if id(source) not in by_source:
            tensor = source
            for axis, kept in enumerate(positions.get(name, ())):
                if kept is not None:
                    if mode is not None:
                        size = list(tensor.shape)
                        size[axis] = len(kept)
                        with mode:
                            tensor = torch.empty(size, dtype=tensor.dtype, device=tensor.device)
                    else:
                        tensor = tensor.index_select(axis, torch.as_tensor(kept, device=tensor.device))
            by_source[id(source)] = tensor
        tensors[name] = by_source[id(source)]
    resize_attributes(copied, model, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    alive = structure.alive(keep)
    for attribute in structure.attributes:
        put_number(copied.get_submodule(attribute.module), attribute.name, attribute.item, attribute.at(alive))
    inputs = map_tensors((args, dict(kwargs)), mode.from_tensor if mode is not None else torch.clone)
    watchers: list[Replayer] = []

    def recorder(capture: Capture, modules: ModuleStack) -> Replayer:
        watchers.append(Replayer(capture, modules, full, shapes))
        return watchers[-1]

    try:
        ran = run(copied, inputs[0], inputs[1], tensors, mode=mode, recorder=recorder)
        if not full.fake and not watchers[0].failures:
            return unlike_outputs(full, ran, structure, keep)
    except Exception as error:  # the network's own code may raise anything
        diverged = isinstance(error, DivergedError)
        watcher = watchers[0]
        if diverged and not full.fake:
            return watcher.failures  # control flow follows the data, and slim data are other data
        call = full.calls[watcher.position] if watcher.position < len(full.calls) else None
        text = "the network takes another path" if diverged else first_line(error)
        watcher.failures.append(Failure(call, (), text, watcher.modules.current, fatal=True))
    return watchers[0].failures
