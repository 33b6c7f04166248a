"""Does the exported file compute what the network computes? Asked of the runtime, not of the exporter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from halp_iee.errors import GraphError, ParityError
from halp_iee.export.call import Call
from halp_iee.measure.engine import Engine

_RANDOM_CHECKS = 2
_REMEDY = "Nothing was written; look for randomness or state in evaluation mode, or take another precision"
_SAME = 1e-6  # of an output's scale: less than that is rounding
DEAF = (
    "the network gives the same output for every input (its channels are dead, or it was never trained), so the "
    "comparison says nothing of its weights"
)


def default_tolerance(tensors: Iterable[torch.Tensor]) -> float:
    """1e-4 where everything is single precision or better, 2e-2 where something is half."""
    half = any(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in tensors)
    return 2e-2 if half else 1e-4


def calls_to_check(example: Call, given: Sequence[Call], dynamic_batch: bool) -> list[Call]:
    """The example, random inputs like it, the given ones; with an open batch also other batches."""
    calls = [example, *(randomised(example, seed) for seed in range(_RANDOM_CHECKS)), *given]
    if dynamic_batch:
        calls += [example.map(lambda t: t[:1]), randomised(example.map(lambda t: torch.cat([t, t[:1]])), 99)]
    return calls


def randomised(call: Call, seed: int) -> Call:
    """Inputs of the same shapes: floats normal with the example's mean and spread, others from its values."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point():
            values = tensor.float()
            spread = values.std(correction=0) if values.numel() > 1 else torch.tensor(0.0)
            noise = torch.randn(values.shape, generator=generator)
            return (values.mean() + (spread if spread > 0 else 1.0) * noise).to(tensor.dtype)
        chosen = torch.randint(tensor.numel(), tensor.shape, generator=generator)
        return tensor.flatten()[chosen]

    return call.map(draw)


def prove(model: nn.Module, engine: Engine, calls: Sequence[Call], tolerance: float) -> float:
    """Run both on every call and return the largest relative error.

    Raises:
        GraphError: the network fails on its own inputs or gives NaN, so there is nothing to compare with.
        ParityError: they disagree by more than ``tolerance``, or in number or shape of the outputs.
    """
    worst = 0.0
    for number, call in enumerate(calls, start=1):
        expected = _tensors_of(run_torch(model, call))
        actual = _run_export(engine, call)
        where = f"on check {number} of {len(calls)}"
        if len(expected) != len(actual):
            _refuse(f"the network returns {len(expected)} tensors, the export {len(actual)} ({where})")
        for spec, want, have in zip(engine.outputs, expected, actual, strict=True):
            if want.shape != have.shape:
                _refuse(f"output {spec.name!r} is {have.shape} instead of {want.shape} {where}")
            error = relative_error(want, have)
            if not error <= tolerance:
                lost = want.any() and not have.any()  # half precision holds nothing under 6e-8
                zero = f"; it is 0 throughout, where the network gives {np.abs(want).max():.2g} at most" if lost else ""
                _refuse(
                    f"output {spec.name!r} differs by {error:.3g} of its scale {where}, allowed is {tolerance:g}{zero}"
                )
            worst = max(worst, error)
    return worst


def responds(model: nn.Module, calls: Sequence[Call]) -> bool:
    """Whether anything that the network returns depends on its inputs.

    Where it does not, two networks that have the last bias in common agree whatever the rest of their weights is.
    Calls of the first one's shapes are compared; True where there is but one of them.
    """
    shapes = [tensor.shape for tensor in calls[0].tensors()]
    alike = [call for call in calls if [tensor.shape for tensor in call.tensors()] == shapes]
    first = _tensors_of(run_torch(model, alike[0]))
    for call in alike[1:]:
        for one, other in zip(first, _tensors_of(run_torch(model, call)), strict=False):
            if one.shape != other.shape:
                return True
            if not np.issubdtype(one.dtype, np.floating) or not np.isfinite(one).all():
                if not np.array_equal(one, other):
                    return True
            elif one.size and np.abs(one - other).max() > _SAME * np.abs(one).max():
                return True
    return len(alike) < 2


def relative_error(want: np.ndarray, have: np.ndarray) -> float:
    """``max |have - want| / max |want|`` over the finite values; infinite where the two differ in kind.

    Whole numbers and truth values are compared for equality: the share that differs.
    """
    if want.size == 0:
        return 0.0
    if not np.issubdtype(want.dtype, np.floating):
        return float(np.mean(want != have))
    want, have = want.astype(np.float64), have.astype(np.float64)
    finite = np.isfinite(want)
    if not np.array_equal(finite, np.isfinite(have)) or not np.array_equal(want[~finite], have[~finite]):
        return float("inf")
    if not finite.any():
        return 0.0
    scale = np.abs(want[finite]).max()
    difference = np.abs(have[finite] - want[finite]).max()
    # An output that is zero throughout has no scale of its own: take it absolutely.
    return float(difference / scale) if scale > 1e-12 else float(difference)


def run_torch(model: nn.Module, call: Call) -> Any:
    """What the network returns.

    Raises:
        GraphError: it fails on these inputs.
    """
    copied = call.map(torch.clone)  # a network may write into its input
    try:
        with torch.no_grad():
            return model(*copied.args, **copied.kwargs)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0][:300]
        raise GraphError(
            "Cannot export the network",
            f"it fails on the inputs given: {type(error).__name__}: {reason}",
            "Give example inputs that the network accepts, and check inputs like them",
        ) from error


def output_names(result: Any) -> list[str]:
    """A name for each tensor returned: its key in a dict, ``output`` if alone, else ``output_0`` etc."""
    leaves, _ = pytree.tree_flatten_with_path(result)
    paths = [path for path, leaf in leaves if isinstance(leaf, torch.Tensor)]
    if paths == [()]:
        return ["output"]
    names = []
    for path in paths:
        keys = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", "")))) for key in path]
        name = "_".join(keys)
        names.append(name if name[:1].isalpha() else f"output_{name}")
    return names


def _tensors_of(result: Any) -> list[np.ndarray]:
    arrays = []
    for leaf in pytree.tree_leaves(result):
        if not isinstance(leaf, torch.Tensor):
            continue
        array = (leaf.float() if leaf.dtype is torch.bfloat16 else leaf).numpy()
        if np.issubdtype(array.dtype, np.floating) and np.isnan(array).any():
            raise GraphError(
                "Cannot check the export",
                "the network itself gives NaN",
                "Look at its weights, and give inputs in its range",
            )
        arrays.append(array)
    return arrays


def _run_export(engine: Engine, call: Call) -> list[np.ndarray]:
    specs, tensors = engine.inputs, call.tensors()
    if len(specs) != len(tensors):
        _refuse(f"the network takes {len(tensors)} tensors, the export {len(specs)}")
    feeds = {spec.name: tensor.contiguous().numpy() for spec, tensor in zip(specs, tensors, strict=True)}
    try:
        return engine.run(feeds)
    except Exception as error:  # the runtimes' exceptions have no common base but Exception
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        _refuse(f"{engine.runtime} fails on it: {reason}")


def _refuse(why: str) -> NoReturn:
    raise ParityError("The export was refused", why, _REMEDY)
