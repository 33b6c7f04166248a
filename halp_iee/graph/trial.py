"""Find the sizes that a network has hard-coded, by running it slim without data.

Labels say what every tensor's shape will be once units are gone. Running the slim
network shows where its own Python disagrees: a view with a written-down size, an
assertion, a scale computed from a width. Each run goes on past what failed, with the
shape it should have had, so one run finds all such places.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from halp_iee.graph.attributes import put_number
from halp_iee.graph.calls import Capture
from halp_iee.graph.capture import own_tensors, run
from halp_iee.graph.copies import skeleton
from halp_iee.graph.groups import Structure
from halp_iee.graph.labels import Labels
from halp_iee.graph.origins import trace_numbers
from halp_iee.graph.recorder import ModuleStack
from halp_iee.graph.replay import DivergedError, Failure, Replayer
from halp_iee.graph.sandbox import first_line, map_tensors
from halp_iee.graph.shadow import Shadows, shadow_of
from halp_iee.slim.attention import loosen
from halp_iee.slim.surgery import ATTRIBUTES, narrow, resize_attributes

SEEDS = (0, 1, 2)
"""Of the trials."""

FEW = 4
"""A group of so few units leaves hardly a choice of how many are kept."""


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


def sample_keep(structure: Structure, seed: int, trials: int = len(SEEDS)) -> dict[str, np.ndarray]:
    """Random units of every prunable group, in numbers that differ from group to group.

    Args:
        trials: how many there will be, each with a seed of its own.
    """
    random = np.random.default_rng(seed)
    keep: dict[str, np.ndarray] = {}
    alike: dict[int, int] = {}
    for group in structure.groups:
        if group.prunable:
            # Not one unit where there are more: an axis of size one makes tensors lie otherwise in memory.
            low = max(2 if group.size > 2 else 1, group.size // 4)
            count = int(random.integers(low, max(low, (3 * group.size) // 4) + 1))
            if group.size <= FEW:
                # Chance would give several such groups the same number every time. Each has digits of its own, one a
                # trial, and is cut in one trial at least.
                rank = alike[group.size] = alike.get(group.size, -1) + 1
                levels = group.size - low + 1
                count = low + rank % (levels**trials - 1) // levels**seed % levels
            keep[group.name] = np.sort(random.choice(group.size, size=count, replace=False))
    return keep


def trial_seeds(structure: Structure, capture: Capture) -> tuple[int, ...]:
    """The trials that a network needs.

    None where nothing could be hard-coded. The second one is for sizes that fit in the first by chance, of which there
    are none where no function is told one; the last one tells groups of few units apart.
    """
    if capture.plain:
        return ()
    few = any(group.prunable and group.size <= FEW for group in structure.groups)
    return SEEDS[:1] if not capture.sized else SEEDS if few else SEEDS[:2]


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
    keep = sample_keep(structure, seed, len(trial_seeds(structure, labels.capture)))
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
    shapes_now = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    resize_attributes(copied, model, shapes_now, structure.kept_groups)
    loosen(copied)  # an attention that keeps its size is to run as it was recorded
    alive = structure.alive(keep)
    for attribute in structure.attributes:
        put_number(copied.get_submodule(attribute.module), attribute.name, attribute.item, attribute.at(alive))
    trace_numbers(copied, tuple(kind for kind, _ in ATTRIBUTES))
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
