"""Run a network once and record every operation that it really executes.

The record is made below autograd and below every composite function, where all of a
network's freedom (functional calls, raw parameters, control flow, containers) has
become a plain list of tensor operations. Fake tensors, which have shapes but no
data, make that cheap; a network that looks at the data is run on the real ones.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn.modules import module as nn_module
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from halp_iee.errors import GraphError
from halp_iee.graph.calls import Call, Capture, Ref, refs_in
from halp_iee.graph.sandbox import (
    first_line,
    map_tensors,
    named_tensors,
    plain_attention,
    quiet_fakes,
    skeleton,
    steady_randomness,
    tensors_in,
    training_flags,
)
from halp_iee.slim.attention import loosen


class ModuleStack:
    """The qualified names of the modules whose forward is running, outermost first."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(module): name for name, module in reversed(list(model.named_modules()))}
        self._stack: list[tuple[int, str]] = []

    @property
    def current(self) -> str:
        return self._stack[-1][1] if self._stack else ""

    def _enter(self, module: nn.Module, _args: Any) -> None:
        name = self._names.get(id(module))
        if name is not None:
            self._stack.append((id(module), name))

    def _leave(self, module: nn.Module, _args: Any, _result: Any) -> None:
        # On an exception this is not called: the stack then tells where it happened.
        # A network that catches the exception itself leaves entries to be dropped here.
        while any(entry == id(module) for entry, _ in self._stack):
            if self._stack.pop()[0] == id(module):
                return

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        handles = [
            nn_module.register_module_forward_pre_hook(self._enter),
            nn_module.register_module_forward_hook(self._leave),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def bind(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by their schema names, with the schema's defaults."""
    bound: dict[str, Any] = {}
    for position, argument in enumerate(func._schema.arguments):
        if position < len(args):
            bound[argument.name] = args[position]
        elif argument.name in kwargs:
            bound[argument.name] = kwargs[argument.name]
        else:
            bound[argument.name] = argument.default_value if argument.has_default_value() else None
    return bound


@functools.cache
def returns_tensor(func: Any) -> bool:
    """Whether an operation makes tensors, by its schema."""
    return any("Tensor" in str(item.type) for item in func._schema.returns)


class Recorder(TorchDispatchMode):
    """Records every operation below it into a `Capture`."""

    def __init__(self, capture: Capture, modules: ModuleStack) -> None:
        super().__init__()
        self.capture = capture
        self.modules = modules
        self._ids: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._sharing: dict[int, list[int]] = {}
        self._storage_of: dict[int, int] = {}
        self._constants: list[Tensor] = []
        self.paused = False

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
        self._ids[tensor] = value
        with contextlib.suppress(RuntimeError, NotImplementedError):
            storage = tensor.untyped_storage()._cdata
            self._storage_of[value] = storage
            self._sharing.setdefault(storage, []).append(value)
        return value

    def ref(self, tensor: Tensor) -> Ref:
        value = self._ids.get(tensor)
        if value is None:
            self._constants.append(tensor)  # alive, or its id could be used again
            value = self.add(tensor, active=False)
        return Ref(value)

    def value_of(self, tensor: Tensor) -> int | None:
        return self._ids.get(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.paused or not returns_tensor(func):
            return func(*args, **kwargs)
        bound = {name: map_tensors(value, self.ref) for name, value in bind(func, args, kwargs).items()}
        result = self.execute(func, args, kwargs, bound)
        mutated = [
            ref.id
            for argument in func._schema.arguments
            if argument.alias_info is not None and argument.alias_info.is_write
            for ref in refs_in(bound[argument.name])
        ]
        self.record(func._schema.name, str(func), bound, result, mutated)
        return result

    def whole(self, name: str, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run a Python-level function as one recorded operation."""
        signature = inspect.signature(func).bind(*args, **kwargs)
        signature.apply_defaults()
        bound = {key: map_tensors(value, self.ref) for key, value in signature.arguments.items()}
        self.paused = True
        try:
            result = self.execute(func, args, kwargs, bound)
        finally:
            self.paused = False
        self.record(name, str(func), bound, result, [])
        return result

    def execute(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], bound: dict[str, Any]) -> Any:
        return func(*args, **kwargs)

    def rescue(self, begin: int, error: Exception) -> Any:
        """What a function that failed returns instead; here nothing can be done."""
        raise error

    def literal(self, value: Any) -> None:
        """A number, or a list of numbers, that becomes a tensor."""
        self.capture.literals.append(value)

    def record(self, name: str, overload: str, bound: dict[str, Any], result: Any, mutated: list[int]) -> None:
        capture = self.capture
        returned = list(result) if isinstance(result, (list, tuple)) else [result]
        if not any(isinstance(item, Tensor) for item in returned):
            return
        refs = [ref.id for value in bound.values() for ref in refs_in(value)]
        active = any(capture.active[value] for value in refs)
        sources = tuple(dict.fromkeys(name for value in refs for name in capture.sources[value]))
        # Whatever shares the storage now depends on what was written into it.
        aliases = [
            other for value in mutated if value in self._storage_of for other in self._sharing[self._storage_of[value]]
        ]
        for value in aliases:
            capture.active[value] |= active
        outputs = tuple(
            self.add(item, active=active, sources=() if active else sources) if isinstance(item, Tensor) else None
            for item in returned
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


WHOLE = {nn.functional.rms_norm: "aten::rms_norm"}
"""Functions recorded as one operation, because their parts cannot be seen to belong together."""


LITERALS = frozenset({torch.tensor, torch.as_tensor, torch.scalar_tensor})
"""Functions that turn Python's numbers into tensors, where no operation shows them."""


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
        if func in LITERALS and args and isinstance(args[0], (int, float, list, tuple)) and not recorder.paused:
            recorder.literal(args[0])
        try:
            if name is not None and not recorder.paused:
                result = recorder.whole(name, func, args, kwargs or {})
            else:
                result = func(*args, **(kwargs or {}))
        except Exception as error:
            return recorder.rescue(begin, error)
        if recorder.position > begin:
            recorder.capture.functions[begin] = (recorder.position, map_tensors(result, recorder.ref))
        return result


def fake_tensors(mode: FakeTensorMode, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A fake of each tensor; names that share a tensor share its fake."""
    return {name: mode.from_tensor(tensor) for name, tensor in named.items()}


def run(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    mode: FakeTensorMode | None,
    training: bool = False,
    first: int = 0,
    recorder: Callable[[Capture, ModuleStack], Recorder] = Recorder,
) -> Capture:
    """Run `model` once with `tensors` as its parameters and buffers, and record it.

    Args:
        model: run as it stands; see `skeleton` to protect its attributes.
        args, kwargs: the inputs, fake when `mode` is given.
        tensors: every parameter and buffer by qualified name.
        mode: the fake-tensor mode that made them; None runs on real data.
        training: whether to run in train mode.
        recorder: how to record.
    """
    modules = ModuleStack(model)
    capture = Capture(fake=mode is not None, first=first)
    watcher = recorder(capture, modules)
    names: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    for name, tensor in tensors.items():
        if names[id(tensor)][0] == name:
            everyone = tuple(names[id(tensor)])
            capture.tensors[watcher.add(tensor, active=False, sources=everyone[:1])] = everyone
    for tensor in tensors_in((args, kwargs)):
        watcher.add(tensor, active=True)
    with (
        training_flags(model, training),
        steady_randomness(model),
        plain_attention(),
        quiet_fakes(),
        modules.watching(),
        torch.no_grad(),
        mode if mode is not None else contextlib.nullcontext(),
        watcher,
        Functions(watcher),
    ):
        result = functional_call(model, dict(tensors), args, dict(kwargs), tie_weights=False)
    found = (watcher.value_of(tensor) for tensor in tensors_in(result))
    capture.outputs = tuple(value for value in found if value is not None)
    return capture


def capture_model(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    training: bool = False,
    first: int = 0,
) -> Capture:
    """Record one forward pass: on fake tensors where the network allows it, else on real ones.

    Raises:
        GraphError: the network does not run on these inputs.
    """
    named = named_tensors(model)
    for name, tensor in named.items():
        if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
            raise GraphError(
                "The network cannot be traced",
                f"{name} has no shape yet (a lazy module)",
                "Run the network once first",
            )
    try:
        copied = loosen(skeleton(model))
    except Exception:  # whatever a module's own __deepcopy__ raises; tracing can do without
        copied = model
    try:
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        fake_args, fake_kwargs = map_tensors((args, dict(kwargs)), mode.from_tensor)
        return run(
            copied,
            fake_args,
            fake_kwargs,
            fake_tensors(mode, named),
            mode=mode,
            training=training,
            first=first,
        )
    except Exception:  # anything may go wrong without data; the run with data decides
        pass
    buffers = {id(tensor): tensor.clone() for tensor in model.buffers()}
    own = {name: buffers.get(id(tensor), tensor) for name, tensor in named.items()}
    try:
        copied = loosen(skeleton(model))
    except Exception:
        copied = model
    try:
        return run(copied, *copy.deepcopy((args, dict(kwargs))), own, mode=None, training=training, first=first)
    except Exception as error:
        raise GraphError(
            "The network cannot be traced",
            f"its forward pass failed with {type(error).__name__}: {first_line(error)}",
            "Pass example inputs with which model(*example_inputs) runs in eval mode",
        ) from error
