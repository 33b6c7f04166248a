"""What the page shows of the device: how latency depends on width, from the run's latency model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from halp_iee.errors import TableError

_MOST_POINTS = 256
_MOST_STEPS = 24
_STEP_TIMES = 3.0
"""A rise is a step of the device where it is this many times the mean rise a unit ..."""
_STEP_SHARE = 0.02
"""... and this share of the whole rise."""


def staircases(model: Any, widths: Mapping[str, int], most: int = 6) -> list[dict[str, Any]]:
    """Latency of a few layers over their output channels: one group is varied, the others are as chosen.

    Args:
        model: a ``LatencyModel``.
        widths: chosen, of every group.
        most: so many layers: those on which most of the dense latency goes, of those whose output may change,
            one of each kernel and size, since others of it look the same.

    Returns:
        ``name``, ``c_in``, ``widths``, ``ms``, ``dense`` and ``chosen`` (channels out) of each.
    """
    full = dict(model.graph.full_widths)
    touched = _layers_by_group(model, widths)
    found: list[dict[str, Any]] = []
    shown = set()
    for layer in sorted(model.layers, key=lambda one: -float(one.ms(one.c_in(full), one.c_out(full)))):
        alike = (layer.kernel, layer.c_in(full), layer.c_out(full))
        if alike in shown:
            continue
        sizes = {g.name: g.size for g in model.graph.groups if any(layer is one for one in touched.get(g.name, ()))}
        for name in sorted(sizes, key=lambda one: -sizes[one]):
            curve = _curve(layer, widths, name, _counts(sizes[name], widths.get(name, sizes[name])))
            if curve is None or np.ptp(curve[0]) <= 0 or np.ptp(curve[1]) <= 0:
                continue  # the group feeds its input, or its cost does not depend on it
            found.append(
                {"name": layer.name, "c_in": int(layer.c_in(widths)), "widths": curve[0].tolist(),
                 "ms": curve[1].tolist(), "dense": int(curve[0][-1]), "chosen": int(layer.c_out(widths))}
            )  # fmt: skip
            shown.add(alike)
            break
        if len(found) == most:
            break
    return found


def _curve(
    layer: Any, widths: Mapping[str, int], group: str, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """(channels out, ms) at so many units of a group; None where the table does not know some of them."""
    asked = [{**widths, group: int(count)} for count in counts]
    c_in = np.array([layer.c_in(one) for one in asked])
    c_out = np.array([layer.c_out(one) for one in asked])
    try:
        return c_out, np.broadcast_to(np.asarray(layer.ms(c_in, c_out), dtype=float), c_out.shape)
    except TableError:
        return None


def _counts(size: int, chosen: int) -> np.ndarray:
    """Units to ask for: all, or of a large group some hundred with both sides of every multiple of 8 among them."""
    if size <= _MOST_POINTS:
        return np.arange(1, size + 1)
    stride = 8 * -(-size // (4 * _MOST_POINTS))
    edges = np.arange(stride, size, stride)
    return np.unique(np.concatenate([[1, chosen, size], edges, edges + 1]))


def group_steps(model: Any, widths: Mapping[str, int]) -> dict[str, list[int]]:
    """For every group the widths just under a step of the device, the other groups being as chosen.

    A step is where one more unit costs ``_STEP_TIMES`` times the mean and ``_STEP_SHARE`` of the whole rise; where
    several units on end do, as between the points of a table, it is one step and begins with the first.
    """
    touched = _layers_by_group(model, widths)
    found: dict[str, list[int]] = {}
    for group in model.graph.groups:
        if group.name not in touched or group.size > 4096:
            continue
        counts = np.arange(1, group.size + 1)
        curves = [_curve(layer, widths, group.name, counts) for layer in touched[group.name]]
        known = [one[1] for one in curves if one is not None]
        curve = np.sum(known, axis=0) if known else np.zeros(group.size)
        rise, span = np.diff(curve), float(np.ptp(curve))
        high = (rise > _STEP_TIMES * span / group.size) & (rise > _STEP_SHARE * span)
        first = high & ~np.concatenate([[False], high[:-1]])
        if span > 0 and first.any():
            found[group.name] = [int(counts[at]) for at in _spread(np.flatnonzero(first), rise, group.size)]
    return found


def _spread(places: np.ndarray, rise: np.ndarray, size: int) -> np.ndarray:
    """The places, or of very many the highest step in each of ``_MOST_STEPS`` stretches of the width: where steps grow
    with the width, the highest of all would leave the narrow widths, which are what is chosen, without any."""
    if len(places) <= _MOST_STEPS:
        return places
    ordered = places[np.lexsort((-rise[places], places * _MOST_STEPS // size))]
    stretch = ordered * _MOST_STEPS // size
    return ordered[np.concatenate([[True], stretch[1:] != stretch[:-1]])]


def _layers_by_group(model: Any, widths: Mapping[str, int]) -> dict[str, list[Any]]:
    """The layers whose channels change with each group."""
    found: dict[str, list[Any]] = {}
    base = [(layer, layer.c_in(widths), layer.c_out(widths)) for layer in model.layers]
    for group in model.graph.groups:
        if group.prunable and group.size > 1:
            other = {**widths, group.name: 1 if widths.get(group.name, group.size) > 1 else group.size}
            found[group.name] = [
                layer for layer, c_in, c_out in base if (layer.c_in(other), layer.c_out(other)) != (c_in, c_out)
            ]
    return found
