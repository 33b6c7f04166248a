"""Record the operations that run: a dispatch mode below every composite function, a function mode above them."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from halp_iee.graph.calls import Call, Capture, Ref, refs_in
from halp_iee.graph.live import STATISTICS, ModuleStack
from halp_iee.graph.origins import SHAPES
from halp_iee.graph.sandbox import map_tensors
from halp_iee.graph.shadow import READS, LooksAtDataError, Shadows, traits


class Outline(NamedTuple):
    """What of an operation is recorded, by its schema.

    Attributes:
        name, overload: its names without and with its overload.
        parameters: names and defaults of its arguments, in order.
        makes_tensors: whether it returns any.
        written: names of the arguments that it writes to.
    """

    name: str
    overload: str
    parameters: tuple[tuple[str, Any], ...]
    makes_tensors: bool
    written: tuple[str, ...]


@functools.cache
def outline(func: Any) -> Outline:
    """The outline of an operation."""
    schema = func._schema
    return Outline(
        schema.name,
        str(func),
        tuple((one.name, one.default_value if one.has_default_value() else None) for one in schema.arguments),
        any("Tensor" in str(item.type) for item in schema.returns),
        traits(func).written,
    )


class Identities:
    """Numbers of tensors, by identity; a tensor that is gone is forgotten."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], int]] = {}

    def __setitem__(self, tensor: Tensor, number: int) -> None:
        self._known[id(tensor)] = (weakref.ref(tensor), number)

    def get(self, tensor: Any) -> int | None:
        found = self._known.get(id(tensor))
        # The id may have been used again.
        return found[1] if found is not None and found[0]() is tensor else None


