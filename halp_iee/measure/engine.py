"""What every runtime is to this package: a network that is ready to run, with inputs and outputs that are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from halp_iee.errors import UsageError

Feeds = dict[str, np.ndarray]
Inputs = np.ndarray | Sequence[np.ndarray] | Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Spec:
    """One input or output.

    Attributes:
        name: as the network calls it.
        shape: sizes of its axes; None where any size is taken.
        dtype: numpy's type; None where numpy has none (bfloat16, 8-bit floats, strings).
        type_name: the runtime's own word for the type.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any] | None
    type_name: str

    def __str__(self) -> str:
        sizes = "x".join("?" if size is None else str(size) for size in self.shape) or "scalar"
        return f"{self.name} {self.type_name} {sizes}"


class Engine(Protocol):
    """A network in a runtime."""

    @property
    def runtime(self) -> str:
        """Name and version, for people: ``ONNX Runtime 1.31.1``."""
        ...

    @property
    def inputs(self) -> tuple[Spec, ...]: ...

    @property
    def outputs(self) -> tuple[Spec, ...]: ...

    def run(self, feeds: Feeds) -> list[np.ndarray]:
        """All outputs, in order."""
        ...

    def prepare(self, feeds: Feeds) -> Callable[[], Any]:
        """A function without arguments that runs once; what can be prepared is prepared."""
        ...


def fixed_batch(engine: Engine) -> int | None:
    """The batch that a network is fixed to: the first axis of its first input; None when that is open."""
    return engine.inputs[0].shape[0] if engine.inputs and engine.inputs[0].shape else None


def random_feeds(
    specs: Sequence[Spec],
    *,
    batch: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    label: str = "the model",
) -> Feeds:
    """Random inputs of the shapes and types declared, the same for the same seed.

    A first axis of open size takes ``batch`` (1 when not given); floating-point values are standard normal;
    integers are 0 or 1, which every embedding table and every mask accepts.

    Args:
        specs: the inputs.
        batch: size of the first axis; an input that has it fixed must have this one.
        shapes: whole shapes by input name, for inputs with open axes.
        seed: of the values.
        label: what the network is called in a complaint.

    Raises:
        UsageError: an axis other than the first is open and no shape is given, a type has no numpy counterpart,
            a given shape does not fit, or the network is fixed to another batch.
    """
    if batch is not None and batch < 1:
        raise UsageError("Cannot make inputs", f"batch is {batch}", "Give a whole number from 1 up")
    given = dict(shapes or {})
    if unknown := sorted(set(given) - {spec.name for spec in specs}):
        raise UsageError(
            f"Cannot make inputs for {label}", f"it has no input {unknown[0]!r}",
            f"Its inputs are {'; '.join(map(str, specs))}",
        )  # fmt: skip
    rng = np.random.default_rng(seed)
    feeds: Feeds = {}
    for spec in specs:
        shape = _shape(spec, batch, given.get(spec.name), label)
        if spec.dtype is None:
            raise UsageError(
                f"Cannot make inputs for {label}", f"its input {spec.name!r} is of type {spec.type_name}",
                "Give the inputs as arrays, with --inputs on the command line",
            )  # fmt: skip
        if np.issubdtype(spec.dtype, np.floating):
            feeds[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
        else:
            feeds[spec.name] = rng.integers(0, 2, size=shape).astype(spec.dtype)
    return feeds


def _shape(spec: Spec, batch: int | None, given: Sequence[int] | None, label: str) -> list[int]:
    if given is not None:
        if not _fits(spec, tuple(given)):
            raise UsageError(
                f"Cannot make inputs for {label}", f"its input is {spec}, not {'x'.join(map(str, given))}",
                "Give a shape that fits it",
            )  # fmt: skip
        return [*given]
    shape: list[int] = []
    for axis, size in enumerate(spec.shape):
        if size is not None:
            if axis == 0 and batch is not None and size != batch:
                raise UsageError(
                    f"Cannot run {label} with batch {batch}", f"its input {spec.name!r} is fixed to {spec.shape}",
                    f"Use batch {size}, or export it with a dynamic batch",
                )  # fmt: skip
            shape.append(size)
        elif axis == 0:
            shape.append(batch or 1)
        else:
            raise UsageError(
                f"Cannot make inputs for {label}",
                f"axis {axis} of its input {spec.name!r} has no fixed size (it is {spec})",
                f"Give its shape, with --shape {spec.name}:1x3x224x224 on the command line, or the inputs as arrays",
            )
    return shape


def _fits(spec: Spec, shape: tuple[int, ...]) -> bool:
    return len(shape) == len(spec.shape) and all(
        want is None or want == have for want, have in zip(spec.shape, shape, strict=True)
    )


def bind(specs: Sequence[Spec], inputs: Inputs, *, label: str = "the model") -> Feeds:
    """Given arrays as feeds: one array, several in the model's order, or by name; types and shapes checked.

    Raises:
        UsageError: the number, a name or a shape does not fit the model.
    """
    names = [spec.name for spec in specs]
    if isinstance(inputs, Mapping):
        given = dict(inputs)
    else:
        arrays = [inputs] if isinstance(inputs, np.ndarray) else list(inputs)
        if len(arrays) != len(names):
            raise UsageError(
                f"The inputs do not fit {label}", f"{len(arrays)} given, it takes {len(names)}: {', '.join(names)}",
                "Give one array for each",
            )  # fmt: skip
        given = dict(zip(names, arrays, strict=True))
    if set(given) != set(names):
        raise UsageError(
            f"The inputs do not fit {label}",
            f"given {', '.join(sorted(given)) or 'nothing'}, it takes {', '.join(names)}",
            "Name the inputs as the model does",
        )
    feeds: Feeds = {}
    for spec in specs:
        array = np.asarray(given[spec.name])
        if not _fits(spec, array.shape):
            raise UsageError(
                f"The inputs do not fit {label}", f"input {spec.name!r} is {array.shape}, it takes {spec.shape}",
                "Give arrays of that shape, or export with a dynamic batch",
            )  # fmt: skip
        array = np.ascontiguousarray(array).reshape(array.shape)
        feeds[spec.name] = array if spec.dtype is None else array.astype(spec.dtype, copy=False)
    return feeds
