"""Where two runs of one network first part: the masked one at full size and the slim one.

Both are recorded operation by operation; each value of the masked run is narrowed to the
positions that stay and held against the slim run's. This names the operation at which a
slim network goes wrong, and it judges networks whose output hangs on decisions (which boxes
to keep): once a decision differs although everything before it agrees, the difference was
rounding, and what follows cannot be compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from halp_iee.graph.calls import Call, Capture
from halp_iee.graph.capture import run
from halp_iee.graph.groups import Structure
from halp_iee.graph.labels import Labels
from halp_iee.graph.recorder import ModuleStack, Recorder
from halp_iee.graph.sandbox import map_tensors, named_tensors, seed
from halp_iee.graph.shadow import Shadows

DECISIONS = frozenset({"topk", "sort", "nms", "argsort", "unique", "nonzero", "multinomial"})
"""Operations whose float outputs jump when their input changes by rounding."""

MOST_MEGABYTES = 2000
"""Values kept of the masked run; a network with more is compared as far as this goes."""


@dataclass
class Difference:
    """The first operation whose results differ.

    Attributes:
        operation: its name.
        module: where it ran.
        groups: the groups that its values carry.
        decision: the values before it agree and it only decided otherwise.
        error: by how much, in units of the value's largest entry, or what else is different.
    """

    operation: str
    module: str
    groups: tuple[str, ...]
    decision: bool
    error: str

    def __str__(self) -> str:
        name = self.operation.split("::")[-1]
        place = f"{name} in {self.module}" if self.module else name
        carried = f", which carries group {', '.join(self.groups[:3])}" if self.groups else ""
        return f"first at {place}{carried}: {self.error}"


@dataclass
class Values:
    """What the calls of one run made, for as long as the memory allows."""

    made: dict[int, list[Any]] = field(default_factory=dict)
    bytes: int = 0


def _recording(values: Values) -> type[Recorder]:
    class Keeping(Recorder):
        def execute(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], bound: dict[str, Any]) -> Any:
            result = func(*args, **kwargs)
            if values.bytes < MOST_MEGABYTES * 2**20:
                returned = list(result) if isinstance(result, (list, tuple)) else [result]
                self.paused, before = True, self.paused
                kept = [item.detach().clone() if isinstance(item, Tensor) else None for item in returned]
                self.paused = before
                values.bytes += sum(item.numel() * item.element_size() for item in kept if item is not None)
                values.made[len(self.capture.calls)] = kept
            return result

    return Keeping


def _run(model: nn.Module, args: Any, kwargs: Any) -> tuple[Capture, Values, str]:
    """One recorded run on real data; an error ends it and is returned in words."""
    values, captured = Values(), []
    kind = _recording(values)

    def recorder(capture: Capture, modules: ModuleStack, shadows: Shadows | None) -> Recorder:
        captured.append((capture, modules))
        return kind(capture, modules, shadows)

    inputs, named = map_tensors((args, dict(kwargs)), torch.clone)
    seed()
    own = {name: tensor.detach() for name, tensor in named_tensors(model).items()}
    try:
        run(model, inputs, named, own, shadows=False, recorder=recorder)
    except Exception as error:  # whatever the network raises at other sizes
        return captured[0][0], values, f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return captured[0][0], values, ""


def first_difference(
    labels: Labels,
    structure: Structure,
    keep: Mapping[str, np.ndarray],
    masked: nn.Module,
    small: nn.Module,
    inputs: tuple[Any, Any],
    tolerance: float,
) -> Difference | None:
    """Run both and find where they part; None where they do not, or cannot be compared further.

    Args:
        labels: of the traced run, whose operations both are expected to execute.
        masked: the full network, with its masks on.
        tolerance: largest difference allowed, relative to the largest entry of a value.

    Raises:
        LookupError: the masked network executes other operations than when it was traced.
    """
    wide, wide_values, failed = _run(masked, *inputs)
    if failed:
        raise LookupError(failed)
    thin, thin_values, failed = _run(small, *inputs)
    alive = structure.alive(keep)
    live = labels.capture.live()
    read = {ref.id for index in live for ref in labels.capture.calls[index].refs} | set(labels.capture.outputs)
    for index, call in enumerate(wide.calls):
        if index >= len(thin.calls) or index >= len(labels.capture.calls):
            break
        known, other = labels.capture.calls[index], thin.calls[index]
        if call.overload != known.overload:
            raise LookupError(f"{call.overload} ran where {known.overload} was traced")
        if call.overload != other.overload:
            return Difference(other.name, other.module, (), False, "the slim network takes another path")
        if index not in wide_values.made or index not in thin_values.made or not wide.active[_first(call)]:
            continue
        for position, (one, two) in enumerate(zip(wide_values.made[index], thin_values.made[index], strict=False)):
            value = known.outputs[position] if position < len(known.outputs) else None
            if one is None or two is None or value not in read:
                continue
            label = labels.of[value]
            narrowed, carried = one, set()
            for axis, channels in enumerate(label or []):
                if channels is not None and axis < one.ndim and len(channels.atoms) == one.shape[axis]:
                    units = structure.units(channels.atoms)
                    stays = np.array([g < 0 or alive[g][u] for g, u in zip(units.group, units.unit, strict=True)])
                    carried |= {structure.groups[g].name for g in np.unique(units.group) if g >= 0}
                    narrowed = narrowed.index_select(axis, torch.as_tensor(np.flatnonzero(stays), device=one.device))
            verdict = _compare(narrowed, two, tolerance)
            if verdict:
                name = known.name.split("::")[-1]
                groups = tuple(sorted(carried & set(keep))) or tuple(sorted(carried))
                decision = name in DECISIONS or not one.is_floating_point()
                return Difference(known.name, known.module, groups, decision, verdict)
    if failed:
        last = labels.capture.calls[len(thin.calls)] if len(thin.calls) < len(labels.capture.calls) else None
        where = (last.name, last.module) if last is not None else ("forward", "")
        return Difference(*where, (), False, failed)
    return None


def _first(call: Call) -> int:
    return next(value for value in call.outputs if value is not None)


def _compare(one: Tensor, two: Tensor, tolerance: float) -> str:
    """What is different about two values, in words; empty where they agree."""
    if one.shape != two.shape:
        return f"shape {tuple(two.shape)} instead of {tuple(one.shape)}"
    if not one.numel():
        return ""
    if not one.is_floating_point():
        count = int((one != two).sum())
        return f"{count} of {one.numel()} entries differ" if count else ""
    a, b = one.double(), two.double()
    finite = a.isfinite() & b.isfinite()
    if not torch.equal(a.isfinite(), b.isfinite()):
        return "other entries are not finite"
    if not bool(finite.any()):
        return ""
    scale = max(float(a[finite].abs().max()), 1e-6)
    apart = float((a[finite] - b[finite]).abs().max()) / scale
    return f"{apart:.2g} of its largest entry" if apart > tolerance else ""
