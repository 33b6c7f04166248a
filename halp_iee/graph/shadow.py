"""Run operations on the shapes of tensors and not on their data.

A *shadow* is an ordinary tensor of the right shape, strides, type and device whose entries nobody has computed. An
operation that was seen before, with tensors of the same shapes, costs one allocation; one that was not is worked out
once, on tensors without memory or, where that is quicker, by the real kernel. What only follows from numbers written
in the network (positions, masks) is computed for real, so a network may look at it. A network that looks at the data
of a shadow has to be run on real data; that is said by `LooksAtDataError`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

MOST_ENTRIES = 2**18
"""A new operation on tensors with fewer entries than this is run for real, which is quicker than working out shapes."""

MOST_KNOWN = 50_000
"""Results remembered; beyond that they are forgotten together."""

CONTRACTIONS = ("convolution", "conv", "mm", "bmm", "addmm", "baddbmm", "attention", "linear", "einsum", "rnn", "lstm")
"""Parts of names of operations whose work is not in proportion to their entries."""

DATA_DEPENDENT = frozenset({"torchvision::nms"})
"""Operations whose shape follows the data and that carry no tag which says so."""

READS = frozenset({Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__})
"""Functions that hand out a tensor's memory without an operation."""


class LooksAtDataError(Exception):
    """The network looks at data that a shadow does not have."""


@dataclass(frozen=True)
class Traits:
    """What the schema of an operation says.

    Attributes:
        contracts: its work may be out of proportion to its entries.
        follows_data: its result's shape, or the number it gives, follows the data.
        moves: its results are views of its arguments, or it changes an argument's shape or memory.
        resizes: it may change how much memory an argument has.
        written: names of the arguments that it writes to.
        returns: for each result, the name of the argument that it is; None for a new one.
        names: of the arguments, in order.
    """

    contracts: bool
    follows_data: bool
    moves: bool
    resizes: bool
    written: tuple[str, ...]
    returns: tuple[str | None, ...]
    names: tuple[str, ...]


@functools.cache
def traits(func: Any) -> Traits:
    """The traits of an operation."""
    schema, tags = func._schema, func.tags
    short = schema.name.split("::")[-1]
    written = {
        next(iter(one.alias_info.before_set), one.name): one.name
        for one in schema.arguments
        if one.alias_info is not None and one.alias_info.is_write
    }
    returns: list[str | None] = []
    for one in schema.returns:
        alias = one.alias_info
        same = alias is not None and alias.is_write
        returns.append(written.get(next(iter(alias.before_set), "")) if same else None)
    views = any(one.alias_info is not None and not one.alias_info.is_write for one in schema.returns)
    return Traits(
        contracts=any(part in short for part in CONTRACTIONS) or not schema.name.startswith("aten::"),
        follows_data=schema.name in DATA_DEPENDENT
        or ((torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags) and short != "index"),
        moves=views or torch.Tag.inplace_view in tags,
        resizes=short in ("resize_", "set_", "resize_as_", "resize"),
        written=tuple(written.values()),
        returns=tuple(returns),
        names=tuple(one.name for one in schema.arguments),
    )


class _UnhashableError(Exception):
    """An argument that cannot be part of a key."""


def _key(value: Any, tensors: list[Tensor]) -> Any:
    """What of an argument the shapes of the results can follow from; its tensors are appended to `tensors`."""
    if isinstance(value, Tensor):
        tensors.append(value)
        if value.layout is not torch.strided:
            raise LooksAtDataError(f"a tensor of layout {value.layout}")
        return (value.shape, value.stride(), value.dtype, value.device)
    if isinstance(value, (list, tuple)):
        return tuple([_key(item, tensors) for item in value])
    if isinstance(value, (torch.Generator, dict)):
        raise _UnhashableError
    return (type(value), value)


_KNOWN: dict[Any, Any] = {}
"""Key of an operation with its arguments -> templates of its results."""


def _template(result: Any, device: torch.device | None) -> Any:
    if isinstance(result, Tensor):
        return _Like(tuple(result.shape), result.stride(), result.dtype, device or result.device)
    if isinstance(result, (list, tuple)):
        return type(result)(_template(item, device) for item in result)
    return result