class Recorder(TorchDispatchMode):
    """Records every operation below it into a `Capture`.

    Args:
        shadows: executes the operations on shapes alone; None: they run as they are.
    """

    def __init__(self, capture: Capture, modules: ModuleStack, shadows: Shadows | None = None) -> None:
        super().__init__()
        self.capture = capture
        self.modules = modules
        self.shadows = shadows
        self._ids = Identities()
        self._sharing: dict[int, tuple[StorageWeakRef, list[int]]] = {}
        self._storage_of: dict[int, int] = {}
        self._constants: list[Tensor] = []
        self.paused = False
        self.inputs: frozenset[int] = frozenset()  # values that are the network's inputs
        self.told: tuple[Any, ...] = ()  # the arguments of the Python-level function that is running
        self.inside = False  # whether one is running

    @property
    def position(self) -> int:
        """How many operations have run."""
        return len(self.capture.calls)

    def add(self, tensor: Tensor, *, active: bool, sources: tuple[str, ...] = ()) -> int:
        capture = self.capture
        value = len(capture.shapes)
        capture.shapes.append(tuple(tensor.shape))
        capture.active.append(active)
        capture.sources.append(sources)
        capture.kinds.append((tensor.dtype, tensor.device))
        capture.strides.append(tuple(tensor.stride()) if tensor.layout == torch.strided else ())
        self._ids[tensor] = value
        try:
            storage = tensor.untyped_storage()
        except (RuntimeError, NotImplementedError):  # it has none
            return value
        address = storage._cdata
        self._storage_of[value] = address
        known = self._sharing.get(address)
        if known is None:
            # The weak reference keeps the address from being used again.
            self._sharing[address] = (StorageWeakRef(storage), [value])
        else:
            known[1].append(value)
        return value

    def ref(self, tensor: Tensor) -> Ref:
        value = self._ids.get(tensor)
        if value is None:
            self._constants.append(tensor)  # alive, or its id could be used again
            value = self.add(tensor, active=False)
        return Ref(value)

    def value_of(self, tensor: Tensor) -> int | None:
        return self._ids.get(tensor)

    def perform(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The result of an operation, by its kernel or on shadows."""
        return func(*args, **kwargs) if self.shadows is None else self.shadows(func, args, kwargs)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        known = outline(func)
        if self.paused or not known.makes_tensors:
            return self.perform(func, args, kwargs)
        bound: dict[str, Any] = {}
        given = len(args)
        for position, (name, default) in enumerate(known.parameters):
            value = args[position] if position < given else kwargs.get(name, default)
            bound[name] = map_tensors(value, self.ref) if isinstance(value, (Tensor, list, tuple)) else value
        result = self.execute(func, args, kwargs, bound)
        mutated = [ref.id for name in known.written for ref in refs_in(bound[name])]
        self.record(known.name, known.overload, bound, result, mutated)
        return result

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """What this runs under compiles nothing (`sandbox.eager`); a guard on every operation would double the time."""
        return False

    def whole(self, name: str, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run a Python-level function as one recorded operation."""
        names = NAMES.get(func)
        if names is not None:
            packed = len(args) > 3 and isinstance(args[3], list)
            given = {**dict(zip(names[packed], args, strict=False)), **kwargs}
        else:
            signature = inspect.signature(func).bind(*args, **kwargs)
            signature.apply_defaults()
            given = signature.arguments
        bound = {key: map_tensors(value, self.ref) for key, value in given.items()}
        self.paused = True
        try:
            result = self.execute(func, args, kwargs, bound)
        finally:
            self.paused = False
        self.record(name, str(func), bound, result, [])
        return result

    def execute(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], bound: dict[str, Any]) -> Any:
        # A function that is recorded whole is Python: its own operations come back here, one by one.
        return func(*args, **kwargs) if self.paused else self.perform(func, args, kwargs)

    def rescue(self, begin: int, error: Exception, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What a function that failed on these arguments returns instead; here nothing can be done."""
        raise error

    def shown(self, func: Any, args: tuple[Any, ...], result: Any) -> Any:
        """What the network is given of a function's result."""
        return result

    def literal(self, value: Any) -> None:
        """A number, or a list of numbers, that becomes a tensor."""
        self.capture.literals.append(value)

    def record(self, name: str, overload: str, bound: dict[str, Any], result: Any, mutated: list[int]) -> None:
        capture = self.capture
        returned = result if isinstance(result, (list, tuple)) else (result,)
        if not any(isinstance(item, Tensor) for item in returned):
            return
        if not self.inside:  # compiled code, whose functions nobody sees
            capture.sized, capture.plain = True, False
        refs = [ref.id for value in bound.values() for ref in refs_in(value)]
        active = any(capture.active[value] for value in refs)
        sources: tuple[str, ...] = ()
        if not active:
            sources = tuple(dict.fromkeys(name for value in refs for name in capture.sources[value]))
        # Whatever shares the storage now depends on what was written into it.
        aliases = [
            other
            for value in mutated
            if value in self._storage_of
            for other in self._sharing[self._storage_of[value]][1]
        ]
        for value in aliases:
            capture.active[value] |= active
        outputs = tuple(
            self.add(item, active=active, sources=sources) if isinstance(item, Tensor) else None for item in returned
        )
        capture.calls.append(
            Call(
                index=capture.first + len(capture.calls),
                name=name[:-1] if mutated and name.endswith("_") else name,
                args=bound,
                outputs=outputs,
                module=self.modules.current,
                overload=overload,
                mutated=tuple(aliases),
            )
        )


WHOLE = {
    nn.functional.rms_norm: "aten::rms_norm",
    nn.functional.scaled_dot_product_attention: "aten::scaled_dot_product_attention",
    torch.lstm: "aten::lstm",
    torch.gru: "aten::gru",
    torch.rnn_tanh: "aten::rnn_tanh",
    torch.rnn_relu: "aten::rnn_relu",
}
"""Functions recorded as one operation, because their parts cannot be seen to belong together."""

_RECURRENT = ("has_biases", "num_layers", "dropout", "train", "bidirectional", "batch_first")
_ATTENTION = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
NAMES: dict[Any, tuple[tuple[str, ...], tuple[str, ...]]] = {
    **dict.fromkeys(
        (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu),
        (("input", "hx", "params", *_RECURRENT), ("input", "batch_sizes", "hx", "params", *_RECURRENT[:-1])),
    ),
    nn.functional.scaled_dot_product_attention: (_ATTENTION, _ATTENTION),
}
"""Functions whose arguments cannot be read from their signature: names for whole and for packed sequences."""


LITERALS = frozenset({torch.tensor, torch.as_tensor, torch.scalar_tensor})
"""Functions that turn Python's numbers into tensors, where no operation shows them."""


SIZELESS = frozenset(
    {
        *(getattr(torch, name) for name in (
            "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "batch_norm",
            "relu", "relu_", "sigmoid", "tanh", "cat", "add", "sub", "mul", "flatten", "mean", "max_pool2d",
            "adaptive_avg_pool1d", "avg_pool1d", "dropout", "softmax", "permute", "transpose", "unsqueeze", "squeeze",
        )),
        *(getattr(nn.functional, name) for name in (
            "linear", "batch_norm", "relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "silu", "gelu", "mish",
            "leaky_relu", "elu", "sigmoid", "tanh", "dropout", "dropout1d", "dropout2d", "dropout3d", "max_pool1d",
            "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
            "adaptive_avg_pool2d", "adaptive_avg_pool3d", "softmax", "log_softmax", "layer_norm", "group_norm",
            "interpolate",
        )),
        *(getattr(Tensor, name) for name in (
            "add", "add_", "sub", "mul", "mul_", "__add__", "__iadd__", "__radd__", "__sub__", "__mul__", "__imul__",
            "__rmul__", "relu", "relu_", "sigmoid", "tanh", "mean", "flatten", "softmax", "dim", "contiguous",
            "permute", "transpose", "unsqueeze", "squeeze",
        )),
        *(getattr(Tensor, name).__get__ for name in ("is_cuda", "device", "dtype", "requires_grad", "ndim", "layout")),
    }
)  # fmt: skip
"""Functions that are told no sizes of tensors but strides, kernels and axes, and tell none."""

NUMBERED = frozenset(
    {
        *(getattr(torch, name) for name in (
            "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
        )),
        nn.functional.layer_norm, nn.functional.group_norm,
    }
)  # fmt: skip
"""Those of `SIZELESS` that are told a number of groups, or a size that their weight has too."""


def name_of(func: Any) -> str:
    """A function's name, the same in every run."""
    return str(getattr(func, "__name__", func))


class Functions(TorchFunctionMode):
    """Notes which operations each Python-level function consists of."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        recorder = self.recorder
        begin = recorder.position
        name = WHOLE.get(func)
        if func in SHAPES:
            # What tells a size alone cannot fit by chance: another number comes out.
            recorder.capture.plain &= recorder.value_of(args[0]) in recorder.inputs
        elif func not in SIZELESS:
            recorder.capture.sized, recorder.capture.plain = True, False
        elif func in NUMBERED and not recorder.modules.of_library:
            recorder.capture.plain = False
        if recorder.shadows is not None and func in READS and recorder.shadows.holds(args[0]):
            raise LooksAtDataError(f"{func.__name__} hands out a tensor's memory")
        if func in LITERALS and args and isinstance(args[0], (int, float, list, tuple)) and not recorder.paused:
            recorder.literal(args[0])
        outer, recorder.told = recorder.told, (*args, *kwargs.values()) if kwargs else args
        recorder.inside, within = True, recorder.inside
        site = recorder.modules.next_site() if func in STATISTICS else None
        try:
            if name is not None and not recorder.paused:
                result = recorder.whole(name, func, args, kwargs or {})
            else:
                result = func(*args, **(kwargs or {}))
        except LooksAtDataError:
            raise
        except Exception as error:
            return recorder.rescue(begin, error, func, args, kwargs or {})
        finally:
            recorder.told, recorder.inside = outer, within
        if recorder.position > begin:
            if site is not None:
                recorder.capture.sites.update(dict.fromkeys(range(begin, recorder.position), site))
            recorder.capture.functions[begin, name_of(func)] = (recorder.position, map_tensors(result, recorder.ref))
        return recorder.shown(func, args, result)
