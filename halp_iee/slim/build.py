"""Build the slim network, and prove that it is the masked one before handing it over."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from halp_iee.errors import GraphError
from halp_iee.graph.compare import Difference, first_difference
from halp_iee.graph.copies import duplicate, forget, skeleton
from halp_iee.graph.sandbox import (
    first_line,
    map_tensors,
    modules_of,
    named_tensors,
    seed,
    steady_randomness,
    tensors_in,
    training_flags,
    walk,
)
from halp_iee.slim.surgery import WEIGHT_NAMES, fit_numbers, groups_left, replacing, slim_tensors

if TYPE_CHECKING:
    from halp_iee.graph.graph import ChannelGraph

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Largest difference allowed, relative to the largest entry of the output."""

STRIDE = 32
"""Most networks on images ask for heights and widths that are multiples of this, or of a part of it."""

RECIPE = "halp_recipe"


def build_slim(graph: ChannelGraph, keep: Mapping[str, np.ndarray], model: nn.Module | None = None) -> nn.Module:
    """Copy a network, cut it down to `keep`, and prove the result.

    Args:
        model: of the traced structure at full size; default the traced network.

    Raises:
        GraphError: it cannot be copied or cut, or does not compute what the masked network does.
    """
    full = graph.model if model is None else model
    small = cut(graph, keep, full)
    prove(graph, keep, small, full)
    small.__dict__[RECIPE] = recipe_of(graph, keep)
    return small