@dataclass(frozen=True, slots=True)
class _Like:
    """The outside of a tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def make(self) -> Tensor:
        made = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)
        # Numbers that may be positions are kept within every range.
        if not self.dtype.is_floating_point and not self.dtype.is_complex and made.is_contiguous():
            made.zero_()
        return made


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _bare(value: Any) -> Any:
    """An argument with tensors without memory in place of its tensors."""
    if isinstance(value, Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    if isinstance(value, (list, tuple)):
        return type(value)(_bare(item) for item in value)
    if isinstance(value, torch.device):
        return torch.device("meta")
    return value


class Shadows:
    """Executes the operations of one run on shadows.

    Args:
        given: the network's tensors and inputs. Their entries are never read for more than shapes, and never written.
    """

    def __init__(self, given: Iterable[Tensor]) -> None:
        self._shadows: dict[int, StorageWeakRef] = {}
        for tensor in given:
            self.cast(tensor)
        self._given = frozenset(self._shadows)

    def cast(self, made: Any) -> None:
        """Note that the entries of a tensor are not to be looked at."""
        for tensor in _tensors(made):
            storage = tensor.untyped_storage()
            address = storage._cdata
            if address not in self._shadows:
                # The weak reference keeps the address from being used again.
                self._shadows[address] = StorageWeakRef(storage)

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor is a shadow."""
        return tensor.untyped_storage()._cdata in self._shadows

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The result of an operation, as shadows unless no argument is one.

        Raises:
            LooksAtDataError: it follows the data of a shadow.
        """
        known = traits(func)
        tensors: list[Tensor] = []
        try:
            key = (func, _key(args, tensors), *((name, _key(value, tensors)) for name, value in kwargs.items()))
        except _UnhashableError:
            key = None
            tensors = [*_tensors(args), *_tensors(tuple(kwargs.values()))]
        if not any(self.holds(tensor) for tensor in tensors):
            return func(*args, **kwargs)
        if known.follows_data or known.resizes or (func._schema.name == "aten::index" and _by_mask(args)):
            raise LooksAtDataError(f"{func._schema.name} follows the data")
        if known.moves or not known.returns:
            return func(*args, **kwargs)
        if known.written:
            return self._in_place(func, known, args, kwargs, key, tensors)
        try:
            template = _KNOWN.get(key) if key is not None else None
        except TypeError:  # a symbolic size, for one
            key, template = None, None
        if template is None:
            result = self._work_out(func, known, args, kwargs, tensors)
            fresh = any(tensor.device.type == "meta" for tensor in _tensors(result))
            device = _device(kwargs, tensors) if fresh else None
            template = _template(result, device)
            _remember(key, template)
            if not fresh:
                self.cast(result)
                return result
        made = _make(template)
        self.cast(made)
        return made

    def _in_place(
        self,
        func: Any,
        known: Traits,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        key: Any,
        tensors: list[Tensor],
    ) -> Any:
        """Check that an operation fits where it writes, and give back what it wrote to."""
        named = {**dict(zip(known.names, args, strict=False)), **kwargs}
        targets = [tensor for name in known.written for tensor in _tensors(named.get(name))]
        if any(one is None for one in known.returns):
            # It also makes something new, such as a normalisation that keeps statistics.
            result = self._apart(func, args, kwargs)
            made = _make(_template(result, _device(kwargs, tensors)))
        else:
            if key is None or key not in _KNOWN:
                if _entries(tensors) < MOST_ENTRIES and all(self._is_own(one) for one in targets):
                    func(*args, **kwargs)
                else:
                    self._apart(func, args, kwargs)
                _remember(key, True)
            results = [named.get(name or "") for name in known.returns]
            made = results[0] if len(results) == 1 else tuple(results)
        self.cast(targets)
        self.cast(made)
        return made

    def _is_own(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata not in self._given

    def _work_out(
        self,
        func: Any,
        known: Traits,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        tensors: list[Tensor],
    ) -> Any:
        plain = not known.contracts and all(tensor.is_floating_point() for tensor in tensors)
        if (
            plain
            and _entries(tensors) < MOST_ENTRIES
            and not any(isinstance(v, torch.Generator) for v in kwargs.values())
        ):
            return func(*args, **kwargs)
        return self._apart(func, args, kwargs)

    def _apart(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run an operation on tensors without memory."""
        try:
            return func(*_bare(args), **{name: _bare(value) for name, value in kwargs.items()})
        except NotImplementedError as error:
            raise LooksAtDataError(f"{func._schema.name} has no kernel without data") from error


def _remember(key: Any, template: Any) -> None:
    if key is None:
        return
    if len(_KNOWN) >= MOST_KNOWN:
        _KNOWN.clear()
    _KNOWN[key] = template


def _make(template: Any) -> Any:
    if isinstance(template, _Like):
        return template.make()
    if isinstance(template, (list, tuple)):
        return type(template)(_make(item) for item in template)
    return template


def _entries(tensors: list[Tensor]) -> int:
    return sum(math.prod(tensor.shape) for tensor in tensors)


def _device(kwargs: Mapping[str, Any], tensors: list[Tensor]) -> torch.device:
    """Where the results of an operation lie: where it is told to, else where its tensors with axes do."""
    given = kwargs.get("device")
    if given is not None:
        return torch.device(given)
    return next((tensor.device for tensor in tensors if tensor.ndim), tensors[0].device)


def _by_mask(args: tuple[Any, ...]) -> bool:
    return any(one.dtype in (torch.bool, torch.uint8) for one in _tensors(args[1:]))


def shadow_of(tensor: Tensor) -> Tensor:
    """The same tensor under another identity, so that what is done to its outside does not reach it."""
    alias = tensor.detach()
    if type(tensor) is nn.Parameter:
        return nn.Parameter(alias, requires_grad=tensor.requires_grad)
    return alias