def recipe_of(graph: ChannelGraph, keep: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What was kept, in terms of the graph's groups; of a network slimmed before, its earlier recipes too."""
    recipe: dict[str, Any] = {
        "keep": {name: [int(unit) for unit in units] for name, units in keep.items()},
        "groups": {group.name: group.size for group in graph.groups},
    }
    before = graph.model.__dict__.get(RECIPE)
    numbers = {} if before is None else dict(before.get("numbers", {}))
    numbers |= {f"{module}|{name}|{item}": value for (module, name, item), value in graph.numbers(keep).items()}
    if numbers:
        recipe["numbers"] = numbers
    groups = _groups_of_convolutions(graph, keep, {} if before is None else before.get("convolutions", {}))
    if groups:
        recipe["convolutions"] = groups
    if before is not None:
        recipe["earlier"] = [*before.get("earlier", []), {key: before[key] for key in ("keep", "groups")}]
        if "removed" in before:
            recipe["removed"] = dict(before["removed"])
    return recipe


def _groups_of_convolutions(
    graph: ChannelGraph, keep: Mapping[str, np.ndarray], before: Mapping[str, int]
) -> dict[str, int]:
    """How many groups the convolutions have of which the original's shapes alone do not tell.

    Those that keep their groups, those of which one group is left (it is a plain one to whoever slims it again), and
    those of which an earlier recipe told.
    """
    found = dict(graph.structure.kept_groups)
    positions = graph.positions(keep)
    for name, module in walk(graph.model):
        grouped = isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1
        if name in found or not (grouped or name in before):
            continue
        leaves = [f"{name}.{leaf}".lstrip(".") for leaf in WEIGHT_NAMES]
        weight = next((leaf for leaf in leaves if leaf in graph.full_shapes), None)
        if weight is None:
            continue
        kept = positions.get(weight, (None,))[0]
        left = groups_left(module, (graph.full_shapes[weight][0] if kept is None else len(kept),))
        if left == 1 or name in before:
            found[name] = left
    return found


def cut(graph: ChannelGraph, keep: Mapping[str, np.ndarray], full: nn.Module) -> nn.Module:
    """The slim network, not yet proved."""
    own = named_tensors(full)
    made, shapes = {}, {name: tuple(tensor.shape) for name, tensor in own.items()}
    for names, value in slim_tensors(own, graph, keep).items():
        current = own[names[0]]
        replacement = replacing(current, value.clone() if value.shape == current.shape else value)
        for name in names:
            made[name], shapes[name] = replacement, tuple(value.shape)
    try:
        small = duplicate(full, made)
    except Exception as error:  # whatever a module's own __deepcopy__ raises
        raise GraphError(
            "The network cannot be slimmed",
            f"it cannot be copied: {type(error).__name__}: {first_line(error)}",
            "Remove the object that is named from the network's attributes, or give its class a __deepcopy__",
        ) from error
    fit_numbers(small, graph, keep, shapes)
    return forget(small)


def random_like(value: Any, *, smaller: bool = False) -> Any:
    """The same inputs with other numbers: floats are drawn anew, integers and masks stay.

    Args:
        smaller: whether images are to have half the height and width, rounded up to a multiple of `STRIDE`.
    """
    generator = torch.Generator().manual_seed(20240229)

    def draw(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        shape = tuple(tensor.shape)
        if smaller and len(shape) > 3 and min(shape[-2:]) > 2 * STRIDE:
            shape = (*shape[:-2], *(math.ceil(size / 2 / STRIDE) * STRIDE for size in shape[-2:]))
        drawn = torch.randn(shape, generator=generator, dtype=torch.float32)
        return drawn.to(device=tensor.device, dtype=tensor.dtype)

    return map_tensors(value, draw)


def outputs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """What a network returns in eval mode, as a flat list of tensors; buffers are put back."""
    held = [(module, name, buffer) for module in modules_of(model) for name, buffer in module._buffers.items()]
    before = [(buffer, buffer.clone()) for buffer in {id(b): b for _, _, b in held if b is not None}.values()]
    own_args, own_kwargs = map_tensors((args, dict(kwargs)), torch.clone)
    try:
        with training_flags(model, False), steady_randomness(model), torch.no_grad():
            seed()
            return [tensor.detach().clone() for tensor in tensors_in(model(*own_args, **own_kwargs))]
    finally:
        for module, name, kept in held:  # a forward pass may fill a buffer by putting another in its place
            module._buffers[name] = kept
        with torch.no_grad():
            for buffer, value in before:
                if buffer.shape == value.shape:
                    buffer.copy_(value)


def disagreement(one: list[Tensor], two: list[Tensor]) -> float:
    """Largest difference of two lists of outputs, in units of what is tolerated; infinite if their shapes differ."""
    if len(one) != len(two):
        return float("inf")
    worst = 0.0
    for left, right in zip(one, two, strict=True):
        if left.shape != right.shape or left.dtype != right.dtype:
            return float("inf")
        if not left.numel():
            continue
        if not left.is_floating_point():
            worst = max(worst, 0.0 if torch.equal(left, right) else float("inf"))
            continue
        a, b = left.double(), right.double()
        if not torch.equal(a.isfinite(), b.isfinite()):
            return float("inf")
        finite = a.isfinite()
        if not bool(finite.any()):
            continue
        scale = max(float(a[finite].abs().max()), 1e-12)
        difference = float((a[finite] - b[finite]).abs().max())
        worst = max(worst, difference / scale / TOLERANCE.get(left.dtype, 1e-3))
    return worst


def prove(graph: ChannelGraph, keep: Mapping[str, np.ndarray], small: nn.Module, full: nn.Module) -> None:
    """Masked and slim must agree on the example inputs and on random ones, in eval mode.

    The random images are smaller than those of the example, which is quicker and shows that the slim network takes
    images of another size where the full one does. Where it does not, or where the two do not agree on them, the random
    inputs have the sizes of the example. The slim network itself is not run: what a run leaves behind in a module's
    attributes would go with it.

    Raises:
        GraphError: they do not; the groups to blame are named.
    """
    example, alike = graph.example_inputs, random_like(graph.example_inputs)
    other = random_like(graph.example_inputs, smaller=True)
    if [t.shape for t in tensors_in(other)] == [t.shape for t in tensors_in(alike)]:
        other = None
    elsewhere, expected = None, None
    with graph.masked_copy(keep, full) as shell:  # what the masked network leaves in attributes is not the network's
        try:
            wanted = outputs(shell, *example)
        except Exception as error:
            raise GraphError(
                "The network cannot be slimmed",
                f"masked, its forward pass failed with {type(error).__name__}: {first_line(error)}",
                "Check that model(*example_inputs) runs in eval mode",
            ) from error
        if other is not None:
            elsewhere = _tried(shell, other)
        if elsewhere is None:
            expected = _tried(shell, alike)
    twin = skeleton(small)
    _hold(graph, keep, twin, full, "the example inputs", example, wanted)
    if elsewhere is not None:
        got = _tried(twin, other)
        if got is not None and disagreement(elsewhere, got) <= 1:
            return
        with graph.masked_copy(keep, full) as shell:
            expected = _tried(shell, alike)
    if expected is not None:  # not every network takes any numbers
        _hold(graph, keep, twin, full, "random inputs", alike, expected)


def _tried(model: nn.Module, inputs: tuple[Any, Any]) -> list[Tensor] | None:
    """What a network returns; None if it fails or returns nothing."""
    try:
        made = outputs(model, *inputs)
    except Exception:  # whatever a network raises on inputs that it was not made for
        return None
    return made if any(tensor.numel() for tensor in made) else None


def _hold(
    graph: ChannelGraph,
    keep: Mapping[str, np.ndarray],
    small: nn.Module,
    full: nn.Module,
    what: str,
    inputs: tuple[Any, Any],
    wanted: list[Tensor],
) -> None:
    """The slim network must return what the masked one did.

    Raises:
        GraphError: it does not, and the difference is neither rounding nor a decision that hung on rounding.
    """
    try:
        got = outputs(small, *inputs)
    except Exception as error:
        raise GraphError(
            "The network cannot be slimmed",
            f"the slim network failed with {type(error).__name__}: {first_line(error)}"
            f"{_place(graph, keep, small, full, inputs)}",
            "Leave these groups out of the selection",
        ) from error
    if disagreement(wanted, got) <= 1 or _agree_in_double(graph, keep, small, full, *inputs):
        return
    found = _difference(graph, keep, small, full, inputs)
    if found is not None and found.decision:
        return  # everything up to a decision agrees; it fell the other way by rounding
    raise GraphError(
        "The network cannot be slimmed",
        f"masked and slim differ on {what} by {disagreement(wanted, got):.3g} times what is tolerated"
        f"{_told(graph, keep, full, found)}",
        "Leave these groups out of the selection",
    )


def _double(value: Any) -> Any:
    return map_tensors(value, lambda t: t.double() if t.is_floating_point() else t)


def _difference(
    graph: ChannelGraph,
    keep: Mapping[str, np.ndarray],
    small: nn.Module,
    full: nn.Module,
    inputs: tuple[Any, Any],
) -> Difference | None:
    """The first operation where masked and slim part, in double precision where the network runs in it."""
    for precision in ("double", "own"):
        try:
            if precision == "double":
                large, little = duplicate(full).double(), duplicate(small).double()
                given, tolerance = _double(inputs), 1e-6
            else:
                large, little, given, tolerance = full, small, inputs, 1e-2
            with graph.masked(keep, large):
                return first_difference(graph.labels, graph.structure, keep, large, little, given, tolerance)
        except Exception:  # it only serves to explain; a network that cannot be run so is judged as it is
            continue
    return None


def _told(graph: ChannelGraph, keep: Mapping[str, np.ndarray], full: nn.Module, found: Difference | None) -> str:
    return (
        f" ({found})"
        if found is not None and found.groups
        else f"{culprits(graph, keep, full)}" + (f" ({found})" if found is not None else "")
    )


def _place(
    graph: ChannelGraph,
    keep: Mapping[str, np.ndarray],
    small: nn.Module,
    full: nn.Module,
    inputs: tuple[Any, Any],
) -> str:
    return _told(graph, keep, full, _difference(graph, keep, small, full, inputs))


def _agree_in_double(
    graph: ChannelGraph,
    keep: Mapping[str, np.ndarray],
    small: nn.Module,
    full: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> bool:
    """Whether the difference was rounding: deep networks amplify it, in double precision it vanishes."""

    try:
        large, little = duplicate(full).double(), duplicate(small).double()
        inputs, named = _double((args, dict(kwargs)))
        with graph.masked(keep, large):
            wanted = outputs(large, inputs, named)
        return disagreement(wanted, outputs(little, inputs, named)) <= 1
    except Exception:  # a network that does not run in double precision is judged as it is
        return False


def culprits(graph: ChannelGraph, keep: Mapping[str, np.ndarray], full: nn.Module) -> str:
    """A group that breaks the network when slimmed without the others, found by halving, for an error message."""
    args, kwargs = graph.example_inputs

    def breaks(part: Mapping[str, np.ndarray]) -> bool:
        try:
            small = cut(graph, part, full)
            with graph.masked(part, full):
                wanted = outputs(full, args, kwargs)
            return disagreement(wanted, outputs(small, args, kwargs)) > 1
        except Exception:
            return True

    names = list(keep)
    while len(names) > 1:
        first, second = names[: len(names) // 2], names[len(names) // 2 :]
        broken = next((half for half in (first, second) if breaks({name: keep[name] for name in half})), None)
        if broken is None:
            return f" (groups {', '.join(names[:5])} together)"
        names = broken
    return f" (group {names[0]})" if names else ""
